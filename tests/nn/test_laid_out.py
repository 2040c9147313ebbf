"""Weights stored input by input: the same layer, to rounding, with the same names and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quaver.nn.packed import lay_out_linears

from ..laws import randn

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with MKL only")


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_a_layer_gives_what_it_gave(rows: int) -> None:
    linear, x = nn.Linear(64, 96), randn(rows, 64)
    with torch.no_grad():
        before = linear(x)
        assert lay_out_linears(linear) == 1
        assert not linear.weight.is_contiguous()
        assert linear.weight.shape == (96, 64)
        assert torch.allclose(linear(x), before, atol=1e-5)
        other = torch.cat([x[:1], randn(rows - 1, 64, seed=1)])
        assert torch.equal(linear(other)[0], linear(x)[0])
    assert lay_out_linears(linear) == 0  # once is enough


def test_layers_that_gain_nothing_stay() -> None:
    narrow, small, half = nn.Linear(96, 64), nn.Linear(4, 8), nn.Linear(64, 96).bfloat16()
    assert lay_out_linears(nn.ModuleList([narrow, small, half])) == 0
    assert all(layer.weight.is_contiguous() for layer in (narrow, small, half))


def test_weights_can_be_trained_saved_and_loaded(tmp_path: Path) -> None:
    linear = nn.Linear(64, 96, bias=False)
    weight = linear.weight.detach().clone()
    lay_out_linears(linear)
    save_file({k: v.contiguous() for k, v in linear.state_dict().items()}, tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["weight"], weight)
    linear(randn(3, 64)).sum().backward()
    assert linear.weight.grad is not None
    linear.load_state_dict({"weight": weight + 1})
    assert torch.equal(linear.weight, weight + 1)
