"""What the tests of the laws share: random chunkings, random models that are really random, and fast settings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

# The same examples on every machine and in every run: a law test must not fail on somebody else's pull request.
few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
many = settings(few, max_examples=20)

TOLERANCE = 1e-4
"""Law 1, in float32."""


def chunkings(most: int = 7, count: int = 8) -> st.SearchStrategy[list[int]]:
    """Lengths of successive chunks, empty ones included; at least one step in all."""
    return st.lists(st.integers(0, most), min_size=1, max_size=count).filter(any)


def split(x: Tensor, lengths: Sequence[int], unit: int = 1) -> list[Tensor]:
    """Cuts the last axis into chunks of `length * unit`."""
    edges = [0, *itertools.accumulate(n * unit for n in lengths)]
    assert edges[-1] == x.shape[-1]
    return [x[..., a:b] for a, b in itertools.pairwise(edges)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: M, seed: int = 0, scale: float = 0.3) -> M:
    """Fills every parameter with noise, so that no zero or identity at the start hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()
