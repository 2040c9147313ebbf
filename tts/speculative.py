"""Acceptance rules of speculative decoding: pure mathematics on distributions, no model.

A drafter proposes tokens from its law p, the target's law q judges them. A *rule* maps (p, q) to a `Verdict`: the
probability with which each token is kept, and the (unnormalised) law from which a rejected one is replaced. Sampling,
diagnostics and the exact law of what comes out follow from those two, so that every rule has a deterministic oracle:

    out = p * accept + (1 - sum(p * accept)) * residual / sum(residual)

`Exact` is Leviathan et al. 2023 (out = q). `CoarseGrained` is Principled Coarse-Graining (arXiv 2511.13732) with the
group label integrated out: the same joint law of (draft, kept, emitted) as the published sampler, without its loop.
`Budgeted` mixes the two so that the total variation of a step, and of a whole utterance, stays under a bound. `Mixing`,
`Tolerance` (SSD, arXiv 2505.15380) and `Lantern` (arXiv 2410.03355) are there to be compared with; of them only
`Mixing` says how far it strays.

What is exact under coarse-graining is the law of the *group label* at one step, given the prefix. It is neither the law
of the token, nor, where groups overlap, of a label read off the emitted token (for a partition it is).

Laws are float32 `[..., vocab]` and sum to one, after temperature, truncation, repetition rules and guidance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import BadInput

__all__ = [
    "Budgeted",
    "Channel",
    "CoarseGrained",
    "Exact",
    "Lantern",
    "Mixing",
    "Rule",
    "Tolerance",
    "Verdict",
    "Verified",
    "acceptance",
    "output_law",
    "total_variation",
    "verify",
]

TINY = 1e-30


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    accept: `[..., vocab]`, probability that a drafted token is kept.
    residual: `[..., vocab]`, the law of the replacement; it need not sum to one.
    cost: `[...]`, upper bound of the total variation between what comes out and the target's law; None if the rule
        states none.
    """

    accept: Tensor
    residual: Tensor
    cost: Tensor | None = None


class Rule(Protocol):
    """A rule of acceptance: laws of draft and target `[..., vocab]` -> verdict."""

    def __call__(self, p: Tensor, q: Tensor) -> Verdict: ...


def acceptance(p: Tensor, verdict: Verdict) -> Tensor:
    """Probability `[...]` that a drafted token is kept."""
    return (p * verdict.accept).sum(-1)


def output_law(p: Tensor, verdict: Verdict) -> Tensor:
    """The exact law `[..., vocab]` of the emitted token."""
    kept = p * verdict.accept
    rejected = (1 - kept.sum(-1, keepdim=True)).clamp(min=0)
    return kept + rejected * verdict.residual / verdict.residual.sum(-1, keepdim=True).clamp(min=TINY)


def total_variation(a: Tensor, b: Tensor) -> Tensor:
    """Half the L1 distance `[...]` of two laws."""
    return 0.5 * (a - b).abs().sum(-1)


# -- channels ---------------------------------------------------------------------------------------------------------
class Channel:
    """Tokens to group labels, at random: P(label k | token t) = w[k, t], where each token's weights sum to one.

    Overlapping groups, a partition and soft memberships are all channels. Kept sparse: three vectors, one entry for
    every (group, token) pair.

    Args:
        groups, tokens: LongTensor[entry], the pairs. weights: `[entry]`, made to sum to one for each token.
        count: number of groups. vocab: number of tokens; each must be in some group.

    Raises:
        BadInput: a token without a group, a weight that is not positive, or an index out of range.
    """

    def __init__(self, groups: Tensor, tokens: Tensor, weights: Tensor, count: int, vocab: int) -> None:
        if len(groups) and (int(groups.max()) >= count or int(tokens.max()) >= vocab or int(groups.min()) < 0):
            raise BadInput(f"groups name labels or tokens outside {count} x {vocab}; build them again for this model")
        if len(weights) and not float(weights.min()) > 0:
            raise BadInput("the weights of a group must be positive")
        total = torch.zeros(vocab, dtype=torch.float64, device=weights.device).index_add(0, tokens, weights.double())
        if not bool((total > 0).all()):
            lost = int((total <= 0).sum())
            raise BadInput(f"{lost} of {vocab} tokens are in no group; every token needs at least one of its own")
        self.groups, self.tokens = groups, tokens
        self.weights = (weights.double() / total[tokens]).to(torch.float32)
        self.count, self.vocab = count, vocab

    @classmethod
    def of_groups(cls, members: Sequence[Iterable[int]], vocab: int) -> Channel:
        """Overlapping groups given as lists of tokens; a token in n of them belongs to each with weight 1/n (the
        paper's choice)."""
        pairs = [(k, t) for k, group in enumerate(members) for t in sorted(set(group))]
        index = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        return cls(index[:, 0], index[:, 1], torch.ones(len(pairs)), len(members), vocab)

    @classmethod
    def of_partition(cls, labels: Tensor) -> Channel:
        """Each token in exactly one group: LongTensor[vocab] of labels 0..M-1. What is exact is then visible in the
        output itself."""
        vocab = len(labels)
        return cls(labels, torch.arange(vocab), torch.ones(vocab), int(labels.max()) + 1, vocab)

    @classmethod
    def identity(cls, vocab: int) -> Channel:
        """Every token alone: coarse-grained acceptance is then exact speculative sampling."""
        return cls.of_partition(torch.arange(vocab))

    @property
    def sizes(self) -> Tensor:
        """Members of each group, LongTensor[group]."""
        return self.groups.bincount(minlength=self.count)

    def coarse(self, law: Tensor) -> Tensor:
        """Law of the label `[..., group]` when the token has the law `[..., vocab]`."""
        out = law.new_zeros(*law.shape[:-1], self.count)
        return out.index_add(-1, self.groups, law[..., self.tokens] * self.weights.to(law.dtype))

    def back(self, values: Tensor) -> Tensor:
        """Mean over each token's labels: `[..., group]` -> `[..., vocab]`."""
        out = values.new_zeros(*values.shape[:-1], self.vocab)
        return out.index_add(-1, self.tokens, values[..., self.groups] * self.weights.to(values.dtype))

    def to(self, device: torch.device | str) -> Channel:
        """The same channel on another device."""
        moved = object.__new__(Channel)
        moved.groups, moved.tokens = self.groups.to(device), self.tokens.to(device)
        moved.weights, moved.count, moved.vocab = self.weights.to(device), self.count, self.vocab
        return moved


# -- rules ------------------------------------------------------------------------------------------------------------
def _ratio(q: Tensor, p: Tensor) -> Tensor:
    """min(1, q / p); 1 where the draft never goes."""
    return torch.where(p > 0, q / p.clamp(min=TINY), torch.ones_like(p)).clamp(max=1)


@dataclass(frozen=True)
class Exact:
    """Speculative sampling (Leviathan et al. 2023): what comes out has the target's law."""

    def __call__(self, p: Tensor, q: Tensor) -> Verdict:
        return Verdict(_ratio(q, p), (q - p).clamp(min=0), q.new_zeros(q.shape[:-1]))


@dataclass(frozen=True)
class CoarseGrained:
    """Principled Coarse-Graining over a channel, with the label integrated out.

    Exact for the label; within a group, what comes out is a mixture of draft and target.
    """

    channel: Channel

    def __call__(self, p: Tensor, q: Tensor) -> Verdict:
        coarse_p, coarse_q = self.channel.coarse(p), self.channel.coarse(q)
        keep = _ratio(coarse_q, coarse_p)
        lack = torch.where(coarse_q > 0, (1 - coarse_p / coarse_q.clamp(min=TINY)).clamp(min=0), 0.0)
        accept, residual = self.channel.back(keep).clamp(max=1), q * self.channel.back(lack)
        return Verdict(accept, residual, total_variation(output_law(p, Verdict(accept, residual)), q))


@dataclass(frozen=True)
class Budgeted:
    """A relaxed rule mixed with the exact one, as much as a bound on the total variation allows.

    TV(out, q) is linear in the mixing weight, so the bound is met with equality where it binds; the weight depends on
    the laws alone, never on what was drawn. Over an utterance the total variations of its steps add up (chain rule), so
    `total` bounds that of the whole.

    Attributes:
        rule: the relaxed one, which must state its cost. delta: bound for one step. total: bound for an utterance.
    """

    rule: Rule
    delta: float
    total: float = float("inf")

    def __post_init__(self) -> None:
        if not (self.delta >= 0 and self.total >= 0):
            raise BadInput(f"a budget cannot be negative: delta {self.delta}, total {self.total}")

    def __call__(self, p: Tensor, q: Tensor) -> Verdict:
        return self.within(p, q, q.new_full(q.shape[:-1], self.delta))

    def within(self, p: Tensor, q: Tensor, allowance: Tensor) -> Verdict:
        """The verdict under a bound for each step, `allowance[...]`."""
        exact, relaxed = Exact()(p, q), self.rule(p, q)
        if relaxed.cost is None:
            raise BadInput("only a rule that states its total variation can be put under a budget")
        share = torch.where(relaxed.cost > 0, allowance / relaxed.cost.clamp(min=TINY), 1.0).clamp(0, 1)
        mix = share[..., None]
        return Verdict(
            exact.accept.lerp(relaxed.accept, mix), exact.residual.lerp(relaxed.residual, mix), share * relaxed.cost
        )

    def along(self, p: Tensor, q: Tensor, spent: Tensor) -> Verdict:
        """Verdicts of drafted steps `[row, step, vocab]`, each with what the steps before it leave of the utterance's
        budget, of which `spent[row]` is gone."""
        steps = []
        for i in range(p.shape[1]):
            left = (
                (self.total - spent).clamp(min=0) if self.total != float("inf") else torch.full_like(spent, torch.inf)
            )
            steps.append(self.within(p[:, i], q[:, i], left.clamp(max=self.delta)))
            cost = steps[-1].cost
            assert cost is not None
            spent = spent + cost
        costs = [step.cost for step in steps if step.cost is not None]
        return Verdict(
            torch.stack([step.accept for step in steps], 1),
            torch.stack([step.residual for step in steps], 1),
            torch.stack(costs, 1),
        )


@dataclass(frozen=True)
class Mixing:
    """Keeps a token that the exact rule would reject with probability `epsilon`: the relaxation that gains most
    acceptance for its total variation, out = (1 - epsilon) q + epsilon p."""

    epsilon: float

    def __call__(self, p: Tensor, q: Tensor) -> Verdict:
        exact = Exact()(p, q)
        accept = exact.accept + self.epsilon * (1 - exact.accept)
        return Verdict(accept, (1 - self.epsilon) * exact.residual, self.epsilon * total_variation(p, q))


@dataclass(frozen=True)
class Tolerance:
    """SSD: a constant bonus on the acceptance probability. States no bound; its output law is not the target's."""

    bonus: float

    def __call__(self, p: Tensor, q: Tensor) -> Verdict:
        exact = Exact()(p, q)
        return Verdict((exact.accept + self.bonus * (p > 0)).clamp(max=1), exact.residual)


@dataclass(frozen=True)
class Lantern:
    """LANTERN: a token borrows the target mass of its nearest neighbours, as many as hold at most `delta` of it; after
    a rejection the whole neighbourhood is barred.

    Attributes:
        neighbours: LongTensor[vocab, n], nearest first, without the token itself. delta: bound of the borrowed mass.
    """

    neighbours: Tensor
    delta: float

    def __call__(self, p: Tensor, q: Tensor) -> Verdict:
        near = q[..., self.neighbours]
        lent = near * (near.cumsum(-1) <= self.delta)
        accept = _ratio(q + lent.sum(-1), p)
        # A replacement for x is drawn from q outside x and all its neighbours; over all rejected x that is a mixture.
        barred = q + near.sum(-1)
        weight = p * (1 - accept) / (1 - barred).clamp(min=1e-6)
        flat = (weight[..., None].expand_as(near)).flatten(-2)
        near_weight = torch.zeros_like(q).index_add(-1, self.neighbours.flatten(), flat)
        residual = q * (weight.sum(-1, keepdim=True) - weight - near_weight).clamp(min=0)
        empty = residual.sum(-1, keepdim=True) <= TINY
        return Verdict(accept, torch.where(empty, q, residual))


# -- one cycle --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Verified:
    """Attributes:
    count: LongTensor[row], how many drafted tokens are kept (from the front).
    token: LongTensor[row], what follows them: a replacement, or, when all are kept, a token of the target's own.
    cost: `[row]`, total variation spent by the steps that were taken (0 for a rule that states none).
    """

    count: Tensor
    token: Tensor
    cost: Tensor


def verify(
    drafted: Tensor, p: Tensor, q: Tensor, rule: Rule, uniform: Tensor, noise: Tensor, spent: Tensor | None = None
) -> Verified:
    """Judges drafted tokens in one go; static shapes, no host synchronisation.

    Args:
        drafted: LongTensor `[row, n]`. p: `[row, n, vocab]`, the laws that they were drawn from.
        q: `[row, n + 1, vocab]`, the target's laws at those places and after the last.
        uniform: `[row, n]` in [0, 1). noise: `[row, vocab]`, from Exp(1), for the one token that is drawn.
        spent: `[row]`, total variation that the utterance has used up (`Budgeted` with a total).

    Raises:
        BadInput: the laws do not fit each other.
    """
    rows, steps = drafted.shape
    if p.shape[:2] != (rows, steps) or q.shape != (rows, steps + 1, p.shape[2]):
        raise BadInput(f"laws {list(p.shape)} and {list(q.shape)} do not fit {steps} drafted tokens of {rows} rows")
    spent = p.new_zeros(rows) if spent is None else spent
    verdict = rule.along(p, q[:, :steps], spent) if isinstance(rule, Budgeted) else rule(p, q[:, :steps])
    kept = uniform < verdict.accept.gather(2, drafted[..., None])[..., 0]
    count = kept.long().cumprod(1).sum(1)
    laws = torch.cat([_or_target(verdict.residual, q[:, :steps]), q[:, steps:]], 1)
    law = laws.gather(1, count[:, None, None].expand(-1, 1, laws.shape[2]))[:, 0]
    token = (law / noise.clamp(min=TINY)).argmax(-1)
    if verdict.cost is None:
        return Verified(count, token, torch.zeros_like(spent))
    taken = torch.arange(steps, device=count.device) <= count[:, None]
    return Verified(count, token, (verdict.cost * taken).sum(1))


def _or_target(residual: Tensor, q: Tensor) -> Tensor:
    """Where nothing can be rejected the residual is empty; rounding could still ask for it."""
    return torch.where(residual.sum(-1, keepdim=True) > TINY, residual, q)
