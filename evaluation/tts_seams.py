"""Seams: whether the places where sentences of a long answer meet can be heard, by level and by pitch.

At a joint nothing may jump more than speech itself does: the largest change near it is compared with the 99th
percentile of the same changes within the sentences. Three changes are looked at: of the level from one 10 ms frame to
the next; of the pitch from one voiced frame to the next; and of the pitch over a pause, from the last voiced frames
before it to the first ones after it (a sentence begins higher than the last one ended, as a clause within one does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import BadInput
from .signals import RATE, pitch, resample

__all__ = ["PERCENTILE", "Seams", "find_seams"]

PERCENTILE = 99
FRAME = 0.01  # seconds
NEAR = 3  # frames on each side of a joint
SETTLED = 3  # voiced frames whose median is the pitch at the edge of a pause
FLOOR = 1e-6  # of power: -60 dB, so that silence does not jump


@dataclass(frozen=True)
class Seams:
    """Changes at joints, and the limit that those within sentences set.

    Attributes:
        level: dB at each joint. pitch: semitones at each joint (nan where no two voiced frames stand together).
        reset: semitones over the pause at each joint (nan where there is none).
        level_limit, pitch_limit, reset_limit: the 99th percentiles within sentences (nan: nothing to compare with).
    """

    level: np.ndarray
    level_limit: float
    pitch: np.ndarray
    pitch_limit: float
    reset: np.ndarray
    reset_limit: float

    @property
    def heard(self) -> int:
        """How many joints stand out by one of the three."""
        pairs = ((self.level, self.level_limit), (self.pitch, self.pitch_limit), (self.reset, self.reset_limit))
        return int(np.any([np.nan_to_num(at, nan=-1.0) > limit for at, limit in pairs], axis=0).sum())


def find_seams(samples: np.ndarray, sample_rate: int, joints: Sequence[float]) -> Seams:
    """Looks for seams in a long answer (float32 [sample]) at the times `joints` (seconds).

    Raises:
        BadInput: no joints, or one outside the audio. MissingExtra: pyworld is not installed.
    """
    audio = resample(samples, sample_rate)
    seconds = len(audio) / RATE
    if not joints or not all(0 < joint < seconds for joint in joints):
        raise BadInput(f"give times of joints within the audio of {seconds:.1f} s")
    places = [round(joint / FRAME) for joint in joints]
    level = _level(audio)
    f0 = 12 * np.log2(np.maximum(pitch(audio, FRAME), 1e-9))[: len(level)]
    f0[f0 < 0] = np.nan  # unvoiced
    near = np.zeros(len(level) - 1, bool)
    for place in places:
        near[max(0, place - NEAR) : place + NEAR] = True
    loud, steps = np.abs(np.diff(level)), np.abs(np.diff(f0))
    at_level, at_pitch = _largest(loud, places), _largest(steps, places)
    pauses = _pauses(f0)
    over = np.array([_over(f0, pause) for pause in pauses])
    of_joint = [_pause_of(pauses, place) for place in places]
    within = np.delete(over, [i for i in of_joint if i is not None])
    at_reset = np.array([np.nan if i is None else over[i] for i in of_joint])
    return Seams(
        at_level, _limit(loud[~near]), at_pitch, _limit(steps[~near]), at_reset, _limit(within),
    )  # fmt: skip


def _level(audio: np.ndarray) -> np.ndarray:
    size = round(FRAME * RATE)
    frames = audio[: len(audio) // size * size].reshape(-1, size)
    return 10 * np.log10(np.square(frames, dtype=np.float64).mean(1) + FLOOR)


def _largest(changes: np.ndarray, places: Sequence[int]) -> np.ndarray:
    windows = [changes[max(0, place - NEAR) : place + NEAR] for place in places]
    return np.array([np.nan if np.isnan(w).all() else np.nanmax(w) for w in windows])


def _limit(changes: np.ndarray) -> float:
    known = changes[np.isfinite(changes)]
    return float(np.percentile(known, PERCENTILE)) if len(known) else float("nan")


def _pauses(f0: np.ndarray) -> list[tuple[int, int]]:
    """Stretches without pitch between voiced ones, `[first, last + 1)`; where the pitch jumps while the voice goes on,
    the tracker leaves one frame out."""
    voiced = np.flatnonzero(np.isfinite(f0))
    return [(int(a) + 1, int(b)) for a, b in pairwise(voiced) if b > a + 1]


def _over(f0: np.ndarray, pause: tuple[int, int]) -> float:
    before, after = f0[max(0, pause[0] - SETTLED) : pause[0]], f0[pause[1] : pause[1] + SETTLED]
    return float(abs(np.nanmedian(after) - np.nanmedian(before)))


def _pause_of(pauses: Sequence[tuple[int, int]], place: int) -> int | None:
    """The pause that a joint lies in, or at whose edge."""
    return next((i for i, (a, b) in enumerate(pauses) if a - NEAR <= place <= b + NEAR), None)
