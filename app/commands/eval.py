"""`quaver eval`: the judges of evaluation/ from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import BadInput
from ..files import check_readable

if TYPE_CHECKING:
    from ...evaluation.report import Report

app = typer.Typer(help="Measure a voice or a codec: intelligibility, quality, similarity, speed.", no_args_is_help=True)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the report, or a .json, .md or .png file.")]
Asr = Annotated[str | None, typer.Option("--asr", help="faster-whisper folder or hub name; without it no word errors.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only so many sentences or recordings.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same speech.")]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads of the model and of every judge.")]
Metrics = Annotated[
    list[str] | None, typer.Option("--metric", "-m", help="One metric (repeatable); by default all that can run.")
]
Keep = Annotated[Path | None, typer.Option("--audio-dir", help="Keep what was spoken or decoded in this folder.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command("tts")
def tts(
    texts: Annotated[Path, typer.Option("--texts", help="Sentences, one a line.")],
    model: Annotated[
        str, typer.Option("--model", help='Bundled model or folder; "none" judges baselines only.')
    ] = "default",
    voice: Annotated[list[str] | None, typer.Option("--voice", help="One voice (repeatable); by default all.")] = None,
    out: Out = None,
    asr: Asr = None,
    limit: Limit = None,
    seed: Seed = 0,
    threads: Threads = 1,
    metric: Metrics = None,
    audio_dir: Keep = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="A teacher on the same sentences: hibari, kokoro:am_michael ..."),
    ] = None,
    wav_dir: Annotated[
        list[Path] | None,
        typer.Option("--wav-dir", help="Recordings named by the number of the sentence (repeatable)."),
    ] = None,
    speaker_refs: Annotated[
        Path | None, typer.Option("--speaker-refs", help="Folder with recordings of each voice, for the similarity.")
    ] = None,
    phones: Annotated[str, typer.Option("--phones", help='Phone recogniser, or "none".')] = "semantic-25hz",
    quiet: Quiet = False,
) -> None:
    """Judge every voice of a model on a list of sentences, and print the table."""
    check_readable(texts, "list of sentences")
    _check(limit, threads)
    from ...evaluation.commands import run_tts

    report = run_tts(
        texts,
        model,
        voice or None,
        out,
        asr,
        limit,
        seed,
        threads,
        metric or None,
        audio_dir,
        baseline or None,
        wav_dir=wav_dir or None,
        speaker_refs=speaker_refs,
        phones=None if phones == "none" else phones,
        progress=not quiet,
    )
    _show(report, out)


@app.command("codec")
def codec(
    reference: Annotated[Path | None, typer.Argument(help="The original recording.")] = None,
    decoded: Annotated[Path | None, typer.Argument(help="What came out of the codec.")] = None,
    name: Annotated[str | None, typer.Option("--codec", help="Judge this codec on --files instead.")] = None,
    files: Annotated[Path | None, typer.Option("--files", help="Folder of recordings, or a JSONL manifest.")] = None,
    out: Out = None,
    asr: Asr = None,
    limit: Limit = None,
    seed: Seed = 0,
    threads: Threads = 1,
    metric: Metrics = None,
    audio_dir: Keep = None,
    sweep: Annotated[
        list[int] | None,
        typer.Option("--sweep", help="A further row with only the first so many codebooks (repeatable)."),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="What is said in the original.")] = None,
    quiet: Quiet = False,
) -> None:
    """Compare two files, or judge a codec on many recordings, and print the table."""
    for path in (reference, decoded):
        if path is not None:
            check_readable(path, "audio file")
    _check(limit, threads)
    from ...evaluation.commands import run_codec

    report = run_codec(
        reference,
        decoded,
        codec=name,
        files=files,
        out=out,
        asr=asr,
        limit=limit,
        seed=seed,
        threads=threads,
        metrics=metric or None,
        audio_dir=audio_dir,
        sweep=sweep or None,
        text=text,
        progress=not quiet,
    )
    _show(report, out)


def _check(limit: int | None, threads: int) -> None:
    if limit is not None and limit < 1:
        raise BadInput(f"--limit must be at least 1, not {limit}")
    if not 1 <= threads <= 256:
        raise BadInput(f"--threads must lie between 1 and 256, not {threads}")


def _show(report: Report, out: Path | None) -> None:
    typer.echo(report.markdown())
    if out is not None:
        typer.echo(f"written to {out}", err=True)
