"""Tasks through stations: in this process, or in several that are watched.

Processes get rows one by one as they have room, so none waits for another. One that dies (out of memory, a crash below
Python) is replaced, and the rows that were in it are made again, each alone, so that the one to blame is known.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ...errors import QuaverError
from .journal import Entry
from .work import Station, Task, Work, failure

__all__ = ["by_processes", "drive", "here"]

AHEAD = 4
"""Rows that a process holds beyond those in its slots."""
MAX_DEATHS = 5
"""One after the other, besides one of each process, without a finished row between them: then it is not a row."""


def drive(station: Station, tasks: Iterator[Task]) -> Iterator[list[Entry]]:
    """Steps a station until the tasks have run out and all of them have ended; what each step gave."""
    more = True
    try:
        while more or station.busy:
            while more and station.room:
                task = next(tasks, None)
                if task is None:
                    more = False
                else:
                    station.take(task)
            if station.busy:
                yield station.step()
    finally:
        station.close()


def here(work: Work, out: Path, tasks: Iterable[Task], threads: int = 1) -> Iterator[Entry]:
    """All tasks in this process."""
    for entries in drive(work.station(out, threads), iter(tasks)):
        yield from entries


# -- processes --------------------------------------------------------------------------------------------------------
@dataclass
class _Worker:
    """A process and the tasks that it has; `alone`: the one that it has may be to blame for a death."""

    process: Any
    pipe: Connection
    tasks: dict[str, Task] = field(default_factory=dict)
    alone: bool = False


class _Pool:
    """Processes that take tasks from one iterator."""

    def __init__(self, work: Work, out: Path, tasks: Iterator[Task], count: int, threads: int) -> None:
        self.work, self.out, self.tasks, self.threads = work, out, tasks, threads
        self.most = work.width + AHEAD
        self.suspects: deque[Task] = deque()
        self.more = True
        self.deaths = 0
        self.context = _context(work)
        self.workers: list[_Worker] = []
        for _ in range(count):
            self.workers.append(self._start())

    def entries(self) -> Iterator[Entry]:
        """Entries as they come, until all tasks have ended."""
        while True:
            for worker in self.workers:
                self._feed(worker)
            if not any(worker.tasks for worker in self.workers):
                return
            ready = wait([w.pipe for w in self.workers if w.tasks])
            for worker in [w for w in self.workers if w.pipe in ready]:
                yield from self._receive(worker)

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_serve, args=(self.work, str(self.out), theirs, self.threads), name="quaver-batch", daemon=True
        )
        with _deaf():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _feed(self, worker: _Worker) -> None:
        if self.suspects:
            if not worker.tasks:
                worker.alone = True
                self._send(worker, self.suspects.popleft())
            return
        worker.alone = worker.alone and bool(worker.tasks)
        while self.more and not worker.alone and len(worker.tasks) < self.most:
            task = next(self.tasks, None)
            if task is None:
                self.more = False
            else:
                self._send(worker, task)

    def _send(self, worker: _Worker, task: Task) -> None:
        worker.tasks[task.digest] = task
        with suppress(OSError):  # it has just died; `_receive` sees that
            worker.pipe.send(task)

    def _receive(self, worker: _Worker) -> list[Entry]:
        try:
            entries: list[Entry] = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        for entry in entries:
            worker.tasks.pop(entry["digest"], None)
        self.deaths = 0
        return entries

    def _bury(self, worker: _Worker) -> list[Entry]:
        """Replaces a dead process. What it was doing is tried once more; a row that was alone in it has failed."""
        worker.process.join(10)
        code = worker.process.exitcode
        worker.pipe.close()
        lost = list(worker.tasks.values())
        self._clean(worker)
        self.deaths += 1
        if self.deaths > MAX_DEATHS + len(self.workers):
            raise QuaverError(
                f"the worker processes die (exit code {code}); with less --workers the same command goes on"
            )
        self.workers[self.workers.index(worker)] = self._start()
        if worker.alone:
            killed = f"signal {-code}" if code and code < 0 else f"exit code {code}"
            return [failure(task, QuaverError(f"its worker process died twice over it ({killed})")) for task in lost]
        self.suspects.extend(lost)
        return []

    def close(self) -> None:
        for worker in self.workers:
            worker.pipe.close()  # they leave when they see this
        end = time.monotonic() + 5.0
        for worker in self.workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
                self._clean(worker)

    def _clean(self, worker: _Worker) -> None:
        """Removes what a process that was killed was writing (see `files.replacing`)."""
        for folder in {(self.out / task.path).parent for task in worker.tasks.values()}:
            for part in folder.glob(f".*.{worker.process.pid}.part"):
                part.unlink(missing_ok=True)


def by_processes(work: Work, out: Path, tasks: Iterable[Task], count: int, threads: int = 1) -> Iterator[Entry]:
    """All tasks in `count` processes of `threads` threads each; entries in the order in which they come.

    Raises:
        QuaverError: processes die again and again, whatever they are given.
    """
    pool = _Pool(work, out, iter(tasks), count, threads)
    try:
        yield from pool.entries()
    finally:
        pool.close()


def _context(work: Work) -> Any:
    """How processes start: forked from one that has imported what they need and done nothing else, where there is such.

    A fork of this process could hang, as it may have threads; and imports cost as much as ten seconds of speech.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["quaver.app.batch.workers", *work.modules])
    return context


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start in here do not hear Ctrl-C, not even while they import."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(work: Work, out: str, pipe: Connection, threads: int) -> None:
    """A worker process. It leaves at once when the pipe closes, which it does whatever happens to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    gone = threading.Event()

    def read() -> None:
        try:
            while True:
                inbox.put(pipe.recv())
        except (EOFError, OSError):
            gone.set()
            inbox.put(None)

    threading.Thread(target=read, daemon=True).start()
    station = work.station(Path(out), threads)
    try:
        while not gone.is_set():
            while station.room and not (station.busy and inbox.empty()):
                task = inbox.get()
                if task is None:
                    return
                station.take(task)
            if entries := station.step():
                pipe.send(entries)
    except OSError:  # nobody listens any more
        return
    finally:
        station.close()
