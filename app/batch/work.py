"""What a job does to its rows, apart from how the rows get there.

A `Work` is plain data that can be sent to another process or machine. There it makes a `Station`, which holds the
models and several rows at once. Nothing that comes out of a station may depend on which station it was, on the other
rows in it, or on the order in which they came.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...errors import QuaverError
from .journal import Entry
from .rows import Row

__all__ = ["Station", "Task", "Work", "digest_of", "failure"]


@dataclass(frozen=True)
class Task:
    """A row that is to be done.

    Attributes:
        path: of the output, relative to the job's folder. seed: the row's, or what follows from its id.
        digest: of everything that the output depends on.
    """

    row: Row
    path: str
    seed: int
    digest: str


class Station(Protocol):
    """Rows in the making, in one process."""

    @property
    def room(self) -> bool:
        """Whether another row would be begun at once."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there is anything to step."""
        ...

    def take(self, task: Task) -> None:
        """Begins a row. Never raises: what is wrong with the row comes out of `step`."""
        ...

    def step(self) -> list[Entry]:
        """Some work; the entries of rows that ended with it, their files complete."""
        ...

    def close(self) -> None:
        """Drops what is in the making; nothing of it is left on disk."""
        ...


class Work(Protocol):
    """A kind of job with its settings; frozen, and picklable."""

    @property
    def suffix(self) -> str:
        """Of the files that it makes."""
        ...

    @property
    def width(self) -> int:
        """How many rows a station holds at once."""
        ...

    @property
    def modules(self) -> tuple[str, ...]:
        """What a station imports, by name: worker processes share one import of them."""
        ...

    def voice_of(self, row: Row) -> tuple[str, str]:
        """Voice and model of a row, as its name may show them.

        Raises:
            QuaverError: there are no such.
        """
        ...

    def settings(self, row: Row) -> dict[str, Any]:
        """Everything besides row, seed and path that the output depends on: options, and the models' hashes.

        Raises:
            QuaverError: the row asks for a model that there is not.
        """
        ...

    def check(self) -> None:
        """Raises QuaverError if no row at all could be done: a model or a package is missing."""
        ...

    def station(self, out: Path, threads: int) -> Station:
        """In the process that works."""
        ...


def digest_of(row: Row, path: str, seed: int, settings: dict[str, Any]) -> str:
    """80 bits of SHA-256 over what the output of a row depends on."""
    parts = [row.id, row.text, row.voice, row.model, row.speed, seed, path, row.source, settings]
    data = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def failure(task: Task, error: BaseException) -> Entry:
    """The entry of a row that could not be done."""
    if isinstance(error, QuaverError):
        kind, text = error.kind, str(error)
    elif isinstance(error, OSError) and error.strerror:
        kind, text = "disk", error.strerror
    else:
        kind, text = "defect", f"{type(error).__name__}: {error}"
    entry = {"digest": task.digest, "number": task.row.number, "id": task.row.id}
    return {**entry, "error": kind, "reason": " ".join(text.split())[:500]}
