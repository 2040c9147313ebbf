"""Acceptance for continuous heads that state a Gaussian: exact, and coarse-grained through a Gaussian channel.

The draft's value x ~ N(p) is judged through a blurred copy K = x + sigma e: keep x with min(1, Q(K) / P(K)), where P
and Q are both laws blurred by the same noise. The law of K is then the target's exactly; x itself drifts towards the
draft by an amount that grows with sigma. Sigma 0 is exact speculative sampling. This is the continuous form of
`tts/speculative.py`'s channels.

A rejected x is replaced by thinning: y ~ N(q), kept with (1 - P/Q)+ at its own K, in a fixed number of trials, so that
shapes are static. When all trials fail, the last y stands. That adds at most beta (1 - beta)^(n - 1) to the total
variation of a step, with beta the probability of a rejection and n the number of trials (see `GaussianChannel.bias`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadInput

__all__ = ["GaussianChannel", "GaussianVerified", "verify_gaussian"]


@dataclass(frozen=True)
class GaussianChannel:
    """Attributes:
    sigma: standard deviation of the blur, in units of the values; 0 = exact. trials: of the thinning.
    """

    sigma: float = 0.0
    trials: int = 32

    def __post_init__(self) -> None:
        if not (0 <= self.sigma < math.inf and self.trials >= 1):
            raise BadInput(f"a Gaussian channel needs sigma >= 0 and trials >= 1, not {self.sigma} and {self.trials}")

    @property
    def bias(self) -> float:
        """Upper bound of what the fixed number of trials adds to the total variation of a step."""
        n = self.trials  # the largest beta (1 - beta)^(n - 1), at beta = 1 / n
        return (1 / n) * (1 - 1 / n) ** (n - 1)


@dataclass(frozen=True)
class GaussianVerified:
    """Attributes:
    kept: BoolTensor `[...]`, the draft stands. value: `[..., dim]`, the draft or its replacement.
    """

    kept: Tensor
    value: Tensor


def verify_gaussian(
    drafted: Tensor,
    p: tuple[Tensor, Tensor],
    q: tuple[Tensor, Tensor],
    channel: GaussianChannel,
    generator: torch.Generator | None = None,
) -> GaussianVerified:
    """Judges drafted values; all work is in float32 logarithms of densities.

    Args:
        drafted: `[..., dim]`, drawn from p. p, q: (mean, standard deviation), each broadcastable to `[..., dim]`.
        generator: of the random numbers.
    """
    shape, n = drafted.shape, channel.trials
    device = drafted.device
    blur = channel.sigma * torch.randn(n + 1, *shape, generator=generator).to(device)
    coin = torch.rand(n + 1, *shape[:-1], generator=generator).to(device)
    fresh = q[0] + q[1] * torch.randn(n, *shape, generator=generator).to(device)
    # log Q(K) - log P(K) of the draft and of every trial at once
    labels = torch.cat([drafted[None], fresh]).float() + blur
    gap = _log_density(labels, q, channel.sigma) - _log_density(labels, p, channel.sigma)
    kept = coin[0].log() < gap[0]
    passed = coin[1:] < -torch.expm1(-gap[1:].clamp(min=0))
    passed[-1] = True  # the last trial stands
    first = passed.long().argmax(0)
    replacement = fresh.gather(0, first[None, ..., None].expand(1, *shape))[0]
    return GaussianVerified(kept, torch.where(kept[..., None], drafted, replacement.to(drafted.dtype)))


def _log_density(x: Tensor, law: tuple[Tensor, Tensor], sigma: float) -> Tensor:
    """Up to a constant."""
    variance = law[1].float() ** 2 + sigma**2
    terms = (x - law[0]) ** 2 / variance + variance.log()
    return -0.5 * terms.expand_as(x).sum(-1)
