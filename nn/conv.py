"""Causal convolutions and the ConvNeXt block, each with a streaming state.

All of them pad with zeros on the left and nothing on the right, so that an output never sees the future and a fresh
stream (all-zero state) is exactly the offline computation. Shapes are `[batch, channel, time]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadInput
from .state import State, StreamingModule

__all__ = ["CausalConv1d", "CausalConvTranspose1d", "ConvNeXtBlock"]

FEW = 32
"""Steps (times the batch) up to which a convolution on a CPU is cheaper as a product."""


def _exporting() -> bool:
    """Graphs for other runtimes hold convolutions, for inputs of any length and batch."""
    return torch.onnx.is_in_onnx_export()


class CausalConv1d(StreamingModule):
    """Convolution whose output t depends on inputs up to `(t + 1) * stride - 1`.

    Streaming chunks must be a multiple of `stride` long.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, stride, dilation=dilation, groups=groups, bias=bias)
        self.stride = stride
        self.context = (kernel - 1) * dilation + 1 - stride
        if self.context < 0:
            raise BadInput(f"kernel {kernel} with dilation {dilation} is shorter than stride {stride}")

    def init_state(self, batch: int) -> State:
        state = State(batch)
        weight = self.conv.weight
        state.add("previous", self.conv.in_channels, self.context, dtype=weight.dtype, device=weight.device)
        return state

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """`[batch, in, time] -> [batch, out, time / stride]`."""
        if x.shape[-1] % self.stride:
            raise BadInput(f"chunk of {x.shape[-1]} steps is not a multiple of the stride {self.stride}")
        if x.shape[-1] == 0:
            return x.new_zeros(x.shape[0], self.conv.out_channels, 0)
        if state is None:
            return self._convolve(F.pad(x, (self.context, 0)))
        x = torch.cat([state["previous"].to(x.dtype), x], -1)
        if self.context:
            state.update("previous", x[..., -self.context :])
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        """The convolution of what has its past in front. For the few steps of a streamed frame torch's kernels cost far
        more than their sums: they lay the weights out anew at every call (two steps of Mimi's widest layer: 12.8 ms,
        its windows times the weights 4.5 ms), and a depthwise one costs ten times what its sums cost."""
        conv = self.conv
        few = len(x) * ((x.shape[-1] - self.context - 1) // self.stride + 1) <= FEW and x.device.type == "cpu"
        if not few or conv.dilation[0] != 1 or torch.is_grad_enabled() or torch.compiler.is_compiling() or _exporting():
            return conv(x)
        windows = x.unfold(-1, conv.kernel_size[0], self.stride)  # [batch, in, step, kernel]
        if conv.groups == 1:
            return F.linear(windows.transpose(1, 2).flatten(2), conv.weight.flatten(1), conv.bias).transpose(1, 2)
        if conv.groups != conv.in_channels or conv.in_channels != conv.out_channels:
            return conv(x)
        y = (windows @ conv.weight.transpose(1, 2))[..., 0]
        return y if conv.bias is None else y + conv.bias[:, None]


class CausalConvTranspose1d(StreamingModule):
    """Transposed convolution that emits `stride` samples per input step; the overlap is kept for the next step."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, bias: bool = True, groups: int = 1
    ) -> None:
        super().__init__()
        if kernel < stride:
            raise BadInput(f"kernel {kernel} is shorter than stride {stride}: outputs would have holes")
        self.conv = nn.ConvTranspose1d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.stride = stride
        self.overlap = kernel - stride

    def init_state(self, batch: int) -> State:
        state = State(batch)
        weight = self.conv.weight
        state.add("partial", self.conv.out_channels, self.overlap, dtype=weight.dtype, device=weight.device)
        return state

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """`[batch, in, time] -> [batch, out, time * stride]`."""
        length = x.shape[-1] * self.stride
        if length == 0:
            return x.new_zeros(x.shape[0], self.conv.out_channels, 0)
        y = self._convolve(x)
        if state is not None and self.overlap:
            y = y + F.pad(state["partial"].to(y.dtype), (0, length))
            state.update("partial", y[..., length:])
        y = y[..., :length]
        # The bias is added after the overlap: inside the convolution it would be counted twice there.
        return y if self.bias is None else y + self.bias[:, None]

    def _convolve(self, x: Tensor) -> Tensor:
        """For the few steps of a streamed frame torch's own kernel can cost far more than its sums (two steps of Mimi's
        widest layer: 68 ms; as a product 4 ms, with the same bits): each step times the kernels, then overlapped."""
        conv, kernel, steps = self.conv, self.conv.kernel_size[0], x.shape[-1]
        few = len(x) * steps <= FEW and x.device.type == "cpu" and conv.groups == 1
        if not few or torch.is_grad_enabled() or torch.compiler.is_compiling() or _exporting():
            return conv(x)
        each = (x.transpose(1, 2) @ conv.weight.flatten(1)).transpose(1, 2)
        whole = (steps - 1) * self.stride + kernel
        return F.fold(each, (1, whole), (1, kernel), stride=(1, self.stride))[:, :, 0]


class ConvNeXtBlock(StreamingModule):
    """Depthwise convolution, layer norm, two-layer MLP, scaled residual (Liu et al. 2022, as used in Vocos).

    Args:
        causal: False gives symmetric padding, for encoders that are not meant to stream.
    """

    def __init__(self, width: int, hidden: int, kernel: int = 7, causal: bool = True, layer_scale: float = 0.2) -> None:
        super().__init__()
        self.causal = causal
        self.depthwise: nn.Module = (
            CausalConv1d(width, width, kernel, groups=width)
            if causal
            else nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        )
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), layer_scale))

    def init_state(self, batch: int) -> State:
        if not self.causal:
            raise BadInput("a non-causal ConvNeXt block cannot stream; build it with causal=True")
        return self._state_of(batch, depthwise=self.depthwise)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """`[batch, width, time] -> [batch, width, time]`."""
        if state is None:
            y = self.depthwise(x)
        else:
            y = self.depthwise(x, state.child("depthwise"))
        y = self.down(F.gelu(self.up(self.norm(y.transpose(1, 2)))))
        return x + (self.scale * y).transpose(1, 2)
