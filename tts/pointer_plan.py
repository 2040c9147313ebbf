"""The plan of the pointer layout: where one request stands in its phones, how fast it goes, and when it ends."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput
from .lm import PhoneFeatures, SpeechLM
from .marks import FASTEST, SLOWEST
from .phones import PAUSES, PHONE_IDS, phone_weight
from .sampling import SamplingConfig

__all__ = ["Frame", "PointerPlan", "Request"]

_PAUSE_IDS = frozenset(PHONE_IDS[p] for p in PAUSES) | {PHONE_IDS["^"]}
RATE_RANGE = 0.25
"""How far (in log rate) the model is asked to speak faster or slower; the rest of a speed change is done by counting
the frames of a phone faster or slower."""


@dataclass(frozen=True)
class Request:
    """One utterance to speak.

    Attributes:
        features: of the text. voice: speaker id.
        speed: 1 = the voice's own pace. pause: factor on the length of pauses.
        sampling: for the codes. advance_temperature: for the pointer; lower is steadier.
        seed: of the request's own generator.
        frames: how long to be: the speed is then whatever ends in time (0.5 to 2), and the last pause fills the rest.
            pace: frames per phone that the model is expected to take by itself; used with `frames`.
        whole: False if more of the text is to come (`Generation.extend`); the plan waits where it would need it.
    """

    features: PhoneFeatures
    voice: int = 0
    speed: float = 1.0
    pause: float = 1.0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    advance_temperature: float = 0.7
    seed: int = 0
    whole: bool = True
    frames: int | None = None
    pace: float = 2.0

    def plan(self, lm: Any) -> Any:
        """The plan that the model makes of it. Raises BadInput for what would break a step."""
        return lm.begin(self)


@dataclass(frozen=True)
class Frame:
    """One frame of an answer: codes LongTensor[K] or latents FloatTensor[dim], and the index of the phone that the
    pointer was in (0 = ^)."""

    codes: Tensor
    phone: int


class PointerPlan:
    """Where one request stands: pointer, frames in the phone, codes so far. It is its own chunk: one position."""

    length, draw, drafts = 1, True, 0

    def __init__(self, request: Request, lm: SpeechLM) -> None:
        _check(request, lm)
        self.request, self.config, self.pattern = request, lm.config, lm.pattern
        self.codebooks = lm.config.codebooks
        self.generator = torch.Generator().manual_seed(request.seed)
        self.ids: list[int] = request.features.phones.tolist()
        self.pointer, self.spent, self.flush_left = 0, 0.0, -1
        self.owed, self.held = 0.0, False  # frames that the speed wants inserted, or (negative) saved; see `_paced`
        self.steps: list[Tensor] = []
        self.pointers: list[int] = []
        self.ready: deque[Frame] = deque()
        self.encoded: Tensor | None = None  # phones as the model reads them, set when the request joins
        self.context = lm.phones.context
        self.stop = lm.config.latent.stop if lm.config.latent is not None else "pointer"
        # Enough for a slow, drawn-out phone; beyond it the pointer is stuck and must move.
        slowest = request.speed if request.frames is None else SLOWEST
        self.longest = math.ceil(lm.config.longest / min(1.0, slowest * 0.9))

    @property
    def done(self) -> bool:
        return self.flush_left == 0

    @property
    def sampling(self) -> SamplingConfig:
        return self.request.sampling

    @property
    def whole(self) -> bool:
        """All of the text is there."""
        return self.request.whole

    @property
    def settled(self) -> int:
        """How many rows of `encoded` will not change any more: each is read with `context` phones on either side."""
        return len(self.ids) + 1 if self.whole else max(0, len(self.ids) - self.context)

    @property
    def starved(self) -> bool:
        """The next step would need text that has not arrived."""
        return not self.whole and self.pointer + 2 > self.settled

    def extend(self, features: PhoneFeatures, whole: bool) -> None:
        """The text as it is now known; what was known before stays as it was."""
        old = self.request.features
        known = len(old)
        if self.whole or features.phones[:known].tolist() != self.ids:
            raise BadInput("a text can only grow at its end, and only until it is whole")
        grown = (
            torch.cat([getattr(old, n), getattr(features, n)[known:]]) for n in ("phones", "word_start", "upcoming")
        )
        self.request = replace(self.request, features=PhoneFeatures(*grown), whole=whole)
        self.ids = self.request.features.phones.tolist()

    def next(self) -> PointerPlan | None:
        return None if self.done or self.starved else self

    def banned(self) -> Tensor | None:
        return None

    @property
    def speed(self) -> float:
        """As requested, or what it takes from here to end after `request.frames`."""
        if self.request.frames is None:
            return self.request.speed
        left = self.request.pace * (phone_weight(self.ids[self.pointer :]) - self.spent / self.request.pace)
        return max(SLOWEST, min(FASTEST, left / max(1, self._room)))

    @property
    def _room(self) -> int:
        """Frames that are left of `request.frames`."""
        assert self.request.frames is not None
        return self.request.frames - len(self.pointers)

    @property
    def rate(self) -> float:
        """The part of the speed that the model itself is asked for, as log rate."""
        return max(-RATE_RANGE, min(RATE_RANGE, math.log(self.speed)))

    @property
    def progress(self) -> int:
        """Frames in the phone as the model counts them: the part of speed and pause that its training does not
        cover."""
        warp = math.exp(math.log(self.speed) - self.rate)
        if self.ids[self.pointer] in _PAUSE_IDS:
            warp = (1.0 if self.request.frames is None else self.speed) / max(self.request.pause, 1e-3)
        return int(self.spent * warp)

    def uniform(self) -> Tensor:
        """Random numbers of one step `[2, K]`."""
        return torch.rand(2, self.codebooks, generator=self.generator)

    def noise(self, count: int) -> Tensor:
        """Normal numbers of one step of a continuous head, `[count]`."""
        return torch.randn(count, generator=self.generator)

    def empty(self) -> Tensor | None:
        """BoolTensor[K]: codebooks that hold no code at this step (delay pattern), or None."""
        if not self.pattern.extra:
            return None
        step, end = len(self.steps), len(self.pointers)
        holds = [delay <= step and (self.flush_left < 0 or step < end + delay) for delay in self.pattern.delays]
        return ~torch.tensor(holds)

    def commit(self, codes: Tensor, advance: list[float]) -> Frame | None:
        """Takes the codes `[K]` (or latents `[dim]`) and the advance logits of a step; returns the frame that became
        complete, if any."""
        over = self._over(advance)
        if over and self.stop == "distance":
            self.flush_left = 0  # speech had ended before this step
            return None
        self.steps.append(codes)
        if self.flush_left < 0:
            self.pointers.append(self.pointer)
            self._move(self._paced(self._draw_advance(advance)) if over is None else int(over))
        else:
            self.flush_left -= 1
        frame = len(self.steps) - 1 - self.pattern.extra
        if frame < 0:
            return None
        if self.pattern.extra:
            codes = torch.stack([self.steps[frame + delay][k] for k, delay in enumerate(self.pattern.delays)])
        return Frame(codes, self.pointers[frame])

    def _over(self, readout: list[float]) -> bool | None:
        """Whether the head's own stop rule ends the speech now; None where the pointer decides: in all phones but the
        last (a stop before would cut words off), in one that lasts too long, and where a length is asked for."""
        last = self.whole and self.pointer == len(self.ids) - 1
        if self.stop == "pointer" or not last or self.request.frames is not None or self.spent + 1 >= self.longest:
            return None
        return readout[-1] > 0.5

    def _move(self, advance: int) -> None:
        if self.pointer + advance >= len(self.ids):
            # Pointer and count stay where the last frame had them: that is what training shows at the flush steps.
            self.flush_left = self.pattern.extra
            return
        self.spent = 0.0 if advance else self.spent + 1
        self.pointer += advance

    def _draw_advance(self, logits: list[float]) -> int:
        """Draws the advance; forced when the phone has lasted too long, bounded so that pauses are never skipped."""
        if self.request.frames is not None and self.pointer == len(self.ids) - 1:
            return int(self._room <= 0)  # the last pause takes what is left
        stretch = max(1.0, self.request.pause) if self.ids[self.pointer] in _PAUSE_IDS else 1.0
        if self.spent + 1 >= self.longest * stretch:
            return 1
        reach = self._reach()
        temperature = max(self.request.advance_temperature, 1e-3)
        allowed = logits[: reach + 1]
        weights = [math.exp((x - max(allowed)) / temperature) for x in allowed]
        target = float(torch.rand((), generator=self.generator)) * sum(weights)
        for advance, weight in enumerate(weights):
            target -= weight
            if target < 0:
                return advance
        return reach

    def _paced(self, advance: int) -> int:
        """The advance that was drawn, or one that keeps to the speed.

        The model is asked for the speed too, but follows it little (it has heard little of it). So frames are owed:
        each of its own frames asks for 1 / speed - 1 more, or each that is made for speed - 1 fewer. Owed ones are
        inserted where the model would move on, and cut where it would stay. Where it stays on after an insertion, that
        counts as inserted too.
        """
        speed = self.speed
        if self.ids[self.pointer] in _PAUSE_IDS or (speed == 1.0 and self.request.frames is None):
            return advance
        if not self.held:
            self.owed += 1 / speed - 1 if speed < 1 else 1 - speed
        elif not advance:
            self.owed -= 1
        self.owed = max(-4.0, min(4.0, self.owed))
        if advance and self.owed >= 1 and self.spent + 2 < self.longest:
            self.owed, self.held = self.owed - 1, True
            return 0
        if not advance and self.owed <= -1:
            self.owed, self.held = self.owed + 1, False
            return 1
        self.held = self.held and not advance
        return advance

    def _reach(self) -> int:
        """How far one frame may advance: not past the next pause, and past the last phone only from the last one."""
        for step in range(1, self.config.advance + 1):
            place = self.pointer + step
            if place >= len(self.ids):
                return max(1, step - 1)
            if self.ids[place] in _PAUSE_IDS:
                return step
        return self.config.advance


def _check(request: Request, lm: SpeechLM) -> None:
    """Refuses here what would break a step, and with it the neighbours in the batch."""
    if len(request.features) < 2:
        raise BadInput("there is nothing to speak: the text has no phones")
    if not 0 <= request.voice < len(lm.config.voices):
        raise BadInput(f"voice {request.voice} is none of this model's {len(lm.config.voices)}")
    if not (0 < request.speed < math.inf and 0 < request.pause < math.inf):
        raise BadInput(f"speed and pause must be positive, not {request.speed} and {request.pause}")
