"""`quaver bench`: the benchmark suite of a source checkout (docs/benchmarks.md)."""

from __future__ import annotations

import importlib
import importlib.util

import typer

from ...errors import MissingFile

PASSED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of the command: every word goes to the suite, which has options and a help of its own."""


def bench(context: typer.Context) -> int:
    """Measure speed beside other systems (needs a source checkout); its options: `quaver bench --help`."""
    if not _here():
        raise MissingFile(
            "the benchmarks are not part of the installed package: clone the repository, install it with "
            "`pip install -e .` and run `quaver bench` there"
        )
    suite = importlib.import_module("quaver.benchmarks.__main__")
    return suite.main(context.args)


def _here() -> bool:
    try:
        return importlib.util.find_spec("quaver.benchmarks.rows") is not None
    except ModuleNotFoundError:  # not even the folder
        return False
