"""Drawing batches from packed corpora: weighted sources, random crops, and length-bucketed whole utterances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BadInput
from .pack import F0_HOP, Pack
from .recipe import Source

__all__ = ["Mixture", "Pick"]


@dataclass(frozen=True)
class Pick:
    """One utterance: which pack, and which entry of it."""

    pack: Pack
    index: int


class Mixture:
    """The sources of a recipe with their weights.

    Args:
        longest: seconds past which an utterance is left out. texts: leave out speech without a text too.

    Raises:
        BadInput: a source of which nothing is left.
    """

    def __init__(self, sources: tuple[Source, ...], longest: float = 16.0, texts: bool = False) -> None:
        self.packs = [Pack(source.pack) for source in sources]
        weights = np.array([source.weight for source in sources])
        self.weights = weights / weights.sum()
        self.usable = [self._usable(p, s.hours, longest, texts) for p, s in zip(self.packs, sources, strict=True)]
        for source, usable in zip(sources, self.usable, strict=True):
            if not len(usable):
                what = "with a text " if texts else ""
                raise BadInput(f"{source.pack} has no utterance {what}of at most {longest} s; leave it out")

    @staticmethod
    def _usable(pack: Pack, hours: float | None, longest: float, texts: bool) -> np.ndarray:
        """Indices sorted by length, so that neighbours make batches with little padding."""
        seconds = np.array([e.seconds for e in pack.entries])
        index = np.arange(len(pack))
        if hours is not None:
            index = index[np.cumsum(seconds) <= hours * 3600]
        index = index[seconds[index] <= longest]
        if texts:
            index = np.array([i for i in index if pack.entries[int(i)].phones], dtype=np.int64)
        return index[np.argsort(seconds[index], kind="stable")]

    def utterance(self, rng: np.random.Generator) -> Pick:
        """A random utterance, sources by weight, long ones more often (by their length)."""
        source = int(rng.choice(len(self.packs), p=self.weights))
        usable, entries = self.usable[source], self.packs[source].entries
        # Two draws, the longer wins with a probability by length: cheap and close to length-proportional.
        a, b = (int(usable[rng.integers(len(usable))]) for _ in range(2))
        chance = entries[a].samples / (entries[a].samples + entries[b].samples)
        return Pick(self.packs[source], a if rng.random() < chance else b)

    def crops(
        self, rng: np.random.Generator, count: int, samples: int, gain_db: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Random crops: audio `[count, samples]` at random gain, and its F0 in Hz `[count, samples / F0_HOP]`."""
        audio = np.zeros((count, samples), np.float32)
        f0 = np.zeros((count, samples // F0_HOP), np.float32)
        for row in range(count):
            pick = self.utterance(rng)
            entry = pick.pack.entries[pick.index]
            # Whole 10 ms steps, so that the stored F0 lines up with the crop.
            start = int(rng.integers(max(1, entry.samples - samples))) // F0_HOP * F0_HOP
            audio[row] = pick.pack.wave(pick.index, start, samples)
            audio[row] *= 10 ** (rng.uniform(*gain_db) / 20)
            track, offsets = pick.pack.track("f0.f16", np.float16)
            hertz = track[offsets[pick.index] : offsets[pick.index + 1], 0][start // F0_HOP :][: f0.shape[1]]
            f0[row, : len(hertz)] = hertz
        return audio, f0

    def keep(self, track: str, dtype: Any) -> None:
        """Leaves out the utterances that have nothing in a track.

        Raises:
            BadInput: a pack has nothing in it at all.
        """
        for i, pack in enumerate(self.packs):
            lengths = np.diff(pack.track(track, dtype)[1])
            self.usable[i] = self.usable[i][lengths[self.usable[i]] > 0]
            if not len(self.usable[i]):
                raise BadInput(f"{pack.folder / track} holds nothing for the utterances that the recipe draws from")

    def voices(self) -> list[str]:
        """All speakers, sorted."""
        return sorted({p.entries[int(i)].voice for p, u in zip(self.packs, self.usable) for i in u})

    def bucket(self, rng: np.random.Generator, seconds: float) -> list[Pick]:
        """Utterances of like length from all sources, about `seconds` of audio when padded."""
        place = rng.random()
        first = self._near(rng, place)
        count = max(1, int(seconds / first.pack.entries[first.index].seconds))
        return [first] + [self._near(rng, place) for _ in range(count - 1)]

    def _near(self, rng: np.random.Generator, place: float) -> Pick:
        source = int(rng.choice(len(self.packs), p=self.weights))
        usable = self.usable[source]
        jitter = rng.normal(0, 0.02)
        at = int(np.clip((place + jitter) * len(usable), 0, len(usable) - 1))
        return Pick(self.packs[source], int(usable[at]))
