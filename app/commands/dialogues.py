"""`quaver corpus dialogues`: scripted two-channel conversations, read by teacher voices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import BadInput
from .corpus import _progress


def dialogues(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the dialogues; a stopped run goes on in it.")],
    user: Annotated[
        list[str], typer.Option("--user", "-u", help="Voice of users: NAME or NAME:VOICE; repeat for more.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 100,
    assistant: Annotated[str, typer.Option("--assistant", "-a", help="Voice of the assistant.")] = "hibari",
    split: Annotated[str, typer.Option("--split", help="train, or test (fillers that training never has).")] = "train",
    turns: Annotated[int, typer.Option("--turns", min=1, max=50, help="Questions of a dialogue.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which dialogues.")] = 0,
    kokoro_dir: Annotated[
        Path | None, typer.Option("--kokoro-dir", envvar="KOKORO_DIR", help="Folder of the Kokoro model.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Make conversations by grammar: two channels, exact word times, labelled events."""
    from ...training.dialogue_audio import make_dialogues
    from ...training.dialogues import SPLITS
    from ...training.teachers import parse_teacher

    chosen: Any = split
    if split not in SPLITS:
        raise BadInput(f"no split {split!r}: {' or '.join(SPLITS)}")
    with _progress(quiet) as tick:
        rows = make_dialogues(
            out,
            count,
            assistant=parse_teacher(assistant, 1.0),
            users=[parse_teacher(name, 1.0) for name in user],
            split=chosen,
            seed=seed,
            turns=turns,
            kokoro=str(kokoro_dir) if kokoro_dir else None,
            tick=tick,
        )
    if not quiet:
        hours = sum(row.seconds for row in rows) / 3600
        typer.echo(f"{out}: {len(rows)} dialogues, {hours:.3f} h", err=True)
