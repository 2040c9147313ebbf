"""Normal noise as a pure function of (seed, frame, dimension): what a stream draws does not depend on its chunks.

A counter-based generator (the idea of Random123, Salmon et al. 2011), here with the splitmix64 mixing function (Steele
et al. 2014) and the Box-Muller transform. CosyVoice 2 keeps a fixed buffer of noise for the same purpose; this has no
end, and a seed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["frame_noise"]

# As signed 64-bit numbers, in which products wrap around.
_STEP, _FIRST, _SECOND = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64; the shifts are logical."""

    def shifted(value: Tensor, bits: int) -> Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    x = (x ^ shifted(x, 30)) * _FIRST
    x = (x ^ shifted(x, 27)) * _SECOND
    return x ^ shifted(x, 31)


def frame_noise(seed: Tensor, start: Tensor, frames: int, dim: int) -> Tensor:
    """Standard normal float32 `[batch, dim, frame]`.

    Args:
        seed: LongTensor[batch], of each request. start: LongTensor[batch], absolute index of the first frame.
    """
    device = seed.device
    frame = start[:, None, None] + torch.arange(frames, device=device)
    place = frame * dim + torch.arange(dim, device=device)[:, None]
    bits = _mix(_mix(seed)[:, None, None] + (place + 1) * _STEP)
    low = (bits & 0xFFFFFFFF).double()
    high = ((bits >> 32) & 0xFFFFFFFF).double()
    radius = (-2 * ((low + 1) / 2**32).log()).sqrt()
    return (radius * (high * (2 * math.pi / 2**32)).cos()).float()
