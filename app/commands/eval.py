"""`quaver eval`: the judges of evaluation/ from the command line."""

from __future__ import annotations

import typer

app = typer.Typer(help="Measure a voice or a codec: intelligibility, quality, similarity, speed.", no_args_is_help=True)
