"""Heads alone: what is drawn follows the densities that training fits, and no banned id is ever drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quaver.nn import recorded
from quaver.nn.transformer import TransformerConfig
from quaver.tts.sampling import SamplingConfig
from quaver.tts.token_heads import DepthHead, MultiTokenHead, ParallelHead, TokenHead

from ..laws import few, randn, randomised

SMALL = TransformerConfig(width=8, layers=1, heads=2, hidden=8)


def make(name: str) -> TokenHead:
    torch.manual_seed(0)
    heads = {
        "parallel": lambda: ParallelHead(8, 2, 4, hidden=6),
        "depth": lambda: DepthHead(8, 2, 4, SMALL),
        "shared": lambda: DepthHead(8, 2, 4, SMALL, own=False),
        "multi": lambda: MultiTokenHead(8, 2, 4, drafts=2, block=SMALL),
    }
    return randomised(heads[name](), scale=0.5)


HEADS = {name: make(name) for name in ("parallel", "depth", "shared", "multi")}
PLAIN = SamplingConfig(temperature=1.0, top_k=0)


@pytest.mark.parametrize("name", HEADS)
def test_draws_follow_the_density(name: str) -> None:
    head, hidden = HEADS[name], randn(1, 8)
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(4))
    with torch.no_grad():
        expected = head.log_prob(hidden.expand(24, 8), pairs).exp()
        uniform = torch.rand(20_000, 2, 2, generator=torch.Generator().manual_seed(1))
        drawn = head.sample(hidden.expand(20_000, 8), uniform, PLAIN)
    counts = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=24) / 20_000
    assert abs(float(expected.sum()) - 1) < 1e-4
    assert float((counts - expected).abs().max()) < 0.015


@pytest.mark.parametrize("name", HEADS)
@few
@given(
    banned=st.lists(st.booleans(), min_size=6, max_size=6).filter(lambda b: not all(b)),
    temperature=st.sampled_from([0.0, 0.5, 3.0]),
    threshold=st.sampled_from([0.1, 0.9]),
)
def test_no_banned_id_is_drawn_in_any_branch(
    name: str, banned: list[bool], temperature: float, threshold: float
) -> None:
    config = SamplingConfig(temperature=temperature, top_k=2, ras_window=4, ras_threshold=threshold)
    n = 64
    ban = torch.tensor(banned).expand(n, 6)
    if sum(banned) == 5:
        config = config.model_copy(update={"ras_window": 0})  # a single id left may repeat
    recent = torch.randint(0, 6, (n, 2, max(config.ras_window, 1)), generator=torch.Generator().manual_seed(3))
    uniform = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        drawn = HEADS[name].sample(
            randn(n, 8), uniform, config, recent if config.ras_window else None, None, banned=ban
        )
    assert not ban.gather(1, drawn[:, :1]).any()
    assert int(drawn[:, 1].max()) < 4  # the stops are ids of level 0 only


@pytest.mark.parametrize("name", HEADS)
def test_empty_places_cost_nothing_and_stay_empty(name: str) -> None:
    head, hidden = HEADS[name], randn(3, 8)
    codes = torch.tensor([[1, head.empty], [2, head.empty], [head.eos, head.empty]])
    with torch.no_grad():
        loss = head.loss(hidden, codes)
        holes = torch.tensor([[False, True]] * 3)
        drawn = head.sample(hidden, torch.rand(3, 2, 2), PLAIN, None, holes)
    assert loss[0] > 0
    assert loss[1] == 0
    assert drawn[:, 1].tolist() == [head.empty] * 3


def test_a_draft_depends_on_what_was_drawn_before_it_and_is_trained_as_it_is_drawn() -> None:
    head = HEADS["multi"]
    assert isinstance(head, MultiTokenHead)
    hidden, codes = randn(5, 8), torch.randint(0, 4, (5, 3, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = head.draft_losses(hidden, codes)
        cascade = head.cascade(hidden)
        by_hand = [head.loss(cascade.advance(codes[:, i]), codes[:, i + 1]).mean() for i in range(2)]
        other = head.draft_losses(hidden, torch.cat([(codes[:, :1] + 1) % 4, codes[:, 1:]], 1))
    assert torch.allclose(losses, torch.stack(by_hand))
    assert not torch.allclose(losses, other)


@torch.inference_mode()
def test_levels_from_a_recorded_step_are_those_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    head = DepthHead(8, 3, 4, SMALL).eval()
    drawn = {}
    for switch in ("0", "1"):
        monkeypatch.setenv(recorded.SWITCH, switch)
        monkeypatch.setattr(recorded, "AFTER", 4)
        recorded._RECORDERS.pop(head.transformer, None)
        dice = torch.Generator().manual_seed(0)
        steps = [(torch.randn(2, 8, generator=dice), torch.rand(2, 2, 3, generator=dice)) for _ in range(6)]
        drawn[switch] = torch.stack([head.sample(hidden, uniform, PLAIN) for hidden, uniform in steps])
        made = [r.recording is not None for r in recorded._RECORDERS.get(head.transformer, {}).values()]
        assert made == [True] * (switch == "1")
    assert torch.equal(drawn["0"], drawn["1"])
