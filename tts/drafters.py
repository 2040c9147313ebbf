"""Drafters along time: who proposes the tokens that the target verifies (`tts/speculative_plan.py`).

- `LMDrafter`: a small language model, usually the target's first layers with the target's own embeddings
  (`first_layers`, trained by the task `draft`).
- `HeadDrafter`: the target's multi-token head (VITA-Audio's cascade), here verified.
- `LookupDrafter`: what followed the last few tokens when they were last said (prompt lookup), without a model.

Each proposes codes and the laws that they were drawn from, under the same sampling settings and bans as the target.
What a drafter remembers of a request lies on the plan or in the generation's state tree, so that joining, freezing,
failing and rolling back are the loop's, not the drafter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..codecs.loading import load_weights, model_folder, read_config
from ..errors import BadInput, ConfigError
from ..nn.state import State
from .backbones import HFBackbone, HFConfig
from .layouts import SPEECH, Item
from .sampling import SamplingConfig, draw, sampling_law
from .token_heads import STOPS, MultiTokenHead, ParallelHead
from .token_lm import TokenLM

if TYPE_CHECKING:
    from .token_plan import TokenChunk, TokenPlan, TokenRequest

__all__ = [
    "DraftLength",
    "Drafter",
    "HeadDrafter",
    "LMDrafter",
    "LookupDrafter",
    "Prefix",
    "Proposal",
    "first_layers",
    "laws_at",
    "load_drafter",
    "own_parts",
]


# -- what a draft is --------------------------------------------------------------------------------------------------
class Prefix:
    """A plan with drafted steps behind its own: the bans and the recent codes that hold at each of them.

    The drafted steps lie in the plan's lists while the target judges them, so that its bans and its model's inputs see
    them; `drop` takes them out.
    """

    def __init__(self, plan: TokenPlan) -> None:
        self.plan, self.codes = plan, list[int]()
        self._steps, self._history = len(plan.steps), len(plan.history)
        self.bans: list[Tensor | None] = [plan.banned()]

    def push(self, code: int) -> None:
        step = torch.tensor([code])
        self.plan.steps.append(step)
        self.plan.history.append(step)
        self.codes.append(code)
        self.bans.append(self.plan.banned())

    @property
    def ended(self) -> bool:
        """The draft says that the speech ends; nothing is drafted after that."""
        return bool(self.codes) and self.codes[-1] == self.plan.eos

    def drop(self) -> None:
        del self.plan.steps[self._steps :], self.plan.history[self._history :]

    def items(self, count: int | None = None) -> list[Item]:
        """The positions of the drafted steps."""
        count = len(self.codes) if count is None else count
        return [Item(SPEECH, self._history + i) for i in range(count)]

    def recent(self, at: int, window: int) -> list[int]:
        """Codes of the last `window` steps before drafted step `at`."""
        return [int(step[0]) for step in self.plan.steps[max(0, self._steps + at - window) : self._steps + at]]


def laws_at(logits: Tensor, prefixes: Mapping[int, Prefix], first: int = 0) -> Tensor:
    """The laws `[slot, n, vocab]` of steps `first`, `first + 1`, ... after each prefix, from `logits` of that shape.

    Slots without a prefix hold some law that means nothing.
    """
    slots, count, vocab = logits.shape
    banned = torch.zeros(slots, count, vocab, dtype=torch.bool)
    groups: dict[SamplingConfig, list[int]] = {}
    for slot, prefix in prefixes.items():
        groups.setdefault(prefix.plan.sampling, []).append(slot)
        for i in range(count):
            ban = prefix.bans[first + i]
            if ban is not None:
                banned[slot, i] = ban
    logits = logits.float().masked_fill(banned.to(logits.device), float("-inf"))
    out: Tensor | None = None
    for config, members in groups.items():
        recent = None
        if config.ras_window:
            recent = torch.full((slots, count, config.ras_window), -1)
            for slot in members:
                for i in range(count):
                    codes = prefixes[slot].recent(first + i, config.ras_window)
                    if codes:
                        recent[slot, i, -len(codes) :] = torch.tensor(codes)
            recent = recent.to(logits.device)
        # Over all slots, so that a row does not depend on its neighbours.
        law = sampling_law(logits, config, recent, vocab - STOPS)
        if out is None:
            out = law
        else:
            out[members] = law[members]
    assert out is not None
    return out


@dataclass(frozen=True)
class DraftLength:
    """How many tokens to draft: the number that promises most tokens per cost, for a request's own acceptance.

    A request that keeps a share a of its drafted tokens gets (1 - a^(n+1)) / (1 - a) tokens from a cycle of n drafts,
    which costs n * draft + verify[n] (in target steps). Acceptance comes in runs, so the mean is a running one.

    Attributes:
        draft: cost of one drafted token. verify: costs of verifying 0, 1, 2, ... tokens; its length bounds the draft.
        memory: of the running mean, in drafted tokens.
    """

    draft: float
    verify: tuple[float, ...]
    memory: float = 24.0

    def __post_init__(self) -> None:
        if not self.verify or min(self.verify) <= 0 or self.draft < 0 or self.memory < 1:
            raise BadInput("costs of drafting are positive numbers, in steps of the target")

    def choose(self, share: float) -> int:
        """The best length at an acceptance of `share`; 0 where drafting does not pay."""
        share = min(max(share, 0.0), 0.999)
        gains = [(1 - share ** (n + 1)) / (1 - share) / (n * self.draft + cost) for n, cost in enumerate(self.verify)]
        return max(range(len(gains)), key=gains.__getitem__)

    def updated(self, share: float, kept: int, drafted: int) -> float:
        """The running mean after a cycle: the tokens judged are those kept and the one rejected."""
        judged = kept + (kept < drafted)
        if not judged:
            return share
        weight = (1 - 1 / self.memory) ** judged
        return weight * share + (1 - weight) * kept / judged


# -- drafters ---------------------------------------------------------------------------------------------------------
class Drafter(Protocol):
    """Attributes:
    most: longest draft that it can make, or None for any.
    """

    most: int | None

    def attach(self, lm: TokenLM, state: State) -> None:
        """Adds what it remembers to the state tree of a generation. Raises BadInput if it does not fit the model."""
        ...

    def follow(self, chunks: Mapping[int, TokenChunk], state: State) -> None:
        """Positions that the target runs without drawing: text, and steps of a prompt."""
        ...

    def propose(self, chunks: Mapping[int, TokenChunk], lengths: Mapping[int, int], state: State) -> Proposal:
        """Drafts at most `lengths[slot]` tokens after each chunk."""
        ...

    def settle(self, slot: int, chunk: TokenChunk, prefix: Prefix, kept: int, state: State, hidden: Tensor) -> None:
        """`kept` of the drafted tokens stand; `hidden[width]` is the target's where the token after them was drawn."""
        ...


@dataclass
class Proposal:
    """Attributes:
    prefixes: each plan with its drafted tokens behind it. laws: `[slot, n, vocab]`, what they were drawn from.
    """

    prefixes: dict[int, Prefix]
    laws: Tensor


class _Reader:
    """A plan as the drafter's model reads it: the same text and history, its own rows of text."""

    def __init__(self, plan: TokenPlan) -> None:
        self.plan = plan
        self.read, self.place = 0, 0.0
        self.encoded = torch.zeros(0)
        self.told: Tensor | None = None

    @property
    def request(self) -> TokenRequest:
        return self.plan.request

    @property
    def ids(self) -> list[int]:
        return self.plan.ids

    @property
    def history(self) -> list[Tensor]:
        return self.plan.history


@dataclass(frozen=True)
class _Part:
    plan: _Reader
    items: Sequence[Item]

    @property
    def length(self) -> int:
        return len(self.items)


class LMDrafter:
    """A small token language model of the target's vocabulary, layout and text."""

    most: int | None = None

    def __init__(self, lm: TokenLM) -> None:
        self.lm = lm
        self.most = lm.chunk - 1

    def attach(self, lm: TokenLM, state: State) -> None:
        mine, its = self.lm.config, lm.config
        for name in ("vocab", "codebooks", "layout", "ratio", "text", "pattern", "voices", "conditions"):
            if getattr(mine, name) != getattr(its, name):
                raise BadInput(
                    f"the drafter's {name} is {getattr(mine, name)}, the target's {getattr(its, name)}; "
                    "train a drafter for this model with recipes/draft-lm.yaml"
                )
        if self.lm.context is not None and (lm.context is None or self.lm.context < lm.context):
            raise BadInput("the drafter's context is shorter than the target's; train it with the target's window")
        state.child("draft", self.lm)

    def follow(self, chunks: Mapping[int, TokenChunk], state: State) -> None:
        self._feed({slot: [*_backlog(chunk.plan), *chunk.items] for slot, chunk in chunks.items()}, chunks, state)
        for chunk in chunks.values():
            vars(chunk.plan)["draft_backlog"] = ()

    def propose(self, chunks: Mapping[int, TokenChunk], lengths: Mapping[int, int], state: State) -> Proposal:
        items = {slot: [*_backlog(chunk.plan), *chunk.items] for slot, chunk in chunks.items()}
        hidden = self._feed(items, chunks, state)
        prefixes = {slot: Prefix(chunk.plan) for slot, chunk in chunks.items()}
        laws: list[Tensor] = []
        for i in range(max(lengths.values())):
            going = {s: prefix for s, prefix in prefixes.items() if lengths[s] > i and not prefix.ended}
            if not going:
                break
            if i:
                last = {slot: [prefix.items()[-1]] for slot, prefix in going.items()}
                hidden = self._feed(last, chunks, state)
            logits = self.lm.head.logits(hidden, _none(self.lm, len(hidden)))[0]
            laws.append(propose_one(logits, going, i))
        vocab = self.lm.head.size(0)
        empty = hidden.new_zeros(state.batch, 0, vocab)
        return Proposal(prefixes, torch.stack(laws, 1) if laws else empty)

    def settle(self, slot: int, chunk: TokenChunk, prefix: Prefix, kept: int, state: State, hidden: Tensor) -> None:
        # The last drafted token was never read; what stands is read again up to the last of it, which keeps the next
        # chunk at two positions whether all were kept or not. Writing a position twice changes nothing.
        drafted = len(prefix.codes)
        if not drafted:
            vars(chunk.plan)["draft_backlog"] = ()
            return
        steps = torch.zeros(state.batch, dtype=torch.long)
        steps[slot] = drafted - kept
        state.child("draft").rewind(steps)
        vars(chunk.plan)["draft_backlog"] = (prefix.items(kept)[-1] if kept else chunk.items[-1],)

    def _feed(self, items: Mapping[int, Sequence[Item]], chunks: Mapping[int, TokenChunk], state: State) -> Tensor:
        """Runs positions of each slot; the hidden state of the last, `[slot, width]`."""
        left, limit = {slot: list(rows) for slot, rows in items.items()}, self.lm.chunk
        own = state.child("draft")
        hidden: Tensor | None = None
        while left:
            length = min(limit, min(len(rows) for rows in left.values()))
            # Slots whose positions are as many run together; a longer one goes on in the next round.
            now = {s: rows for s, rows in left.items() if min(limit, len(rows)) == length}
            parts: Any = {s: _Part(self._reader(chunks[s].plan), rows[:length]) for s, rows in now.items()}
            mask = torch.tensor([s in now for s in range(state.batch)], device=self.lm.input_scale.device)
            with own.only(mask):
                last = self.lm.run(parts, own)[:, -1]
            hidden = last if hidden is None else torch.where(mask[:, None], last, hidden)
            left = {s: rows[length:] if s in now else rows for s, rows in left.items()}
            left = {s: rows for s, rows in left.items() if rows}
        assert hidden is not None
        return hidden

    @staticmethod
    def _reader(plan: TokenPlan) -> _Reader:
        return vars(plan).setdefault("draft_reader", _Reader(plan))


def _backlog(plan: TokenPlan) -> tuple[Item, ...]:
    """Positions that the drafter has yet to read (again) before the next chunk."""
    return vars(plan).get("draft_backlog", ())


def _none(lm: TokenLM, rows: int) -> Tensor:
    return torch.zeros(rows, lm.config.codebooks, dtype=torch.long, device=lm.input_scale.device)


def propose_one(logits: Tensor, going: Mapping[int, Prefix], at: int) -> Tensor:
    """Draws drafted token `at` of each prefix and puts it there; its law `[slot, vocab]`."""
    law = laws_at(logits[:, None], going, at)[:, 0]
    uniform = torch.zeros(len(logits))
    for slot, prefix in going.items():
        uniform[slot] = torch.rand((), generator=prefix.plan.generator)
    codes = draw(law, uniform.to(law.device)).tolist()
    for slot, prefix in going.items():
        prefix.push(codes[slot])
    return law


class HeadDrafter:
    """The multi-token head of the target itself: its cascade goes on from where the last token was drawn."""

    most: int | None = None

    def attach(self, lm: TokenLM, state: State) -> None:
        if not isinstance(lm.head, MultiTokenHead):
            raise BadInput("this model has no multi-token head to draft with; train one as recipes/vita.yaml does")
        self.lm, self.head = lm, lm.head
        self.most = lm.head.drafts
        state.add("draft_hidden", lm.width, device=lm.input_scale.device, dtype=lm.input_scale.dtype)

    def follow(self, chunks: Mapping[int, TokenChunk], state: State) -> None:
        pass

    def propose(self, chunks: Mapping[int, TokenChunk], lengths: Mapping[int, int], state: State) -> Proposal:
        prefixes = {slot: Prefix(chunk.plan) for slot, chunk in chunks.items()}
        # Only behind a step of speech has the cascade something to go on from.
        able = {s: n for s, n in lengths.items() if n and chunks[s].length == 1 and chunks[s].plan.steps}
        laws: list[Tensor] = []
        if able:
            cascade = self.head.cascade(state["draft_hidden"])
            codes = _none(self.lm, state.batch)
            for i in range(max(able.values())):
                for slot in able:
                    codes[slot, 0] = int(chunks[slot].plan.steps[-1][0])
                going = {s: prefixes[s] for s, n in able.items() if n > i and not prefixes[s].ended}
                if not going:
                    break
                logits = self.head.logits(cascade.advance(codes), codes)[0]
                laws.append(propose_one(logits, going, i))
        empty = torch.zeros(state.batch, 0, self.head.size(0), device=self.lm.input_scale.device)
        return Proposal(prefixes, torch.stack(laws, 1) if laws else empty)

    def settle(self, slot: int, chunk: TokenChunk, prefix: Prefix, kept: int, state: State, hidden: Tensor) -> None:
        state["draft_hidden"][slot] = hidden


class LookupDrafter:
    """What followed the same tokens before: the longest repeat of `longest` down to `shortest` tokens that ends the
    sequence, and the tokens after its last earlier place (prompt lookup decoding). Held vowels and silence repeat."""

    most: int | None = None

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise BadInput(f"prompt lookup compares 1 or more tokens, not {shortest} to {longest}")
        self.longest, self.shortest = longest, shortest

    def attach(self, lm: TokenLM, state: State) -> None:
        self.vocab, self.device = lm.head.size(0), lm.input_scale.device

    def follow(self, chunks: Mapping[int, TokenChunk], state: State) -> None:
        pass

    def propose(self, chunks: Mapping[int, TokenChunk], lengths: Mapping[int, int], state: State) -> Proposal:
        prefixes = {slot: Prefix(chunk.plan) for slot, chunk in chunks.items()}
        laws = torch.zeros(state.batch, max(lengths.values()), self.vocab)
        laws[:, :, 0] = 1.0  # some law for the places without a draft
        for slot, prefix in prefixes.items():
            history = [int(step[0]) for step in prefix.plan.history]
            for i, code in enumerate(self._found(history)[: lengths[slot]]):
                ban = prefix.bans[-1]
                if ban is not None and bool(ban[code]):
                    break
                prefix.push(code)
                laws[slot, i, 0], laws[slot, i, code] = 0.0, 1.0
        return Proposal(prefixes, laws.to(self.device))

    def _found(self, history: list[int]) -> list[int]:
        for size in range(min(self.longest, len(history) - 1), self.shortest - 1, -1):
            tail = history[-size:]
            for at in range(len(history) - size - 1, -1, -1):
                if history[at : at + size] == tail:
                    return history[at + size :]
        return []

    def settle(self, slot: int, chunk: TokenChunk, prefix: Prefix, kept: int, state: State, hidden: Tensor) -> None:
        pass


def first_layers(lm: TokenLM, layers: int) -> TokenLM:
    """A drafter from the target: its first layers, copied; its text reader, marks, voices and code table, shared.

    The output levels are copied too, since they must learn to read an earlier layer (`own_parts` is what is trained).

    Raises:
        BadInput: not fewer layers than the target has, or a cross layout.
    """
    backbone = lm.config.backbone
    if isinstance(backbone, HFConfig):
        assert isinstance(lm.backbone, HFBackbone)
        total = lm.backbone.layers
        arch = {k: v for k, v in backbone.arch.items() if k != "layer_types"} | {"num_hidden_layers": layers}
        smaller: Any = backbone.model_copy(update={"arch": arch})
    else:
        total, smaller = backbone.layers, backbone.model_copy(update={"layers": layers})
    if not 1 <= layers < total or lm.config.layout == "cross":
        raise BadInput(f"a drafter takes 1 to {total - 1} of the target's {total} layers (not of the cross layout)")
    draft = TokenLM(lm.config.model_copy(update={"backbone": smaller, "head": "parallel", "block": None}))
    known = lm.state_dict()
    draft.load_state_dict({name: known[name] for name in draft.state_dict()})
    draft.reader, draft.marks, draft.voice = lm.reader, lm.marks, lm.voice
    draft.head.table, draft.input_scale = lm.head.table, lm.input_scale
    return draft.train(lm.training)


def own_parts(draft: TokenLM) -> nn.ModuleDict:
    """What a drafter of `first_layers` does not share with its target."""
    assert isinstance(draft.head, ParallelHead)
    return nn.ModuleDict({"backbone": draft.backbone, "norm": draft.head.norm, "levels": draft.head.levels})


def load_drafter(name: str, lm: TokenLM, sha256: str) -> Drafter:
    """A drafter by name: `head`, `lookup`, or the folder of a run of the task `draft`.

    Args:
        lm: the target. sha256: of its weights.

    Raises:
        MissingFile, CorruptFile: no such drafter, or damaged. ConfigError: trained for other weights.
    """
    if name == "lookup":
        return LookupDrafter()
    if name == "head":
        return HeadDrafter()
    folder = model_folder(name)
    config = read_config(folder)
    if config.get("kind") != "draft":
        raise ConfigError(f"{folder} is no drafter; train one with recipes/draft-lm.yaml, or choose head or lookup")
    if config.get("target") != sha256:
        raise ConfigError(
            f"{folder} was trained for other weights than this model's; train it again with recipes/draft-lm.yaml "
            "and options.target set to the model"
        )
    draft = first_layers(lm, int(config["layers"]))
    load_weights(own_parts(draft), folder)
    return LMDrafter(draft.eval())
