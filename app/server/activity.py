"""Whether somebody speaks, by the energy of the sound: no network, and time is counted in samples, not by a clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

FRAME = 0.01  # seconds
LEAST = 0.06  # seconds of sound in a row that begin speech: a click is shorter
FULL_LEVEL = 0.04  # RMS at a threshold of 1 (-28 dB); OpenAI's default of 0.5 is -34 dB


@dataclass(frozen=True)
class Edge:
    """Speech begins, or has ended. `at`: samples since the first push; of a start, where the sound begins."""

    kind: Literal["start", "stop"]
    at: int


class Activity:
    """Speech in a stream of mono samples; the same edges however the stream is cut.

    Args:
        threshold: 0 to 1, as of OpenAI's `server_vad`, but of the level (see `FULL_LEVEL`).
        silence: seconds without sound that end speech.
    """

    def __init__(self, sample_rate: int, *, threshold: float = 0.5, silence: float = 0.5) -> None:
        self.sample_rate, self.speaking = sample_rate, False
        self.level = FULL_LEVEL * threshold
        self._least, self._most = round(LEAST / FRAME), max(1, round(silence / FRAME))
        self._size = max(1, round(FRAME * sample_rate))
        self._rest = np.zeros(0, np.float32)
        self.at = 0  # samples that were looked at
        self._loud = self._quiet = 0  # frames in a row

    def push(self, samples: np.ndarray) -> list[Edge]:
        """Takes float32 `[n]`; the edges that became known."""
        joined = np.concatenate([self._rest, samples])
        count = len(joined) // self._size
        self._rest = joined[count * self._size :]
        frames = joined[: count * self._size].reshape(count, self._size)
        loud = np.square(frames, dtype=np.float64).mean(1) > self.level**2
        return [edge for one in loud if (edge := self._step(bool(one))) is not None]

    def reset(self) -> None:
        """Nobody speaks; the count of samples goes on."""
        self.speaking, self._loud, self._quiet = False, 0, 0

    def _step(self, loud: bool) -> Edge | None:
        self.at += self._size
        self._loud, self._quiet = (self._loud + 1, 0) if loud else (0, self._quiet + 1)
        if not self.speaking and self._loud >= self._least:
            self.speaking = True
            return Edge("start", self.at - self._loud * self._size)
        if self.speaking and self._quiet >= self._most:
            self.speaking = False
            return Edge("stop", self.at)
        return None
