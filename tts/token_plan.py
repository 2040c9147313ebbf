"""Requests to a token language model, and the plan that steps one of them (see `tts/generate.py`)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import BadInput
from ..nn.state import State
from .conditions import Conditioners
from .generate import Frame
from .guidance import GuidedLM
from .layouts import SPEECH, Item, Layout
from .sampling import SamplingConfig
from .token_heads import MultiTokenHead
from .token_lm import TokenLM

__all__ = ["TokenChunk", "TokenPlan", "TokenRequest", "WarmClip", "parse_schedule"]


def parse_schedule(text: str) -> tuple[tuple[int, int], ...]:
    """VITA-Audio's schedule, alternating counts of steps by the main model and by the cascade: `1 10 4 10`.

    Raises:
        BadInput: not pairs of whole numbers, or a first count below 1.
    """
    try:
        numbers = [int(part) for part in text.split()]
    except ValueError:
        numbers = []
    pairs = tuple(zip(numbers[::2], numbers[1::2]))
    if not pairs or len(numbers) % 2 or any(main < 1 or draft < 0 for main, draft in pairs):
        raise BadInput(f"{text!r}: a schedule is pairs of counts (main, drafts), such as 1 4 3 8")
    return pairs


class WarmClip:
    """The state after the beginning that several requests share (a voice's clip): run once, not for each of them.

    Kept is what does not depend on what comes after the clip: in the interleave the blocks of `given` ids and forced
    steps, in the prefix layout the ids alone (the speech follows the *whole* text there); nothing in the cross layout.

    Args:
        ids, frames: how much of each request's text and prompt they share.
    """

    def __init__(self, ids: int, frames: int) -> None:
        self.ids, self.frames = ids, frames
        self._held: dict[bool, dict[str, Tensor]] = {}

    def positions(self, lm: TokenLM, lead: int) -> int:
        """How many positions the clip alone decides; `lead` of them come before the text."""
        known, ratio = max(0, self.ids - lm.reader.context), lm.config.interleave
        if lm.config.layout == "cross" or not self.ids:
            return 0
        if ratio is None:
            return lead + known
        blocks = min(known // ratio[0], self.frames // ratio[1])
        return lead + blocks * sum(ratio) if blocks else 0

    @property
    def held(self) -> bool:
        return bool(self._held)

    def keep(self, blind: bool, state: State, slot: int) -> None:
        """Takes a copy of a slot."""
        if blind not in self._held:
            self._held[blind] = {path: tensor[slot].clone() for path, tensor in state.tensors()}

    def put(self, blind: bool, state: State, slot: int) -> None:
        """Writes it into a slot."""
        for path, tensor in state.tensors():
            tensor[slot] = self._held[blind][path]


@dataclass(frozen=True)
class TokenRequest:
    """One utterance to speak.

    Attributes:
        text: ids. final: no more will come (else `TokenPlan.push_text`, `finish_text`).
        voice: speaker id (of a model with voices). prompt: LongTensor `[K, frame]`, speech that `text` begins with.
        given: ids of `text` that the prompt says; the length guard counts the others.
        clip: where the state after the beginning of text and prompt is kept from one request to the next.
        least, most: frames; None: from the model's `shortest` and `longest` per text id.
        guidance: classifier-free guidance, of a `GuidedLM` only: 1 = none; more follows the text more.
        over: what guidance weighs: `text` (all that the model is told) or `conditions` (them alone).
        conditions: values of the model's conditions, by name; those left out are absent.
        schedule: of a multi-token head: (steps by the main model, then by the cascade), the last pair repeated.
        seed: of the request's own generator.
    """

    text: Sequence[int]
    final: bool = True
    voice: int = 0
    prompt: Tensor | None = None
    given: int = 0
    clip: WarmClip | None = None
    least: int | None = None
    most: int | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    schedule: tuple[tuple[int, int], ...] = ((1, 0),)
    guidance: float = 1.0
    over: Literal["text", "conditions"] = "text"
    conditions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def plan(self, lm: TokenLM | GuidedLM) -> TokenPlan:
        """Raises BadInput for what would break a step."""
        if not 0 <= self.guidance <= 10:
            raise BadInput(f"guidance must lie between 0 and 10, not {self.guidance}")
        if self.guidance != 1 and not isinstance(lm, GuidedLM):
            raise BadInput("guidance needs tts.guidance.GuidedLM around the model")
        return TokenPlan(self, lm.lm if isinstance(lm, GuidedLM) else lm)


@dataclass(frozen=True)
class TokenChunk:
    """Positions to run for a plan, the first of them its `at`-th; `drafts` steps of a cascade may follow the drawn
    one."""

    plan: TokenPlan
    items: list[Item]
    draw: bool
    drafts: int = 0
    at: int = 0

    @property
    def length(self) -> int:
        return len(self.items)


class TokenPlan:
    """Where one request stands: text given and still due, steps drawn, and the guards on its length."""

    def __init__(self, request: TokenRequest, lm: TokenLM) -> None:
        self.request, self.config, self.pattern = request, lm.config, lm.pattern
        self.codebooks, self.limit, self.context = lm.config.codebooks, lm.chunk, lm.context
        self.eos, self.fill, self.blank = lm.head.eos, lm.head.fill, lm.head.empty
        self.head_drafts = lm.head.drafts if isinstance(lm.head, MultiTokenHead) else 0
        self.text_vocab, self.reach = int(lm.text_vocab), lm.reader.context
        self.generator = torch.Generator().manual_seed(request.seed)
        self.ids: list[int] = []
        self.final = False
        self.read = 0  # ids that `encoded` covers
        self.encoded: Tensor = torch.zeros(0)
        self.place = 0.0  # cross layout: where in the text the last step looked
        self.history: list[Tensor] = []  # prompt and steps, as the model sees them
        self.steps: list[Tensor] = []
        self.ready: deque[Frame] = deque()
        self.end: int | None = None  # step at which level 0 ended
        self.used = 0  # positions run
        lead = 1 + bool(lm.config.voices) + len(lm.config.conditions)
        self.clip = 0 if request.clip is None else request.clip.positions(lm, lead)  # positions of the clip
        self.skipped = bool(self.clip) and request.clip is not None and request.clip.held
        conditions = len(lm.config.conditions)
        self.told: Tensor | None = None  # rows of the conditions
        self.layout = Layout(lm.config.interleave, request.voice if lm.config.voices else None, conditions)
        self.pending: list[Item] = []
        self.forced = 0
        self.turn = 0
        self._check(lm)
        self._bans = self._make_bans(lm.head.size(0))
        self.silent = frozenset(self.config.silent)
        self.push_text(request.text)
        if request.final:
            self.finish_text()

    # -- text ---------------------------------------------------------------------------------------------------------
    def push_text(self, ids: Sequence[int]) -> None:
        """More text arrives.

        Raises:
            BadInput: after `finish_text`, ids outside the text vocabulary, or more than the model's context holds.
        """
        if self.final:
            raise BadInput("this request's text is finished")
        if any(not 0 <= i < self.text_vocab for i in ids):
            raise BadInput(f"text ids must lie in 0..{self.text_vocab - 1}")
        self._check_room(len(self.ids) + len(ids))
        self.ids += [int(i) for i in ids]

    def finish_text(self) -> None:
        """No more text will come.

        Raises:
            BadInput: there was none.
        """
        if not self.ids:
            raise BadInput("there is nothing to speak: the text is empty")
        self.final = True

    def _check_room(self, ids: int) -> None:
        """A text that does not fit must be refused here: an error inside a step would hit the neighbours too."""
        prompt = 0 if self.request.prompt is None else self.request.prompt.shape[-1]
        ratio = self.config.interleave
        fixed = ids + 3 + len(self.config.conditions) + max(prompt, ids // ratio[0] * ratio[1] if ratio else 0)
        room = self.config.cross.capacity if self.config.layout == "cross" else self.context
        if room is not None and (ids if self.config.layout == "cross" else fixed + 2) > room:
            raise BadInput(f"{ids} text ids do not fit into the model's {room} positions; speak the text in parts")

    # -- guards -------------------------------------------------------------------------------------------------------
    @property
    def sampling(self) -> SamplingConfig:
        return self.request.sampling

    @property
    def least(self) -> int:
        if self.request.least is not None:
            return self.request.least
        return max(1, math.floor(self.config.shortest * (len(self.ids) - self.request.given)))

    @property
    def most(self) -> int:
        most = self.request.most
        if most is None:
            most = max(2, self.least, math.ceil(self.config.longest * (len(self.ids) - self.request.given)))
        if self.context is not None:  # what is left of the context when all text is in
            most = min(most, self.context - self.used - len(self.pending) + len(self.steps) - 2 - self.pattern.extra)
        return max(most, 1)

    def _make_bans(self, size: int) -> dict[tuple[bool, bool], Tensor]:
        """What level 0 must not draw: by (the end is banned, silence is banned)."""
        bans = {}
        for end in (False, True):
            for silence in (False, True):
                ban = torch.zeros(size, dtype=torch.bool)
                ban[self.fill], ban[self.eos] = True, end
                if silence:
                    ban[list(self.config.silent)] = True
                bans[end, silence] = ban
        return bans

    def banned(self) -> Tensor | None:
        """Every stop id before its time (law 7), and silence that has lasted too long."""
        frames = len(self.steps)
        early = not self.layout.last or frames < self.least
        if self.config.layout == "cross" and self.config.cross.relative:
            early = early or not self.final or self.place < len(self.ids) - 2
        run = self.config.silent_run
        silent = bool(run) and frames >= run and all(int(s[0]) in self.silent for s in self.steps[-run:])
        # When the end is banned too, silence must stay possible if nothing else is.
        return self._bans[early, silent and len(self.silent) < self.config.vocab]

    def uniform(self) -> Tensor:
        """Random numbers of one step `[2, K]`."""
        return torch.rand(2, self.codebooks, generator=self.generator)

    def empty(self) -> Tensor | None:
        """BoolTensor[K]: codebooks without a code at this step (delay pattern), or None."""
        if not self.pattern.extra:
            return None
        return self._holes(len(self.steps))

    def _holes(self, step: int) -> Tensor:
        return torch.tensor([step < d or (self.end is not None and step >= self.end + d) for d in self.pattern.delays])

    # -- the loop's side ----------------------------------------------------------------------------------------------
    @property
    def drafting(self) -> bool:
        """The cascade may go on from the last step."""
        return self.end is None and not self.layout.due

    @property
    def done(self) -> bool:
        return self._complete and not self.ready

    @property
    def _complete(self) -> bool:
        return self.end is not None and len(self.steps) >= self.end + max(self.pattern.extra, 1)

    @property
    def starved(self) -> bool:
        """Nothing to run until more text arrives."""
        if self.final or self._complete or self.ready:
            return False
        if self.config.layout == "cross":
            return not self._text_ahead()
        ratio = self.config.interleave
        return self.layout.due and (ratio is None or self._usable() - self.layout.sent < ratio[0])

    def next(self) -> TokenChunk | None:
        """The next positions, or None: complete, or waiting for text."""
        if self._complete:
            return None
        self.layout = copy(self.layout)  # replaced, not changed: a failed tick is taken back
        if not self._fill():
            return None
        if self.config.layout == "cross" and not self._text_ahead():
            return None
        if self.skipped and not self.used:
            self.used, self.pending = self.clip, self.pending[self.clip :]
        at, limit = self.used, self.limit
        if at < self.clip:
            limit = min(limit, self.clip - at)  # the state is kept exactly there
        items, self.pending = self.pending[:limit], self.pending[limit:]
        self.used += len(items)
        if self.pending:
            return TokenChunk(self, items, draw=False, at=at)
        chunk = TokenChunk(self, items, draw=True, drafts=self._drafts(), at=at)
        self.turn += 1
        return chunk

    def _text_ahead(self) -> bool:
        """Cross layout: enough text lies ahead of where the attention looks (all of it, without a place)."""
        cross = self.config.cross
        return self.final or (cross.relative and self.place + cross.distance + self.reach < len(self.ids))

    def _fill(self) -> bool:
        """Puts the text that is due, and the prompt's steps after it, into `pending`; False if it must wait."""
        while self.layout.due:
            # In the cross layout no text goes into the sequence.
            known, final = (0, True) if self.config.layout == "cross" else (self._usable(), self.final)
            items = self.layout.text(known, final)
            if items is None:
                return False
            self.pending += items
            self._force()
        return True

    def _usable(self) -> int:
        """Text ids whose rows will not change when more text arrives."""
        return len(self.ids) if self.final else max(0, len(self.ids) - self.reach)

    def _force(self) -> None:
        """Steps of the prompt are given, not drawn."""
        prompt = self.request.prompt
        while prompt is not None and self.forced < prompt.shape[-1] and not self.layout.due:
            self.history.append(prompt[:, self.forced])
            self.pending.append(Item(SPEECH, self.forced))
            self.forced += 1
            self.layout.step()

    def _drafts(self) -> int:
        """How many steps the cascade draws after this one, by the schedule and up to where text is due."""
        if not self.head_drafts:
            return 0
        schedule = self.request.schedule
        at, main = self.turn, 0
        for main, draft in schedule[:-1]:
            if at < main:
                return self._cut(draft) if at == main - 1 else 0
            at -= main
        main, draft = schedule[-1]
        return self._cut(draft) if at % main == main - 1 else 0

    def _cut(self, drafts: int) -> int:
        left = drafts if self.layout.left is None else self.layout.left - 1
        return max(0, min(drafts, left, self.head_drafts))

    def commit(self, codes: Tensor, readout: list[float]) -> Frame | None:
        """Takes the codes `[K]` of a step; returns the frame that became complete, if any."""
        step = len(self.steps)
        if self.end is None:
            codes = codes.clone()
            if step >= self.most and self.layout.last and self.final:
                codes[0] = self.eos
            if int(codes[0]) == self.eos:
                self.end = step
                holes = self._holes(step)
                holes[0] = False  # the end itself
                codes[holes] = self.blank
        self.steps.append(codes)
        self.history.append(codes)
        self.pending = [*self.pending, Item(SPEECH, len(self.history) - 1)]
        self.layout = copy(self.layout)
        self.layout.step()
        frame = step - self.pattern.extra
        if frame < 0 or (self.end is not None and frame >= self.end):
            return None
        whole = torch.stack([self.steps[frame + delay][k] for k, delay in enumerate(self.pattern.delays)])
        return Frame(whole, int(self.place))

    def _check(self, lm: TokenLM) -> None:
        """Refuses here what would break a step, and with it the neighbours in the batch."""
        request, config = self.request, self.config
        if config.voices and not 0 <= request.voice < len(config.voices):
            raise BadInput(f"voice {request.voice} is none of this model's {len(config.voices)}")
        if request.prompt is not None:
            shape = request.prompt.shape
            if len(shape) != 2 or shape[0] != config.codebooks or self.pattern.extra:
                raise BadInput(f"a prompt is codes [{config.codebooks}, frame] of a model without delays")
            if (
                request.prompt.numel()
                and not 0 <= int(request.prompt.min()) <= int(request.prompt.max()) < config.vocab
            ):
                raise BadInput(f"the prompt's codes must lie in 0..{config.vocab - 1}")
        if request.conditions:
            (lm.conditions or Conditioners((), 1)).check(request.conditions)
        least, most = request.least or 0, request.most
        if least < 0 or (most is not None and most < max(1, least)):
            raise BadInput(f"least {least} and most {most} frames contradict each other")
        if any(main < 1 or draft < 0 for main, draft in request.schedule) or not request.schedule:
            raise BadInput("a schedule is pairs of counts (main at least 1, drafts)")
