"""All rows and tables, by name. What a side does is in `benchmarks/sides`; how rows are run, in `runner.py`."""

from __future__ import annotations

from .report import PARAMETERS, Table
from .runner import Row, Side

LM = "language_model.py"


def _lm(size: str, title: str) -> Row:
    work = {"size": size, "prompt": 64, "new": 48}
    sides = (
        Side("quaver, float32", f"{LM}:ours", work),
        Side("quaver, half-precision weights", f"{LM}:ours", work | {"half": True}),
        Side("quaver, whole loop of `say`, half precision", f"{LM}:spoken", work),
        Side("transformers, static cache", f"{LM}:transformers", work),
        Side("transformers, dynamic cache", f"{LM}:transformers", work | {"cache": "dynamic"}),
    )
    return Row(f"lm-{size}", "lm", title, sides)


def _prefill(size: str, title: str) -> Row:
    sides = (
        Side("quaver, float32", f"{LM}:ours_prefill", {"size": size, "prompt": 256, "chunk": 64}),
        Side(
            "quaver, half-precision weights",
            f"{LM}:ours_prefill",
            {"size": size, "prompt": 256, "chunk": 64, "half": True},
        ),
        Side("transformers, static cache", f"{LM}:transformers_prefill", {"size": size, "prompt": 256}),
    )
    return Row(f"prefill-{size}", "prefill", title, sides)


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "lm",
            "Language model, batch 1",
            "ms a token",
            "64 tokens of prompt and 48 drawn (temperature 0.8, top-k 50), float32 unless it is said. The same "
            "weights in all sides but the whole loop's; float32 sides are checked to say the same greedy tokens.",
            columns=(PARAMETERS,),
        ),
        Table("prefill", "Prefill", "ms a token", "256 tokens into a cache.", columns=(PARAMETERS,), digits=3),
    )
}

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        _lm("5M", "5 M"),
        _lm("20M", "20 M"),
        _lm("120M", "120 M"),
        _prefill("20M", "20 M"),
        _prefill("120M", "120 M"),
    )
}
