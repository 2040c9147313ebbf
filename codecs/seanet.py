"""SEANet, the convolutional encoder and decoder of SoundStream, EnCodec and Mimi, with streaming states.

Causal: each layer pads on the left with what the published model pads with (zeros, the first sample, or a reflection),
and a stream keeps what was there. Whole frames in, whole frames out. Weight norm is folded into the weights on loading.

Architecture: Zeghidour et al. 2021 (SoundStream), Defossez et al. 2022 (EnCodec, github.com/facebookresearch/encodec).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.conv import CausalConv1d, CausalConvTranspose1d
from ..nn.state import State, StreamingModule

__all__ = ["PadMode", "PaddedConv1d", "SEANetConfig", "SEANetDecoder", "SEANetEncoder"]

PadMode = Literal["constant", "replicate", "reflect"]


@dataclass(frozen=True)
class SEANetConfig:
    """Sizes. `ratios` are the decoder's strides; the encoder has them in reverse.

    Attributes:
        dim: width of the latents. filters: width beside the audio, doubled at every stage.
        kernel, last_kernel, residual_kernel: of the first, the last and the residual convolutions.
        compress: how much narrower the inside of a residual block is. dilation: its growth from block to block.
        shortcut: a convolution on the residual path (EnCodec) instead of the identity (Mimi).
        lstm: layers of the LSTM between convolutions and latents; 0 for none.
    """

    dim: int
    filters: int
    ratios: tuple[int, ...]
    residuals: int = 1
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    compress: int = 2
    dilation: int = 2
    shortcut: bool = False
    lstm: int = 0
    pad_mode: PadMode = "constant"


def left_context(x: Tensor, context: int, mode: PadMode) -> Tensor:
    """What stands before the first sample of `x[batch, channel, time]`: `[batch, channel, context]`.

    A reflection that needs more than there is sees silence after the end, as in the published models.
    """
    if mode == "constant" or not context:
        return x.new_zeros(*x.shape[:2], context)
    if mode == "replicate":
        return x[..., :1].expand(-1, -1, context)
    return F.pad(x, (0, max(0, context + 1 - x.shape[-1])))[..., 1 : context + 1].flip(-1)


class PaddedConv1d(CausalConv1d):
    """A causal convolution whose first outputs see padding made from the first inputs.

    With `reflect` the first chunk of a stream must be longer than the context, else it would see another reflection
    than the offline run: the codec waits until it is (`first_steps`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        pad_mode: PadMode = "constant",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, dilation, bias=bias)
        self.pad_mode: PadMode = pad_mode

    def init_state(self, batch: int) -> State:
        state = super().init_state(batch)
        if self.pad_mode != "constant" and self.context:
            state.add("started", dtype=torch.bool, device=self.conv.weight.device)
        return state

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """`[batch, in, time] -> [batch, out, time / stride]`."""
        if self.pad_mode == "constant" or not self.context or x.shape[-1] == 0:
            return super().forward(x, state)
        lead = left_context(x, self.context, self.pad_mode)
        if state is not None:
            lead = torch.where(state["started"][:, None, None], state["previous"].to(x.dtype), lead)
        x = torch.cat([lead, x], -1)
        if state is not None:
            state.update("previous", x[..., -self.context :])
            state.update("started", torch.ones_like(state["started"]))
        return self._convolve(x)


class _Residual(StreamingModule):
    def __init__(self, width: int, config: SEANetConfig, index: int) -> None:
        super().__init__()
        hidden = width // config.compress
        dilation = config.dilation**index
        self.first = PaddedConv1d(width, hidden, config.residual_kernel, dilation=dilation, pad_mode=config.pad_mode)
        self.second = PaddedConv1d(hidden, width, 1)
        self.shortcut = PaddedConv1d(width, width, 1) if config.shortcut else None

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, first=self.first)  # the others look at one step only

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        y = self.first(F.elu(x), None if state is None else state.child("first"))
        return (x if self.shortcut is None else self.shortcut(x)) + self.second(F.elu(y))


class _ResidualLSTM(StreamingModule):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def init_state(self, batch: int) -> State:
        state = State(batch)
        for name in ("hidden", "cell"):
            shape = (self.lstm.num_layers, self.lstm.hidden_size)
            state.add(name, *shape, device=next(self.lstm.parameters()).device)
        return state

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        rows = x.permute(2, 0, 1)
        if state is None:
            return (self.lstm(rows)[0] + rows).permute(1, 2, 0)
        before = tuple(state[name].transpose(0, 1).contiguous() for name in ("hidden", "cell"))
        y, after = self.lstm(rows, before)
        for name, value in zip(("hidden", "cell"), after, strict=True):
            state.update(name, value.transpose(0, 1))
        return (y + rows).permute(1, 2, 0)


class _Stage(StreamingModule):
    """Residual blocks and a strided convolution, in the encoder's order or the decoder's."""

    def __init__(self, width: int, ratio: int, config: SEANetConfig, up: bool) -> None:
        super().__init__()
        self.up = up
        inner = width // 2 if up else width
        self.blocks = nn.ModuleList(_Residual(inner, config, i) for i in range(config.residuals))
        self.resample: StreamingModule = (
            CausalConvTranspose1d(width, inner, 2 * ratio, ratio)
            if up
            else PaddedConv1d(width, 2 * width, 2 * ratio, ratio, pad_mode=config.pad_mode)
        )

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, blocks=self.blocks, resample=self.resample)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        child = None if state is None else state.child("resample")
        if self.up:
            x = self.resample(F.elu(x), child)
        for i, block in enumerate(self.blocks):
            x = block(x, None if state is None else state.child(f"blocks.{i}"))
        return x if self.up else self.resample(F.elu(x), child)


class _SEANet(StreamingModule):
    def __init__(self, config: SEANetConfig, up: bool) -> None:
        super().__init__()
        self.config, self.up = config, up
        wide = config.filters * 2 ** len(config.ratios)
        widths = (
            [wide >> i for i in range(len(config.ratios))]
            if up
            else [config.filters << i for i in range(len(config.ratios))]
        )
        ratios = config.ratios if up else config.ratios[::-1]
        enter, leave = (config.dim, 1) if up else (1, config.dim)
        pad: PadMode = config.pad_mode
        self.stem = PaddedConv1d(enter, widths[0], config.kernel, pad_mode=pad)
        self.stages = nn.ModuleList(_Stage(w, r, config, up) for w, r in zip(widths, ratios, strict=True))
        self.lstm = _ResidualLSTM(wide, config.lstm) if config.lstm else None
        self.out = PaddedConv1d(config.filters if up else wide, leave, config.last_kernel, pad_mode=pad)

    def init_state(self, batch: int) -> State:
        parts: dict[str, nn.Module] = {"stem": self.stem, "stages": self.stages, "out": self.out}
        if self.lstm is not None:
            parts["lstm"] = self.lstm
        return self._state_of(batch, **parts)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """Encoder: `[batch, 1, sample] -> [batch, dim, step]`, whole steps only; decoder: the way back."""

        def child(name: str) -> State | None:
            return None if state is None else state.child(name)

        x = self.stem(x, child("stem"))
        if self.lstm is not None and self.up:
            x = self.lstm(x, child("lstm"))
        for i, stage in enumerate(self.stages):
            x = stage(x, child(f"stages.{i}"))
        if self.lstm is not None and not self.up:
            x = self.lstm(x, child("lstm"))
        return self.out(F.elu(x), child("out"))

    def published_names(self) -> Iterator[tuple[str, str]]:
        """Pairs of (place in the published list of layers, our module), e.g. `("layers.3", "stages.0.resample")`.

        The published models are one flat list in which an activation takes a place too.
        """
        yield "layers.0", "stem"
        place = 1
        if self.lstm is not None and self.up:
            yield f"layers.{place}", "lstm"
            place += 1
        for i in range(len(self.config.ratios)):
            names: Sequence[str] = [f"stages.{i}.blocks.{j}" for j in range(self.config.residuals)]
            if self.up:
                yield f"layers.{place + 1}", f"stages.{i}.resample"
                place += 2
            for name in names:
                yield f"layers.{place}.block.1", f"{name}.first"
                yield f"layers.{place}.block.3", f"{name}.second"
                if self.config.shortcut:
                    yield f"layers.{place}.shortcut", f"{name}.shortcut"
                place += 1
            if not self.up:
                yield f"layers.{place + 1}", f"stages.{i}.resample"
                place += 2
        if self.lstm is not None and not self.up:
            yield f"layers.{place}", "lstm"
            place += 1
        yield f"layers.{place + 1}", "out"

    def from_published(self, plain: dict[str, Tensor], half: str) -> dict[str, Tensor]:
        """The tensors of `encoder` or `decoder` (`half`) of a plain checkpoint under the names of a codec of ours.

        Raises:
            KeyError: a tensor is missing.
        """
        state: dict[str, Tensor] = {}
        for theirs, ours in self.published_names():
            source, target = f"{half}.{theirs}.", f"{half}.{ours}."
            module = self.get_submodule(ours)
            if isinstance(module, _ResidualLSTM):
                state |= {f"{target}lstm.{name}": plain[f"{source}lstm.{name}"] for name in module.lstm.state_dict()}
                continue
            state[target + "conv.weight"] = plain[source + "weight"]
            bias = "bias" if isinstance(module, CausalConvTranspose1d) else "conv.bias"
            state[target + bias] = plain[source + "bias"]
        return state

    def first_steps(self) -> int:
        """Latent steps that the first chunk of a stream must hold for every layer to see its padding."""
        if self.config.pad_mode != "reflect":
            return 1
        rate = 1 if self.up else math.prod(self.config.ratios)  # of a layer, in values per latent step
        needs = [_steps(self.stem.context, rate)]
        for stage in self.stages:
            assert isinstance(stage, _Stage)
            if isinstance(stage.resample, CausalConvTranspose1d):
                rate *= stage.resample.stride
            needs += [_steps(block.first.context, rate) for block in stage.blocks if isinstance(block, _Residual)]
            if isinstance(stage.resample, PaddedConv1d):
                needs.append(_steps(stage.resample.context, rate))
                rate //= stage.resample.stride
        return max([*needs, _steps(self.out.context, rate)])


def _steps(context: int, rate: int) -> int:
    return -(-(context + 1) // rate) if context else 1


class SEANetEncoder(_SEANet):
    """Audio `[batch, 1, sample]` -> latents `[batch, dim, step]`."""

    def __init__(self, config: SEANetConfig) -> None:
        super().__init__(config, up=False)


class SEANetDecoder(_SEANet):
    """Latents `[batch, dim, step]` -> audio `[batch, 1, sample]`."""

    def __init__(self, config: SEANetConfig) -> None:
        super().__init__(config, up=True)
