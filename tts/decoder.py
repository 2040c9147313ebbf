"""Acoustic decoder: frames in, audio out, chunk by chunk, with the codec's delay taken out at the front."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..codecs.base import Codec

__all__ = ["AcousticDecoder"]


class AcousticDecoder:
    """One stream through a codec's decoder.

    `push(frames, final)` returns the samples that are certain by now; all pushes together equal the offline decode.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.state = codec.init_state(1)
        self.to_drop = codec.latency

    @torch.inference_mode()
    def push(self, frames: Tensor, final: bool = False) -> np.ndarray:
        """`frames[K, frame]` -> float32 samples `[n]`; with `final` also what the decoder still holds."""
        parts = []
        if frames.shape[-1]:
            parts.append(self.codec.decode(frames[None], self.state)[0, 0])
        if final:
            parts.append(self.codec.flush(self.state)[0, 0])
        audio = torch.cat(parts).cpu().numpy() if parts else np.zeros(0, np.float32)
        dropped = min(self.to_drop, len(audio))
        self.to_drop -= dropped
        return audio[dropped:]
