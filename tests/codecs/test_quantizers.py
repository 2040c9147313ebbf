"""Bottlenecks: the reported bugs of the reference implementations, and round trips."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quaver.codecs.quantizers import FSQ, GaussianVAE, ResidualFSQ, ResidualVQ, SplitVQ
from quaver.errors import BadInput

from ..laws import few, randn


def rvq(**sizes: float) -> ResidualVQ:
    torch.manual_seed(0)
    return ResidualVQ(**{"dim": 4, "codebooks": 3, "vocab": 8, **sizes})  # type: ignore[arg-type]


def test_a_replaced_dead_code_survives_the_next_update() -> None:
    """encodec issue 61: the replacement must enter the running sums, or the next average writes the dead code back."""
    torch.manual_seed(0)
    quantizer = rvq(codebooks=1, decay=0.9).train()
    rows = randn(1, 4, 400)
    quantizer(rows)
    dead = 3
    with torch.no_grad():
        quantizer.codebook[0, dead] = 1e3
        quantizer.sums[0, dead] = 1e3 * 1e-3
        quantizer.usage[0, dead] = 1e-3
    quantizer(rows)
    replaced = quantizer.codebook[0, dead].clone()
    assert replaced.norm() < 10  # a row of the data, not the far-off code
    assert torch.allclose(quantizer.sums[0, dead] / quantizer.usage[0, dead], replaced)
    used = 0
    for _ in range(5):
        used += int((quantizer(rows).frames == dead).sum())
        assert quantizer.codebook[0, dead].norm() < 10
        assert quantizer.usage[0, dead] >= 0.1 * 400 / 8 * 0.9**5
    assert used > 0  # it has won a cell of its own


def test_the_gradient_passes_straight_through_exactly_once() -> None:
    """encodec issue 25: one straight-through step per level multiplies the gradient by the number of levels."""
    for levels in (None, torch.tensor([1, 3])):
        quantizer = rvq().eval()
        x = randn(2, 4, 5).requires_grad_()
        out = quantizer(x, levels)
        weight = randn(2, 4, 5, seed=1)
        (gradient,) = torch.autograd.grad((out.latents * weight).sum(), x)
        assert torch.equal(gradient, weight)
    out = rvq().eval()(x)
    (gradient,) = torch.autograd.grad(out.losses["commit"], x)
    assert torch.allclose(gradient, 2 * (x - out.latents).detach() / x.numel(), atol=1e-6)


def test_codebooks_receive_no_gradient_and_move_only_in_training() -> None:
    quantizer = rvq()
    assert not list(quantizer.parameters())
    x = randn(2, 4, 30)
    before = quantizer.codebook.clone()
    quantizer.eval()(x)
    assert torch.equal(before, quantizer.codebook)
    quantizer.train()(x)
    assert bool(quantizer.ready)
    assert not torch.equal(before, quantizer.codebook)


def test_codebooks_learn_the_data() -> None:
    """Eight far-apart points and codes to spare: after a while each point has a code."""
    torch.manual_seed(0)
    points = 10 * randn(8, 4)
    quantizer = rvq(codebooks=1, vocab=32, decay=0.8).train()
    for step in range(60):
        pick = torch.randint(8, (200,), generator=torch.Generator().manual_seed(step))
        quantizer(points[pick].T[None] + 0.01 * randn(1, 4, 200, seed=step))
    nearest = torch.cdist(points, quantizer.codebook[0]).min(1).values
    assert nearest.max() < 0.5


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_prefix_of_the_codebooks_decodes(levels: int) -> None:
    quantizer = rvq().eval()
    x = randn(2, 4, 6)
    codes = quantizer.encode(x)
    assert torch.equal(quantizer.encode(x, levels), codes[:, :levels])
    expected = sum(quantizer.codebook[k][codes[:, k]] for k in range(levels))
    assert isinstance(expected, torch.Tensor)
    assert torch.allclose(quantizer.decode(codes[:, :levels]), expected.transpose(1, 2), atol=1e-6)


def test_more_codebooks_are_never_worse_on_data_they_know() -> None:
    torch.manual_seed(0)
    quantizer = rvq(vocab=64).train()
    x = randn(1, 4, 500)
    for _ in range(20):
        quantizer(x)
    codes = quantizer.eval().encode(x)
    errors = [float((quantizer.decode(codes[:, :k]) - x).square().mean()) for k in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.2 * errors[0]


def test_dropout_keeps_so_many_levels_for_each_item() -> None:
    quantizer = rvq().eval()
    x = randn(3, 4, 6)
    out = quantizer(x, torch.tensor([1, 2, 3]))
    for item, levels in enumerate((1, 2, 3)):
        expected = quantizer.decode(out.frames[item : item + 1, :levels])
        assert torch.allclose(out.latents[item : item + 1], expected, atol=1e-5)


def test_bypass_passes_latents_untouched_and_only_where_asked() -> None:
    x = randn(2, 4, 6)
    bypass = torch.tensor([True, False])
    quantized = rvq().eval()(x, None, bypass).latents
    assert torch.equal(quantized[0], x[0])
    assert not torch.allclose(quantized[1], x[1])
    bounded = FSQ([3, 3, 3, 3])(x, bypass=bypass).latents
    assert torch.equal(bounded[0], x[0].tanh())
    assert not torch.allclose(bounded[1], x[1].tanh())


def test_impossible_codes_are_refused() -> None:
    quantizer = rvq()
    for codes in (torch.full((1, 3, 2), 8), torch.full((1, 3, 2), -1), torch.zeros(1, 4, 2).long()):
        with pytest.raises(BadInput):
            quantizer.decode(codes)
    with pytest.raises(BadInput):
        quantizer.encode(randn(1, 4, 3), 0)
    for codes in (torch.full((1, 1, 2), 9), torch.zeros(1, 2, 2).long()):
        with pytest.raises(BadInput):
            FSQ([3, 3]).decode(codes)
    for levels in ([], [3, 1]):
        with pytest.raises(BadInput):
            FSQ(levels)


@few
@given(levels=st.lists(st.integers(2, 6), min_size=1, max_size=4))
def test_fsq_round_trip_of_every_code(levels: list[int]) -> None:
    fsq = FSQ(levels)
    codes = torch.arange(fsq.vocab)[None, None]
    grid = fsq.decode(codes)
    assert fsq.vocab == math.prod(levels)
    assert len(grid[0].T.unique(dim=0)) == fsq.vocab
    assert grid.abs().max() <= 1
    latents = grid.clamp(-0.9999, 0.9999).atanh()
    assert torch.equal(fsq.encode(latents), codes)
    out = fsq(latents)
    assert torch.equal(out.frames, codes)
    assert torch.allclose(out.latents, grid, atol=1e-6)


def test_fsq_stays_in_range_and_has_a_gradient() -> None:
    fsq = FSQ([4, 5])
    x = (randn(1, 2, 50) * 30).requires_grad_()
    codes = fsq.encode(x)
    assert codes.min() >= 0
    assert codes.max() < 20
    small = (0.3 * randn(1, 2, 50)).requires_grad_()
    (gradient,) = torch.autograd.grad(fsq(small).latents.sum(), small)
    assert torch.allclose(gradient, (1 - small.detach().tanh() ** 2) * 1.001, atol=1e-5)


def test_vae_is_the_mean_in_use_and_a_sample_of_the_posterior_in_training() -> None:
    vae = GaussianVAE(3)
    mean, log_scale = randn(2, 3, 4), torch.full((2, 3, 4), -1.0)
    x = torch.cat([mean, log_scale], 1)
    assert torch.equal(vae.eval()(x).latents, mean)
    assert torch.equal(vae.decode(vae.encode(x)), mean)
    torch.manual_seed(0)
    draws = torch.stack([vae.train()(x, None, torch.tensor([False, True])).latents for _ in range(400)])
    assert torch.equal(draws[0, 1], mean[1])
    assert abs(float((draws[:, 0] - mean[0]).std()) - math.exp(-1)) < 0.02
    assert torch.allclose(vae(torch.zeros(1, 6, 4)).losses["kl"], torch.zeros(()))
    expected = 0.5 * (mean.square() + math.exp(-2) - 1 + 2).mean()
    assert torch.allclose(vae(x).losses["kl"], expected)
    assert torch.isfinite(vae(torch.full((1, 6, 4), 1e4)).losses["kl"])


def test_a_residual_fsq_of_more_levels_is_nearer() -> None:
    """Each level divides the cells once more: the error is at most half a cell of the last grid."""
    quantizer = ResidualFSQ((4, 5, 3), codebooks=4)
    x = randn(2, 3, 50)
    codes, steps = quantizer.encode(x), quantizer.counts - 1
    for k in range(1, 5):
        error = (quantizer.decode(codes[:, :k]) - torch.tanh(x)).abs().amax((0, 2))
        assert (error <= steps.float() ** -k + 1e-6).all(), k
        assert torch.equal(quantizer.encode(x, k), codes[:, :k])


def test_a_residual_fsq_finds_its_own_points_again_and_passes_gradients() -> None:
    quantizer = ResidualFSQ((3, 5), codebooks=3)
    x = randn(2, 2, 20).requires_grad_()
    out = quantizer(x, levels=torch.tensor([1, 3]))
    torch.testing.assert_close(out.latents[1:], quantizer.decode(out.frames)[1:])
    torch.testing.assert_close(out.latents[:1], quantizer.decode(out.frames[:, :1])[:1])
    out.latents.sum().backward()
    torch.testing.assert_close(x.grad, 1 - torch.tanh(x.detach()).square())


def test_a_split_quantizer_adds_both_sides_and_codes_the_semantic_level_first() -> None:
    torch.manual_seed(0)
    quantizer = SplitVQ(6, codebooks=4, vocab=8, inner=3).eval()
    x = randn(2, 6, 10)
    codes = quantizer.encode(x)
    assert torch.equal(codes[:, :1], quantizer.semantic.encode(quantizer.semantic_in(x)))
    assert torch.equal(codes[:, 1:], quantizer.acoustic.encode(quantizer.acoustic_in(x)))
    with torch.no_grad():
        for k in (1, 2, 4):
            out = quantizer(x, levels=torch.full((2,), k))
            torch.testing.assert_close(out.latents, quantizer.decode(codes[:, :k]))
    for wrong in (0, 5):
        with pytest.raises(BadInput):
            quantizer.encode(x, wrong)


def test_a_split_quantizer_learns_both_sides() -> None:
    torch.manual_seed(0)
    quantizer = SplitVQ(6, codebooks=3, vocab=8, inner=3).train()
    x = randn(4, 6, 30).requires_grad_()
    out = quantizer(x, levels=torch.tensor([1, 1, 2, 3]))
    (out.latents.square().sum() + out.losses["commit"]).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in quantizer.parameters())
    assert bool(quantizer.semantic.ready)
    assert bool(quantizer.acoustic.ready)
