"""Least times: bytes that a step must read, operations that it must do, and what the machine can do of each.

A step can be no faster than max(bytes / bandwidth, operations / peak). Counted are the weights, each as often as a step
reads it, and the part of the key-value cache that is read; activations and norms are left out (under 1 %). `count`
works on any module, on the meta device too, so that sizes that do not fit here can be told of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Of one step. `read`: bytes of weights and caches; `flops`: two for every multiply-add."""

    read: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.read + other.read, self.flops + other.flops)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.read * times, self.flops * times)


def linear(inputs: int, outputs: int, rows: int = 1, weight_bytes: float = 4) -> Cost:
    """A matrix product of `rows` vectors: the weights are read once, whatever the number of rows."""
    return Cost(inputs * outputs * weight_bytes, 2.0 * inputs * outputs * rows)


def attention(width: int, seen: int, rows: int = 1, cache_bytes: float = 4) -> Cost:
    """Queries of `rows` positions of one slot against `seen` places of a cache: keys and values are read once."""
    return Cost(2.0 * width * seen * cache_bytes, 4.0 * width * seen * rows)


def transformer(
    width: int, layers: int, hidden: int, seen: int, rows: int = 1, slots: int = 1, weight_bytes: float = 4
) -> Cost:
    """A stack of gated blocks (fused QKV, output, gate and up, down) over `slots` streams of `rows` positions each."""
    count = rows * slots
    weights = (
        linear(width, 3 * width, count, weight_bytes)
        + linear(width, width, count, weight_bytes)
        + linear(width, 2 * hidden, count, weight_bytes)
        + linear(hidden, width, count, weight_bytes)
    )
    return (weights + attention(width, seen, rows) * slots) * layers


def bandwidth(ceilings: Mapping[str, Any], size: float) -> float:
    """Bytes per second that can be read again and again out of `size` bytes: of the next larger buffer measured."""
    held = sorted((int(mb), rate) for mb, rate in ceilings["read"].items())
    return next((rate for mb, rate in held if size <= mb * 2**20), held[-1][1])


def least(cost: Cost, ceilings: Mapping[str, Any]) -> float:
    """Seconds that a step takes at least on this machine."""
    return max(cost.read / bandwidth(ceilings, cost.read), cost.flops / ceilings["flops"])


def share(cost: Cost, seconds: float, ceilings: Mapping[str, Any]) -> float:
    """How much of what the machine could do a step of `seconds` does (1: nothing is left to gain)."""
    return least(cost, ceilings) / seconds
