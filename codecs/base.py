"""What every codec promises: audio to frames and back, offline and as a stream."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ..errors import BadInput
from ..nn.state import State, StreamingModule

__all__ = ["Codec", "FrameSpec"]


@dataclass(frozen=True)
class FrameSpec:
    """The shape of a codec's frames.

    Attributes:
        kind: `codes` (LongTensor `[batch, codebook, frame]`) or `latents` (FloatTensor `[batch, dim, frame]`).
        rate: frames per second, exact.
        codebooks: codes per frame (0 for latents).
        vocab: entries per codebook (0 for latents).
        dim: latent width (0 for codes).
    """

    kind: Literal["codes", "latents"]
    rate: Fraction
    codebooks: int = 0
    vocab: int = 0
    dim: int = 0


class Codec(StreamingModule):
    """Audio FloatTensor `[batch, 1, sample]` in [-1, 1] <-> frames.

    Streaming: `encode` with a state takes chunks of any length and returns the frames that became complete; `decode`
    with a state returns `frame_size` samples per frame, delayed by `latency` samples; `flush` gives the last `latency`
    samples. So `cat(decoded chunks, flush)[..., latency:]` equals the offline `decode`.

    Attributes:
        sample_rate: Hz.
        frame_spec: what a frame is.
        frame_size: samples per frame.
        latency: samples by which streamed output lags.
    """

    sample_rate: int
    frame_spec: FrameSpec
    frame_size: int
    latency: int

    def encode(self, audio: Tensor, lengths: Tensor | None = None, state: State | None = None) -> tuple[Tensor, Tensor]:
        """Frames and LongTensor[batch] of how many of them each item fills.

        Offline, the end is padded with silence to a whole frame; `lengths` (samples) says how long each item is.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot encode")

    def decode(self, frames: Tensor, state: State | None = None) -> Tensor:
        """Audio `[batch, 1, frame * frame_size]`."""
        raise NotImplementedError(f"{type(self).__name__} cannot decode")

    def flush(self, state: State) -> Tensor:
        """The last `latency` samples `[batch, 1, latency]` of a streamed decode."""
        raise NotImplementedError(f"{type(self).__name__} cannot stream")


def check_audio(audio: Tensor) -> None:
    """Raises BadInput unless `audio` is a finite FloatTensor `[batch, 1, sample]`."""
    if audio.ndim != 3 or audio.shape[1] != 1:
        raise BadInput(
            f"audio must be [batch, 1, sample], not {list(audio.shape)}; mix channels down or code each alone"
        )
    if not torch.isfinite(audio).all():
        raise BadInput("the audio holds NaN or infinite samples; clean it first")
