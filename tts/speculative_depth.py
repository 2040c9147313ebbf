"""Speculation along depth: the codes of one frame are drafted in parallel and verified by one teacher-forced pass.

A depth or chain head draws the K codes of a frame one after the other: K small forwards. Here the first code is drawn
as ever, small heads draft all the others at once from the hidden state and that code, and one pass of the head over the
whole frame judges them. The first rejected code is replaced, and the pass is repeated from there: about one round for
each rejection. This is the only axis in live dialogue, where the next frame depends on what the other side says.

Drafts beyond a rejection may be kept (they have not been looked at) or drawn anew from the laws that the target gave
them behind the rejected code: these are known, so the rule stays what it is, and they lie closer to the target
(`redraft`).

`SpeculativeHead` is a head like the one that it stands around, so that generation, batches and the server do not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..nn.norm import RMSNorm
from .groups import CoarseGrainedLevels, Groups
from .heads import CategoricalHead
from .sampling import SamplingConfig, draw, sampling_law
from .speculative import Budgeted, Exact, Rule
from .token_heads import DepthHead, Mix

__all__ = ["DepthDrafter", "DepthFigures", "HeadDrafter", "ResidualDrafter", "SpeculativeHead", "depth_rule"]


class ResidualDrafter(nn.Module):
    """Small heads that draft the codes of levels 1..K-1 at once, from the hidden state and the code of level 0.

    Args:
        width: of the backbone. codebooks, vocab: of the codec. first: ids of level 0. hidden: of the shared layer.
    """

    def __init__(self, width: int, codebooks: int, vocab: int, first: int, hidden: int = 64) -> None:
        super().__init__()
        if codebooks < 2:
            raise BadInput("along depth there must be at least two codebooks")
        self.codebooks, self.vocab = codebooks, vocab
        self.norm = RMSNorm(width, eps=1e-6)
        self.enter = nn.Linear(width, hidden)
        self.code = nn.Embedding(first, hidden)
        self.middle = nn.Linear(hidden, (codebooks - 1) * hidden)
        self.leave = nn.Parameter(torch.randn(codebooks - 1, hidden, vocab) * hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(codebooks - 1, vocab))

    def forward(self, hidden: Tensor, first: Tensor) -> Tensor:
        """`hidden[n, width]`, codes of level 0 LongTensor[n] -> logits `[n, K - 1, vocab]`."""
        known = first.clamp(max=self.code.num_embeddings - 1)  # past the last id: an empty place
        x = nn.functional.silu(self.enter(self.norm(hidden)) + self.code(known))
        x = nn.functional.silu(self.middle(x)).view(len(x), self.codebooks - 1, -1)
        return torch.einsum("nkh,khv->nkv", x, self.leave) + self.bias


class HeadDrafter(nn.Module):
    """The target head itself as drafter: all its levels at once, each without the codes that are not drawn yet. Nothing
    to train and no weights of its own, so any depth or chain head can speculate; a trained drafter guesses better."""

    def __init__(self, head: DepthHead | CategoricalHead) -> None:
        super().__init__()
        self.head, self.codebooks, self.vocab = head, head.codebooks, head.vocab

    def forward(self, hidden: Tensor, first: Tensor) -> Tensor:
        """As `ResidualDrafter.forward`."""
        return self.head.blind_logits(hidden, first)


DepthDrafter = ResidualDrafter | HeadDrafter


@dataclass
class DepthFigures:
    """Attributes:
    frames: drawn (in any slot). passes: frames drawn together, as batches. rounds: verifications, of batches.
    judged, kept: drafted codes.
    """

    frames: int = 0
    passes: int = 0
    rounds: int = 0
    judged: int = 0
    kept: int = 0

    @property
    def acceptance(self) -> float:
        return self.kept / max(self.judged, 1)

    @property
    def rounds_per_frame(self) -> float:
        return self.rounds / max(self.passes, 1)


class SpeculativeHead(nn.Module):
    """A depth or chain head whose `sample` drafts and verifies.

    Args:
        head: the target. drafter: of its sizes.
        rule: over laws `[slot, K - 1, vocab]`. redraft: draw the drafts behind a rejection anew, from the target's laws
            of the round before.

    Raises:
        BadInput: the head has no depth, or the drafter other sizes.
    """

    def __init__(
        self,
        head: DepthHead | CategoricalHead,
        drafter: DepthDrafter,
        rule: Rule | None = None,
        redraft: bool = True,
    ) -> None:
        super().__init__()
        chained = isinstance(head, DepthHead) or (isinstance(head, CategoricalHead) and head.chain)
        if not chained or head.codebooks < 2:
            raise BadInput("speculation along depth needs a depth or chain head of several codebooks")
        if (drafter.codebooks, drafter.vocab) != (head.codebooks, head.vocab):
            raise BadInput(
                f"the drafter has {drafter.codebooks} codebooks of {drafter.vocab}, the model {head.codebooks} of "
                f"{head.vocab}; train one for this model with recipes/draft-depth.yaml"
            )
        self.head, self.drafter, self.rule, self.redraft = head, drafter, rule or Exact(), redraft
        self.figures = DepthFigures()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # everything but drawing is the head's own
            return getattr(super().__getattr__("head"), name)

    def sample(
        self,
        hidden: Tensor,
        uniform: Tensor,
        config: SamplingConfig,
        recent: Tensor | None = None,
        empty: Tensor | None = None,
        banned: Tensor | None = None,
        mix: Mix | None = None,
    ) -> Tensor:
        """Draws a step's codes `[slot, K]`; arguments as of `TokenHead.sample`. Guided steps are drawn as ever."""
        if mix is not None:
            return self.head.sample(hidden, uniform, config, recent, empty, banned, mix)  # type: ignore[arg-type]
        levels = self.head.codebooks - 1
        stream = _Stream(uniform, levels)
        first = self._first(hidden, uniform, config, recent, empty, banned)
        past = None if recent is None else recent[:, 1:]
        p = sampling_law(self.drafter(hidden, first), config, past)
        drafted = draw(p, stream.next())
        coin, spare = stream.next(), stream.next()
        hole = torch.zeros_like(drafted, dtype=torch.bool) if empty is None else empty[:, 1:]
        drafted = drafted.masked_fill(hole, self.head.empty)
        level = torch.arange(levels, device=hidden.device)
        sure = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)  # levels decided so far
        judged = torch.zeros_like(sure)
        rounds, rejected = 0, torch.zeros_like(sure)
        while rounds < levels:
            q = self._laws(hidden, first, drafted, config, past)
            verdict = self.rule(p, q)
            index = drafted.clamp(max=p.shape[-1] - 1)[..., None]
            kept = (coin < verdict.accept.gather(2, index)[..., 0]) | (level < sure) | hole
            count = kept.long().cumprod(1).sum(1, keepdim=True)
            drafted, p = self._repair(drafted, p, q, verdict.residual, count, spare, stream, hole)
            over = count >= levels
            judged += (count - sure + (~over).long()).clamp(min=0)
            rejected += (~over).long()
            sure = torch.where(over, levels, count + 1).maximum(sure)
            rounds += 1
            if bool((sure >= levels).all()):
                break
        self._note(len(hidden), rounds, int(judged.sum()), int(rejected.sum()))
        return torch.cat([first[:, None], drafted], 1)

    def _repair(
        self,
        drafted: Tensor,
        p: Tensor,
        q: Tensor,
        residual: Tensor,
        count: Tensor,
        spare: Tensor,
        stream: _Stream,
        hole: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Replaces the rejected code of each row, and drafts anew behind it."""
        level = torch.arange(drafted.shape[1], device=drafted.device)
        law = torch.where(residual.sum(-1, keepdim=True) > 1e-30, residual, q)
        drafted = torch.where((level == count) & ~hole, draw(law, spare), drafted)
        if self.redraft:
            behind = (level > count) & ~hole
            drafted = torch.where(behind, draw(q, stream.next()), drafted)
            p = torch.where(behind[..., None], q, p)
        return drafted, p

    def _first(
        self,
        hidden: Tensor,
        uniform: Tensor,
        config: SamplingConfig,
        recent: Tensor | None,
        empty: Tensor | None,
        banned: Tensor | None,
    ) -> Tensor:
        """The code of level 0 `[slot]`, drawn from the target."""
        head = self.head
        if isinstance(head, DepthHead):
            x = head.start(head.norm(hidden)) + head.place[0]
            logits = head.levels[0](head.transformer(x[:, None])[:, 0])
        else:
            logits = head.levels[0](head.norm(hidden))
        if banned is not None:
            logits = logits.masked_fill(banned, float("-inf"))
        law = sampling_law(logits, config, None if recent is None else recent[:, 0], head.vocab)
        code = draw(law, uniform[:, 0, 0])
        return code if empty is None else code.masked_fill(empty[:, 0], head.empty)

    def _laws(
        self, hidden: Tensor, first: Tensor, drafted: Tensor, config: SamplingConfig, recent: Tensor | None
    ) -> Tensor:
        """The target's laws `[slot, K - 1, vocab]` of the levels above 0, teacher-forced."""
        codes = torch.cat([first[:, None], drafted], 1)
        return sampling_law(torch.stack(self.head.logits(hidden, codes)[1:], 1), config, recent)

    def _note(self, rows: int, rounds: int, judged: int, rejected: int) -> None:
        self.figures.frames += rows
        self.figures.passes += 1
        self.figures.rounds += rounds
        self.figures.judged += judged
        self.figures.kept += judged - rejected


def depth_rule(kind: str, groups: Groups | None = None, delta: float = 0.1) -> Rule:
    """`exact`, `pcg` or `budgeted` (PCG within `delta` a code), over levels 1..K-1 with a channel for each.

    Raises:
        BadInput: another name, no groups, or groups of too few codebooks.
    """
    if kind == "exact":
        return Exact()
    if kind not in ("pcg", "budgeted"):
        raise BadInput(f"along depth a rule is exact, pcg or budgeted, not {kind!r}")
    if groups is None or len(groups.channels) < 2:
        raise BadInput(f"{kind} needs groups of every codebook; make them with `quaver groups build MODEL`")
    coarse = CoarseGrainedLevels(groups.channels[1:])
    return coarse if kind == "pcg" else Budgeted(coarse, delta)


class _Stream:
    """More uniform numbers from those that a request drew for this step, `[slot, levels]` at a time.

    A step may need any number of them, and a request's generator must move by the same number whatever its neighbours
    do; so its own numbers are the key of a counter-based generator (SplitMix64: Steele, Lea and Flood 2014).
    """

    def __init__(self, uniform: Tensor, levels: int) -> None:
        bits = (uniform.flatten(1).double() * 2**24).long()
        key = torch.zeros(len(bits), dtype=torch.long, device=bits.device)
        for column in bits.unbind(1):
            key = _mix(key + column)
        self.key, self.levels, self.at = key[:, None], levels, 0

    def next(self) -> Tensor:
        place = torch.arange(self.at, self.at + self.levels, device=self.key.device) + 1
        self.at += self.levels
        return ((_mix(self.key + place * _GOLDEN) >> 40) & 0xFFFFFF).float() / 2**24


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN, _FIRST, _SECOND = (_signed(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, which wraps as unsigned numbers do."""
    x = x + _GOLDEN
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _FIRST
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _SECOND
    return x ^ ((x >> 31) & (2**33 - 1))
