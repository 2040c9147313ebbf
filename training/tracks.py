"""Tracks of a pack (pitch, alignments, codes), made by one process or by several.

With several, each works on short contiguous ranges of the pack with one thread and its own copy of the model; the
ranges are joined in order, so that any number of processes makes the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import QuaverError
from .pack import Pack

__all__ = ["RANGE", "TrackJob", "make_track"]

RANGE = 32
"""Utterances that a process takes at a time."""

Tick = Callable[[float, float], None]
Maker = Callable[[Pack], None]


@dataclass(frozen=True)
class TrackJob:
    """Which track, and what makes it.

    Attributes:
        kind: `f0` (needs nothing), `align` (a semantic tokenizer), `codes` (a codec or a semantic tokenizer), or
            `durations` (the manifest of a teacher's speech that the pack was made of).
        source: name or folder of that model, or path of that manifest.
    """

    kind: Literal["f0", "align", "codes", "durations"]
    source: str = ""


def make_track(pack: Pack, job: TrackJob, jobs: int = 1, tick: Tick | None = None) -> None:
    """Makes a track anew; `tick(done, total)` counts utterances.

    Raises:
        MissingFile, CorruptFile, ConfigError: of the model or the manifest. QuaverError: a process was killed.
    """
    if job.kind == "durations" or jobs <= 1 or len(pack) <= RANGE:  # a teacher's durations take a minute for 20 hours
        _maker(job)(_Ticking(pack.folder, tick))
        return
    ranges = [(start, min(start + RANGE, len(pack))) for start in range(0, len(pack), RANGE)]
    # spawn: a forked copy of a process with running torch threads can hang
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(str(pack.folder), job))
    try:
        parts = pool.map(_work, ranges)
        first = next(parts)
        rows = chain.from_iterable(part.rows for part in chain([first], parts))
        pack.write_track(first.name, _counted(rows, len(pack), tick), first.dtype)
    except BrokenProcessPool:
        raise QuaverError("a process was killed (out of memory?); repeat the command with fewer --jobs") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _counted(rows: Iterable[np.ndarray], total: int, tick: Tick | None) -> Iterator[np.ndarray]:
    for done, row in enumerate(rows, 1):
        yield row
        if tick:
            tick(done, total)


class _Ticking(Pack):
    """A pack that tells how far the writing of a track is."""

    def __init__(self, folder: Path, tick: Tick | None) -> None:
        super().__init__(folder)
        self._tick = tick

    def write_track(self, name: str, arrays: Iterable[np.ndarray], dtype: Any) -> None:
        super().write_track(name, _counted(arrays, len(self), self._tick), dtype)


@dataclass(frozen=True)
class _Part:
    """What a process made of one range: the track's name and type, and a row for each utterance."""

    name: str
    dtype: Any
    rows: list[np.ndarray]


class _Range(Pack):
    """Entries `start:end` of a pack; a track written to it is kept in `part`."""

    part: _Part

    def __init__(self, whole: Pack, start: int, end: int) -> None:
        self.folder, self.audio, self.entries = whole.folder, whole.audio, whole.entries[start:end]
        self._bounds = start, end

    def track(self, name: str, dtype: Any, width: int = 1) -> tuple[np.ndarray, np.ndarray]:
        values, offsets = super().track(name, dtype, width)
        start, end = self._bounds
        return values, offsets[start : end + 1]

    def write_track(self, name: str, arrays: Iterable[np.ndarray], dtype: Any) -> None:
        self.part = _Part(name, dtype, [np.ascontiguousarray(array, dtype) for array in arrays])


_WORKER: dict[str, Any] = {}
"""Pack and maker of a worker process, set once in `_start`."""


def _start(folder: str, job: TrackJob) -> None:
    import torch

    from .build import _die_with_parent

    _die_with_parent()
    torch.set_num_threads(1)
    _WORKER.update(pack=Pack(Path(folder)), job=job)


def _work(bounds: tuple[int, int]) -> _Part:
    # Not in `_start`: an error there would only break the pool, here it comes back as what it is.
    if "maker" not in _WORKER:
        _WORKER["maker"] = _maker(_WORKER["job"])
    part = _Range(_WORKER["pack"], *bounds)
    _WORKER["maker"](part)
    return part.part


def _maker(job: TrackJob) -> Maker:
    """A function that writes the track of a pack, with its model loaded."""
    if job.kind == "f0":
        from .pack import add_f0

        return add_f0
    if job.kind == "align":
        from ..codecs.loading import load_semantic
        from .align import add_alignment

        model = load_semantic(job.source)
        return lambda pack: add_alignment(pack, model)
    if job.kind == "codes":
        from ..codecs.loading import load_codec, load_semantic, model_folder, read_config, weights_sha256
        from .align import add_codes

        folder = model_folder(job.source)
        load = load_semantic if read_config(folder).get("kind") == "semantic" else load_codec
        codec, name, source = load(job.source), folder.resolve().name, weights_sha256(folder)
        return lambda pack: add_codes(pack, codec, name, source=source)
    from .durations import add_teacher_alignment

    return lambda pack: add_teacher_alignment(pack, Path(job.source))
