"""The plan of ARDiT: a sentence whose phones have their lengths before the first block is drawn.

    text -> cache; known latents (of an edit) -> cache; block, block, ... each into the cache as well

So it ends where the lengths say, a duration is kept to the frame, and nothing can be skipped or said twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..errors import BadInput
from .lm import PhoneFeatures
from .marks import FASTEST, SLOWEST
from .phones import PAUSES, PHONE_IDS, START
from .pointer_plan import Frame, Request
from .sampling import SamplingConfig

if TYPE_CHECKING:
    from .ardit import Ardit, Course

__all__ = ["ArditChunk", "ArditPlan", "Gap", "planned_lengths"]

_PAUSE_IDS = frozenset(PHONE_IDS[p] for p in (*PAUSES, START))


@dataclass(frozen=True)
class ArditChunk:
    """What one forward takes of a request.

    Attributes:
        kind: `text`, `known` (latents that are there already), or `block` (latents that are to be drawn).
        rows: `[length, width]`. places: `[length]`, in phones. latents: `[length, dim]` of `known`.
        seed, first: noise of a block: the request's seed, and the index of its first frame.
    """

    kind: Literal["text", "known", "block"]
    rows: Tensor
    places: Tensor
    voice: int
    sampling: SamplingConfig
    latents: Tensor | None = None
    seed: int = 0
    first: int = 0

    drafts = 0

    @property
    def length(self) -> int:
        return len(self.places)

    @property
    def draw(self) -> bool:
        return self.kind == "block"


@dataclass(frozen=True)
class Gap:
    """A gap to fill: what is known around it.

    Attributes:
        lengths: frames of every phone, inside the gap as planned. first, frames: where the gap begins and how long it
            is, in frames of the whole. before, after: latents `[frame, dim]` of the frames next to it on either side.
    """

    lengths: tuple[float, ...]
    first: int
    frames: int
    before: Tensor
    after: Tensor

    @property
    def known(self) -> int:
        """How many frames are known."""
        return len(self.before) + len(self.after)


class ArditPlan:
    """Where one request stands."""

    def __init__(self, request: Request, lm: Ardit, gap: Gap | None = None) -> None:
        _check(request, lm)
        self.request, self.lm, self.gap = request, lm, gap
        self.generator = torch.Generator().manual_seed(request.seed)
        self.block, self.dim = lm.config.block, lm.config.dim
        self.encoded: Tensor | None = None
        self.course: Course | None = None
        self.frames, self.made = 0, 0  # of the answer: to make, and made
        self.read: list[Literal["text", "known"]] = []  # what is in the cache
        self.steps: list[Tensor] = []
        self.ready: deque[Frame] = deque()

    # -- before the first block ---------------------------------------------------------------------------------------
    @property
    def whole(self) -> bool:
        return self.request.whole

    @property
    def starved(self) -> bool:
        return not self.whole

    @property
    def pointer(self) -> int:
        return 0

    @property
    def pinned(self) -> int:
        """Positions of the cache that stay for good: the text and what is known."""
        return len(self.request.features) + (0 if self.gap is None else self.gap.known)

    def extend(self, features: PhoneFeatures, whole: bool) -> None:
        """The text as it is now known."""
        if self.whole:
            raise BadInput("a text can only grow at its end, and only until it is whole")
        self.request = replace(self.request, features=features, whole=whole)
        _check(self.request, self.lm)

    def settle(self, encoded: Tensor, lengths: Sequence[float]) -> None:
        """Takes the encoded text `[1, phone + 1, width]` and the expected frames of each phone, and decides how long
        everything lasts."""
        from .ardit import Course

        if self.gap is not None:
            lengths = self.gap.lengths
            total = self.gap.first + self.gap.frames + len(self.gap.after)
        else:
            lengths = planned_lengths(self.request, lengths)
            total = max(1, round(sum(lengths)))
        starts = [0.0, *accumulate(lengths)]
        self.course = Course.of(starts[:-1], starts[-1], total, self.lm.config.align)
        self.frames = total if self.gap is None else self.gap.frames
        self.encoded = encoded

    # -- the loop's side ----------------------------------------------------------------------------------------------
    @property
    def sampling(self) -> SamplingConfig:
        return self.request.sampling

    @property
    def done(self) -> bool:
        return self.encoded is not None and self.made >= self.frames and not self.ready

    def noise(self, count: int) -> Tensor:
        return torch.zeros(count)

    def next(self) -> ArditChunk | None:
        if self.encoded is None or self.course is None or self.made >= self.frames:
            return None
        if "text" not in self.read:
            self.read = [*self.read, "text"]
            places = torch.arange(self.encoded.shape[1] - 1, device=self.encoded.device) + 0.5
            return self._chunk("text", self.encoded[0, :-1], places)
        if self.gap is not None and self.gap.known and "known" not in self.read:
            self.read = [*self.read, "known"]
            gap, over = self.gap, self.gap.first + self.gap.frames
            spans = [torch.arange(gap.first - len(gap.before), gap.first), torch.arange(over, over + len(gap.after))]
            rows, places = self._told(torch.cat(spans))
            return self._chunk("known", rows, places, latents=torch.cat([gap.before, gap.after]))
        before = 0 if self.gap is None else self.gap.first
        first = before + self.made
        span = torch.arange(first, min(first + self.block, before + self.frames))
        return self._chunk("block", *self._told(span), seed=self.request.seed, first=first)

    def commit(self, codes: Tensor, readout: list[float]) -> Frame | None:
        """Takes a block `[block * dim]`; its frames are handed out one by one."""
        assert self.course is not None
        self.steps = [codes]
        before = 0 if self.gap is None else self.gap.first
        for i, latents in enumerate(codes.view(self.block, self.dim)[: self.frames - self.made]):
            self.ready.append(Frame(latents, int(self.course.pointer[before + self.made + i])))
        self.made += self.block
        return None

    def _told(self, span: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and places of some frames."""
        assert self.course is not None
        assert self.encoded is not None
        part = self.course[span]
        batched = type(part)(part.pointer[None], part.progress[None], part.left[None], part.place[None])
        return self.lm.rows(self.encoded, batched)[0], part.place

    def _chunk(
        self,
        kind: Literal["text", "known", "block"],
        rows: Tensor,
        places: Tensor,
        latents: Tensor | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> ArditChunk:
        voice, sampling = self.request.voice, self.request.sampling
        return ArditChunk(kind, rows, places.double(), voice, sampling, latents, seed, first)


def planned_lengths(request: Request, expected: Sequence[float]) -> list[float]:
    """Frames of each phone: as expected, at the speed and with the pauses that were asked for, or all stretched alike
    to last `request.frames` together (within the speeds that a voice can speak)."""
    ids = request.features.phones.tolist()
    speed = max(SLOWEST, min(FASTEST, request.speed))
    lengths = [n * (request.pause if i in _PAUSE_IDS else 1 / speed) for i, n in zip(ids, expected, strict=True)]
    if request.frames is None:
        return lengths
    wanted = request.frames / max(sum(lengths), 1e-6)
    speech = max(1 / FASTEST, min(1 / SLOWEST, wanted))
    stretched = [n * speech for n in lengths]
    stretched[-1] += max(0.0, request.frames - sum(stretched))  # the last pause takes what is left
    return stretched


def _check(request: Request, lm: Ardit) -> None:
    """Refuses here what would break a step, and with it the neighbours in the batch."""
    room = lm.config.backbone.slack + 1
    if len(request.features) < 2:
        raise BadInput("there is nothing to speak: the text has no phones")
    if len(request.features) > room:
        raise BadInput(f"a sentence of {len(request.features)} phones is too long for this model, which takes {room}")
    if not 0 <= request.voice <= len(lm.config.voices):
        raise BadInput(f"voice {request.voice} is none of this model's {len(lm.config.voices)}")
    if request.speed <= 0 or request.pause <= 0:
        raise BadInput(f"speed and pause must be positive, not {request.speed} and {request.pause}")
