"""`quaver batch`: a table of texts into a folder of speech, by many processes or machines, resumable after anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...errors import BadInput
from .options import DELTA, DRAFT, DRAFT_LENGTH, SPECULATE

if TYPE_CHECKING:
    from ..batch.journal import Entry
    from ..batch.run import Job, Report, Runner, Survey

SOME_FAILED = 3
"""The exit code of a job that has ended with rows that failed."""

WORKERS = Annotated[
    int | None,
    typer.Option("--workers", "-w", min=1, max=1024, help="Processes, one thread each; by default one a core."),
]
SHARD_ROWS = Annotated[
    int, typer.Option("--shard-rows", min=0, help="So many rows a folder and manifest (0: all in one).")
]
PART = Annotated[str, typer.Option("--part", help="I/N: only every Nth row, from the Ith; for N machines.")]
RETRY = Annotated[bool, typer.Option("--retry-failed", help="Do again what failed in an earlier run.")]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no figures.")]
ENGINE = Annotated[Literal["local", "ray"], typer.Option("--engine", help="This machine, or a Ray cluster.")]
ADDRESS = Annotated[
    str | None, typer.Option("--address", help="Of the Ray cluster; by default a local one is started.")
]


def batch(
    source: Annotated[Path, typer.Argument(help="csv, tsv, jsonl, parquet, txt (a text a line), or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the speech; a stopped job goes on in it.")],
    model: Annotated[
        str, typer.Option("--model", help="Of rows that name none: bundled model, or a folder.")
    ] = "default",
    voice: Annotated[str | None, typer.Option("--voice", help="Of rows that name none.")] = None,
    speed: Annotated[float, typer.Option("--speed", help="Of rows that give none: 0.5 (slow) to 2 (fast).")] = 1.0,
    pause: Annotated[float, typer.Option("--pause", help="Length of pauses, 0.1 to 5 times the usual.")] = 1.0,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 (always the likeliest) to 2.")] = None,
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", help="Decode only the first so many codebooks.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the job; each row's seed follows from it and the row's id.")
    ] = 0,
    form: Annotated[
        Literal["wav", "flac", "ogg", "opus", "mp3"], typer.Option("--format", "-f", help="Of the audio files.")
    ] = "wav",
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help='Template of file names: "{voice}/{id}"; {name}, {number}, {shard}, {model}, {seed}.'
        ),
    ] = None,
    timestamps: Annotated[
        Literal["json", "srt"] | None, typer.Option("--timestamps", "-t", help="A time table beside each file.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read back what was spoken: error rates in the manifest.")
    ] = False,
    asr: Annotated[
        str | None, typer.Option("--asr", help="With --check: faster-whisper folder or hub name (words).")
    ] = None,
    speculate: SPECULATE = "off",
    draft: DRAFT = None,
    draft_length: DRAFT_LENGTH = "3",
    delta: DELTA = 0.1,
    workers: WORKERS = None,
    slots: Annotated[int, typer.Option("--slots", min=1, max=256, help="Rows that a process speaks at once.")] = 16,
    shard_rows: SHARD_ROWS = 0,
    part: PART = "1/1",
    retry_failed: RETRY = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Speak a few rows and estimate hours, bytes, time.")
    ] = False,
    engine: ENGINE = "local",
    address: ADDRESS = None,
    quiet: QUIET = False,
) -> int:
    """Speak every row of a table into a file of its own, with a manifest."""
    from ..batch.names import Names
    from ..batch.rows import read_rows
    from ..batch.run import Job
    from ..batch.speech import SpeechWork
    from ..speculation import Speculating

    if asr and not check:
        raise BadInput("--asr says who reads back; it needs --check")
    work = SpeechWork(
        model=model,
        voice=voice,
        speed=speed,
        pause=pause,
        temperature=temperature,
        codebooks=codebooks,
        suffix=f".{form}",
        timestamps=f".{timestamps}" if timestamps else "",
        slots=slots,
        speculation=Speculating(rule=speculate, draft=draft, length=draft_length, delta=delta),
        asr=asr,
        check_phones=check and not asr,
    )
    names = Names(template_of(name, shard_rows), work.suffix, shard_rows)
    job = Job(lambda: read_rows(source), out, work, names, seed, parse_part(part), retry_failed)
    if dry_run:
        from ..batch.estimate import estimate

        estimate(job, workers or cores()).show()
        return 0
    return run_and_report(job, runner_of(job, engine, address, workers), quiet)


def template_of(name: str | None, shard_rows: int) -> str:
    """The template that applies where none is given."""
    return name or ("{shard}/{name}" if shard_rows else "{name}")


def parse_part(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8)."""
    first, _, every = text.partition("/")
    if not (first.isdecimal() and every.isdecimal() and 1 <= int(first) <= int(every)):
        raise BadInput(f"--part is {text!r}; give I/N with I from 1 to N")
    return int(first), int(every)


def cores() -> int:
    """Of this machine, as far as this process may use them."""
    return len(os.sched_getaffinity(0))


def runner_of(job: Job, engine: str, address: str | None, workers: int | None) -> Runner:
    """Who does the work."""
    from ..batch.run import local

    if engine == "ray":
        from ..batch.cluster import on_ray

        return on_ray(address, workers)
    if address:
        raise BadInput("--address is that of a Ray cluster; give --engine ray too")
    return local(workers or cores())


def run_and_report(job: Job, runner: Runner, quiet: bool) -> int:
    """Runs a job behind a progress bar; 0, or 3 where rows have failed."""
    from ..batch.run import run_job
    from ..batch.summary import write_summary

    with progress(quiet) as (begin, tick):
        try:
            report = run_job(job, runner, tick, begin)
        except KeyboardInterrupt:
            if not quiet:
                typer.echo(f"stopped; the same command goes on in {job.out}", err=True)
            raise
    write_summary(job, report)
    if not quiet:
        _show(job, report)
    return SOME_FAILED if report.failed else 0


@contextmanager
def progress(quiet: bool) -> Iterator[tuple[Callable[[Survey], None], Callable[[Survey, Entry], None]]]:
    """A bar on stderr that counts rows, and weighs them by their characters for the remaining time."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    text = "{task.fields[rows]}/{task.fields[todo]} rows  {task.fields[hours]:.2f} h  {task.fields[rate]:.1f}x"
    columns = (BarColumn(), TextColumn(text), TimeElapsedColumn(), TimeRemainingColumn())
    shown = not quiet and sys.stderr.isatty()
    bar = Progress(*columns, console=Console(stderr=True), disable=not shown, speed_estimate_period=120)
    state = {"rows": 0, "seconds": 0.0, "characters": 0}
    task: Any = None

    def begin(survey: Survey) -> None:
        nonlocal task
        if survey.todo:
            task = bar.add_task("", total=max(1, survey.todo_characters), rows=0, todo=survey.todo, hours=0.0, rate=0.0)
            bar.start()

    def tick(survey: Survey, entry: Entry) -> None:
        state["rows"] += 1
        state["seconds"] += entry.get("seconds", 0.0)
        state["characters"] += max(1, len(entry.get("text", "")))
        elapsed = bar.tasks[task].elapsed or 1e-9
        bar.update(
            task,
            completed=min(state["characters"], max(1, survey.todo_characters)),
            rows=state["rows"],
            hours=state["seconds"] / 3600,
            rate=state["seconds"] / elapsed,
        )

    try:
        yield begin, tick
    finally:
        if task is not None:
            bar.stop()


def _show(job: Job, report: Report) -> None:
    """The folder on stdout, for scripts; the figures on stderr, for people."""
    typer.echo(job.out)
    line = f"{report.made} of {report.rows} rows, {report.seconds / 3600:.3f} h, {report.bytes / 1e6:.1f} MB"
    if report.run_rows:
        times = report.run_seconds / max(report.wall, 1e-9)
        line += f"; this run {report.run_rows} rows in {report.wall:.1f} s ({times:.1f} times real time)"
    typer.echo(line, err=True)
    if report.failed:
        reasons = ", ".join(f"{kind} {count}" for kind, count in sorted(report.reasons.items()))
        typer.echo(f"{report.failed} rows failed ({reasons}): see {job.out / 'failed.jsonl'}", err=True)
