"""Laws 1, 4 and 5 over the transformer; the ring cache past its capacity; the scale of published models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quaver.errors import BadInput
from quaver.nn.transformer import Transformer, TransformerConfig, rope_tables

from ..laws import TOLERANCE, chunkings, few, many, randn, randomised

SIZES = {"width": 8, "layers": 2, "heads": 2, "hidden": 12}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def make(**sizes: object) -> Transformer:
    model = Transformer(TransformerConfig.model_validate({**SIZES, **sizes}))
    randomised(model)
    return model


@many
@given(
    lengths=chunkings(4, 12),
    window=st.integers(1, 7),
    slack=st.integers(3, 5),
    condition=st.sampled_from([None, 3]),
)
def test_streaming_equals_offline_past_the_capacity(
    lengths: list[int], window: int, slack: int, condition: int | None
) -> None:
    model = make(window=window, slack=slack, condition=condition)
    time = sum(lengths)
    x = randn(2, time, 8)
    extra = randn(2, time, 3, seed=1) if condition else None
    whole = model(x, condition=extra)
    state, at, parts = model.init_state(2), 0, []
    for n in lengths:
        part = None if extra is None else extra[:, at : at + n]
        parts.append(model(x[:, at : at + n], state, condition=part))
        at += n
    assert torch.allclose(torch.cat(parts, 1), whole, atol=TOLERANCE)
    assert state["position"].tolist() == [time, time]


def test_a_long_stream_keeps_the_law_in_constant_memory() -> None:
    model = make(window=6, slack=2)
    x = randn(1, 120, 8)
    state = model.init_state(1)
    size = state.nbytes()
    streamed = torch.cat([model(x[:, i : i + 1], state) for i in range(120)], 1)
    assert torch.allclose(streamed, model(x), atol=TOLERANCE)
    assert state.nbytes() == size


def test_slots_stand_at_positions_of_their_own() -> None:
    model = make(window=5, slack=2)
    x, y = randn(1, 20, 8), randn(1, 20, 8, seed=1)
    state = model.init_state(2)
    for i in range(7):
        with state.only(torch.tensor([True, False])):
            model(torch.cat([x[:, i : i + 1], y[:, :1]]), state)
    for i in range(13):
        out = model(torch.cat([x[:, 7 + i : 8 + i], y[:, i : i + 1]]), state)
    assert torch.allclose(out[0], model(x)[0, 19], atol=TOLERANCE)
    assert torch.allclose(out[1], model(y)[0, 12], atol=TOLERANCE)


@few
@given(cut=st.integers(1, 10), condition=st.booleans())
def test_the_future_never_changes_the_past(cut: int, condition: bool) -> None:
    model = make(window=20, condition=2 if condition else None)
    x, y = randn(1, 11, 8), randn(1, 11, 8, seed=1)
    c, d = randn(1, 11, 2, seed=2), randn(1, 11, 2, seed=3)
    y[:, :cut], d[:, :cut] = x[:, :cut], c[:, :cut]
    a, b = (model(z, condition=e if condition else None) for z, e in ((x, c), (y, d)))
    assert torch.equal(a[:, :cut], b[:, :cut])
    assert not torch.equal(a[:, cut], b[:, cut])


def test_a_position_sees_no_further_back_than_its_window() -> None:
    model = make(layers=1, window=4)
    x = randn(1, 10, 8)
    y = x.clone()
    y[:, 2] += 1
    a, b = model(x), model(y)
    assert torch.allclose(a[:, 6:], b[:, 6:], atol=1e-6)
    assert not torch.allclose(a[:, 5], b[:, 5], atol=1e-4)


def test_a_model_that_sees_both_ways_cannot_stream() -> None:
    model = make(causal=False)
    x = randn(1, 6, 8)
    y = x.clone()
    y[:, 5] += 1
    assert not torch.allclose(model(x)[:, 0], model(y)[:, 0], atol=1e-4)
    with pytest.raises(BadInput, match="causal"):
        model.init_state(1)


def test_an_overlong_chunk_is_refused_before_anything_moved() -> None:
    model = make(window=4, slack=2)
    state = model.init_state(1)
    model(randn(1, 3, 8), state)
    with pytest.raises(BadInput, match="at most 3"):
        model(randn(1, 4, 8), state)
    assert state["position"].item() == 3


def test_an_explicit_mask_and_positions_replace_the_defaults() -> None:
    model = make(window=50)
    x = randn(1, 6, 8)
    index = torch.arange(6)
    causal = (index[:, None] >= index)[None, None]
    assert torch.allclose(model(x, mask=causal, positions=index[None] + 1000), model(x), atol=TOLERANCE)
    assert not torch.allclose(model(x, positions=index[None] * 2.5), model(x), atol=TOLERANCE)


def test_adaln_starts_as_the_identity() -> None:
    model = Transformer(TransformerConfig.model_validate({**SIZES, "condition": 3}))
    x = randn(1, 4, 8)
    assert model.norm is not None
    assert torch.allclose(model(x, condition=randn(1, 1, 3)), model.norm(x))


def test_angles_are_exact_an_hour_into_a_stream() -> None:
    position = 90_000
    cos, sin = rope_tables(torch.tensor([position]), 4, 10_000.0)
    exact = position * torch.tensor([1.0, 0.01], dtype=torch.float64)
    assert torch.allclose(cos[0].double(), torch.cat([exact.cos(), exact.cos()]), atol=1e-6)
    assert torch.allclose(sin[0].double(), torch.cat([-exact.sin(), exact.sin()]), atol=1e-6)


def test_impossible_sizes_are_refused() -> None:
    for sizes in ({"heads": 3}, {"width": 6, "heads": 2}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            TransformerConfig.model_validate({**SIZES, **sizes})


def test_the_same_code_holds_seven_billion_parameters() -> None:
    """The backbone of Moshi (Helium 7B): built without memory, on the meta device, with its streaming state."""
    config = TransformerConfig(width=4096, layers=32, heads=32, hidden=11264, window=3000, slack=8)
    with torch.device("meta"):
        model = Transformer(config)
    count = sum(p.numel() for p in model.parameters())
    assert 6e9 < count < 8e9
    state = model.init_state(2)
    out = model(torch.empty(2, 4, 4096, device="meta"), state)
    assert out.shape == (2, 4, 4096)
    assert {t.device.type for _, t in state.tensors()} == {"meta"}
