"""A job from its input to its manifest.

    read -> refuse -> skip what the journal has -> longest first -> workers -> journal;  then manifest and failed rows

The input is read three times as a stream (to count, to do, to write the manifest), so that memory does not grow with
the texts. Whatever stops a run, the same command goes on, and in the end the output is that of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ...errors import BadInput, QuaverError
from ..files import replacing
from .journal import Entry, Journal
from .names import Names
from .rows import MAX_SEED, Refused, Row
from .work import Task, Work, digest_of
from .workers import by_processes, here

__all__ = ["FOLDER", "Job", "Report", "Runner", "Survey", "local", "run_job", "survey", "sweep"]

FOLDER = ".batch"
WINDOW = 4096
"""Rows that are looked ahead to begin with the longest: the short ones then fill the slots up at the end."""
GIVE_UP = 50
"""Rows in a row that could not be written: then it is the disk, and not the rows."""
_PART = re.compile(r"^\..+\.\d+\.part$")


@dataclass(frozen=True)
class Job:
    """What to do, to which rows, and where to.

    Attributes:
        rows: gives the rows afresh each time. out: the output folder.
        names: of the outputs. seed: of the job; a row's own follows from it and the row's id.
        part: (i, n): only every nth row, from the ith on (counted from 1): for n machines that know nothing of each
            other, each with an output folder of its own.
        retry_failed: do those rows again that have failed in an earlier run.
    """

    rows: Callable[[], Iterable[Row | Refused]]
    out: Path
    work: Work
    names: Names
    seed: int = 0
    part: tuple[int, int] = (1, 1)
    retry_failed: bool = False


class Runner(Protocol):
    """Does tasks, in any order, and gives their entries as they come."""

    def __call__(self, work: Work, out: Path, tasks: Iterable[Task]) -> Iterator[Entry]: ...


def local(workers: int, threads: int = 1) -> Runner:
    """In this process (1 worker) or in several of this machine."""

    def run(work: Work, out: Path, tasks: Iterable[Task]) -> Iterator[Entry]:
        if workers == 1:
            return here(work, out, tasks, threads)
        return by_processes(work, out, tasks, workers, threads)

    return run


@dataclass
class Survey:
    """What an input holds: rows and characters in all, and of those that are still to do."""

    rows: int = 0
    refused: int = 0
    characters: int = 0
    done: int = 0
    failed: int = 0
    todo: int = 0
    todo_characters: int = 0


@dataclass
class Report:
    """How a run ended. `made`, `failed`: rows by now, `refused`: among the failed; the rest is of this run alone.

    Attributes:
        seconds: of audio, of all rows that are done. run_seconds, run_rows, wall: what this run made, in what time.
        reasons: of the failed rows, counted.
    """

    rows: int = 0
    made: int = 0
    failed: int = 0
    refused: int = 0
    missing: int = 0
    seconds: float = 0.0
    bytes: int = 0
    run_rows: int = 0
    run_seconds: float = 0.0
    wall: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


Tick = Callable[[Survey, Entry], None]


def run_job(
    job: Job, runner: Runner, tick: Tick | None = None, begin: Callable[[Survey], None] | None = None
) -> Report:
    """Does what is still to do, then writes the manifest and the failed rows (also when it is stopped).

    Args:
        begin: is told what there is to do before it begins. tick: is told each row that ended.

    Raises:
        BadInput, MissingFile, CorruptFile: of the input, the folder or the models. QuaverError: the disk is full.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    with _journal(job.out) as journal:
        found = survey(job, journal)
        if not found.rows:
            raise BadInput("there are no rows to do")
        if found.todo:
            job.work.check()
            sweep(job.out)
        if begin:
            begin(found)
        started, made = time.monotonic(), Report()
        try:
            _do(job, runner, journal, found, made, tick)
        finally:
            made.wall = time.monotonic() - started
            report = write_manifest(job, journal, made)
        return report


def survey(job: Job, journal: Journal | None) -> Survey:
    """Counts the rows; with a journal, forgets the entries whose files are gone."""
    found = Survey()
    for item in checked(job):
        found.rows += 1
        if isinstance(item, Refused):
            found.refused += 1
            continue
        found.characters += len(item.row.text)
        state = _state(job, journal, item)
        if state == "done":
            found.done += 1
        elif state == "failed":
            found.failed += 1
        else:
            found.todo += 1
            found.todo_characters += len(item.row.text)
    return found


def checked(job: Job) -> Iterator[Task | Refused]:
    """The rows of this part as tasks, in the order of the input; ids and output names are unique."""
    ids: set[int] = set()
    paths: set[int] = set()
    first, every = job.part
    for row in job.rows():
        if (row.number - first) % every:
            continue
        if isinstance(row, Refused):
            yield row
            continue
        try:
            seed = row_seed(job.seed, row) if row.seed is None else row.seed
            voice, model = job.work.voice_of(row)
            path = job.names.path(row, voice, model, seed)
            settings = job.work.settings(row)
            if _hash(row.id) in ids:
                raise BadInput(f"the id {row.id!r} was there before; the first row that has it is done")
            if _hash(path.casefold()) in paths:
                raise BadInput(f"another row is written to {path}; give it another id or name")
        except QuaverError as error:
            yield Refused(row.number, row.id, " ".join(str(error).split()), row.text)
            continue
        ids.add(_hash(row.id))
        paths.add(_hash(path.casefold()))
        yield Task(row, path, seed, digest_of(row, path, seed, settings))


def row_seed(seed: int, row: Row) -> int:
    """A row's seed follows from its id, so that neither its place nor its neighbours matter."""
    return int.from_bytes(hashlib.sha256(f"{seed} {row.id}".encode()).digest()[:8], "big") % min(2**31, MAX_SEED)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _state(job: Job, journal: Journal | None, task: Task) -> str:
    if journal is None or not journal.known(task.digest):
        return "todo"
    if journal.failed(task.digest):
        if job.retry_failed:
            journal.forget(task.digest)
        return "todo" if job.retry_failed else "failed"
    entry = journal.get(task.digest)
    try:
        whole = entry is not None and (job.out / task.path).stat().st_size == entry["bytes"]
    except OSError:
        whole = False
    if not whole:
        journal.forget(task.digest)
    return "done" if whole else "todo"


def _tasks(job: Job, journal: Journal) -> Iterator[Task]:
    """What is to do; of each window of rows those of one model together, the longest first."""
    todo = (t for t in checked(job) if isinstance(t, Task) and not journal.known(t.digest))
    while window := list(islice(todo, WINDOW)):
        yield from sorted(window, key=lambda t: (job.work.voice_of(t.row)[1], -len(t.row.text)))


def _do(job: Job, runner: Runner, journal: Journal, found: Survey, made: Report, tick: Tick | None) -> None:
    if not found.todo:
        return
    unwritten = 0
    results = runner(job.work, job.out, _tasks(job, journal))
    try:
        for entry in results:
            if journal.known(entry["digest"]):  # a machine was lost after it had told of the row: it is the same file
                continue
            journal.add(entry)
            made.run_rows += 1
            made.run_seconds += entry.get("seconds", 0.0)
            unwritten = unwritten + 1 if entry.get("error") == "disk" else 0
            if tick:
                tick(found, entry)
            if unwritten >= GIVE_UP:
                raise QuaverError(
                    f"{GIVE_UP} rows in a row could not be written ({entry['reason']}); free some space, then repeat "
                    "the command with --retry-failed"
                )
    finally:
        close: Any = getattr(results, "close", None)
        if close:
            close()  # a generator: stops the workers now, not when it is collected


@contextmanager
def _journal(out: Path) -> Iterator[Journal]:
    journal = Journal(out / FOLDER)
    try:
        yield journal
    finally:
        journal.close()


def sweep(out: Path) -> None:
    """Removes what processes that were killed had begun to write; nobody may be writing."""
    for path in out.rglob(".*.part"):
        if _PART.match(path.name):
            path.unlink(missing_ok=True)


# -- what a job leaves ------------------------------------------------------------------------------------------------
def write_manifest(job: Job, journal: Journal, report: Report | None = None) -> Report:
    """Manifest (one a shard) and failed.jsonl, in the order of the input, each replaced as a whole."""
    report = report or Report()
    with _Shards(job) as manifest, replacing(job.out / "failed.jsonl") as failed:
        for item in checked(job):
            report.rows += 1
            if isinstance(item, Refused):
                report.refused += 1
                _fail(report, failed, Row(item.number, item.id, item.text), "bad_input", item.reason)
                continue
            entry = journal.get(item.digest)
            if entry is None:
                report.missing += 1
            elif "error" in entry:
                _fail(report, failed, item.row, entry["error"], entry["reason"])
            else:
                kept = {key: value for key, value in entry.items() if key != "digest"}
                manifest.write({**kept, "number": item.row.number, **dict(item.row.extra)})
                report.made += 1
                report.seconds += entry.get("seconds", 0.0)
                report.bytes += entry["bytes"]
    if not report.failed:
        (job.out / "failed.jsonl").unlink()
    return report


def _fail(report: Report, file: Any, row: Row, kind: str, reason: str) -> None:
    """A failed row with all its columns: the file can be mended and given to another job."""
    columns = {key: getattr(row, key) for key in ("text", "voice", "model", "speed", "seed", "name", "source")}
    line = {"number": row.number, "id": row.id, "error": kind, "reason": reason}
    line |= {key: value for key, value in columns.items() if value not in (None, "")}
    file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    report.failed += 1
    report.reasons[kind] = report.reasons.get(kind, 0) + 1


class _Shards:
    """manifest.jsonl, or one for each group of rows: manifest-00000.jsonl, ..."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shard = -1
        self._open: Any = None
        self._file: Any = None
        self._names: set[str] = set()

    def __enter__(self) -> _Shards:
        if not self._job.names.shard_rows:
            self._begin(0)
        return self

    def write(self, line: dict[str, Any]) -> None:
        shard = self._job.names.shard(line["number"])
        if shard != self._shard:
            self._end()
            self._begin(shard)
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def _begin(self, shard: int) -> None:
        name = f"manifest-{shard:05d}.jsonl" if self._job.names.shard_rows else "manifest.jsonl"
        self._names.add(name)
        self._shard, self._open = shard, replacing(self._job.out / name)
        self._file = self._open.__enter__()

    def _end(self, *error: Any) -> None:
        if self._open is not None:
            opened, self._open = self._open, None
            opened.__exit__(*(error or (None, None, None)))

    def __exit__(self, *error: Any) -> None:
        self._end(*error)
        for path in self._job.out.glob("manifest*.jsonl"):  # of a run with other shards
            if path.name not in self._names and not any(error):
                path.unlink()
