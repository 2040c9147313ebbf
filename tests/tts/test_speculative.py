"""Rules of acceptance against their closed forms, the published sampler, and a language whose sequences are enumerated.

Statistics use fixed seeds and reject at p < 1e-4; each is paired with a law that must fail, so that it has power.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from quaver.errors import BadInput
from quaver.tts.speculative import (
    Budgeted,
    Channel,
    CoarseGrained,
    Exact,
    Lantern,
    Mixing,
    Rule,
    Tolerance,
    acceptance,
    output_law,
    total_variation,
    verify,
)

from ..laws import many

V = 12


def laws(seed: int, vocab: int = V, sparse: bool = False, count: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    p, q = (2 * torch.randn(2, count, vocab, generator=g, dtype=torch.float64)).softmax(-1)
    if sparse:  # truncated laws: the draft and the target have zeros in different places
        p = p * (torch.rand(p.shape, generator=g) < 0.6)
        q = q * (torch.rand(q.shape, generator=g) < 0.6)
        p[..., 0] += 0.1
        q[..., 1] += 0.1
        p, q = (x / x.sum(-1, keepdim=True) for x in (p, q))
    return p, q


def groups(seed: int, vocab: int = V, alone: int = 1) -> Channel:
    """Random overlapping groups; the last `alone` tokens (end of speech, control) have one of their own."""
    g = torch.Generator().manual_seed(seed)
    free = vocab - alone
    members = [[int(t) for t in torch.randperm(free, generator=g)[: 1 + k % 5]] for k in range(6)]
    covered = {t for group in members for t in group}
    members += [[t] for t in range(free) if t not in covered]
    return Channel.of_groups([*members, *([t] for t in range(free, vocab))], vocab)


@many
@given(seed=st.integers(0, 10_000), sparse=st.booleans())
def test_closed_forms(seed: int, sparse: bool) -> None:
    p, q = laws(seed, sparse=sparse, count=3)
    channel = groups(seed)
    verdict, exact = CoarseGrained(channel)(p, q), Exact()(p, q)
    out = output_law(p, verdict)
    coarse = total_variation(channel.coarse(p), channel.coarse(q))
    assert torch.allclose(verdict.residual.sum(-1), 1 - acceptance(p, verdict), atol=1e-6)
    assert torch.allclose(verdict.residual.sum(-1), coarse, atol=1e-6)
    assert torch.allclose(out.sum(-1), torch.ones_like(coarse), atol=1e-6)
    assert (out >= -1e-12).all()
    assert torch.allclose(out[..., -1], q[..., -1], atol=1e-6)  # a token that is alone keeps its law
    assert (acceptance(p, verdict) >= acceptance(p, exact) - 1e-6).all()  # data processing
    assert verdict.cost is not None
    assert (acceptance(p, verdict) - acceptance(p, exact) <= verdict.cost + 1e-6).all()  # no free lunch
    assert torch.allclose(output_law(p, exact), q, atol=1e-6)


@many
@given(seed=st.integers(0, 10_000))
def test_the_label_keeps_the_targets_law(seed: int) -> None:
    """Summed over tokens, the joint law of (label, token) that is emitted is the target's law of the label."""
    p, q = (x[0] for x in laws(seed))
    channel = groups(seed)
    weight = torch.zeros(channel.count, V, dtype=torch.float64)
    weight[channel.groups, channel.tokens] = channel.weights.double()
    coarse_p, coarse_q = channel.coarse(p), channel.coarse(q)
    kept = weight * p * (coarse_q / coarse_p).clamp(max=1)[:, None]
    replaced = weight * q * (1 - coarse_p / coarse_q).clamp(min=0)[:, None]
    assert torch.allclose((kept + replaced).sum(1), coarse_q, atol=1e-6)
    assert torch.allclose((kept + replaced).sum(0), output_law(p, CoarseGrained(channel)(p, q)), atol=1e-6)


@many
@given(seed=st.integers(0, 10_000))
def test_limits(seed: int) -> None:
    p, q = laws(seed)
    alone = CoarseGrained(Channel.identity(V))(p, q)
    assert torch.allclose(output_law(p, alone), q, atol=1e-6)
    same = CoarseGrained(groups(seed))(q, q)
    assert torch.allclose(acceptance(q, same), torch.ones(1, dtype=torch.float64), atol=1e-6)
    one = CoarseGrained(Channel.of_groups([range(V)], V))(p, q)
    assert torch.allclose(output_law(p, one), p, atol=1e-6)
    partition = Channel.of_partition(torch.arange(V) % 4)
    out = output_law(p, CoarseGrained(partition)(p, q))
    assert torch.allclose(partition.coarse(out), partition.coarse(q), atol=1e-6)


@many
@given(seed=st.integers(0, 10_000), delta=st.floats(0, 0.5))
def test_the_budget_of_a_step_is_kept_and_the_label_stays_exact(seed: int, delta: float) -> None:
    p, q = laws(seed)
    channel = Channel.of_partition(torch.arange(V) % 4)
    verdict = Budgeted(CoarseGrained(channel), delta)(p, q)
    out = output_law(p, verdict)
    assert (total_variation(out, q) <= delta + 1e-6).all()
    assert verdict.cost is not None
    assert torch.allclose(total_variation(out, q), verdict.cost, atol=1e-6)
    assert torch.allclose(channel.coarse(out), channel.coarse(q), atol=1e-6)
    relaxed = CoarseGrained(channel)(p, q)
    assert relaxed.cost is not None
    if delta >= float(relaxed.cost):
        assert torch.allclose(out, output_law(p, relaxed), atol=1e-6)


def test_the_budget_of_an_utterance_is_never_exceeded() -> None:
    rows, steps = 64, 4
    rule = Budgeted(CoarseGrained(groups(0)), 0.3, total=0.5)
    spent, g = torch.zeros(rows, dtype=torch.float64), torch.Generator().manual_seed(0)
    for cycle in range(5):
        p, q = (x.view(rows, -1, V) for x in laws(cycle, count=rows * (steps + 1)))
        drafted = torch.multinomial(p[:, :steps].reshape(-1, V), 1, generator=g).view(rows, steps)
        uniform = torch.rand(rows, steps, generator=g)
        noise = -torch.rand(rows, V, generator=g).log()
        spent = spent + verify(drafted, p[:, :steps], q, rule, uniform, noise, spent).cost
        assert (spent <= 0.5 + 1e-9).all()
    assert float(spent.max()) > 0.49  # it is spent, too


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_mixing_is_the_mixture_it_claims_to_be(epsilon: float) -> None:
    p, q = laws(3)
    verdict = Mixing(epsilon)(p, q)
    assert torch.allclose(output_law(p, verdict), (1 - epsilon) * q + epsilon * p, atol=1e-9)


def test_lantern_without_neighbours_mass_is_exact_in_acceptance_and_bounded_in_borrowing() -> None:
    p, q = laws(4)
    near = torch.stack([(torch.arange(1, 4) + t) % V for t in range(V)])
    assert torch.allclose(acceptance(p, Lantern(near, 0.0)(p, q)), acceptance(p, Exact()(p, q)), atol=1e-9)
    loose = Lantern(near, 0.2)(p, q)
    assert (loose.accept <= ((q + 0.2) / p).clamp(max=1) + 1e-9).all()
    assert float(acceptance(p, loose)) > float(acceptance(p, Exact()(p, q)))
    assert (output_law(p, loose) >= 0).all()


# -- samplers ---------------------------------------------------------------------------------------------------------
def p_value(samples: Tensor, law: Tensor) -> float:
    counts = samples.bincount(minlength=len(law)).double()
    held = law > 0
    assert counts[~held].sum() == 0
    return float(chisquare(counts[held].numpy(), (law[held] * counts.sum() / law[held].sum()).numpy()).pvalue)


def drawn(rule: Rule, p: Tensor, q: Tensor, count: int, seed: int) -> Tensor:
    """The emitted token of one drafted step, `count` times, by `verify`."""
    g = torch.Generator().manual_seed(seed)
    drafted = torch.multinomial(p, count, replacement=True, generator=g)[:, None]
    uniform, noise = torch.rand(count, 1, generator=g), -torch.rand(count, len(p), generator=g).log()
    both = torch.stack([q, q]).expand(count, 2, -1)
    result = verify(drafted, p.expand(count, 1, -1), both, rule, uniform, noise)
    return torch.where(result.count == 1, drafted[:, 0], result.token)


def published(channel: Channel, p: Tensor, q: Tensor, count: int, seed: int) -> tuple[Tensor, float]:
    """PCG as the paper has it: draw a label for the draft, accept by it, else thin the target. Also the mean trials."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.zeros(channel.count, V, dtype=torch.float64)
    weight[channel.groups, channel.tokens] = channel.weights.double()
    coarse_p, coarse_q = channel.coarse(p), channel.coarse(q)
    x = torch.multinomial(p, count, replacement=True, generator=g)
    label = torch.multinomial(weight.T[x], 1, generator=g)[:, 0]
    keep = torch.rand(count, generator=g) < (coarse_q / coarse_p)[label]
    out, open_, trials = x.clone(), ~keep, 0
    rejected = int(open_.sum())
    while bool(open_.any()):
        trials += int(open_.sum())
        y = torch.multinomial(q, count, replacement=True, generator=g)
        label = torch.multinomial(weight.T[y], 1, generator=g)[:, 0]
        done = open_ & (torch.rand(count, generator=g) < (1 - coarse_p / coarse_q)[label])
        out, open_ = torch.where(done, y, out), open_ & ~done
    return out, trials / max(1, rejected)


def test_published_sampler_loop_free_sampler_and_closed_form_agree() -> None:
    p, q = (x[0] for x in laws(7))
    channel, count = groups(7), 200_000
    law = output_law(p, CoarseGrained(channel)(p, q))
    loop, trials = published(channel, p, q, count, 1)
    free = drawn(CoarseGrained(channel), p, q, count, 2)
    assert p_value(loop, law) > 1e-4
    assert p_value(free, law) > 1e-4
    assert p_value(free, q) < 1e-4  # the law of the token is not the target's, and the test sees it
    expected = 1 / float(total_variation(channel.coarse(p), channel.coarse(q)))
    assert trials == pytest.approx(expected, rel=0.05)


def test_the_exact_rule_is_exact_and_ssd_is_not() -> None:
    p, q = (x[0] for x in laws(8))
    assert p_value(drawn(Exact(), p, q, 100_000, 3), q) > 1e-4
    assert p_value(drawn(Tolerance(0.3), p, q, 100_000, 3), q) < 1e-4


# -- a language whose sequences are enumerated ------------------------------------------------------------------------
LETTERS, LENGTH = 5, 4


def bigrams(seed: int) -> Tensor:
    """Laws `[last letter, next letter]`; the row after the last is the start."""
    g = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(LETTERS + 1, LETTERS, generator=g, dtype=torch.float64)).softmax(-1)


def decode(rule: Rule, draft: Tensor, target: Tensor, rows: int, length: int, seed: int) -> Tensor:
    """Draft `length` letters, verify, go on until each row has `LENGTH`; LongTensor[row, LENGTH]."""
    g = torch.Generator().manual_seed(seed)
    text = torch.full((rows, LENGTH + length + 1), LETTERS)
    have, index = torch.zeros(rows, dtype=torch.long), torch.arange(rows)
    while int(have.min()) < LENGTH:
        last = torch.where(have > 0, text[index, have - 1], LETTERS)
        seen, p = [last], []
        for _ in range(length):
            p.append(draft[seen[-1]])
            seen.append(torch.multinomial(p[-1], 1, generator=g)[:, 0])
        q = torch.stack([target[s] for s in seen], 1)
        uniform, noise = torch.rand(rows, length, generator=g), -torch.rand(rows, LETTERS, generator=g).log()
        drafted = torch.stack(seen[1:], 1)
        result = verify(drafted, torch.stack(p, 1), q, rule, uniform, noise)
        for step in range(length + 1):
            value = torch.where(result.count == step, result.token, drafted[:, min(step, length - 1)])
            put = (result.count >= step) & (have < LENGTH)
            text[index[put], (have + step)[put]] = value[put]
        have = torch.where(have < LENGTH, have + result.count + 1, have)
    return text[:, :LENGTH]


def sequence_law(step: Tensor) -> Tensor:
    """Law `[LETTERS ** LENGTH]` of whole sequences under a chain of `[last, next]` laws."""
    out = []
    for letters in product(range(LETTERS), repeat=LENGTH):
        value, last = 1.0, LETTERS
        for letter in letters:
            value, last = value * float(step[last, letter]), letter
        out.append(value)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 3])
def test_sequences_of_a_toy_language_follow_the_law_of_the_rule(length: int) -> None:
    draft, target = bigrams(1), bigrams(2)
    place = LETTERS ** torch.arange(LENGTH - 1, -1, -1)
    channel = Channel.of_groups([[0, 1], [1, 2], [3], [4]], LETTERS)

    def codes(rule: Rule) -> Tensor:
        return (decode(rule, draft, target, 40_000, length, 11) * place).sum(1)

    def tested(samples: Tensor, law: Tensor) -> float:
        """625 sequences, the rare ones put together."""
        rare = law * len(samples) < 5
        counts = samples.bincount(minlength=len(law)).double()
        seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
        wanted = torch.cat([law[~rare], law[rare].sum()[None]]) * len(samples)
        return float(chisquare(seen.numpy(), wanted.numpy() * float(seen.sum() / wanted.sum())).pvalue)

    assert tested(codes(Exact()), sequence_law(target)) > 1e-4
    assert tested(codes(Tolerance(0.3)), sequence_law(target)) < 1e-4
    if length == 1:  # with one drafted letter every second letter is the target's own
        return
    assert tested(codes(CoarseGrained(channel)), sequence_law(target)) < 1e-4


def test_misuse_is_refused() -> None:
    with pytest.raises(BadInput, match="negative"):
        Budgeted(Exact(), -0.1)
    with pytest.raises(BadInput, match="no group"):
        Channel.of_groups([[0, 1]], 3)
    with pytest.raises(BadInput, match="outside"):
        Channel.of_groups([[0, 5]], 3)
    with pytest.raises(BadInput, match="under a budget"):
        Budgeted(Tolerance(0.1), 0.1)(*laws(0))
    p, q = laws(0, count=2)
    with pytest.raises(BadInput, match="do not fit"):
        verify(torch.zeros(1, 2, dtype=torch.long), p[None], q[None], Exact(), torch.rand(1, 2), torch.rand(1, V))
