"""Generation: the plan of each request, and the loop that steps all requests of a batch together.

A plan says what comes next and takes what was drawn; the loop knows neither text nor pointers nor layouts:

    plan.next() -> chunk (None while it waits or is done), model, head.sample, plan.commit(drawn steps, readout)

One frame at a time (`PointerPlan`), a chunk of text and codes (`tts/token_plan.py`), several tokens a forward
(multi-token heads): the plans differ, the loop does not.

Each request has its own random generator, so its answer does not depend on its neighbours in the batch (law 3), and a
guard on the pointer, so that it can neither stop early nor hang (law 7).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..nn.state import State
from .lm import PhoneFeatures, SpeechLM
from .pointer_plan import Frame, PointerPlan, Request
from .sampling import SamplingConfig

__all__ = ["Chunk", "Frame", "Generation", "Plan", "PointerPlan", "Request", "StepModel"]


class Chunk(Protocol):
    """The positions that one forward takes for one request.

    Attributes:
        length: how many. draw: a step is drawn from the last of them. drafts: how many more are drawn after it by a
            multi-token head.
    """

    @property
    def length(self) -> int: ...
    @property
    def draw(self) -> bool: ...
    @property
    def drafts(self) -> int: ...


class Plan(Protocol):
    """Where one request stands."""

    steps: list[Tensor]
    ready: deque[Frame]
    generator: torch.Generator

    @property
    def sampling(self) -> SamplingConfig: ...
    @property
    def done(self) -> bool:
        """Nothing more comes: no position to run, no frame to hand out."""
        ...

    def next(self) -> Any:
        """The next `Chunk`, or None: finished, or waiting for text."""
        ...

    def uniform(self) -> Tensor:
        """Random numbers of one step `[2, K]`."""
        ...

    def empty(self) -> Tensor | None:
        """BoolTensor[K]: codebooks that hold no code at this step (delay pattern), or None."""
        ...

    def banned(self) -> Tensor | None:
        """BoolTensor[ids of level 0]: what must not be drawn now (length guard, runs), or None."""
        ...

    def commit(self, codes: Tensor, readout: list[float]) -> Frame | None:
        """Takes the codes `[K]` of a step; returns the frame that became complete, if any."""
        ...


class StepModel(Protocol):
    """What the loop asks of a language model."""

    head: Any

    def init_state(self, batch: int) -> State: ...

    def enter(self, plan: Any, state: State, slot: int) -> None:
        """A request joins: what is computed once for it (its slot of `state` is fresh)."""
        ...

    def run(self, chunks: Mapping[int, Any], state: State) -> Tensor:
        """Chunks of one length, by slot -> hidden states `[slot, length, width]`; other slots' rows mean nothing."""
        ...

    def readout(self, hidden: Tensor) -> list[list[float]]:
        """What a plan learns beside the codes, from `hidden[slot, width]`: the pointer's advance logits."""
        ...


class Generation:
    """The loop: a fixed number of slots over one model, each holding a plan or nothing.

    Attributes:
        ahead: slots that need not hurry (a paced stream ahead of its deadline), which the caller keeps up to date: a
            loop that speculates takes plain steps there and leaves the machine to the others.
    """

    def __init__(self, lm: SpeechLM | StepModel, slots: int = 1) -> None:
        self.lm: Any = lm
        self.slots = slots
        self.state = self.lm.init_state(slots)
        self.plans: list[Any] = [None] * slots
        self.failures: dict[int, Exception] = {}
        self.ahead: set[int] = set()
        assert isinstance(lm, nn.Module)
        self.device = next(lm.parameters()).device

    @torch.inference_mode()
    def record(self) -> None:
        """Records the model's step now (`nn/recorded.py`), where it can be, instead of in the midst of an answer."""
        if hasattr(self.lm, "record"):
            self.lm.record(self.state)

    @torch.inference_mode()
    def join(self, slot: int, request: Any) -> Any:
        """Puts a request into a free slot and returns its plan.

        Raises:
            BadInput: the slot is taken, or the request is none that this model can speak.
        """
        if self.plans[slot] is not None:
            raise BadInput(f"slot {slot} is taken")
        plan = request.plan(self.lm)
        mask = self._mask({slot})
        self.state.reset(mask)
        with self.state.only(mask):
            self.lm.enter(plan, self.state, slot)
        self.plans[slot] = plan
        return plan

    def extend(self, slot: int, features: PhoneFeatures, whole: bool) -> None:
        """More of the text of a pointer request that was not whole; `features` of all that is known now."""
        plan = self.plans[slot]
        plan.extend(features, whole)
        with torch.inference_mode():
            self.lm.enter(plan, self.state, slot)

    def leave(self, slot: int) -> None:
        """Frees a slot; the others do not notice."""
        self.plans[slot] = None

    @torch.inference_mode()
    def tick(self, held: Collection[int] = ()) -> dict[int, Frame]:
        """One step of every occupied slot but those `held`; a complete frame of each, by slot. Finished plans stay
        until `leave`.

        A plan that drew several steps at once hands out one frame a tick, and moves on when none is left.

        A tick that raises leaves every slot as it was, so that the caller can step the slots one at a time and find
        the one to blame. What a single plan raises when it takes its codes is put into `failures` (of this tick) and
        does not touch the neighbours; such a plan must leave.
        """
        self.failures = {}
        moving = {i: p for i, p in enumerate(self.plans) if p is not None and not p.done and i not in held}
        mark, marks = self.state.mark(), {slot: _mark(plan) for slot, plan in moving.items()}
        try:
            return self._step(moving)
        except BaseException:
            self.state.rollback(mark)
            for slot, plan in moving.items():
                _rollback(plan, marks[slot])
            raise

    def _step(self, moving: dict[int, Any]) -> dict[int, Frame]:
        frames, chunks = {}, {}
        for slot, plan in moving.items():
            if plan.ready:
                frames[slot] = plan.ready.popleft()
            elif (chunk := plan.next()) is not None:
                chunks[slot] = chunk
        if not chunks:
            return frames
        self._advance(chunks)
        for slot in chunks:
            if self.plans[slot].ready and slot not in self.failures:
                frames[slot] = self.plans[slot].ready.popleft()
        return frames

    def _advance(self, chunks: dict[int, Any]) -> None:
        """Runs the chunks and lets their plans take what is drawn (`tts/speculative_plan.py` does it otherwise)."""
        hidden = self._hidden(chunks)
        drawing = {slot: self.plans[slot] for slot, chunk in chunks.items() if chunk.draw}
        if not drawing:
            return
        if getattr(self.lm.head, "continuous", False):
            codes = self._draw_latents(hidden, drawing)
        else:
            codes = self._sample(self.lm.head.sample, hidden, drawing)
        self._commit(drawing, codes, self.lm.readout(hidden))
        drafts = {s: c.drafts for s, c in chunks.items() if c.draw and c.drafts and s not in self.failures}
        self._cascade(drafts, hidden, codes)

    def _mask(self, slots: set[int] | dict[int, Any]) -> Tensor:
        return torch.tensor([i in slots for i in range(self.slots)], device=self.device)

    def _hidden(self, chunks: dict[int, Any]) -> Tensor:
        """The last hidden state of every chunk, `[slot, width]`.

        Chunks of one length run together. All slots are always in the batch: over a selection the matrix products
        would have another shape, and so another rounding, whenever a neighbour joins or leaves.
        """
        lengths = {chunk.length for chunk in chunks.values()}
        hidden: Tensor | None = None
        for length in sorted(lengths):
            group = {slot: chunk for slot, chunk in chunks.items() if chunk.length == length}
            with self.state.only(self._mask(group)):
                last = self.lm.run(group, self.state)[:, -1]
            if hidden is None:
                hidden = last
            else:
                hidden = torch.where(self._mask(group)[:, None], last, hidden)
        assert hidden is not None
        return hidden

    def _commit(self, plans: dict[int, Any], codes: Tensor, readout: list[list[float]]) -> None:
        drawn = codes.cpu()
        for slot, plan in plans.items():
            try:
                frame = plan.commit(drawn[slot], readout[slot] if readout else [])
            except Exception as error:  # of this plan alone
                self.failures[slot] = error
                continue
            if frame is not None:
                plan.ready.append(frame)

    def _cascade(self, drafts: dict[int, int], hidden: Tensor, codes: Tensor) -> None:
        """Draws the further steps of a multi-token head: one block of its cascade after the other."""
        if not drafts:
            return
        cascade = self.lm.head.cascade(hidden)
        for depth in range(max(drafts.values())):
            going = {s: self.plans[s] for s, count in drafts.items() if count > depth and self.plans[s].drafting}
            if not going:
                return
            codes = self._sample(self.lm.head.sample, cascade.advance(codes), going)
            self._commit(going, codes, [])

    def _sample(self, sample: Any, hidden: Tensor, moving: dict[int, Any]) -> Tensor:
        """Codes `[slot, K]`; requests with equal settings are drawn together.

        The head runs over all slots each time, for the same reason as the backbone.
        """
        levels = next(iter(moving.values())).codebooks
        codes = torch.zeros(self.slots, levels, dtype=torch.long, device=self.device)
        uniform = torch.zeros(self.slots, 2, levels)
        empty: Tensor | None = None
        banned: Tensor | None = None
        groups: dict[SamplingConfig, list[int]] = {}
        for slot, plan in moving.items():
            groups.setdefault(plan.sampling, []).append(slot)
            uniform[slot] = plan.uniform()
            if (mask := plan.empty()) is not None:
                empty = torch.zeros(self.slots, levels, dtype=torch.bool) if empty is None else empty
                empty[slot] = mask
            if (mask := plan.banned()) is not None:
                banned = torch.zeros(self.slots, len(mask), dtype=torch.bool) if banned is None else banned
                banned[slot] = mask
        uniform = uniform.to(self.device)
        blank = None if empty is None else empty.to(self.device)
        more = {} if banned is None else {"banned": banned.to(self.device)}
        for config, slots in groups.items():
            recent = None
            if config.ras_window:
                recent = torch.full((self.slots, levels, config.ras_window), -1)
                for slot in slots:
                    _fill_recent(recent[slot], moving[slot].steps)
                recent = recent.to(self.device)
            codes[slots] = sample(hidden, uniform, config, recent, blank, **more)[slots]
        return codes

    def _draw_latents(self, hidden: Tensor, moving: dict[int, Any]) -> Tensor:
        """Latents `[slot, dim]` of a continuous head, over all slots, as `_sample` does it."""
        head, noise = self.lm.head, torch.zeros(self.slots, self.lm.head.noise)
        previous = self.lm.nothing(self.slots)[..., 0]
        groups: dict[SamplingConfig, list[int]] = {}
        for slot, plan in moving.items():
            groups.setdefault(plan.sampling, []).append(slot)
            noise[slot] = plan.noise(head.noise)
            if plan.steps:
                previous[slot] = plan.steps[-1]
        latents = torch.zeros_like(previous, device=self.device)
        noise, previous = noise.to(self.device), previous.to(self.device)
        for config, slots in groups.items():
            latents[slots] = head.sample(hidden, noise, config, previous)[slots]
        return latents


def _fill_recent(recent: Tensor, steps: list[Tensor]) -> None:
    """Writes the last codes of a plan into the end of `recent[K, window]`."""
    last = steps[-recent.shape[1] :]
    if last:
        recent[:, -len(last) :] = torch.stack(last, 1)


def _mark(plan: Any) -> dict[str, Any]:
    """What a plan holds, its containers copied and its generator's place noted. Nested objects are not copied: a plan
    that changes one in `next` or `commit` must replace it instead."""
    held = {name: copy(value) if isinstance(value, list | deque) else value for name, value in vars(plan).items()}
    return held | {"generator": plan.generator.get_state()}


def _rollback(plan: Any, mark: dict[str, Any]) -> None:
    plan.generator.set_state(mark["generator"])
    vars(plan).update({name: value for name, value in mark.items() if name != "generator"})
