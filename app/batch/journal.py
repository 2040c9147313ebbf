"""What has become of each row, one JSON line each, in the order in which it became known.

The journal is the truth of a job: a line is written when the row's file is complete under its name, so a process that
is killed at any moment loses only what was in the making. A line that a kill cut off is taken off. In memory there is
one number per row; a later line of the same row takes the place of the earlier.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import BadInput, CorruptFile, QuaverError

__all__ = ["Entry", "Journal"]

Entry = dict[str, Any]
"""`digest`, `number`, `id`, then `path`, `bytes` and what the work has to tell; or `error` and `reason`."""

SYNC_EVERY = 1.0
"""Seconds: what a power cut may take (a kill takes nothing). Rows whose file is there are then made once more."""


class Journal:
    """The journal of an output folder, locked: a folder has one job at a time.

    Raises:
        BadInput: another process works in the folder. CorruptFile: a line in the middle is no JSON.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.jsonl"
        self._lock = (folder / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise BadInput(f"another process works in {folder.parent}; wait for it, or choose another folder") from None
        self._clock, self._synced = clock, clock()
        self._failed: set[int] = set()
        self._places: dict[int, int] = {}
        try:
            self._file: BinaryIO = self.path.open("a+b")
            self._read()
        except BaseException:
            self._lock.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def get(self, digest: str) -> Entry | None:
        """The last entry of a row."""
        place = self._places.get(_key(digest))
        if place is None:
            return None
        self._file.seek(place)
        return json.loads(self._file.readline())

    def known(self, digest: str) -> bool:
        """Whether the row has an entry."""
        return _key(digest) in self._places

    def failed(self, digest: str) -> bool:
        """Whether the last entry of the row is an error."""
        return _key(digest) in self._failed

    def forget(self, digest: str) -> None:
        """As if the row had no entry (its file is gone, say); the next `add` is what counts."""
        self._places.pop(_key(digest), None)
        self._failed.discard(_key(digest))

    def add(self, entry: Entry) -> None:
        """Appends an entry.

        Raises:
            QuaverError: it cannot be written (a full disk); the journal is then as before.
        """
        place = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            self._note(entry, place)
            if self._clock() - self._synced >= SYNC_EVERY:
                os.fsync(self._file.fileno())
                self._synced = self._clock()
        except OSError as error:
            self.forget(entry["digest"])
            self._cut(place)
            raise QuaverError(
                f"the journal cannot be written ({error.strerror}); free some space, and the same command goes on"
            ) from error

    def close(self) -> None:
        """Syncs, closes and unlocks. May be called again."""
        if not self._file.closed:
            with suppress(OSError):  # nothing is lost: the rows that are not in it are made again
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
        self._lock.close()

    def _note(self, entry: Entry, place: int) -> None:
        key = _key(entry["digest"])
        self._places[key] = place
        (self._failed.add if "error" in entry else self._failed.discard)(key)

    def _read(self) -> None:
        self._file.seek(0)
        place = 0
        for number, line in enumerate(iter(self._file.readline, b""), 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("cut off")
                self._note(json.loads(line), place)
            except (ValueError, KeyError, TypeError, AttributeError):
                if self._file.read(1):
                    raise CorruptFile(
                        f"{self.path}, line {number} is damaged; delete the file to make the whole job again"
                    ) from None
                self._cut(place)
                return
            place += len(line)

    def _cut(self, place: int) -> None:
        """Takes off what follows `place`. A new file object: the old one may hold bytes that it cannot write."""
        with suppress(OSError):
            self._file.close()
        os.truncate(self.path, place)
        self._file = self.path.open("a+b")


def _key(digest: str) -> int:
    return int(digest, 16)
