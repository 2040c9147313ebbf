"""`quaver eval edit`: speech editing on a list of cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..files import check_readable, check_writable
from .voice import mono

if TYPE_CHECKING:
    import numpy as np


def edit(
    cases: Annotated[Path, typer.Argument(help='JSONL: "audio", "transcript", "old", "new", perhaps "voice".')],
    asr: Annotated[str, typer.Option("--asr", help="faster-whisper folder or hub name.")],
    model: Annotated[str, typer.Option("--model", help="A model that fills gaps, by name or folder.")] = "ardit-1step",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the table (.md), or all of it (.json).")
    ] = None,
    audio_dir: Annotated[Path | None, typer.Option("--audio-dir", help="Keep the results in this folder.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same audio.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="CPU threads.")] = 1,
) -> None:
    """Edit every case and count: are the new words heard, and all others still?"""
    check_readable(cases, "list of cases")
    if out is not None:
        check_writable(out)
    from ...evaluation.editing import as_json, read_cases, run_cases, summary
    from ...evaluation.judges import Judges
    from ...tts.editing import Editor
    from ..audio import AudioWriter
    from ..runtime import use_threads

    use_threads(threads)

    def read(path: Path, rate: int) -> np.ndarray:
        return mono(str(path), rate)

    def keep(number: int, samples: np.ndarray, rate: int) -> None:
        assert audio_dir is not None
        audio_dir.mkdir(parents=True, exist_ok=True)
        with AudioWriter(str(audio_dir / f"{number:03d}.wav"), rate) as writer:
            writer.write(samples)

    judges = Judges(asr=asr, threads=threads)
    results = run_cases(
        Editor.load(model), read_cases(cases), judges, read, seed=seed, keep=keep if audio_dir else None
    )
    table = summary(results)
    typer.echo(table)
    if out is not None:
        out.write_text(as_json(results) if out.suffix == ".json" else table + "\n", encoding="utf-8")
