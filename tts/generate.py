"""Generation: the plan of each request, and the loop that steps all requests of a batch together.

A plan says what comes next and takes what was drawn; the loop knows neither text nor pointers:

    plan.next() -> inputs of the next step (or None when done), model, head.sample, plan.commit(codes, advance logits)

Each request has its own random generator, so its answer does not depend on its neighbours in the batch (law 3), and a
guard on the pointer, so that it can neither stop early nor hang (law 7).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import BadInput
from .lm import PhoneFeatures, SpeechLM
from .phones import PAUSES, PHONE_IDS
from .sampling import SamplingConfig

__all__ = ["Frame", "Generation", "PointerPlan", "Request"]

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
    """

    features: PhoneFeatures
    voice: int = 0
    speed: float = 1.0
    pause: float = 1.0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    advance_temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True)
class Frame:
    """One frame of an answer: codes LongTensor[K], and the index of the phone that the pointer was in (0 = ^)."""

    codes: Tensor
    phone: int


class PointerPlan:
    """Where one request stands: pointer, frames in the phone, codes so far."""

    def __init__(self, request: Request, lm: SpeechLM) -> None:
        _check(request, lm)
        self.request, self.config, self.pattern = request, lm.config, lm.pattern
        self.generator = torch.Generator().manual_seed(request.seed)
        self.ids: list[int] = request.features.phones.tolist()
        self.pointer, self.spent, self.flush_left = 0, 0.0, -1
        self.steps: list[Tensor] = []
        self.pointers: list[int] = []
        # Enough for a slow, drawn-out phone; beyond it the pointer is stuck and must move.
        self.longest = math.ceil(lm.config.longest / min(1.0, request.speed * 0.9))

    @property
    def done(self) -> bool:
        return self.flush_left == 0

    @property
    def rate(self) -> float:
        """The part of the speed that the model itself is asked for, as log rate."""
        return max(-RATE_RANGE, min(RATE_RANGE, math.log(self.request.speed)))

    @property
    def progress(self) -> int:
        """Frames in the phone as the model counts them: the part of speed and pause that its training does not
        cover."""
        warp = math.exp(math.log(self.request.speed) - self.rate)
        if self.ids[self.pointer] in _PAUSE_IDS:
            warp = 1.0 / max(self.request.pause, 1e-3)
        return int(self.spent * warp)

    def uniform(self) -> Tensor:
        """Random numbers of one step `[2, K]`."""
        return torch.rand(2, self.config.codebooks, generator=self.generator)

    def empty(self) -> Tensor | None:
        """BoolTensor[K]: codebooks that hold no code at this step (delay pattern), or None."""
        if not self.pattern.extra:
            return None
        step, end = len(self.steps), len(self.pointers)
        holds = [delay <= step and (self.flush_left < 0 or step < end + delay) for delay in self.pattern.delays]
        return ~torch.tensor(holds)

    def commit(self, codes: Tensor, advance: list[float]) -> Frame | None:
        """Takes the codes `[K]` and the advance logits of a step; returns the frame that became complete, if any."""
        self.steps.append(codes)
        if self.flush_left < 0:
            self.pointers.append(self.pointer)
            self._move(self._draw_advance(advance))
        else:
            self.flush_left -= 1
        frame = len(self.steps) - 1 - self.pattern.extra
        if frame < 0:
            return None
        codes = torch.stack([self.steps[frame + delay][k] for k, delay in enumerate(self.pattern.delays)])
        return Frame(codes, self.pointers[frame])

    def _move(self, advance: int) -> None:
        if self.pointer + advance >= len(self.ids):
            # Pointer and count stay where the last frame had them: that is what training shows at the flush steps.
            self.flush_left = self.pattern.extra
            return
        self.spent = 0.0 if advance else self.spent + 1
        self.pointer += advance

    def _draw_advance(self, logits: list[float]) -> int:
        """Draws the advance; forced when the phone has lasted too long, bounded so that pauses are never skipped."""
        if self.spent + 1 >= self.longest:
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


class Generation:
    """The loop: a fixed number of slots over one model, each holding a plan or nothing."""

    def __init__(self, lm: SpeechLM, slots: int = 1) -> None:
        self.lm, self.slots = lm, slots
        self.state = lm.init_state(slots)
        self.plans: list[PointerPlan | None] = [None] * slots
        self.encoded: list[Tensor | None] = [None] * slots
        self.failures: dict[int, Exception] = {}
        self.device = lm.rate.device

    @torch.inference_mode()
    def join(self, slot: int, request: Request) -> PointerPlan:
        """Puts a request into a free slot."""
        if self.plans[slot] is not None:
            raise BadInput(f"slot {slot} is taken")
        self.state.reset(self._mask({slot}))
        f = request.features
        parts = (t[None].to(self.device) for t in (f.phones, f.word_start, f.upcoming))
        plan = PointerPlan(request, self.lm)
        self.encoded[slot] = self.lm.phones(*parts)[0]
        self.plans[slot] = plan
        return plan

    def leave(self, slot: int) -> None:
        """Frees a slot; the others do not notice."""
        self.plans[slot] = None
        self.encoded[slot] = None

    @torch.inference_mode()
    def tick(self, held: Collection[int] = ()) -> dict[int, Frame]:
        """One step of every occupied slot but those `held`; frames that became complete, by slot. Finished plans stay
        until `leave`.

        A step that raises leaves every slot as it was before, so the caller may step the slots one at a time to find
        the one to blame. What a single plan raises when it takes its codes is put into `failures` (of this tick) and
        does not touch the neighbours; such a plan must leave.
        """
        self.failures = {}
        moving = {i: p for i, p in enumerate(self.plans) if p is not None and not p.done and i not in held}
        if not moving:
            return {}
        mark, drawn = self.state.mark(), {i: p.generator.get_state() for i, p in moving.items()}
        try:
            hidden = self._hidden(moving)
            codes = self._sample(hidden, moving).cpu()
            advance = self.lm.advance(hidden).float().tolist()
        except BaseException:
            self.state.rollback(mark)
            for slot, plan in moving.items():
                plan.generator.set_state(drawn[slot])
            raise
        frames = {}
        for slot, plan in moving.items():
            try:
                frame = plan.commit(codes[slot], advance[slot])
            except Exception as error:
                self.failures[slot] = error
                continue
            if frame is not None:
                frames[slot] = frame
        return frames

    def _mask(self, slots: set[int] | dict[int, PointerPlan]) -> Tensor:
        return torch.tensor([i in slots for i in range(self.slots)], device=self.device)

    def _hidden(self, moving: dict[int, PointerPlan]) -> Tensor:
        lm, width = self.lm, self.lm.config.backbone.width
        previous = torch.full((self.slots, lm.config.codebooks, 1), lm.config.vocab)
        here, ahead = torch.zeros(2, self.slots, 1, width, device=self.device)
        progress, voice = torch.zeros(self.slots, 1, dtype=torch.long), torch.zeros(self.slots, dtype=torch.long)
        rate = torch.zeros(self.slots)
        for slot, plan in moving.items():
            encoded = self.encoded[slot]
            assert encoded is not None
            if plan.steps:
                previous[slot, :, 0] = plan.steps[-1]
            here[slot, 0], ahead[slot, 0] = encoded[plan.pointer], encoded[plan.pointer + 1]
            progress[slot, 0], voice[slot], rate[slot] = plan.progress, plan.request.voice, plan.rate
        inputs = (t.to(self.device) for t in (progress, voice, rate))
        x = lm.inputs(previous.to(self.device), here, ahead, *inputs)
        with self.state.only(self._mask(moving)):
            return lm.backbone(x, self.state.child("backbone"))[:, 0]

    def _sample(self, hidden: Tensor, moving: dict[int, PointerPlan]) -> Tensor:
        """Codes `[slot, K]`; requests with equal settings are drawn together.

        The head runs over all slots each time: over a selection its matrix products would have another shape, and so
        another rounding, whenever a neighbour joins or leaves.
        """
        levels = self.lm.config.codebooks
        codes = torch.zeros(self.slots, levels, dtype=torch.long, device=self.device)
        uniform = torch.zeros(self.slots, 2, levels)
        empty = torch.zeros(self.slots, levels, dtype=torch.bool)
        groups: dict[SamplingConfig, list[int]] = {}
        for slot, plan in moving.items():
            groups.setdefault(plan.request.sampling, []).append(slot)
            uniform[slot] = plan.uniform()
            mask = plan.empty()
            if mask is not None:
                empty[slot] = mask
        uniform, blank = uniform.to(self.device), empty.to(self.device) if self.lm.pattern.extra else None
        for config, slots in groups.items():
            recent = None
            if config.ras_window:
                recent = torch.full((self.slots, levels, config.ras_window), -1)
                for slot in slots:
                    _fill_recent(recent[slot], moving[slot].steps)
                recent = recent.to(self.device)
            codes[slots] = self.lm.head.sample(hidden, uniform, config, recent, blank)[slots]
        return codes


def _fill_recent(recent: Tensor, steps: list[Tensor]) -> None:
    """Writes the last codes of a plan into the end of `recent[K, window]`."""
    last = steps[-recent.shape[1] :]
    if last:
        recent[:, -len(last) :] = torch.stack(last, 1)
