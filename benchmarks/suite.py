"""The whole suite: rows chosen by name, measured one after the other, kept as they are made, and written down.

What was measured stays in the output folder (`rows/NAME.json`), so that one row can be measured again, and the tables
are built from all that is there.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from quaver.errors import BadInput

from . import machine, report, runner, scaling
from .rows import ROWS, TABLES
from .runner import ROOT, Row


def choose(wanted: Sequence[str], rows: Iterable[Row]) -> list[Row]:
    """Rows whose name or table fits one of the patterns (`lm-*`, `codec`), in that order; all, if there is none.

    Raises:
        BadInput: a pattern fits nothing.
    """
    held = list(rows)
    if not wanted:
        return held

    def fits(row: Row, pattern: str) -> bool:
        return fnmatch.fnmatch(row.name, pattern) or row.table == pattern

    chosen: dict[str, Row] = {}
    for pattern in wanted:
        fitting = {row.name: row for row in held if fits(row, pattern)}
        if not fitting:
            raise BadInput(f"no row {pattern!r}; there are {', '.join(row.name for row in held)}")
        chosen |= fitting
    return list(chosen.values())


def measure(rows: Sequence[Row], out: Path, *, threads: int, quick: bool, say: Callable[[str], None]) -> list[str]:
    """Measures the rows into `out/rows`; returns what failed (not what is missing)."""
    (out / "rows").mkdir(parents=True, exist_ok=True)
    _look_at_the_machine(out / "machine.json", 0.02 if quick else 0.3)
    failed = []
    for row in rows:
        say(f"{row.name} ...")
        found = runner.run(row, threads, quick, say=say)
        keep(out / "rows" / f"{row.name}.json", found)
        failed += [f"{row.name}: {s['name']}: {s['error']}" for s in found["sides"] if "error" in s]
        say(report.table(TABLES[row.table], [found], None))
    return failed


def _look_at_the_machine(path: Path, seconds: float) -> None:
    """Describes it anew; the ceilings of the same processor and torch stay, if they were measured with as much care."""
    described = machine.describe(ROOT)
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(held.get("described", {}).get(key) == described[key] for key in ("cpu", "cores", "torch"))
    if not (same and held.get("seconds", 0) >= seconds):
        held = {"ceilings": machine.ceilings(seconds), "seconds": seconds}
    keep(path, {**held, "described": described})


def keep(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _measured(out: Path) -> tuple[dict[str, Any], list[Any]]:
    """The machine, and all rows that a folder holds."""
    stored = out / "machine.json"
    if not stored.exists():
        raise BadInput(f"{out} holds no measurements yet; run without --render first")
    rows = [json.loads(p.read_text(encoding="utf-8")) for name in ROWS if (p := out / "rows" / f"{name}.json").exists()]
    return json.loads(stored.read_text(encoding="utf-8")), rows


def write(out: Path, page: Path | None = None, image: Path | None = None) -> None:
    """`bench.json`, `bench.md` and `bench.png` of all rows that `out` holds, and the generated parts of `page`.

    Raises:
        BadInput: nothing was measured yet, or the page's markers are not in order.
    """
    held, rows = _measured(out)
    for row in rows:  # words may have been found after the figures
        row |= {"remark": ROWS[row["name"]].remark, "title": ROWS[row["name"]].title}
    parts = {"machine": report.machine(held["described"], held["ceilings"])}
    for name, shape in TABLES.items():
        mine = [row for row in rows if row["table"] == name]
        if mine:
            parts[name] = report.table(shape, mine, held["ceilings"])
    if held["ceilings"] is not None:
        parts["sizes"] = scaling.table(held["ceilings"], scaling.measured_sizes(rows))
    parts |= imports(rows)
    keep(out / "bench.json", {**held, "rows": rows})
    others = {"machine": "Machine", "sizes": "Sizes, by arithmetic", "imports": "Imports"}
    titles = others | {name: shape.title for name, shape in TABLES.items()}
    shown = [f"## {titles[name]}\n\n{part}" for name, part in parts.items()]
    (out / "bench.md").write_text("# Benchmarks\n\n" + "\n".join(shown), encoding="utf-8")
    report.picture(rows, out / "bench.png")
    if page is not None:
        page.write_text(report.update(page.read_text(encoding="utf-8"), parts), encoding="utf-8")
    if image is not None:
        image.write_bytes((out / "bench.png").read_bytes())


def write_device(out: Path, page: Path | None = None) -> None:
    """`bench.json` and `bench.md` of rows measured on another device, and the page's part `gpu`.

    Raises:
        BadInput: nothing was measured yet, or the page's markers are not in order.
    """
    held, rows = _measured(out)
    parts = [report.machine(held["described"], None)]
    for name, shape in TABLES.items():
        if mine := [row for row in rows if row["table"] == name]:
            for side in (side for row in mine for side in row["sides"]):
                side.get("info", {}).pop("read", None)  # the roofline is that of the processor
            parts.append(f"*{shape.title}*\n\n{report.table(shape, mine, None)}")
    keep(out / "bench.json", {**held, "rows": rows})
    text = "\n".join(parts)
    (out / "bench.md").write_text(text, encoding="utf-8")
    if page is not None:
        page.write_text(report.update(page.read_text(encoding="utf-8"), {"gpu": text}), encoding="utf-8")


def imports(rows: Sequence[runner.Sample]) -> dict[str, str]:
    """The dearest imports of `quaver say`, from the row `start`."""
    infos = [side["info"]["imports"] for row in rows for side in row["sides"] if "imports" in side.get("info", {})]
    if not infos:
        return {}
    lines = ["| module | ms of itself |", "|---|--:|", *(f"| `{name}` | {took:.0f} |" for name, took in infos[0])]
    return {"imports": "\n".join(lines) + "\n"}
