"""`quaver eval duplex`: how a duplex model takes turns on scripted dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import BadInput
from .corpus import _progress


def duplex(
    dialogues: Annotated[Path, typer.Option("--dialogues", help="Folder made by `quaver corpus dialogues`.")],
    model: Annotated[
        str, typer.Option("--model", help='Duplex model; "none" judges the recorded assistant.')
    ] = "quaver-duplex",
    split: Annotated[str, typer.Option("--split", help="test or train.")] = "test",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many dialogues.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder: report, table, timeline picture.")] = None,
    asr: Annotated[
        str | None, typer.Option("--asr", help="faster-whisper folder or hub name; without it no answers are judged.")
    ] = None,
    slots: Annotated[
        int, typer.Option("--slots", min=1, max=64, help="Dialogues played at once, in one batch; the same result.")
    ] = 1,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Instead: one session of so long, without a reset; the dialogues in turn."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same conversations.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="CPU threads.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Play scripted dialogues to a model and judge its turn-taking (Full-Duplex-Bench), and its answers with --asr.

    Of a model that recognises or synthesizes (recipes/duplex-asr.yaml, duplex-tts.yaml): its word errors.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file; name a folder")
    if minutes is not None and (slots > 1 or limit is not None):
        raise BadInput("--minutes is one session over all dialogues; leave --slots and --limit out")
    from ...dialogue.loading import load_duplex
    from ...evaluation.duplex_modes import run_mode
    from ...evaluation.duplex_run import run_duplex
    from ...evaluation.duplex_session import run_session
    from ..runtime import use_threads

    use_threads(threads)
    parts = None if model == "none" else load_duplex(model)
    recognise = None
    if asr is not None:
        from ...evaluation.duplex_run import recogniser

        recognise = recogniser(asr, threads)
    mode = "dialogue" if parts is None else parts.model.config.mode
    if minutes is not None and mode != "dialogue":
        raise BadInput(f"{model} is a {mode}; --minutes is for models that converse")
    with _progress(quiet) as tick:
        given: dict[str, Any] = {"split": split, "seed": seed, "out": out, "recognise": recognise, "tick": tick}
        if minutes is not None:
            report = run_session(dialogues, parts, minutes, **given)
        elif parts is None or mode == "dialogue":
            report = run_duplex(dialogues, parts, limit=limit, slots=slots, **given)
        else:
            report = run_mode(dialogues, parts, limit=limit, slots=slots, **given)
    typer.echo(report.markdown())
    if out is not None:
        typer.echo(f"written to {out}", err=True)
