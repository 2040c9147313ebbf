"""Several latent frames as one: what a language model of continuous tokens takes a step over.

MELLE's reduction factor r and KALL-E's 12.5 Hz are the same thing seen from the codec: r frames of `dim` numbers, one
after the other, are one frame of `r * dim` numbers at 1/r of the rate.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput, ConfigError
from ..nn.state import State
from .base import Codec, FrameSpec

__all__ = ["GroupedCodec", "grouped"]


class GroupedCodec(Codec):
    """A codec of latents whose frames are `group` of another's.

    Frames: FloatTensor `[batch, group * dim, frame]`; of the inner frames of one the first come first. A streamed
    `encode` takes whole frames of this codec, as the inner one takes whole frames of its own.

    Raises:
        ConfigError: the inner codec has codes, or `group` is not positive.
    """

    def __init__(self, inner: Codec, group: int) -> None:
        super().__init__()
        spec = inner.frame_spec
        if spec.kind != "latents":
            raise ConfigError("only latent frames can be grouped, and this codec makes codes")
        if group < 1:
            raise ConfigError(f"a group holds at least one frame, not {group}")
        self.inner, self.group = inner, group
        self.sample_rate, self.latency = inner.sample_rate, inner.latency
        self.frame_size = inner.frame_size * group
        self.frame_spec = FrameSpec("latents", spec.rate / group, dim=spec.dim * group)

    def init_state(self, batch: int) -> State:
        return self.inner.init_state(batch)

    def encode(self, audio: Tensor, lengths: Tensor | None = None, state: State | None = None) -> tuple[Tensor, Tensor]:
        """As the inner codec, with the end padded to a whole group.

        Raises:
            BadInput: what the inner codec refuses, or a streamed chunk that is no multiple of `frame_size`.
        """
        if state is None:
            audio = F.pad(audio, (0, -audio.shape[-1] % self.frame_size))
        elif audio.shape[-1] % self.frame_size:
            raise BadInput(f"a chunk must be a multiple of {self.frame_size} samples, not {audio.shape[-1]}")
        frames, counts = self.inner.encode(audio, lengths, state)
        return self.fold(frames), -(-counts // self.group)

    def posterior(self, audio: Tensor) -> tuple[Tensor, Tensor | None]:
        audio = F.pad(audio, (0, -audio.shape[-1] % self.frame_size))
        mean, log_std = self.inner.posterior(audio)
        return self.fold(mean), None if log_std is None else self.fold(log_std)

    def decode(self, frames: Tensor, state: State | None = None) -> Tensor:
        """Raises BadInput for frames of another shape."""
        if frames.ndim != 3 or frames.shape[1] != self.frame_spec.dim:
            raise BadInput(f"latents must be [batch, {self.frame_spec.dim}, frame], not {list(frames.shape)}")
        return self.inner.decode(self.unfold(frames), state)

    def flush(self, state: State) -> Tensor:
        return self.inner.flush(state)

    def fold(self, frames: Tensor) -> Tensor:
        """`[batch, dim, frame * group]` -> `[batch, group * dim, frame]`."""
        batch, dim, count = frames.shape
        frames = frames.transpose(1, 2).reshape(batch, count // self.group, self.group * dim)
        return frames.transpose(1, 2)

    def unfold(self, frames: Tensor) -> Tensor:
        """The inverse of `fold`."""
        batch, _, count = frames.shape
        return frames.transpose(1, 2).reshape(batch, count * self.group, -1).transpose(1, 2)


def grouped(codec: Codec, group: int) -> Codec:
    """The codec as a model with `group` frames a step sees it."""
    return codec if group == 1 else GroupedCodec(codec, group)
