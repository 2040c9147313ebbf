"""What comes out of the rows: JSON of everything, Markdown tables, a picture, and the generated parts of a page.

A page holds pairs of markers, `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; what stands between them is written by
`make bench`, and nothing else of the page is touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quaver.errors import BadInput

from . import roofline

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A further column: `key` of a side's figures, of what it told of itself, or of its memory."""

    key: str
    header: str
    scale: float = 1.0
    digits: int = 1

    def cell(self, side: Found) -> str:
        for place in (side, side.get("info", {}), side.get("memory", {})):
            if isinstance(place.get(self.key), int | float):
                return f"{self.scale * place[self.key]:.{self.digits}f}"
        return ""


@dataclass(frozen=True)
class Table:
    """How rows are shown together. `unit`: of the time column. `text`: a line or two above the table."""

    name: str
    title: str
    unit: str
    text: str = ""
    digits: int = 2
    columns: tuple[Column, ...] = ()


PARAMETERS = Column("parameters", "M parameters", 1e-6)


def table(shape: Table, rows: Sequence[Found], ceilings: Found | None) -> str:
    """Markdown of the rows of one table: a line for each side; ratios are its time over that of the row's first."""
    rated = ceilings is not None and any("read" in s.get("info", {}) for row in rows for s in row["sides"])
    heads = ["", "system", *(c.header for c in shape.columns)]
    heads += [
        f"CPU {shape.unit}",
        "wall",
        "CPU, times ours",
        "wall, times ours",
        *(["of the roofline"] if rated else []),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "--:|" * (len(heads) - 2)]
    for row in rows:
        for place, side in enumerate(row["sides"]):
            cells = ["" if place else row["title"], side["name"], *(c.cell(side) for c in shape.columns)]
            cells += _figures(side, place, shape.digits)
            if rated:
                assert ceilings is not None
                cells.append(_share(side, row["scale"], ceilings))
            lines.append("| " + " | ".join(cells) + " |")
    made = ([shape.text, ""] if shape.text else []) + lines
    remarks = [f"- *{row['title']}*: {row['remark']}" for row in rows if row["remark"]]
    remarks += [f"- *{row['title']}*: greedy tokens of {n} differ from ours." for row in rows for n in _differing(row)]
    made += [""] + remarks if remarks else []
    loads = [value for row in rows for value in row["load"]]
    rounds = sorted({side["rounds"] for row in rows for side in row["sides"] if "rounds" in side})
    if loads and rounds:
        shown = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        made += ["", f"Medians of {shown} rounds; load average {min(loads):.1f} to {max(loads):.1f}."]
    return "\n".join(made) + "\n"


def _figures(side: Found, place: int, digits: int) -> list[str]:
    if "cpu" not in side:
        reason = "not here: " + side["missing"] if "missing" in side else "failed: " + _last_line(side.get("error", ""))
        return [reason, "", "", ""]
    shown = [f"{side['cpu']:.{digits}f}", f"{side['wall']:.{digits}f}"]
    if not place or "cpu_ratio" not in side:
        return [*shown, "1" if not place else "", "1" if not place else ""]
    middle, low, high = side["cpu_ratio"]
    return [*shown, f"**{middle:.2f}** ({low:.2f}–{high:.2f})", f"{side['wall_ratio'][0]:.2f}"]


def _share(side: Found, scale: float, ceilings: Found) -> str:
    info = side.get("info", {})
    if "read" not in info or "cpu" not in side:
        return ""
    cost = roofline.Cost(info["read"], info["flops"])
    return f"{100 * roofline.share(cost, side['cpu'] / scale, ceilings):.0f} %"


def _differing(row: Found) -> list[str]:
    """Sides whose `check` is not that of the first side that has one."""
    told = [(s["name"], s["info"]["check"]) for s in row["sides"] if "check" in s.get("info", {})]
    return [name for name, check in told if check != told[0][1]]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].replace("|", "/")[:120] if lines else "no reason given"


def machine(described: Found, ceilings: Found | None) -> str:
    """Markdown of what was measured on."""
    d = described
    text = (
        f"{d['cpu']}, {d['cores']} cores ({', '.join(d['flags'])}), last cache {d['cache_mb']:.0f} MB, "
        f"{d['memory_gb']:.0f} GB; "
        f"{d['gpu'] or 'no GPU'}; Python {d['python']}, torch {d['torch']}; commit {d['commit']}. "
        "One thread for every side."
    )
    if ceilings is None:
        return text + "\n"
    read = ", ".join(f"{rate / 1e9:.0f} GB/s of {mb} MB" for mb, rate in ceilings["read"].items())
    copy = ", ".join(f"{rate / 1e9:.0f} of {mb} MB" for mb, rate in ceilings["copy"].items())
    return (
        f"{text}\n\nCeilings of one thread, best of many, CPU time: reading {read}; copying {copy} (read and written "
        f"counted); a product of 1024 x 1024 matrices {ceilings['flops'] / 1e9:.0f} GFLOP/s.\n"
    )


def update(page: str, parts: Mapping[str, str]) -> str:
    """The page with the parts between their markers; parts without markers are left out.

    Raises:
        BadInput: a marker opens and does not close.
    """
    for name, content in parts.items():
        opening, closing = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        if opening not in page:
            continue
        if page.count(opening) != 1 or page.count(closing) != 1 or page.index(closing) < page.index(opening):
            raise BadInput(f"the page needs one {opening} and one {closing} after it")
        before, rest = page.split(opening)
        page = before + opening + "\n" + content.strip() + "\n" + closing + rest.split(closing)[1]
    return page


def names(page: str) -> list[str]:
    """The parts that a page has markers of."""
    return re.findall(r"<!-- bench:([\w-]+) -->", page)


def picture(rows: Sequence[Found], path: Path) -> None:
    """A bar for each side but ours: its CPU time over ours, on a logarithmic axis; ours is the line at 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [
        (f"{row['title']}: {side['name']}", side["cpu_ratio"])
        for row in rows
        for side in row["sides"][1:]
        if "cpu_ratio" in side
    ]
    figure = Figure(figsize=(8, 0.8 + 0.22 * max(1, len(bars))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    middles = [ratio[0] for _, ratio in bars]
    errors = [[r[0] - r[1] for _, r in bars], [r[2] - r[0] for _, r in bars]]
    colours = ["#bbbbbb" if ": quaver" in name else "#4c78a8" if r[0] >= 1 else "#e45756" for name, r in bars]
    if bars:
        axes.barh(range(len(bars)), middles, xerr=errors, color=colours, height=0.7, error_kw={"elinewidth": 0.7})
        axes.set_xscale("log")
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=6)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=6)
    axes.set_xlabel(
        "CPU time, times that of quaver in the same round (right of the line: quaver is faster)", fontsize=7
    )
    figure.savefig(path, format="png", dpi=120)
