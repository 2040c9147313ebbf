"""`quaver train`: one recipe, one command, on one thread, several processes or a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import BadInput
from ..files import check_readable


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, such as recipes/codec-24k.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change: section.key=value ...")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; by default runs/<recipe>.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew instead of resuming the run in that folder.")
    ] = False,
    processes: Annotated[int, typer.Option("--processes", "-p", help="Data-parallel processes of one thread.")] = 1,
) -> None:
    """Train a recipe; a run that was stopped goes on where it was."""
    check_readable(recipe, "recipe")
    for override in overrides or []:
        if "=" not in override:
            raise BadInput(f"{override!r} is no setting; write section.key=value")
    if processes < 1:
        raise BadInput(f"--processes must be at least 1, not {processes}")
    from ...training.run import train as run

    run(recipe, out or Path("runs") / recipe.stem, list(overrides or []), resume=not fresh, processes=processes)
