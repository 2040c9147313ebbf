"""Generation: the plan of each request, and the loop that steps all requests of a batch together.

A plan says what comes next and takes what was drawn; the loop knows neither text nor pointers:

    plan.next() -> inputs of the next step (or None when done), model, head.sample, plan.commit(codes, advance logits)

Each request has its own random generator, so its answer does not depend on its neighbours in the batch (law 3), and a
guard on the pointer, so that it can neither stop early nor hang (law 7).
"""

from __future__ import annotations

import math
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
        if len(request.features) < 2:
            raise BadInput("there is nothing to speak: the text has no phones")
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
        if self.ids[min(self.pointer, len(self.ids) - 1)] in _PAUSE_IDS:
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
        self.spent = 0.0 if advance else self.spent + 1
        self.pointer += advance
        if self.pointer >= len(self.ids):
            self.flush_left = self.pattern.extra

    def _draw_advance(self, logits: list[float]) -> int:
        """Draws the advance; forced when the phone has lasted too long, bounded so that pauses are never skipped."""
        if self.spent + 1 >= self.longest:
            return 1
        reach = self._reach()
        temperature = max(self.request.advance_temperature, 1e-3)
        weights = [math.exp((x - max(logits)) / temperature) for x in logits[: reach + 1]]
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
                return step
            if self.ids[place] in _PAUSE_IDS:
                return step
        return self.config.advance


class Generation:
    """The loop: a fixed number of slots over one model, each holding a plan or nothing."""

    def __init__(self, lm: SpeechLM, slots: int = 1) -> None:
        self.lm, self.slots = lm, slots
        self.state = lm.init_state(slots)
        self.plans: list[PointerPlan | None] = [None] * slots
        self.encoded: list[Tensor | None] = [None] * slots
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
    def tick(self) -> dict[int, Frame]:
        """One step of every occupied slot; frames that became complete, by slot. Finished plans stay until `leave`."""
        moving = {i: p for i, p in enumerate(self.plans) if p is not None and not p.done}
        if not moving:
            return {}
        hidden = self._hidden(moving)
        codes = self._sample(hidden, moving)
        advance = self.lm.advance(hidden).float().tolist()
        frames = {}
        for slot, plan in moving.items():
            frame = plan.commit(codes[slot].cpu(), advance[slot])
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
            last = len(encoded) - 1
            here[slot, 0], ahead[slot, 0] = encoded[min(plan.pointer, last)], encoded[min(plan.pointer + 1, last)]
            progress[slot, 0], voice[slot], rate[slot] = plan.progress, plan.request.voice, plan.rate
        inputs = (t.to(self.device) for t in (progress, voice, rate))
        x = lm.inputs(previous.to(self.device), here, ahead, *inputs)
        with self.state.only(self._mask(moving)):
            return lm.backbone(x, self.state.child("backbone"))[:, 0]

    def _sample(self, hidden: Tensor, moving: dict[int, PointerPlan]) -> Tensor:
        """Codes `[slot, K]`; requests with equal settings are drawn together."""
        codes = torch.zeros(self.slots, self.lm.config.codebooks, dtype=torch.long, device=self.device)
        groups: dict[SamplingConfig, list[int]] = {}
        for slot, plan in moving.items():
            groups.setdefault(plan.request.sampling, []).append(slot)
        for config, slots in groups.items():
            plans = [moving[s] for s in slots]
            uniform = torch.stack([p.uniform() for p in plans]).to(self.device)
            recent = _recent(plans, config.ras_window)
            masks = [p.empty() for p in plans]
            empty = None if masks[0] is None else torch.stack([m for m in masks if m is not None]).to(self.device)
            chosen = hidden if len(slots) == self.slots else hidden[slots]
            codes[slots] = self.lm.head.sample(
                chosen, uniform, config, None if recent is None else recent.to(self.device), empty
            )
        return codes


def _recent(plans: list[PointerPlan], window: int) -> Tensor | None:
    """The last `window` codes of each plan `[slot, K, window]`, -1 where there are none yet."""
    if window == 0:
        return None
    rows = []
    for plan in plans:
        last = plan.steps[-window:]
        gap = torch.full((plan.config.codebooks, window - len(last)), -1, dtype=torch.long)
        rows.append(torch.cat([gap, torch.stack(last, 1)], 1) if last else gap)
    return torch.stack(rows)
