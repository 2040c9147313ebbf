"""Comparisons, A B A B: every side in a process of its own, one repetition at a time, in turn.

What else the machine does falls on all sides of a row alike, so a row's figures are ratios of neighbours in time: each
round gives one ratio per peer, and the row tells their median, least and most, for CPU time and for wall time.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = ROOT / ".venv" / "peers"
Sample = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One side of a row.

    Attributes:
        name: as the table shows it. target: `file.py:function` in `benchmarks/sides`, or with an absolute path.
        settings: its keyword arguments. peers: it runs in the environment that `make bench-peers` makes.
    """

    name: str
    target: str
    settings: dict[str, Any] = field(default_factory=dict)
    peers: bool = False


@dataclass(frozen=True)
class Row:
    """One comparison; the first side is ours, and ratios are the others' time over its.

    Attributes:
        name: to choose it by. table: the table it is a part of. title: what its first column says.
        sides: ours first. scale: of the shown time, per unit (1000: milliseconds).
        rounds: at most; `seconds`: no new round begins after so many (two rounds are always made).
        warmup: repetitions of each side that do not count. remark: shown below the table: why it is lost, what differs.
    """

    name: str
    table: str
    title: str
    sides: tuple[Side, ...]
    scale: float = 1000.0
    rounds: int = 9
    seconds: float = 50.0
    warmup: int = 1
    remark: str = ""


class WorkerFailed(Exception):
    """A side could not be built, or a repetition failed; `missing`: it is not installed here."""

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def environment(threads: int) -> dict[str, str]:
    """Of every worker: the same threads, no network, no compiler, and none of our folders in the path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    return kept | counts | quiet | {"NO_TORCH_COMPILE": "1", "TOKENIZERS_PARALLELISM": "false"}


def python_of(side: Side, peers: Path = PEERS) -> Path:
    return peers / "bin" / "python" if side.peers else Path(sys.executable)


class Worker:
    """The runner's end of one side."""

    def __init__(self, side: Side, threads: int = 1, limit: float = 600.0, peers: Path = PEERS) -> None:
        python = python_of(side, peers)
        if not python.exists():
            raise WorkerFailed("run `make bench-peers`", missing=True)
        path, _, function = side.target.rpartition(":")
        target = f"{path if os.path.isabs(path) else HERE / 'sides' / path}:{function}"
        command = [str(python), str(HERE / "worker.py"), target, json.dumps(side.settings)]
        self.side, self.limit = side, limit
        # Into a file, not a pipe: a worker that prints a lot must never wait for us.
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            cwd="/",
            env=environment(threads),
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out, self._rest = self.process.stdin, self.process.stdout, b""
        try:
            self.info: dict[str, Any] = self._answer()["ready"]
        except BaseException:
            self.close()
            raise

    def ask(self, what: str) -> Sample:
        """Sends one request and waits for its answer.

        Raises:
            WorkerFailed: it failed, ended, or took too long.
        """
        try:
            self._in.write(json.dumps({"do": what}).encode() + b"\n")
            self._in.flush()
        except BrokenPipeError:
            raise WorkerFailed(f"{self.side.name}: the worker has ended\n{self._said()}") from None
        return self._answer()

    def _answer(self) -> Sample:
        until = time.monotonic() + self.limit
        while b"\n" not in self._rest:
            if not select.select([self._out], [], [], max(0.0, until - time.monotonic()))[0]:
                raise WorkerFailed(f"{self.side.name}: no answer within {self.limit:.0f} s")
            part = os.read(self._out.fileno(), 65_536)
            if not part:
                raise WorkerFailed(f"{self.side.name}: the worker has ended\n{self._said()}")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Sample = json.loads(line)
        if "missing" in answer:
            raise WorkerFailed(answer["missing"], missing=True)
        if "error" in answer:
            raise WorkerFailed(f"{self.side.name}: {answer['error']}")
        return answer

    def _said(self) -> str:
        """The end of what the worker wrote to stderr."""
        self._noise.seek(0)
        return self._noise.read()[-4000:].decode(errors="replace")

    def close(self) -> None:
        """Ends the worker: kindly, then not."""
        try:
            with suppress(BrokenPipeError):
                self._in.close()
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            self._out.close()
            self._noise.close()


def _silent(text: str) -> None:
    pass


def run(
    row: Row, threads: int = 1, quick: bool = False, peers: Path = PEERS, say: Callable[[str], None] = _silent
) -> Sample:
    """Measures a row: `{"name", "table", "title", "remark", "load", "sides": [...]}`, sides in the row's order.

    A side that is missing or fails is told of (`missing`, `error`) and the others go on. `quick`: two rounds.
    """
    workers: list[Worker | None] = []
    told: list[Sample] = []
    load = os.getloadavg()[0]
    try:
        for side in row.sides:
            entry: Sample = {"name": side.name, "samples": []}
            told.append(entry)
            worker = None
            try:
                worker = Worker(side, threads, peers=peers)
                entry["info"] = worker.info
                for _ in range(0 if quick else row.warmup):
                    worker.ask("run")
            except WorkerFailed as failure:
                _note(entry, failure, say)
                if worker is not None:
                    worker.close()
                worker = None
            workers.append(worker)
        _rounds(row, workers, told, 2 if quick else row.rounds, say)
    finally:
        for worker in workers:
            if worker is not None:
                worker.close()
    found: Sample = {k: getattr(row, k) for k in ("name", "table", "title", "remark", "scale")}
    found |= {"load": [load, os.getloadavg()[0]], "threads": threads, "sides": told}
    for entry in told:
        entry |= summary(entry["samples"], told[0]["samples"], row.scale)
    return found


def _rounds(
    row: Row, workers: list[Worker | None], told: list[Sample], rounds: int, say: Callable[[str], None]
) -> None:
    begun = time.monotonic()
    for turn in range(rounds):
        if turn >= 2 and time.monotonic() - begun > row.seconds:
            break
        for place, worker in enumerate(workers):
            if worker is None:
                continue
            try:
                told[place]["samples"].append(worker.ask("run"))
            except WorkerFailed as failure:
                _note(told[place], failure, say)
                worker.close()
                workers[place] = None
    for entry, worker in zip(told, workers, strict=True):
        if worker is not None:
            entry["memory"] = worker.ask("memory")


def _note(entry: Sample, failure: WorkerFailed, say: Callable[[str], None]) -> None:
    entry["missing" if failure.missing else "error"] = str(failure)
    say(f"{entry['name']}: {failure}")


def summary(samples: Sequence[Sample], ours: Sequence[Sample], scale: float) -> Sample:
    """Medians over the rounds of time per unit, of every other figure, and of the ratio to our time in that round."""
    if not samples:
        return {}
    found: Sample = {"rounds": len(samples)}
    for clock in ("cpu", "wall"):
        spent = [scale * s[clock] / s.get("units", 1) for s in samples]
        found[clock] = median(spent)
        mine = [scale * s[clock] / s.get("units", 1) for s in ours]
        ratios = [a / b for a, b in zip(spent, mine, strict=False) if b > 0]
        if ratios and samples is not ours:
            found[f"{clock}_ratio"] = [median(ratios), min(ratios), max(ratios)]
    for key in samples[0]:
        if key not in ("cpu", "wall", "units") and isinstance(samples[0][key], int | float):
            found[key] = median(s[key] for s in samples)
    return found
