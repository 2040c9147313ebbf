"""Codebook patterns: how the K codes of a frame are spread over language-model steps.

Pure index functions. `pack` turns codes `[batch, K, frame]` into steps `[batch, K, step]`, `unpack` is its inverse for
every K, T and delay. Places without a code hold `empty`, an id of their own (the vocabulary size).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput, ConfigError

__all__ = ["DelayPattern", "make_pattern"]


class DelayPattern:
    """Codebook k of frame t is predicted at step `t + delays[k]` (MusicGen). All zeros is the `parallel` pattern.

    With a delay, codebook k sees the lower codebooks of its own frame as history; the price is `max(delays)` frames of
    latency and as many flush steps at the end.
    """

    def __init__(self, delays: Sequence[int], empty: int) -> None:
        if not delays or min(delays) != 0:
            raise ConfigError(f"delays must be non-negative and begin at 0, got {list(delays)}")
        self.delays, self.empty = tuple(delays), empty
        self.codebooks, self.extra = len(delays), max(delays)

    def pack(self, codes: Tensor) -> Tensor:
        """`[batch, K, T] -> [batch, K, T + extra]`."""
        self._check(codes)
        rows = [
            F.pad(codes[:, k], (delay, self.extra - delay), value=self.empty) for k, delay in enumerate(self.delays)
        ]
        return torch.stack(rows, 1)

    def unpack(self, steps: Tensor) -> Tensor:
        """`[batch, K, T + extra] -> [batch, K, T]`."""
        self._check(steps)
        frames = steps.shape[-1] - self.extra
        if frames < 0:
            raise BadInput(f"{steps.shape[-1]} steps are fewer than the {self.extra} that the delays need")
        return torch.stack([steps[:, k, delay : delay + frames] for k, delay in enumerate(self.delays)], 1)

    def valid(self, frames: int, device: torch.device | None = None) -> Tensor:
        """BoolTensor `[K, frames + extra]`: which places hold a code."""
        step = torch.arange(frames + self.extra, device=device)
        delay = torch.tensor(self.delays, device=device)[:, None]
        return (step >= delay) & (step < frames + delay)

    def _check(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1] != self.codebooks:
            raise BadInput(f"expected codes [batch, {self.codebooks}, time], got {list(codes.shape)}")


def make_pattern(name: str, codebooks: int, empty: int) -> DelayPattern:
    """`parallel`, `delay` (codebook k waits k steps), or explicit delays such as `delay:0,1,1,2`.

    Raises:
        ConfigError: another name, or a wrong number of delays.
    """
    if name == "parallel":
        return DelayPattern([0] * codebooks, empty)
    if name == "delay":
        return DelayPattern(range(codebooks), empty)
    if name.startswith("delay:"):
        try:
            delays = [int(d) for d in name.removeprefix("delay:").split(",")]
        except ValueError:
            raise ConfigError(f"{name!r}: delays are whole numbers, such as delay:0,1,1,2") from None
        if len(delays) != codebooks:
            raise ConfigError(f"{name!r} gives {len(delays)} delays for {codebooks} codebooks")
        return DelayPattern(delays, empty)
    raise ConfigError(f"unknown pattern {name!r}: parallel, delay, or delay:0,1,...")
