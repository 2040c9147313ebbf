"""Laws 1, 2 and 4 over convolutions and the short-time Fourier transform."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quaver.errors import BadInput
from quaver.nn.conv import FEW, CausalConv1d, CausalConvTranspose1d, ConvNeXtBlock
from quaver.nn.state import StreamingModule
from quaver.nn.stft import STFT, InverseSTFT

from ..laws import TOLERANCE, chunkings, few, many, randn, randomised, split

CONVOLUTIONS: dict[str, Callable[[], StreamingModule]] = {
    "plain": lambda: CausalConv1d(3, 5, 4),
    "pointwise": lambda: CausalConv1d(3, 5, 1),
    "strided": lambda: CausalConv1d(3, 5, 5, stride=2),
    "no context": lambda: CausalConv1d(3, 5, 2, stride=2),
    "dilated": lambda: CausalConv1d(3, 6, 3, dilation=4, groups=3, bias=False),
    "transposed": lambda: CausalConvTranspose1d(3, 5, 7, 3),
    "transposed without overlap": lambda: CausalConvTranspose1d(3, 5, 3, 3, bias=False),
    "depthwise": lambda: CausalConv1d(3, 3, 4, groups=3),
    "depthwise without bias": lambda: CausalConv1d(3, 3, 4, groups=3, bias=False),
    "convnext": lambda: ConvNeXtBlock(3, 7),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def run(module: StreamingModule, pieces: list[Tensor], batch: int) -> Tensor:
    state = module.init_state(batch)
    return torch.cat([module(piece, state) for piece in pieces], -1)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@many
@given(lengths=chunkings(), batch=st.integers(1, 2))
def test_streaming_equals_offline(name: str, lengths: list[int], batch: int) -> None:
    module = randomised(CONVOLUTIONS[name]())
    unit = 2 if name in ("strided", "no context") else 1
    x = randn(batch, 3, unit * sum(lengths))
    streamed = run(module, split(x, lengths, unit), batch)
    assert torch.allclose(streamed, module(x), atol=TOLERANCE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "time"), [(1, 1), (1, 5), (3, 4), (2, FEW // 2), (2, FEW), (1, FEW + 1)])
def test_a_few_steps_of_a_depthwise_convolution_are_those_of_many(batch: int, time: int, bias: bool) -> None:
    """Short inputs are multiplied as matrices: the same sums, and a row does not depend on its neighbours."""
    module = randomised(CausalConv1d(6, 6, 7, groups=6, bias=bias))
    assert isinstance(module, CausalConv1d)
    x = randn(batch, 6, time)
    y = module(x)
    expected = module.conv(torch.nn.functional.pad(x, (6, 0)))
    assert torch.allclose(y, expected, atol=1e-5)
    other = torch.cat([x[:1], randn(batch, 6, time, seed=1)[1:]])
    assert torch.equal(module(other)[0], y[0])
    with torch.enable_grad():
        assert module(x).requires_grad


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (1, 2), (3, 4), (2, FEW // 2), (2, FEW), (1, FEW + 1)])
def test_a_few_steps_of_a_convolution_are_those_of_many(
    batch: int, steps: int, kernel: int, stride: int, bias: bool
) -> None:
    """Short inputs are multiplied as matrices: the same sums, whatever the neighbours are."""
    module = randomised(CausalConv1d(6, 4, kernel, stride, bias=bias))
    x = randn(batch, 6, steps * stride)
    y = module(x)
    expected = module.conv(torch.nn.functional.pad(x, (kernel - stride, 0)))
    assert torch.allclose(y, expected, atol=TOLERANCE)
    other = torch.cat([x[:1], randn(batch - 1, 6, steps * stride)])
    assert torch.equal(module(other)[:1], y[:1])
    with torch.enable_grad():
        assert module(x).requires_grad


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "time"), [(1, 1), (1, 2), (3, 4), (2, FEW // 2), (2, FEW), (1, FEW + 1)])
def test_a_few_steps_of_a_transposed_convolution_are_those_of_many(batch: int, time: int, bias: bool) -> None:
    """Short inputs are multiplied as matrices and overlapped: the same sums, whatever the neighbours are."""
    module = randomised(CausalConvTranspose1d(6, 4, 7, 3, bias=bias))
    x = randn(batch, 6, time)
    expected = module.conv(x)[..., : 3 * time]
    expected = expected if module.bias is None else expected + module.bias[:, None]
    assert torch.allclose(module(x), expected, atol=TOLERANCE)
    other = torch.cat([x[:1], randn(batch - 1, 6, time)])
    assert torch.equal(module(other)[:1], module(x)[:1])


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_future_never_changes_the_past(name: str) -> None:
    module = randomised(CONVOLUTIONS[name]())
    x, y = randn(1, 3, 24), randn(1, 3, 24, seed=1)
    y[..., :14] = x[..., :14]
    a, b = module(x), module(y)
    known = 14 * a.shape[-1] // 24
    assert torch.equal(a[..., :known], b[..., :known])
    assert not torch.equal(a, b)


def test_a_symmetric_convnext_sees_the_future_and_refuses_to_stream() -> None:
    block = randomised(ConvNeXtBlock(3, 7, causal=False))
    x = randn(1, 3, 9)
    later = x.clone()
    later[..., 8] += 1
    assert not torch.equal(block(x)[..., :8], block(later)[..., :8])
    with pytest.raises(BadInput, match="causal"):
        block.init_state(1)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(BadInput, match="stride"):
        CausalConv1d(1, 1, 2, stride=3)
    with pytest.raises(BadInput, match="holes"):
        CausalConvTranspose1d(1, 1, 2, 3)
    with pytest.raises(BadInput, match="multiple"):
        CausalConv1d(1, 1, 4, stride=2)(randn(1, 1, 3))
    for n_fft, hop in ((16, 5), (8, 4)):  # at two hops a window the squared Hann windows do not add up to a constant
        with pytest.raises(BadInput, match="hop"):
            STFT(n_fft, hop)
    with pytest.raises(BadInput, match="hop"):
        STFT(16, 4)(randn(1, 6))


@few
@given(lengths=chunkings(4), parts=st.sampled_from([4, 6]))
def test_stft_streams(lengths: list[int], parts: int) -> None:
    stft = STFT(parts * 4, 4)
    audio = randn(2, 4 * sum(lengths))
    state = stft.init_state(2)
    streamed = torch.cat([stft(chunk, state) for chunk in split(audio, lengths, 4)], -1)
    assert torch.allclose(streamed, stft(audio), atol=1e-5)
    assert streamed.shape == (2, parts * 2 + 1, sum(lengths))


@few
@given(lengths=chunkings(4), parts=st.sampled_from([4, 6]))
def test_inverse_stft_streams_with_its_declared_delay(lengths: list[int], parts: int) -> None:
    istft = InverseSTFT(parts * 4, 4)
    bins, frames = parts * 2 + 1, sum(lengths)
    spectra = torch.complex(randn(2, bins, frames), randn(2, bins, frames, seed=1))
    state = istft.init_state(2)
    pieces = [istft(chunk, state) for chunk in split(spectra, lengths)]
    assert [p.shape[-1] for p in pieces] == [4 * n for n in lengths]
    streamed = torch.cat([*pieces, istft.flush(state)], -1)[:, istft.overlap :]
    assert torch.allclose(streamed, istft(spectra), atol=1e-5)
    assert not any(t.any() for _, t in state.tensors())  # at rest: a next stream may follow


@pytest.mark.parametrize("parts", [4, 6])
def test_inverse_stft_inverts(parts: int) -> None:
    """A stream through both gives the audio back, late by the overlap: the sample `n` comes out at `n + overlap`."""
    stft, istft = STFT(parts * 4, 4), InverseSTFT(parts * 4, 4)
    audio = randn(1, 80)
    quiet = torch.zeros(1, istft.overlap)
    back = istft(stft(torch.cat([audio, quiet], -1)))
    assert torch.allclose(back[:, : 80 - istft.overlap], audio[:, : 80 - istft.overlap], atol=1e-5)
