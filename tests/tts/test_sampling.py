"""Draws follow the law that they claim to follow, and never leave its support."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quaver.tts.heads import CategoricalHead
from quaver.tts.sampling import (
    SamplingConfig,
    draw,
    filtered_probabilities,
    repetition_aware,
    sample_code,
    sampling_law,
)

from ..laws import many, randn

PLAIN = SamplingConfig(temperature=1.0, top_k=0)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_law() -> None:
    p = torch.tensor([0.05, 0.4, 0.2, 0.3, 0.05])
    counts = draw(p.expand(20_000, 5), uniform(20_000)).bincount(minlength=5)
    assert chi_square(counts, p) < 18.5  # 4 degrees of freedom, p = 0.001
    assert chi_square(counts, torch.full((5,), 0.2)) > 1000  # the test can fail


def test_codes_of_a_chain_follow_the_joint_law_that_log_prob_states() -> None:
    torch.manual_seed(0)
    head = CategoricalHead(6, codebooks=2, vocab=3, hidden=5, chain=True).eval()
    with torch.no_grad():
        head.table.weight.mul_(20)
        hidden = randn(1, 6)
        every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        joint = head.log_prob(hidden.expand(9, 6), every).exp()
        assert torch.allclose(joint.sum(), torch.ones(()), atol=1e-5)
        codes = head.sample(hidden.expand(20_000, 6), uniform(20_000, 2, 2), PLAIN)
    counts = (codes[:, 0] * 3 + codes[:, 1]).bincount(minlength=9)
    assert chi_square(counts, joint) < 26.1  # 8 degrees of freedom, p = 0.001
    independent = joint.view(3, 3).sum(1)[:, None] * joint.view(3, 3).sum(0)
    assert chi_square(counts, independent.flatten()) > 40  # the levels do depend on each other


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2}, {"temperature": 0}])
def test_the_fast_draw_has_the_same_law(settings: dict[str, float]) -> None:
    config = SamplingConfig.model_validate({"temperature": 0.8, **settings})
    logits, grid = 2 * randn(1, 30), (torch.arange(5000) + 0.5) / 5000
    shares = sample_code(logits.expand(5000, 30), config, grid).bincount(minlength=30) / 5000
    assert (shares - filtered_probabilities(logits, config)[0]).abs().max() < 2 / 5000
    last = sample_code(logits, config, torch.tensor([1 - 2**-24]))
    assert filtered_probabilities(logits, config)[0, last] > 0


@pytest.mark.parametrize("at", [0.0, 0.5, 1 - 2**-24])
def test_a_code_of_zero_probability_is_never_drawn(at: float) -> None:
    p = torch.tensor([[0, 0, 0.3, 0, 0.7, 0, 0], [0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1.0]])
    codes = draw(p, torch.full((4,), at))
    assert (p.gather(1, codes[:, None]) > 0).all()


@many
@given(seed=st.integers(0, 10_000), size=st.integers(2, 2000), at=st.sampled_from([0.0, 0.3, 1 - 2**-24]))
def test_truncated_laws_are_never_left(seed: int, size: int, at: float) -> None:
    config = SamplingConfig(temperature=0.5, top_k=min(3, size - 1))
    p = filtered_probabilities(5 * randn(2, size, seed=seed), config)
    codes = draw(p, torch.full((2,), at))
    assert (p.gather(1, codes[:, None]) > 0).all()


def test_truncation_keeps_what_it_says() -> None:
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()

    def kept(**options: float) -> list[int]:
        p = filtered_probabilities(logits, SamplingConfig(**{"temperature": 1.0, "top_k": 0, **options}))  # type: ignore[arg-type]
        assert torch.allclose(p.sum(), torch.ones(()))
        index = p.nonzero().flatten()
        exact = logits[index].softmax(0)
        assert torch.allclose(p[index], exact, atol=1e-6)
        return index.tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_p=0.5) == [1]
    assert kept(top_p=0.79) == [1, 3]
    assert kept(top_p=0.9) == [1, 2, 3]
    assert kept(min_p=0.5) == [1, 3]
    assert kept(min_p=0.99, top_p=0.1, top_k=1) == [1]
    assert kept(temperature=0) == [1]


def test_temperature_sharpens() -> None:
    logits = torch.tensor([1.0, 2.0])
    p = filtered_probabilities(logits, SamplingConfig(temperature=0.5, top_k=0))
    assert torch.allclose(p, (logits * 2).softmax(0))


def test_a_banned_code_is_never_drawn_again_and_the_rest_keeps_its_law() -> None:
    config = SamplingConfig(temperature=1.0, top_k=1, ras_window=4, ras_threshold=0.4)
    logits = torch.tensor([0.6, 0.1, 0.3]).log().expand(8000, 3)
    code = torch.zeros(8000, dtype=torch.long)
    recent = torch.tensor([0, 2, 0, 1]).expand(8000, 4)
    again = repetition_aware(code, logits, recent, uniform(8000), config)
    counts = again.bincount(minlength=3)
    assert counts[0] == 0
    assert chi_square(counts[1:], torch.tensor([0.25, 0.75])) < 10.8  # unfiltered: top_k does not hold here


def test_repetition_awareness_does_not_fire_at_or_below_its_threshold() -> None:
    logits = torch.zeros(1, 5)
    code = torch.tensor([3])

    def drawn(recent: list[int], **options: float) -> int:
        config = SamplingConfig(**{"temperature": 1.0, "ras_window": 4, "ras_threshold": 0.5, **options})  # type: ignore[arg-type]
        return int(repetition_aware(code, logits, torch.tensor([recent]), torch.tensor([0.99]), config))

    assert drawn([3, 3, 1, -1]) == 3
    assert drawn([-1, -1, -1, -1]) == 3
    assert drawn([3, 3, 3, 1]) != 3
    assert drawn([3, 3, 3, 3], temperature=0.0) == 3
    assert drawn([3, 3, 3, 3], ras_window=0) == 3


def test_the_end_is_not_drawn_in_place_of_a_code_that_repeats() -> None:
    """A held vowel must not be a chance to stop: ids after the codes stay out of the second draw, in the draw as in its
    closed form; where no other code may stand, the first draw stays."""
    config = SamplingConfig(temperature=1.0, top_k=0, ras_window=4, ras_threshold=0.4)
    logits = torch.tensor([0.9, 0.02, 0.03, 0.05]).log().expand(8000, 4)  # three codes and the end
    recent = torch.zeros(8000, 4, dtype=torch.long)
    code = torch.zeros(8000, dtype=torch.long)
    again = repetition_aware(code, logits, recent, uniform(8000), config, 3)
    assert set(again.tolist()) == {1, 2}
    assert chi_square(again.bincount(minlength=3)[1:], torch.tensor([0.4, 0.6])) < 10.8
    assert 3 in repetition_aware(code, logits, recent, uniform(8000), config).tolist()  # the test can fail
    law = sampling_law(logits[:1], config, recent[:1], 3)[0]
    assert torch.allclose(law, torch.tensor([0.0, 0.02 + 0.9 * 0.4, 0.03 + 0.9 * 0.6, 0.05]), atol=1e-5)
    only = logits.masked_fill(torch.tensor([False, True, True, False]), float("-inf"))
    assert repetition_aware(code, only, recent, uniform(8000), config, 3).tolist() == code.tolist()
    alone = sampling_law(only[:1], config, recent[:1], 3)[0]
    assert torch.allclose(alone, torch.tensor([0.9 / 0.95, 0, 0, 0.05 / 0.95]), atol=1e-5)


@many
@given(
    logits=st.lists(st.floats(-4, 4), min_size=5, max_size=5),
    recent=st.lists(st.integers(-1, 4), min_size=4, max_size=4),
    threshold=st.sampled_from([0.2, 0.5, 0.9]),
    codes=st.sampled_from([None, 3, 4]),
    top_k=st.integers(1, 5),
)
def test_the_closed_form_is_the_law_of_both_draws(
    logits: list[float], recent: list[int], threshold: float, codes: int | None, top_k: int
) -> None:
    config = SamplingConfig(temperature=0.8, top_k=top_k, ras_window=4, ras_threshold=threshold)
    past = [r for r in recent if codes is None or r < codes] or [-1]  # the end has never been said before
    rows, history = torch.tensor([logits]), torch.tensor([past])
    law = sampling_law(rows, config, history, codes)[0]
    n = 6000
    many_rows = rows.expand(n, 5)
    code = draw(filtered_probabilities(many_rows, config), uniform(n, seed=1))
    code = repetition_aware(code, many_rows, history.expand(n, -1), uniform(n, seed=2), config, codes)
    assert torch.allclose(law.sum(), torch.tensor(1.0), atol=1e-4)
    assert float((code.bincount(minlength=5) / n - law).abs().max()) < 0.03


@pytest.mark.parametrize("chain", [True, False])
def test_what_is_drawn_is_what_training_scores(chain: bool) -> None:
    """Greedy codes are the arg max of the teacher-forced logits, level by level, also where a level is empty."""
    torch.manual_seed(0)
    head = CategoricalHead(6, codebooks=3, vocab=7, hidden=5, chain=chain).eval()
    with torch.no_grad():
        head.table.weight.mul_(20)
        hidden = randn(5, 6)
        empty = torch.zeros(5, 3, dtype=torch.bool)
        empty[2, 1] = True
        greedy = SamplingConfig(temperature=0)
        codes = head.sample(hidden, uniform(5, 2, 3), greedy, empty=empty)
        assert (codes == 7).nonzero().tolist() == [[2, 1]]
        for k, logits in enumerate(head.logits(hidden, codes)):
            fits = logits.argmax(-1) == codes[:, k]
            assert (fits | empty[:, k]).all()


def test_empty_places_do_not_enter_the_loss() -> None:
    torch.manual_seed(0)
    head = CategoricalHead(6, codebooks=2, vocab=7, hidden=5)
    hidden = randn(4, 6)
    codes = torch.randint(7, (4, 2))
    whole = head.loss(hidden, codes)
    codes[1:, 0] = 7
    assert torch.allclose(head.loss(hidden, codes)[0], head.loss(hidden[:1], codes[:1])[0])
    assert whole.shape == (2,)
