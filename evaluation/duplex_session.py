"""A session that goes on for half an hour and more: does it fall silent, and does it keep its size?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np

from ..dialogue.loading import DuplexParts
from ..errors import BadInput
from ..training.dialogue_audio import DialogueRow, read_channels
from .duplex import DuplexScores, Event, Span, activity, collapses, longest_silence, table, talkspurts
from .duplex_play import Conversation, LongSession
from .duplex_run import RATE, Recogniser, Tick, chosen, dialogue_scores, write_report

__all__ = ["SessionReport", "Window", "run_session"]

WINDOW = 600.0
"""Seconds over which the figures of a long session are taken together."""


@dataclass(frozen=True)
class Window:
    """The dialogues that began within `WINDOW` seconds from `start`, both in seconds of the session.

    Attributes:
        response_rate: share of turns that were answered. answers_written: right ones in the model's own text.
        longest_silence: of the assistant, in seconds.
    """

    start: float
    end: float
    turns: int
    response_rate: float | None
    answers_written: float | None
    longest_silence: float


@dataclass(frozen=True)
class SessionReport:
    """A long session: all together (`total.collapses` counts over the borders of dialogues), window by window, and its
    size. `state_bytes`: of the session's state after the first dialogue and at the end; `grown_mb`: what the process
    grew by from the first minute on (peak resident memory)."""

    total: DuplexScores
    windows: tuple[Window, ...]
    state_bytes: tuple[int, int]
    grown_mb: float

    def markdown(self) -> str:
        """The tables."""
        lines = [
            "| minutes | turns | response rate | answers right in writing | longest silence, s |",
            "|---|---|---|---|---|",
        ]
        for w in self.windows:
            shares = ("–" if x is None else f"{x:.3f}" for x in (w.response_rate, w.answers_written))
            span = f"{w.start / 60:.1f} to {w.end / 60:.1f}"
            lines.append(f"| {span} | {w.turns} | {' | '.join(shares)} | {w.longest_silence:.1f} |")
        first, last = self.state_bytes
        memory = f"state {first:,} bytes after the first dialogue, {last:,} at the end; "
        return "\n".join([table(self.total), "", *lines, "", memory + f"the process grew by {self.grown_mb:.1f} MB"])

    def write(self, out: Path) -> None:
        """`table.md` and `report.json` in a folder."""
        figures = {"all": self.total.figures(), "windows": [asdict(w) for w in self.windows]}
        write_report(out, self, figures | {"state_bytes": self.state_bytes, "grown_mb": self.grown_mb})


def run_session(
    folder: Path,
    parts: DuplexParts | None,
    minutes: float,
    *,
    split: str = "test",
    seed: int = 0,
    out: Path | None = None,
    recognise: Recogniser | None = None,
    tick: Tick | None = None,
) -> SessionReport:
    """Plays the dialogues of a corpus one after the other, from the beginning again when they are through, in one
    session without a reset, until it has lasted `minutes`.

    Args:
        parts: None judges the recorded assistant. out: folder for `report.json` and `table.md`.

    Raises:
        BadInput: no such dialogues, or no time.
    """
    if not 0 < minutes < float("inf"):
        raise BadInput(f"a session lasts more than 0 minutes, not {minutes}")
    rows = chosen(folder, split)
    session = None
    if parts is not None:
        settings = parts.settings.model_copy(update={"seed": seed})
        session = LongSession(parts, settings, recorded=minutes > 1)
    log, sizes, used = _Log(), [], None
    for row in cycle(rows):
        log.add(row, *_heard(row, session), recognise)
        sizes.append(session.nbytes if session else 0)
        used = _peak() if used is None and log.seconds > 60 else used
        if tick is not None:
            tick("minutes", min(log.seconds / 60, minutes), minutes)
        if log.seconds >= 60 * minutes:
            break
    grown = 0.0 if used is None else (_peak() - used) / 1e6
    report = SessionReport(log.total(), tuple(log.windows()), (sizes[0], sizes[-1]), grown)
    if out is not None:
        report.write(out)
    return report


def _heard(row: DialogueRow, session: LongSession | None) -> tuple[np.ndarray, Conversation | None]:
    user, own = read_channels(row)
    if session is None:
        return own, None
    found = session.converse(user)
    return found.audio, found


class _Log:
    """What has happened so far, on the clock of the session: talkspurts and events, no audio."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.spurts: list[Span] = []
        self.events: list[Event] = []
        self.scores: list[tuple[float, DuplexScores]] = []

    def add(self, row: DialogueRow, own: np.ndarray, found: Conversation | None, recognise: Recogniser | None) -> None:
        at = self.seconds
        self.scores.append((at, dialogue_scores(row, own, found, recognise)))
        self.spurts += [(at + a, at + b) for a, b in activity(own, RATE)]
        self.events += [replace(e, start=at + e.start, end=at + e.end) for e in row.events]
        self.seconds += len(own) / RATE

    def total(self) -> DuplexScores:
        whole = sum((scores for _, scores in self.scores), DuplexScores())
        return replace(whole, collapses=collapses(talkspurts(self.spurts), self.events, self.seconds))

    def windows(self) -> Iterator[Window]:
        starts = [at for at, _ in self.scores]
        borders = [next(at for at in starts if at // WINDOW == n) for n in sorted({at // WINDOW for at in starts})]
        for start, end in zip(borders, [*borders[1:], self.seconds], strict=True):
            scores = sum((s for at, s in self.scores if start <= at < end), DuplexScores())
            figures = scores.figures()
            silence = longest_silence(self.spurts, start, end)
            rate, written = figures["response rate"], figures["answers right in writing"]
            yield Window(start, end, scores.turns, rate, written, silence)


def _peak() -> float:
    """Peak resident memory of this process in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
