"""`python -m benchmarks` (or `quaver bench`, `make bench`): speed and memory, side by side with what else there is.

    python -m benchmarks --list                  # the rows
    python -m benchmarks lm-20M codec            # some rows, or all of a table
    python -m benchmarks --docs                  # everything, and the generated parts of docs/benchmarks.md
    python -m benchmarks --render --docs         # only write again what was measured before
    python -m benchmarks --device cuda --docs    # the rows that can run on a GPU, and that section of the page

Peers are installed by `make bench-peers`; a side that is not there says so, and the others go on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from quaver.errors import BadInput, QuaverError

from . import suite
from .rows import ROWS, TABLES, on_device
from .runner import ROOT


def parser() -> argparse.ArgumentParser:
    """The options of `quaver bench`."""
    options = argparse.ArgumentParser(
        prog="quaver bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("rows", nargs="*", help="names or patterns of rows, or of a table; default: all")
    options.add_argument("--list", action="store_true", help="the rows and what they compare")
    options.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of what is measured")
    options.add_argument("--threads", type=int, default=1, help="of every side")
    options.add_argument("--quick", action="store_true", help="two rounds, no warm-up: to see whether it works")
    options.add_argument("--device", default="cpu", help="cpu, or cuda for the rows that can run there")
    options.add_argument("--rounds", type=int, help="at most so many, instead of each row's own number")
    options.add_argument("--seconds", type=float, help="no new round after so many seconds of a row")
    options.add_argument("--render", action="store_true", help="measure nothing; write what was measured")
    options.add_argument("--docs", action="store_true", help="write the generated parts of docs/benchmarks.md")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, 1 if a side failed, 2 for a wrong line."""
    chosen = parser().parse_args(arguments)
    say = _say
    try:
        changed = {k: v for k in ("rounds", "seconds") if (v := getattr(chosen, k)) is not None}
        rows = [replace(row, **changed) for row in suite.choose(chosen.rows, ROWS.values())]
        if chosen.device != "cpu":
            rows = on_device(rows, _available(chosen.device))
            chosen.out = chosen.out.with_name(f"{chosen.out.name}-{chosen.device.partition(':')[0]}")
        if chosen.list:
            for row in rows:
                say(f"{row.name:16} {TABLES[row.table].title}, {row.title}: {'; '.join(s.name for s in row.sides)}")
            return 0
        failed = []
        if not chosen.render:
            failed = suite.measure(rows, chosen.out, threads=chosen.threads, quick=chosen.quick, say=say)
        if chosen.device != "cpu":
            suite.write_device(chosen.out, ROOT / "docs/benchmarks.md" if chosen.docs else None)
            say(f"{chosen.out / 'bench.md'}, bench.json")
            return _told(failed)
        page, image = ROOT / "docs/benchmarks.md", ROOT / "docs/images/bench.png"
        suite.write(chosen.out, page if chosen.docs else None, image if chosen.docs else None)
    except QuaverError as error:
        sys.stderr.write(f"quaver: error: {error}\n")
        return 2
    say(f"{chosen.out / 'bench.md'}, bench.json, bench.png")
    return _told(failed)


def _told(failed: list[str]) -> int:
    for line in failed:
        sys.stderr.write(f"failed: {line}\n")
    return 1 if failed else 0


def _available(device: str) -> str:
    """Raises BadInput where torch cannot use it."""
    import torch

    if not device.startswith("cuda"):
        raise BadInput(f"the benchmarks run on cpu or cuda, not {device!r}")
    if not torch.cuda.is_available():
        raise BadInput("torch sees no GPU on this machine; without --device the rows run on its processor")
    return device


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
