"""Forced alignment of packed corpora with the project's own phoneme recogniser, and the tracks that the LM trains on.

`add_alignment` writes `align.i16`: for every utterance the first 50 Hz frame of each phone (with the silence `^`
first), by `tts/alignment.py`. `add_codes` writes the codec's codes. `pointers` turns phone starts
into the pointer of each 25 Hz frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.loading import weights_sha256
from ..codecs.semantic import SemanticTokenizer
from ..errors import BadInput
from ..tts.alignment import align
from .durations import TRACK
from .pack import ALIGN_RATE, Pack

__all__ = ["add_alignment", "add_codes", "check_latents", "latents_track", "pointers", "progress_of"]

Progress = Callable[[Iterable[int], int], Iterable[int]]


def add_alignment(pack: Pack, model: SemanticTokenizer, progress: Progress | None = None) -> None:
    """Adds `align.i16`; an utterance that cannot be aligned gets an empty row and is not used for language models.

    Where a teacher's own durations are known (`quaver corpus durations`), they are taken: no aligner is as exact.
    """
    known = _teacher_rows(pack)

    def rows() -> Iterator[np.ndarray]:
        indices: Iterable[int] = range(len(pack))
        for i in progress(indices, len(pack)) if progress else indices:
            if len(known[i]):
                yield known[i]
                continue
            phones = pack.entries[i].phones  # none: speech without a transcript, for codecs only
            found = align(model, torch.from_numpy(pack.wave(i))[None, None], phones) if phones else None
            yield np.zeros(0, np.int16) if found is None else found.starts

    pack.write_track("align.i16", rows(), np.int16)


def _teacher_rows(pack: Pack) -> list[np.ndarray]:
    """The teacher's phone starts of each utterance; empty where there are none."""
    if not (pack.folder / TRACK).exists():
        return [np.zeros(0, np.int16)] * len(pack)
    track, offsets = pack.track(TRACK, np.int16)
    return [np.asarray(track[a:b, 0]) for a, b in pairwise(offsets)]


@torch.inference_mode()
def add_codes(
    pack: Pack,
    codec: Codec | SemanticTokenizer,
    name: str,
    progress: Progress | None = None,
    most: int | None = None,
    source: str = "",
) -> None:
    """Adds `codes.NAME.u16`: `[frame, codebook]` of every utterance, or of the first `most` (the others stay empty).
    Of a codec of latents, `latents.NAME.f16`: mean and log of the standard deviation, `[frame, 2 * dim]`; `source`, the
    hash of its weights, is kept beside them."""
    continuous = isinstance(codec, Codec) and codec.frame_spec.kind == "latents"
    dtype = np.float16 if continuous else np.uint16

    def row(wave: Tensor) -> np.ndarray:
        if not continuous:
            return codec.encode(wave)[0][0].T.numpy().astype(np.uint16)
        assert isinstance(codec, Codec)
        mean, log_std = codec.posterior(wave)
        if log_std is None:
            raise BadInput(f"{name} has no posterior to store; a language model takes its latents from the audio")
        return torch.cat([mean, log_std], 1)[0].T.numpy().astype(np.float16)

    def rows() -> Iterator[np.ndarray]:
        indices: Iterable[int] = range(len(pack))
        for i in progress(indices, len(pack)) if progress else indices:
            if most is not None and i >= most:
                yield np.zeros(0, dtype)
                continue
            yield row(torch.from_numpy(pack.wave(i))[None, None])

    pack.write_track(latents_track(name) if continuous else f"codes.{name}.u16", rows(), dtype)
    if continuous and source:
        _source_file(pack, name).write_text(source)


def latents_track(codec: str) -> str:
    """Name of the track that holds a codec's latents."""
    return f"latents.{codec}.f16"


def _source_file(pack: Pack, codec: str) -> Path:
    return pack.folder / f"latents.{codec}.sha256"


def check_latents(pack: Pack, codec: str, folder: Path) -> None:
    """Raises BadInput if a pack's latents were made with other weights than those in `folder`."""
    kept = _source_file(pack, codec)
    if kept.exists() and kept.read_text() != weights_sha256(folder):
        raise BadInput(
            f"{pack.folder / latents_track(codec)} was made by another codec of that name; make it again: "
            f"quaver corpus codes {pack.folder} --codec {folder}"
        )


def pointers(starts: np.ndarray, frames: int, per_frame: float = ALIGN_RATE / 25) -> np.ndarray:
    """Phone index of each codec frame `[frames]`: the phone that sounds in the middle of the frame, which lasts
    `per_frame` frames of the alignment.

    The pointer begins at 0 and ends at the last phone; phones shorter than a frame may be passed over.
    """
    middle = (np.arange(frames) + 0.5) * per_frame
    pointer = np.searchsorted(starts, middle, side="right") - 1
    if frames:
        pointer[0] = 0
    return np.maximum.accumulate(np.maximum(pointer, 0))


def progress_of(pointer: np.ndarray) -> np.ndarray:
    """Frames already spent in the phone, for each frame: 0 where it begins."""
    index = np.arange(len(pointer))
    begins = np.concatenate([[True], pointer[1:] != pointer[:-1]]) if len(pointer) else np.zeros(0, bool)
    return index - np.maximum.accumulate(np.where(begins, index, 0))


def speaking_rate(
    starts: np.ndarray, phones: tuple[str, ...] | list[str], is_pause: Callable[[str], bool], end: int
) -> float:
    """Phones per second outside pauses."""
    spans = np.diff(np.append(starts, end))[1:]
    spoken = np.array([not is_pause(p) for p in phones])
    seconds = spans[spoken].sum() / ALIGN_RATE
    return float(spoken.sum() / max(seconds, 0.1))


def alignment_summary(pack: Pack) -> dict[str, Any]:
    """How many utterances are aligned, and the mean length of pauses and phones in seconds."""
    _, offsets = pack.track("align.i16", np.int16)
    lengths = np.diff(offsets)
    return {"utterances": len(pack), "aligned": int((lengths > 0).sum())}
