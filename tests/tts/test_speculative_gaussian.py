"""Gaussian rules against their closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest, norm

from quaver.errors import BadInput
from quaver.tts.speculative_gaussian import GaussianChannel, verify_gaussian

ROWS = 20_000


def run(sigma: float, shift: float = 1.0, trials: int = 32) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Draft N(0, 1), target N(shift, 1), in one dimension: share kept, what comes out, and the noise for labels."""
    g = torch.Generator().manual_seed(3)
    one = torch.ones(1)
    drafted = torch.randn(ROWS, 1, generator=g)
    found = verify_gaussian(drafted, (0 * one, one), (shift * one, one), GaussianChannel(sigma, trials), g)
    return float(found.kept.float().mean()), found.value[:, 0], torch.randn(ROWS, generator=g)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.5])
def test_acceptance_is_the_closed_form(sigma: float) -> None:
    share, _, _ = run(sigma)
    wanted = 2 * norm.cdf(-1.0 / (2 * (1 + sigma**2) ** 0.5))
    assert abs(share - wanted) < 4 * (0.25 / ROWS) ** 0.5


def test_without_a_blur_what_comes_out_is_the_targets() -> None:
    _, value, _ = run(0.0)
    assert kstest(value.numpy(), norm(1.0, 1.0).cdf).pvalue > 1e-4
    _, drifted, _ = run(1.5)
    assert kstest(drifted.numpy(), norm(1.0, 1.0).cdf).pvalue < 1e-4  # the negative control: with a blur it drifts
    assert 0.2 < float(drifted.mean()) < 0.8


def test_too_few_trials_cost_no_more_than_stated() -> None:
    channel = GaussianChannel(0.0, 2)
    _, value, _ = run(0.0, 2.0, trials=2)
    _, precise, _ = run(0.0, 2.0, trials=200)
    grid = torch.linspace(-3, 6, 37)
    cdf = [(v[:, None] < grid).float().mean(0) for v in (value, precise)]
    assert float((cdf[0] - cdf[1]).abs().max()) <= channel.bias + 0.02
    assert GaussianChannel(0.0, 100).bias < channel.bias / 20


def test_several_dimensions_and_rows() -> None:
    g = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, 5, 8, generator=g)
    q = mean, std.abs() + 0.3
    drafted = q[0] + q[1] * torch.randn(5, 8, generator=g)
    found = verify_gaussian(drafted, q, q, GaussianChannel(0.1), g)
    assert found.kept.all()  # equal laws
    assert torch.equal(found.value, drafted)
    far = verify_gaussian(drafted, (q[0] + 50, q[1]), q, GaussianChannel(), g)
    assert torch.isfinite(far.value).all()
    with pytest.raises(BadInput):
        GaussianChannel(-0.1)
    with pytest.raises(BadInput):
        GaussianChannel(0.1, 0)
