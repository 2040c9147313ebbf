"""What a finished job says of itself: summary.json, and summary.png where matplotlib is installed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing
from .run import Job, Report

__all__ = ["write_summary"]

POINTS = 5_000
"""Rows in a scatter plot; the figures count all."""
_INK, _BAR, _BAD = "#333333", "#4c78a8", "#e45756"


@dataclass
class _Figures:
    """What the plots show, in bounded memory."""

    lengths: Counter[int] = field(default_factory=Counter)  # of half seconds
    voices: Counter[str] = field(default_factory=Counter)
    errors: Counter[int] = field(default_factory=Counter)  # of hundredths
    points: list[tuple[int, float]] = field(default_factory=list)
    judge: str = ""
    judged: int = 0
    total_error: float = 0.0
    seconds: float = 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, row: dict[str, Any], place: int) -> None:
        seconds = float(row.get("seconds", 0.0))
        self.seconds += seconds
        self.lengths[int(2 * seconds)] += 1
        self.voices[str(row.get("voice") or "-")] += 1
        if len(self.points) < POINTS:
            self.points.append((len(row.get("text", "")), seconds))
        elif (slot := self.dice.randrange(place + 1)) < POINTS:
            self.points[slot] = (len(row.get("text", "")), seconds)
        self.judge = next((key for key in ("wer", "per") if key in row), self.judge)
        if self.judge in row:
            self.judged += 1
            self.total_error += row[self.judge]
            self.errors[int(100 * row[self.judge])] += 1


def write_summary(job: Job, report: Report) -> None:
    """Reads the manifests and writes summary.json and summary.png into the job's folder."""
    figures = _Figures()
    for place, row in enumerate(_rows(job.out)):
        figures.add(row, place)
    content: dict[str, Any] = {
        "rows": report.rows,
        "made": report.made,
        "failed": report.failed,
        "not_done": report.missing,
        "reasons": dict(sorted(report.reasons.items())),
        "hours": round(report.seconds / 3600, 5),
        "bytes": report.bytes,
        "voices": dict(sorted(figures.voices.items())),
    }
    if figures.judged:
        content[f"mean_{figures.judge}"] = round(figures.total_error / figures.judged, 4)
    with replacing(job.out / "summary.json") as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
    if report.made:
        _draw(job.out / "summary.png", figures, report)


def _rows(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(out.glob("manifest*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _draw(path: Path, figures: _Figures, report: Report) -> None:
    """No global state of matplotlib is touched: neither its backend nor its current figure."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _bars(axes[0, 0], figures.lengths, 0.5, "length of a row, s")
    _scatter(axes[0, 1], figures.points)
    top = dict(figures.voices.most_common(12))
    axes[1, 0].barh(list(top), list(top.values()), color=_BAR)
    axes[1, 0].set_title("rows by voice", fontsize=9, color=_INK)
    if figures.judged:
        _bars(axes[1, 1], figures.errors, 0.01, f"{figures.judge} of a row")
    else:
        parts = {"done": report.made, **dict(sorted(report.reasons.items()))}
        colours = [_BAR] + [_BAD] * len(report.reasons)
        axes[1, 1].barh(list(parts), list(parts.values()), color=colours)
        axes[1, 1].set_title("rows by outcome", fontsize=9, color=_INK)
    for each in axes.flat:
        each.tick_params(labelsize=7)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
    figure.suptitle(f"{report.made} rows, {figures.seconds / 3600:.2f} h, {report.failed} failed", fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": ""})


def _bars(axes: Any, counts: Counter[int], width: float, title: str) -> None:
    places = sorted(counts)
    axes.bar([width * (p + 0.5) for p in places], [counts[p] for p in places], width=width, color=_BAR)
    axes.set_title(title, fontsize=9, color=_INK)


def _scatter(axes: Any, points: list[tuple[int, float]]) -> None:
    x, y = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    axes.scatter(x, y, s=max(4, min(40, 4000 / max(1, len(points)))), color=_BAR, alpha=0.5, linewidths=0)
    axes.set_title("characters against seconds", fontsize=9, color=_INK)
