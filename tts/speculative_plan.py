"""Speculation along time in the generation loop: draft some tokens, verify them in one forward, keep the prefix that
the rule keeps, and one token more.

For models of one codebook (semantic tokens at 25 Hz, CosyVoice and its family); frames of several codebooks are
speculated on along depth (`tts/speculative_depth.py`): a whole frame would have to be right at once.

Rejected positions are taken back by their number alone: what they wrote into the ring caches lies past the position
and is overwritten (`nn/transformer.py` keeps `slack` places for that). Rows of a batch advance by numbers of their own.
Only what was verified becomes a frame. A plan's guards (least and most frames, runs of silence, repetition-aware
sampling) are part of both laws, each evaluated behind the drafted tokens before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput
from ..nn.state import State
from .drafters import Drafter, DraftLength, HeadDrafter, LMDrafter, Proposal, laws_at
from .generate import Generation
from .guidance import GuidedLM
from .sampling import SamplingConfig, sampling_law
from .speculative import Exact, Rule, verify
from .token_heads import MultiTokenHead
from .token_lm import TokenLM
from .token_plan import TokenChunk, TokenPlan

__all__ = ["Figures", "Speculation", "SpeculativeGeneration", "measured_length"]


@dataclass(frozen=True)
class Speculation:
    """Attributes:
    drafter: who proposes. rule: who judges. length: tokens to draft, or how to choose their number.
    """

    drafter: Drafter
    rule: Rule = field(default_factory=Exact)
    length: int | DraftLength = 3

    def __post_init__(self) -> None:
        if isinstance(self.length, int) and not 0 <= self.length <= 64:
            raise BadInput(f"a draft has 0 to 64 tokens, not {self.length}")

    @property
    def most(self) -> int:
        most = self.length if isinstance(self.length, int) else len(self.length.verify) - 1
        return most if self.drafter.most is None else min(most, self.drafter.most)


@dataclass
class Figures:
    """What a generation has done so far.

    Attributes:
        calls: forwards of the target that drew something, counted once for each slot. drafted, kept: tokens.
        judged: drafted tokens that the rule came to (those after a rejection are not). tokens: committed in all.
        cost: total variation spent, where the rule states it.
    """

    calls: int = 0
    drafted: int = 0
    judged: int = 0
    kept: int = 0
    tokens: int = 0
    cost: float = 0.0

    @property
    def acceptance(self) -> float:
        """Share of the judged tokens that were kept."""
        return self.kept / max(self.judged, 1)

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / max(self.calls, 1)


@torch.inference_mode()
def measured_length(lm: TokenLM, drafter: Drafter, most: int = 5, repeats: int = 5) -> DraftLength:
    """A `DraftLength` from what drafting and verifying cost on this machine, now: the least thread CPU time of several
    interleaved forwards. Lengths chosen from it depend on the machine, and so does which speech a seed gives (never its
    law); a fixed length gives the same speech everywhere.

    Raises:
        BadInput: a state that cannot be rewound.
    """
    most = most if drafter.most is None else min(most, drafter.most)
    most = min(most, lm.chunk - 1)
    calls: list[Callable[[], None]] = [partial(_forward, lm, _state(lm), count + 1) for count in range(most + 1)]
    if isinstance(drafter, LMDrafter):
        calls.append(partial(_forward, drafter.lm, _state(drafter.lm), 1))
    elif isinstance(drafter, HeadDrafter) and isinstance(lm.head, MultiTokenHead):
        calls.append(partial(_cascade, lm, lm.head))
    else:
        calls.append(lambda: None)  # looking up costs nothing that a forward would notice
    costs = [float("inf")] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.thread_time()
            call()
            costs[i] = min(costs[i], time.thread_time() - start)
    *verify, draft = (cost / max(costs[0], 1e-9) for cost in costs)
    return DraftLength(draft, tuple(verify))


def _state(lm: TokenLM) -> State:
    return lm.init_state(1).child("backbone")


def _forward(lm: TokenLM, state: State, count: int) -> None:
    """`count` positions and the laws behind them; the state is where it was."""
    like = lm.input_scale
    hidden = lm.backbone(torch.randn(1, count, lm.width, device=like.device, dtype=like.dtype), state)[0]
    none = torch.zeros(count, 1, dtype=torch.long, device=like.device)
    sampling_law(lm.head.logits(hidden, none)[0], SamplingConfig())
    state.rewind(torch.tensor([count]))


def _cascade(lm: TokenLM, head: MultiTokenHead) -> None:
    like = lm.input_scale
    none = torch.zeros(1, 1, dtype=torch.long, device=like.device)
    hidden = head.cascade(torch.randn(1, lm.width, device=like.device, dtype=like.dtype)).advance(none)
    sampling_law(head.logits(hidden, none)[0], SamplingConfig())


class SpeculativeGeneration(Generation):
    """The loop of `tts/generate.py` with a draft before each forward.

    Attributes:
        figures: acceptance so far (of several generations, where they were given the same).

    Raises:
        BadInput: a model of several codebooks or of the cross layout, a rule over another vocabulary, or a drafter that
            does not fit the model.
    """

    def __init__(
        self, lm: TokenLM | GuidedLM, speculation: Speculation, slots: int = 1, figures: Figures | None = None
    ) -> None:
        super().__init__(lm, slots)
        self.target = lm.lm if isinstance(lm, GuidedLM) else lm
        _check(self.target, speculation.rule)
        self.state.rewind(torch.zeros(slots, dtype=torch.long))  # refuses what cannot go back
        speculation.drafter.attach(self.target, self.state)
        self.speculation, self.figures = speculation, figures or Figures()

    # -- one cycle ----------------------------------------------------------------------------------------------------
    def _advance(self, chunks: dict[int, Any]) -> None:
        drafter = self.speculation.drafter
        drawing = {slot: chunk for slot, chunk in chunks.items() if chunk.draw}
        plain = {slot: chunk for slot, chunk in chunks.items() if not chunk.draw}
        if plain:
            self._hidden(plain)
            drafter.follow(plain, self.state)
        if not drawing:
            return
        lengths = {slot: self._length(slot, chunk) for slot, chunk in drawing.items()}
        proposal = drafter.propose(drawing, lengths, self.state)
        try:
            groups: dict[tuple[int, int], dict[int, TokenChunk]] = {}
            for slot, chunk in drawing.items():
                shape = chunk.length, len(proposal.prefixes[slot].codes)
                groups.setdefault(shape, {})[slot] = chunk
            verdicts = [self._judge(groups[shape], shape[1], proposal) for shape in sorted(groups)]
        finally:
            for prefix in proposal.prefixes.values():
                prefix.drop()
        for (shape, group), (count, token, cost, hidden) in zip(sorted(groups.items()), verdicts, strict=True):
            self._take(group, shape[1], proposal, count, token, cost, hidden)

    def _length(self, slot: int, chunk: TokenChunk) -> int:
        """How many tokens may be drafted after this chunk."""
        plan, length = chunk.plan, self.speculation.length
        if slot in self.ahead:
            return 0
        wanted = length if isinstance(length, int) else length.choose(vars(plan).get("draft_share", 0.7))
        room = [wanted, self.speculation.most, plan.limit - chunk.length]
        if plan.layout.left is not None:  # text is due after so many steps
            room.append(plan.layout.left - 1)
        elif plan.final:
            room.append(plan.most - len(plan.steps))
        if plan.context is not None:
            room.append(plan.context - plan.used)
        return max(0, min(room))

    def _judge(
        self, group: dict[int, TokenChunk], drafted: int, proposal: Proposal
    ) -> tuple[list[int], list[int], list[float], Tensor]:
        """Runs the chunks with their drafts; for each slot how many stand, what follows, what it cost, and the hidden
        states `[slot, drafted + 1, width]` that the tokens are drawn from."""
        prefixes = {slot: proposal.prefixes[slot] for slot in group}
        longer = {s: replace(chunk, items=[*chunk.items, *prefixes[s].items()]) for s, chunk in group.items()}
        with self.state.only(self._mask(longer)):
            hidden = self.lm.run(longer, self.state)[:, -drafted - 1 :]
        q = laws_at(self._logits(hidden), prefixes)
        p = proposal.laws[:, :drafted]
        codes = torch.zeros(self.slots, drafted, dtype=torch.long)
        uniform, noise = torch.zeros(self.slots, drafted), torch.ones(self.slots, q.shape[-1])
        for slot, prefix in prefixes.items():
            codes[slot] = torch.tensor(prefix.codes, dtype=torch.long)
            uniform[slot] = torch.rand(drafted, generator=prefix.plan.generator)
            noise[slot].exponential_(generator=prefix.plan.generator)
        spent = torch.tensor([0.0 if plan is None else vars(plan).get("draft_spent", 0.0) for plan in self.plans])
        codes, uniform, noise, spent = (x.to(self.device) for x in (codes, uniform, noise, spent))
        rule = self.speculation.rule if drafted else Exact()
        found = verify(codes, p, q, rule, uniform, noise, spent)
        return found.count.tolist(), found.token.tolist(), found.cost.tolist(), hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits `[slot, n, vocab]` of codebook 0, guided where the model is."""
        slots, count, width = hidden.shape
        flat, head = hidden.reshape(slots * count, width), self.target.head
        none = torch.zeros(slots * count, 1, dtype=torch.long, device=hidden.device)
        if not isinstance(self.lm, GuidedLM):
            return head.logits(flat, none)[0].view(slots, count, -1)
        given, blind = (head.logits(part, none)[0] for part in flat[:, :-1].chunk(2, -1))
        scale = flat[:, -1:]
        return torch.where(scale == 1, given, blind + scale * (given - blind)).view(slots, count, -1)

    def _take(
        self,
        group: dict[int, TokenChunk],
        drafted: int,
        proposal: Proposal,
        count: list[int],
        token: list[int],
        cost: list[float],
        hidden: Tensor,
    ) -> None:
        """Commits what stands, takes the rest of the positions back, and tells the drafter."""
        back = torch.zeros(self.slots, dtype=torch.long)
        for slot in group:
            back[slot] = drafted - count[slot]
        for part in self._own_parts():
            part.rewind(back)
        given = self.target.width
        for slot, chunk in group.items():
            plan, prefix, kept = chunk.plan, proposal.prefixes[slot], count[slot]
            try:
                self._commit_tokens(plan, [*prefix.codes[:kept], token[slot]], kept)
                last = hidden[slot, kept, :given]
                self.speculation.drafter.settle(slot, chunk, prefix, kept, self.state, last)
            except Exception as error:  # of this plan alone
                self.failures[slot] = error
                continue
            self._note(plan, kept, drafted, cost[slot])

    def _commit_tokens(self, plan: TokenPlan, tokens: list[int], kept: int) -> None:
        for code in tokens:
            frame = plan.commit(torch.tensor([code]), [])
            if frame is not None:
                plan.ready.append(frame)
            if plan.end is not None:
                break
        plan.pending = plan.pending[kept:]  # what was kept has been run already
        plan.used += kept

    def _own_parts(self) -> list[State]:
        """The target's parts of the state: without the drafter's."""
        names = ("given", "blind") if isinstance(self.lm, GuidedLM) else ("backbone",)
        return [self.state.child(name) for name in names]

    def _note(self, plan: TokenPlan, kept: int, drafted: int, cost: float) -> None:
        length, own = self.speculation.length, vars(plan)
        if isinstance(length, DraftLength):
            own["draft_share"] = length.updated(own.get("draft_share", 0.7), kept, drafted)
        own["draft_spent"] = own.get("draft_spent", 0.0) + cost
        figures = self.figures
        figures.calls += 1
        figures.drafted += drafted
        figures.judged += kept + (kept < drafted)
        figures.kept += kept
        figures.tokens += kept + 1
        figures.cost += cost


def _check(lm: TokenLM, rule: Rule) -> None:
    config = lm.config
    if config.codebooks != 1 or config.layout == "cross":
        raise BadInput(
            f"speculation along time needs one codebook and layout prefix or interleave, not {config.codebooks} and "
            f"{config.layout}; a model with a depth or chain head is speculated on along depth"
        )
    channel = getattr(getattr(rule, "rule", rule), "channel", None)
    if channel is not None and channel.vocab != lm.head.size(0):
        raise BadInput(
            f"the groups are over {channel.vocab} tokens, the model draws from {lm.head.size(0)}; "
            "build them for this model with `quaver groups build MODEL`"
        )
