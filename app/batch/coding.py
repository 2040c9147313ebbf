"""Recordings into .qvr files, one row at a time; with texts, if the rows have any, in the manifest."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import QuaverError
from ..audio import open_audio
from ..coding import Coder
from ..files import replacing
from .journal import Entry
from .names import inside
from .rows import Row
from .work import Task, failure

__all__ = ["CodingWork"]


@dataclass(frozen=True)
class CodingWork:
    """How recordings are coded; as for `quaver codec encode`."""

    codec: str
    codebooks: int | None = None
    chunk_frames: int = 50
    entropy: bool = False
    suffix: str = ".qvr"
    width: int = 1

    @property
    def modules(self) -> tuple[str, ...]:
        return "quaver.codecs.loading", "quaver.app.coding", "soundfile"

    def voice_of(self, row: Row) -> tuple[str, str]:
        return row.voice or "", self.codec

    def settings(self, row: Row) -> dict[str, Any]:
        """The recording counts with its size and time: another one under the same name is coded again."""
        found = Path(row.source).stat() if Path(row.source).is_file() else None
        return {
            "codebooks": self.codebooks,
            "chunk_frames": self.chunk_frames,
            "codec": _hash(self.codec),
            "source": [found.st_size, found.st_mtime_ns] if found else None,
        } | ({"entropy": True} if self.entropy else {})  # a packed job keeps the name it always had

    def check(self) -> None:
        self.coder(1)

    def coder(self, threads: int) -> Coder:
        settings = {"codebooks": self.codebooks, "chunk_frames": self.chunk_frames, "entropy": self.entropy}
        return Coder.load(self.codec, threads, **settings)

    def station(self, out: Path, threads: int) -> CodingStation:
        return CodingStation(self, out, threads)


@lru_cache(maxsize=4)
def _hash(name: str) -> str:
    from ...codecs.loading import codec_folder, weights_sha256

    return weights_sha256(codec_folder(name))


@dataclass
class CodingStation:
    """One process that codes."""

    work: CodingWork
    out: Path
    threads: int = 1
    waiting: deque[Task] = field(default_factory=deque)
    coder: Coder | None = None

    @property
    def room(self) -> bool:
        return not self.waiting

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def take(self, task: Task) -> None:
        self.waiting.append(task)

    def step(self) -> list[Entry]:
        task = self.waiting.popleft()
        try:
            return [self._code(task)]
        except Exception as error:
            return [failure(task, error)]

    def close(self) -> None:
        self.waiting.clear()

    def _code(self, task: Task) -> Entry:
        if self.coder is None:
            self.coder = self.work.coder(self.threads)
        target, row = inside(self.out, task.path), task.row
        with open_audio(row.source) as audio, replacing(target) as file:
            made = self.coder.encode(audio, file)
        if not made.samples:
            raise QuaverError("the recording has no samples")
        entry: Entry = {
            "digest": task.digest,
            "number": row.number,
            "id": row.id,
            "path": task.path,
            "bytes": target.stat().st_size,
            "source": row.source,
            "codec": self.coder.mark[0],
            "codec_sha256": self.coder.mark[1],
            "codebooks": self.coder.levels,
            "frames": made.frames,
            "seconds": round(made.seconds, 4),
            "samples": made.samples,
            "sample_rate": made.sample_rate,
            "channels": made.channels,
        }
        kept = {"text": row.text, "voice": row.voice}
        return entry | {key: value for key, value in kept.items() if value}
