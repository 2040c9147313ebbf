"""The picture of a report: one small panel per metric, one bar per system."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from .metrics import Metric
    from .report import Report

__all__ = ["draw"]

COLUMNS = 4
_INK, _BAR = "#333333", "#4c78a8"


def draw(report: Report, file: BinaryIO) -> None:
    """Writes a PNG. No global state of matplotlib is touched: neither its backend nor its current figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [m for m in report.columns() if m.higher_is_better is not None]
    columns = min(COLUMNS, len(metrics)) or 1
    rows = math.ceil(len(metrics) / columns) or 1
    height = 0.9 + 0.3 * len(report.systems)
    figure = Figure(figsize=(2 + 2.6 * columns, rows * height + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    for position, metric in enumerate(metrics):
        _panel(figure.add_subplot(rows, columns, position + 1), report, metric, labels=position % columns == 0)
    figure.savefig(file, format="png", dpi=130)


def _panel(axes: Any, report: Report, metric: Metric, *, labels: bool) -> None:
    shown = [(system, system.summary.get(metric.name)) for system in report.systems]
    values = [figure.value if figure else 0.0 for _, figure in shown]
    spread = [
        (figure.value - figure.low, figure.high - figure.value)
        if figure and figure.low is not None and figure.high is not None
        else (0.0, 0.0)
        for _, figure in shown
    ]
    places = range(len(shown))
    errors = [[max(0.0, s[0]) for s in spread], [max(0.0, s[1]) for s in spread]]
    axes.barh(places, values, xerr=errors, height=0.65, color=_BAR, error_kw={"ecolor": _INK, "elinewidth": 0.8})
    reach = max((v + e for v, e in zip(values, errors[1])), default=0.0)
    lowest = min(0.0, min((v - e for v, e in zip(values, errors[0])), default=0.0))
    for place, (_, figure) in zip(places, shown):
        text = f"{figure.value:.{metric.digits}f}" if figure else "–"
        end = max(0.0, values[place]) + errors[1][place]
        axes.text(end + 0.02 * (reach or 1), place, text, va="center", fontsize=7, color=_INK)
    axes.set_xlim(lowest, 1.25 * (reach or 1))
    axes.set_yticks(list(places), [system.label for system, _ in shown] if labels else ["" for _ in shown], fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=6)
    better = "higher is better" if metric.higher_is_better else "lower is better"
    unit = f", {metric.unit}" if metric.unit else ""
    axes.set_title(f"{metric.title}{unit}\n({better})", fontsize=8, color=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
