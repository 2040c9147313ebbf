"""Packed linear layers: the same function up to half precision of the weights, row by row, in a model that streams."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quaver.nn.packed import PackedLinear, can_pack, pack_linears
from quaver.nn.transformer import Transformer, TransformerConfig

from ..laws import randn

pytestmark = pytest.mark.skipif(not can_pack(), reason="no FBGEMM on this processor")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 64), (3, 5, 64)])
def test_a_packed_layer_is_the_layer_with_half_precision_weights(bias: bool, shape: tuple[int, ...]) -> None:
    linear = nn.Linear(64, 96, bias=bias)
    x = randn(*shape)
    with torch.inference_mode():
        packed = PackedLinear(linear)(x)
        exact = nn.functional.linear(x, linear.weight.half().float(), linear.bias)
        assert packed.shape == exact.shape
        assert torch.allclose(packed, exact, atol=1e-5)
        assert not torch.equal(packed, linear(x))  # the weights did change


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    layer = PackedLinear(nn.Linear(64, 96))
    x = randn(8, 64)
    with torch.inference_mode():
        before = layer(x)
        other = x.clone()
        other[1:] = 1e4 * randn(7, 64, seed=1)
        assert torch.equal(layer(other)[0], before[0])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 14, 16, 31, 32, 50, 80, 128, 134])
def test_a_row_does_not_depend_on_its_place(rows: int) -> None:
    """FBGEMM sums the last one or two of some numbers of rows in another order: 32 equal rows gave two answers."""
    layer = PackedLinear(nn.Linear(100, 48))
    with torch.inference_mode():
        out = layer(randn(1, 100).expand(rows, -1).contiguous())
    assert out.shape == (rows, 48)
    assert torch.equal(out, out[:1].expand_as(out))


def test_a_packed_transformer_streams_as_it_runs_whole() -> None:
    config = TransformerConfig(width=64, layers=2, heads=2, hidden=96, window=8, slack=4)
    model = Transformer(config).eval()
    x = randn(2, 12, 64)
    with torch.inference_mode():
        plain = model(x)
        assert pack_linears(model) == 8
        whole, state = model(x), model.init_state(2)
        steps = torch.cat([model(x[:, i : i + 3], state) for i in range(0, 12, 3)], 1)
    assert torch.allclose(whole, plain, atol=0.02)
    assert torch.allclose(steps, whole, atol=1e-4)


def test_what_cannot_be_packed_stays_as_it_is() -> None:
    model = nn.ModuleDict({"small": nn.Linear(4, 4), "huge": nn.Linear(64, 64), "tied": nn.Linear(64, 128)})
    model["table"] = nn.Embedding(128, 64)
    model["table"].weight = model["tied"].weight  # type: ignore[assignment]
    with torch.no_grad():
        model["huge"].weight[0, 0] = 1e6  # type: ignore[index]
    assert pack_linears(model) == 0
    assert all(isinstance(model[name], nn.Linear) for name in ("small", "huge", "tied"))
