"""From rows to figures: means and corpus-level ratios, each with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Estimate", "bootstrap_ratio", "mean_of", "ratio_of", "total_of"]

RESAMPLES = 1000
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A figure over `count` rows and, where it makes sense, its 95 % bootstrap interval."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0


def bootstrap_ratio(tops: Sequence[float], bottoms: Sequence[float], seed: int = 0) -> Estimate:
    """sum(tops) / sum(bottoms), sentences resampled with replacement (Bisani & Ney 2004, percentile interval).

    Corpus-level, so that a long sentence weighs more than a short one. With bottoms of 1 it is the mean.
    """
    top, bottom = np.asarray(tops, dtype=np.float64), np.asarray(bottoms, dtype=np.float64)
    value = float(top.sum() / bottom.sum())
    if len(top) < 2:
        return Estimate(value, count=len(top))
    picks = np.random.default_rng(seed).integers(0, len(top), (RESAMPLES, len(top)))
    low, high = np.percentile(top[picks].sum(1) / bottom[picks].sum(1), [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(top))


def ratio_of(rows: Sequence[Row], top: str, bottom: str, scale: float = 1.0) -> Estimate | None:
    """`scale` * corpus-level ratio of two columns over the rows that have both; None if there are none."""
    pairs = [(row[top] * scale, row[bottom]) for row in rows if _number(row.get(top)) and _number(row.get(bottom))]
    pairs = [pair for pair in pairs if pair[1] > 0]
    return bootstrap_ratio([p[0] for p in pairs], [p[1] for p in pairs]) if pairs else None


def mean_of(rows: Sequence[Row], column: str) -> Estimate | None:
    """Mean of a column over the rows that have it; None if there are none."""
    values = [row[column] for row in rows if _number(row.get(column))]
    return bootstrap_ratio(values, [1.0] * len(values)) if values else None


def total_of(rows: Sequence[Row], column: str) -> Estimate | None:
    """Sum of a column over the rows that have it, without an interval; None if there are none."""
    values = [row[column] for row in rows if _number(row.get(column))]
    return Estimate(float(sum(values)), count=len(values)) if values else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
