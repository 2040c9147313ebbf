"""Scripted dialogues played to a duplex model, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..dialogue.loading import DuplexParts
from ..dialogue.monologue import clean_word
from ..dialogue.session import DuplexSettings
from ..errors import BadInput
from ..training.dialogue_audio import DialogueRow, load_dialogues, read_channels
from .duplex import DuplexScores, activity, answers, by_topic, draw_timeline, score, table, topic_table
from .duplex_play import Conversation, between, converse, play
from .words import compare

__all__ = ["Conversation", "DuplexReport", "Recogniser", "converse", "dialogue_scores", "recogniser", "run_duplex"]

Recogniser = Callable[[np.ndarray, int], str]
Tick = Callable[[str, float, float], None]
RATE = 24_000
RECORDED = 60.0
"""Seconds of audio from which on recording a step (`nn.recorded`) saves more than it takes."""


@dataclass(frozen=True)
class DuplexReport:
    """All dialogues together, and each."""

    total: DuplexScores
    each: dict[str, DuplexScores]
    texts: dict[str, str]

    def markdown(self) -> str:
        """The tables: all figures, and the shares of right answers by topic where they are known."""
        return "\n\n".join(part for part in (table(self.total), topic_table(self.total)) if part)

    def write(self, out: Path) -> None:
        """`table.md` and `report.json` in a folder."""
        topics = {"right": self.total.right_by_topic, "written": self.total.written_by_topic}
        each = {name: scores.figures() for name, scores in self.each.items()}
        write_report(out, self, {"all": self.total.figures(), "topics": topics, "each": each, "texts": self.texts})


def write_report(out: Path, report: Any, figures: dict[str, Any]) -> None:
    """A report's tables (`markdown()`) and figures in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(report.markdown() + "\n")
    (out / "report.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False))


def chosen(folder: Path, split: str, limit: int | None = None) -> list[DialogueRow]:
    """Raises BadInput: there are no dialogues of that split."""
    rows = load_dialogues(folder, split)[:limit]
    if not rows:
        raise BadInput(f"{folder} has no dialogues of the split {split!r}; make some with `quaver corpus dialogues`")
    return rows


def run_duplex(
    folder: Path,
    parts: DuplexParts | None,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    slots: int = 1,
    out: Path | None = None,
    recognise: Recogniser | None = None,
    tick: Tick | None = None,
) -> DuplexReport:
    """Scores a model on the dialogues of a corpus; without one, the recorded assistant (what can be reached at most).

    Args:
        slots: how many dialogues are played at once, in one batch; the result is the same.
        out: folder for `report.json`, `table.md`, and the timeline and audio of the first dialogue.
        recognise: (samples, rate) -> words, for the answers.

    Raises:
        BadInput: there are no such dialogues.
    """
    rows = chosen(folder, split, limit)
    each: dict[str, DuplexScores] = {}
    texts: dict[str, str] = {}
    for done, (number, found) in enumerate(_played(rows, parts, seed, slots), 1):
        row = rows[number]
        user, own = read_channels(row)
        own = own if found is None else found.audio
        each[row.id] = dialogue_scores(row, own, found, recognise)
        texts[row.id] = " ".join(w for w, _, _ in row.words) if found is None else found.text
        if out is not None and number == 0:
            _keep(out, row, user, own)
        if tick is not None:
            tick("dialogues", done, len(rows))
    each = {row.id: each[row.id] for row in rows}
    report = DuplexReport(sum(each.values(), DuplexScores()), each, {row.id: texts[row.id] for row in rows})
    if out is not None:
        report.write(out)
    return report


def _played(
    rows: Sequence[DialogueRow], parts: DuplexParts | None, seed: int, slots: int
) -> Iterator[tuple[int, Conversation | None]]:
    """Which dialogue, and what the model made of it, as they end; None of the recorded assistant."""
    if parts is None:
        yield from ((number, None) for number in range(len(rows)))
        return

    def recordings() -> Iterator[tuple[np.ndarray, DuplexSettings]]:
        for number, row in enumerate(rows):
            yield read_channels(row)[0], parts.settings.model_copy(update={"seed": seed + number})

    recorded = sum(row.seconds for row in rows) / slots > RECORDED
    yield from play(parts, recordings(), min(slots, len(rows)), recorded=recorded)


def dialogue_scores(
    row: DialogueRow, own: np.ndarray, found: Conversation | None, recognise: Recogniser | None
) -> DuplexScores:
    """Timing of what the assistant said (`own[n]`), its answers as `recognise` hears them, and its own texts."""
    # The user's speech is where the script has it: echo and noise in the microphone are none of it.
    speech = [(e.start, e.end) for e in row.events if e.kind in ("turn", "interrupt", "backchannel")]
    scores = score(speech, activity(own, RATE), row.events, row.seconds)
    if recognise is not None:
        judged = _judged(row, lambda start, end: recognise(own[int(start * RATE) : int(end * RATE)], RATE))
        scores = replace(scores, right=answers(pair[1:] for pair in judged), right_by_topic=by_topic(judged))
    return scores if found is None else _with_texts(scores, row, found)


def _judged(row: DialogueRow, heard: Callable[[float, float], str]) -> list[tuple[str, str, str]]:
    """For every turn that asks something: its topic, what is heard until the next turn, and the right answer."""
    turns = [e for e in row.events if e.kind in ("turn", "interrupt", "end")]
    return [(e.topic, heard(e.end, following.start), e.answer) for e, following in pairwise(turns) if e.answer]


def _with_texts(scores: DuplexScores, row: DialogueRow, found: Conversation) -> DuplexScores:
    """And what the model's own texts are worth: its answers, and its record of the user's words."""
    # A frame or two of the text may stand before the user's last word is over.
    judged = _judged(row, lambda start, end: between(found.said, start - 0.1, end))
    misheard = (0, 0)
    wanted = " ".join(plain(e.text) for e in row.events if e.kind in ("turn", "interrupt"))
    if found.heard and wanted:
        counts = compare(wanted.split(), between(found.heard, 0.0, np.inf).split())
        misheard = (counts.errors, counts.length)
    return replace(
        scores, written=answers(pair[1:] for pair in judged), written_by_topic=by_topic(judged), misheard=misheard
    )


def plain(text: str) -> str:
    """Lower case words without marks."""
    return " ".join(clean_word(w) for w in text.split())


def _keep(out: Path, row: DialogueRow, user: np.ndarray, own: np.ndarray) -> None:
    import soundfile

    out.mkdir(parents=True, exist_ok=True)
    draw_timeline(out / "timeline.png", user, own, RATE, row.events)
    soundfile.write(out / "dialogue.flac", np.stack([user, own], 1), RATE)


def recogniser(asr: str, threads: int = 1) -> Recogniser:
    """Whisper as `recognise` of `run_duplex`: a faster-whisper folder or hub name.

    Raises:
        MissingExtra, MissingFile: it cannot be had.
    """
    import soxr

    from .judges import Judges

    judges = Judges(asr=asr, threads=threads)
    judges.load_asr()

    def recognise(samples: np.ndarray, rate: int) -> str:
        if len(samples) < rate // 10:
            return ""
        return judges.transcribe(np.asarray(soxr.resample(samples, rate, 16_000), np.float32))

    return recognise
