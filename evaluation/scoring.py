"""From samples to the figures of a system: runs the chosen metrics over every sample and says what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import BadInput, MissingExtra, MissingFile, QuaverError
from .judges import Judges
from .metrics import Metric, Sample
from .report import System

__all__ = ["progress_bar", "score", "usable", "using_threads"]

WORST = 5


def usable(metrics: Mapping[str, Metric], judges: Judges, *, asked: bool) -> tuple[dict[str, Metric], dict[str, str]]:
    """(metrics that can run here, name -> why the others cannot).

    Raises:
        MissingExtra, BadInput, MissingFile: with `asked`, instead of leaving a metric out; and always for a recogniser
            that was named but cannot be loaded.
    """
    good: dict[str, Metric] = {}
    notes: dict[str, str] = {}
    for name, metric in metrics.items():
        try:
            _check(metric, judges)
        except QuaverError as error:
            if asked or ("asr" in metric.needs and judges.asr is not None):
                raise
            notes[name] = str(error)
        else:
            good[name] = metric
    return good, notes


def _check(metric: Metric, judges: Judges) -> None:
    if reason := metric.missing():
        raise MissingExtra(f"{metric.title}: {reason}")
    if "asr" in metric.needs:
        if judges.asr is None:
            raise BadInput(f"{metric.title}: no recogniser, give --asr FOLDER")
        judges.load_asr()
    if "phones" in metric.needs:
        try:
            judges.load_phones()
        except MissingFile as error:
            raise MissingFile(f"{metric.title}: {error}") from None


def score(
    name: str, samples: Iterable[tuple[dict[str, Any], Sample]], metrics: Mapping[str, Metric], judges: Judges, *,
    voice: str = "",
) -> System:  # fmt: skip
    """Judges every sample. `samples` gives the first columns of a row (index, text, ...) and what was heard."""
    rows: list[dict[str, Any]] = []
    for head, sample in samples:
        row = dict(head)
        problems: dict[str, str] = {}
        for metric in metrics.values():
            try:
                row.update(metric.measure(sample, judges))
            except BadInput as error:
                problems[metric.name] = str(error)
        if problems:
            row["problems"] = problems
        rows.append(row)
    return System(name, voice=voice, rows=rows, worst=worst(rows)).summarised(metrics)


def worst(rows: list[dict[str, Any]], count: int = WORST) -> list[dict[str, Any]]:
    """The sentences with most word errors: index, text, hypothesis, errors."""
    bad = [row for row in rows if row.get("word_errors")]
    bad.sort(key=lambda row: (-len(row.get("failed", ())), -row["wer"]))
    keys = ("index", "text", "hypothesis", "word_errors", "failed")
    return [{key: row[key] for key in keys if key in row} for row in bad[:count]]


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """`count` torch threads inside the block, what it was after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def progress_bar(total: int, show: bool) -> Iterator[Progress]:
    """A bar on stderr with the remaining time; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as progress:
        progress.add_task("judging", total=total)
        yield progress
