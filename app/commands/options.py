"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["DELTA", "DRAFT", "DRAFT_LENGTH", "SPECULATE"]

SPECULATE = Annotated[
    str, typer.Option("--speculate", help="off, exact, pcg, budgeted or tolerance (docs/speculation.md).")
]
DRAFT = Annotated[str | None, typer.Option("--draft", help="Who drafts: head, lookup, or a drafter's folder.")]
DRAFT_LENGTH = Annotated[
    str, typer.Option("--draft-length", help="Tokens to draft at a time, or auto: from costs measured at load.")
]
DELTA = Annotated[float, typer.Option("--delta", help="Total variation a step may spend (budgeted).")]
