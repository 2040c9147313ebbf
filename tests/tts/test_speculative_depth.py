"""Speculation along depth: frames follow the head's own law, greedy frames are its greedy frames, rows stay alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from quaver.errors import BadInput
from quaver.tts.groups import build_groups, code_embeddings
from quaver.tts.heads import CategoricalHead
from quaver.tts.sampling import SamplingConfig
from quaver.tts.speculative import Rule, Tolerance
from quaver.tts.speculative_depth import DepthDrafter, HeadDrafter, ResidualDrafter, SpeculativeHead, depth_rule
from quaver.tts.token_heads import DepthHead, ParallelHead

from ..laws import few, randn, randomised

PLAIN = SamplingConfig(temperature=1.0, top_k=0)
GREEDY = SamplingConfig(temperature=0)


def target(kind: str, codebooks: int = 3, vocab: int = 4) -> DepthHead | CategoricalHead:
    torch.manual_seed(0)
    if kind == "depth":
        return randomised(DepthHead(8, codebooks, vocab, stops=1), 1, 0.4)
    return randomised(CategoricalHead(8, codebooks, vocab, hidden=8), 1, 0.4)


def speculative(
    kind: str, redraft: bool = True, rule: Rule | None = None, own: bool = False, **sizes: int
) -> SpeculativeHead:
    """`own`: the head drafts for itself."""
    head = target(kind, **sizes)
    first = head.vocab + (1 if kind == "depth" else 0)
    torch.manual_seed(1)
    drafter: DepthDrafter = HeadDrafter(head)
    if not own:
        drafter = randomised(ResidualDrafter(8, head.codebooks, head.vocab, first, hidden=6), 3, 0.5)
    return SpeculativeHead(head, drafter, rule, redraft)


def uniform(rows: int, levels: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, 2, levels, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def pvalue(head: SpeculativeHead, rows: int = 20_000) -> float:
    hidden = randn(1, 8, seed=5).expand(rows, -1)
    codes = head.sample(hidden, uniform(rows, 3), PLAIN)
    first, vocab = head.head.size(0) if isinstance(head.head, DepthHead) else head.head.vocab, head.head.vocab
    grid = torch.cartesian_prod(torch.arange(first), torch.arange(vocab), torch.arange(vocab))
    law = head.head.log_prob(hidden[:1].expand(len(grid), -1), grid).exp().double()
    index = (codes[:, 0] * vocab + codes[:, 1]) * vocab + codes[:, 2]
    counts = index.bincount(minlength=len(grid)).double()
    rare = law * rows < 5
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([law[~rare], law[rare].sum()[None]]) * rows
    keep = wanted > 0
    return float(chisquare(seen[keep].numpy(), (wanted * seen.sum() / wanted.sum())[keep].numpy()).pvalue)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("redraft", [True, False])
@pytest.mark.parametrize("kind", ["depth", "chain"])
def test_frames_follow_the_heads_own_law(kind: str, redraft: bool, own: bool) -> None:
    assert pvalue(speculative(kind, redraft, own=own)) > 1e-4


@pytest.mark.parametrize("kind", ["depth", "chain"])
@torch.no_grad()
def test_a_head_that_drafts_for_itself_misses_only_what_is_not_drawn(kind: str) -> None:
    """Level 1 has all that it needs, so its draft is the target's own law and is always kept."""
    head = target(kind, codebooks=5, vocab=6)
    hidden, codes = randn(7, 8), torch.randint(6, (7, 5), generator=torch.Generator().manual_seed(2))
    blind, seeing = head.blind_logits(hidden, codes[:, 0]), torch.stack(head.logits(hidden, codes)[1:], 1)
    assert blind.shape == seeing.shape
    torch.testing.assert_close(blind[:, 0], seeing[:, 0])
    assert not torch.allclose(blind[:, 1:], seeing[:, 1:])
    other = codes.clone()
    other[:, 1:] = 0
    assert torch.equal(blind, head.blind_logits(hidden, other[:, 0]))


def test_a_constant_bonus_does_not_follow_it() -> None:
    assert pvalue(speculative("depth", rule=Tolerance(0.3))) < 1e-4


@few
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["depth", "chain"]), redraft=st.booleans(), own=st.booleans())
@torch.no_grad()
def test_greedy_frames_are_the_heads_greedy_frames(seed: int, kind: str, redraft: bool, own: bool) -> None:
    head = speculative(kind, redraft, own=own, codebooks=6, vocab=9)
    hidden, u = randn(5, 8, seed=seed), uniform(5, 6, seed)
    assert torch.equal(head.sample(hidden, u, GREEDY), head.head.sample(hidden, u, GREEDY))
    assert 1 <= head.figures.rounds <= 5
    assert head.figures.judged > head.figures.kept


@torch.no_grad()
def test_rows_holes_and_repetition() -> None:
    head = speculative("depth", codebooks=5, vocab=9)
    config = SamplingConfig(temperature=1.0, top_k=5, ras_window=4, ras_threshold=0.2)
    hidden, u = randn(4, 8), uniform(4, 5)
    recent = torch.randint(0, 9, (4, 5, 4), generator=torch.Generator().manual_seed(0))
    empty = torch.zeros(4, 5, dtype=torch.bool)
    empty[1, 3:], empty[2, 1:3] = True, True
    codes = head.sample(hidden, u, config, recent, empty)
    assert ((codes == head.head.empty) == empty).all()
    others = torch.cat([randn(1, 8, seed=9), hidden[1:3], randn(1, 8, seed=8)])
    moved = torch.cat([uniform(1, 5, 4), u[1:3], uniform(1, 5, 6)])
    again = head.sample(others, moved, config, recent, empty)
    assert torch.equal(again[1:3], codes[1:3])  # law 3: a row does not see the rounds of the others


@torch.no_grad()
def test_groups_keep_more_than_exact_within_the_budget() -> None:
    shares = {}
    for kind in ("exact", "budgeted", "pcg"):
        head = speculative("chain", codebooks=6, vocab=9)
        groups = build_groups(code_embeddings(head.head), 4.0)
        head.rule = depth_rule(kind, groups, 0.05)
        head.sample(randn(400, 8), uniform(400, 6), PLAIN)
        shares[kind] = head.figures.acceptance
    assert shares["exact"] < shares["budgeted"] < shares["pcg"]


def test_what_does_not_fit_is_refused() -> None:
    drafter = ResidualDrafter(8, 3, 4, 4)
    with pytest.raises(BadInput, match="depth or chain"):
        SpeculativeHead(ParallelHead(8, 3, 4), drafter)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="train one for this model"):
        SpeculativeHead(target("chain", vocab=5), drafter)
    with pytest.raises(BadInput, match="two codebooks"):
        ResidualDrafter(8, 1, 4, 4)
    with pytest.raises(BadInput, match="groups"):
        depth_rule("pcg")
    with pytest.raises(BadInput, match="along depth"):
        depth_rule("tolerance")
