"""RMSNorm under inference is torch's to rounding, and no row depends on its neighbours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from quaver.nn.norm import RMSNorm, rms_norm

from ..laws import few, randn


@few
@given(rows=st.integers(1, 5), width=st.sampled_from([1, 2, 7, 64]), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_it_is_that_of_torch(rows: int, width: int, scale: float) -> None:
    """Also where the mean of the squares is as small as `eps`."""
    x, weight = scale * randn(rows, 3, width), randn(width, seed=1)
    expected = F.rms_norm(x, (width,), weight, 1e-6)
    with torch.no_grad():
        y = rms_norm(x, 1e-6, weight)
        assert torch.allclose(y, expected, rtol=1e-5, atol=1e-6)
        other = torch.cat([x[:1], randn(rows - 1, 3, width, seed=2)])
        assert torch.equal(rms_norm(other, 1e-6, weight)[0], y[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_kinds_of_numbers_take_the_way_of_torch(dtype: torch.dtype) -> None:
    x, weight = randn(2, 8).to(dtype), randn(8).to(dtype)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, 1e-6, weight), F.rms_norm(x, (8,), weight, 1e-6))


def test_the_module_has_gradients_and_the_names_of_torch() -> None:
    norm, x = RMSNorm(8, eps=1e-6), randn(2, 8)
    assert list(norm.state_dict()) == ["weight"]
    y = norm(x)
    assert y.requires_grad
    assert torch.equal(y, torch.nn.RMSNorm(8, eps=1e-6)(x))
    with torch.no_grad():
        assert torch.allclose(norm(x), y, atol=1e-6)
    gain = randn(2, 1, 8)  # one for queries, one for keys
    assert torch.allclose(rms_norm(x[:, None], 1e-6, gain), F.rms_norm(x, (8,))[:, None] * gain, atol=1e-5)
