"""`quaver edit`: other words in a recording, everything else as it was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import BadInput
from ..files import STDIO, check_writable
from .voice import THREADS, mono, transcript_of

if TYPE_CHECKING:
    from ...tts.editing import Edited

LONGEST = 300.0
"""Seconds of a recording: the aligner looks at it as a whole."""


def edit(
    source: Annotated[str, typer.Argument(help='The recording; "-" reads standard input. At most 5 minutes.')],
    transcript: Annotated[str, typer.Option("--transcript", "-t", help="What is said in it, or a .txt file.")],
    change: Annotated[
        list[str],
        typer.Option("--replace", "-r", help='"old words=>new words"; nothing after the arrow cuts out. Repeatable.'),
    ],
    output: Annotated[str | None, typer.Option("--output", "-o", help='Audio file, or "-" for stdout.')] = None,
    model: Annotated[str, typer.Option("--model", help="A model that fills gaps, by name or folder.")] = "ardit-1step",
    voice: Annotated[
        str | None, typer.Option("--voice", help="Speaker of the model's, where the recording is of one.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same audio.")] = 0,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2, help="Factor on the noise.")] = 0.8,
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, max=64, help="Drawn of every gap; the one best understood is taken.")
    ] = 8,
    timestamps: Annotated[Path | None, typer.Option("--timestamps", help="Write what changed where, as JSON.")] = None,
    threads: THREADS = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the terminal.")] = False,
) -> None:
    """Say other words in a recording, in its voice. The rest stays as the codec gives it back, sample by sample."""
    from ...tts.editing import Editor, parse_change
    from ..audio import AudioWriter, check_format
    from ..runtime import use_threads

    if output is None:
        output = f"{'speech' if source == STDIO else Path(source).stem}-edited.wav"
    if output != STDIO:
        check_format(output)
        check_writable(output)
    changes, said = [parse_change(text) for text in change], transcript_of(transcript)
    use_threads(threads)
    editor = Editor.load(model)
    rate = editor.codec.sample_rate
    audio = mono(source, rate)
    if len(audio) > LONGEST * rate:
        raise BadInput(f"{source} lasts {len(audio) / rate:.0f} s; at most {LONGEST:g} s are taken: cut out the part")
    started = time.perf_counter()
    edited = editor.edit(audio, said, changes, voice=voice, seed=seed, temperature=temperature, candidates=candidates)
    with AudioWriter(output, rate) as writer:
        writer.write(edited.samples)
    if timestamps is not None:
        timestamps.write_text(json.dumps(_report(edited), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not quiet:
        if output != STDIO:
            typer.echo(output)
        typer.echo(_summary(edited, time.perf_counter() - started), err=True)


def _report(edited: Edited) -> dict[str, object]:
    from ...tts.editing import MARGIN

    spans = [
        {"old": s.change.old, "new": s.change.new, "was": list(s.old), "is": list(s.new), "margin": MARGIN}
        for s in edited.spans
    ]
    return {"transcript": edited.transcript, "alignment_score": round(edited.score, 3), "changes": spans}


def _summary(edited: Edited, spent: float) -> str:
    lines = [
        f"{s.change.old!r} ({s.old[0]:.2f} to {s.old[1]:.2f} s) is now "
        + (f"{s.change.new!r} ({s.new[0]:.2f} to {s.new[1]:.2f} s)" if s.change.new else "gone")
        for s in edited.spans
    ]
    return "\n".join([*lines, f"alignment score {edited.score:.2f}, done in {spent:.1f} s"])
