"""`--dry-run`: some rows are spoken and thrown away, and the rest is reckoned from them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ...errors import BadInput
from .journal import Journal
from .run import FOLDER, Job, checked, local, survey
from .work import Task

__all__ = ["Estimate", "estimate"]

SAMPLE = 32
"""Rows that are spoken at the most."""
CHARACTERS = 4_000
"""Of those rows together, unless the first alone has more."""


@dataclass(frozen=True)
class Estimate:
    """What a job will give and cost, from a sample of its rows.

    Attributes:
        rows, refused, done: of the input. todo: rows that would be done.
        seconds, bytes: of audio, of what is to do. wall: seconds of work on `workers` processes.
        sample: rows that were spoken, failed: of them. free: bytes on the disk.
    """

    rows: int
    refused: int
    done: int
    todo: int
    seconds: float
    bytes: float
    wall: float
    workers: int
    sample: int
    failed: int
    free: int

    def lines(self) -> Iterator[str]:
        yield f"rows: {self.rows}, of which {self.done} are done and {self.refused} cannot be used"
        yield f"to do: {self.todo}"
        if not self.todo:
            return
        yield f"speech: {_hours(self.seconds)}"
        yield f"bytes: {_size(self.bytes)} of {_size(self.free)} free"
        yield f"time: {_hours(self.wall)} with {self.workers} workers"
        yield f"reckoned from {self.sample} rows, of which {self.failed} failed"

    def show(self) -> None:
        import typer

        for line in self.lines():
            typer.echo(line)
        if self.bytes > self.free:
            typer.echo("this will not fit on the disk", err=True)


def estimate(job: Job, workers: int) -> Estimate:
    """Speaks a sample in this process, into a temporary folder; nothing is written to the job's own.

    Raises:
        as for `run_job`.
    """
    journal = Journal(job.out / FOLDER) if (job.out / FOLDER / "journal.jsonl").exists() else None
    try:
        found = survey(job, journal)
        if not found.rows:
            raise BadInput("there are no rows to do")
        if found.todo:
            job.work.check()
        sample = list(_sample(job, journal, found.todo))
    finally:
        if journal:
            journal.close()
    characters = made = seconds = size = wall = 0.0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="quaver-") as folder:
        run = local(1)
        list(run(job.work, Path(folder), sample[:1]))  # loads the models, which a long job does not notice
        started = time.process_time()
        lengths = {task.digest: len(task.row.text) for task in sample}
        for entry in run(job.work, Path(folder), sample) if sample else ():
            if "error" in entry:
                failed += 1
                continue
            made += 1
            characters += lengths[entry["digest"]]
            seconds += entry["seconds"]
            size += entry["bytes"]
        wall = time.process_time() - started
    share = found.todo_characters / characters if characters else 0.0
    return Estimate(
        found.rows,
        found.refused,
        found.done,
        found.todo,
        seconds * share,
        size * share,
        wall * share / workers,
        workers,
        len(sample),
        failed,
        shutil.disk_usage(_existing(job.out)).free,
    )


def _sample(job: Job, journal: Journal | None, todo: int) -> Iterator[Task]:
    """Rows at even distances over what is to do."""
    step, spent, places = max(1, todo // SAMPLE), 0, count()
    for task in checked(job):
        if not isinstance(task, Task) or (journal and journal.known(task.digest)) or next(places) % step:
            continue
        if spent and spent + len(task.row.text) > CHARACTERS:
            return
        spent += len(task.row.text)
        yield task


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.0f} s"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
