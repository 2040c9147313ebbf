"""Word errors of the duplex network's other two uses, on the dialogues of a corpus: of what a recogniser writes down of
the user's channel, and of what Whisper hears when a synthesizer speaks the assistant's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..dialogue.loading import DuplexParts
from ..dialogue.modes import speak
from ..dialogue.session import DuplexSettings
from ..errors import BadInput
from ..training.dialogue_audio import DialogueRow, read_channels
from .duplex_play import play
from .duplex_run import RATE, RECORDED, Recogniser, Tick, chosen, write_report
from .words import compare, normalise

__all__ = ["ModeReport", "run_mode"]


@dataclass(frozen=True)
class ModeReport:
    """Attributes:
    mode: "recogniser" or "synthesizer".
    errors: (word errors, words of the reference) of each dialogue.
    recorded: the same of the recorded assistant's voice, of a synthesizer: what can be reached at most.
    texts: (reference, what was found) of each.
    """

    mode: str
    errors: dict[str, tuple[int, int]]
    recorded: dict[str, tuple[int, int]]
    texts: dict[str, tuple[str, str]]

    def markdown(self) -> str:
        """The table."""
        who = {"recogniser": "user's words, as the model writes them down", "synthesizer": "the model's voice"}
        rows = [(who[self.mode], self.errors), ("the recorded assistant's voice", self.recorded)]
        lines = ["| word errors | rate | words | dialogues |", "|---|---|---|---|"]
        for name, found in rows:
            if found:
                wrong, words = (sum(pair[i] for pair in found.values()) for i in (0, 1))
                lines.append(f"| {name} | {100 * wrong / words:.1f} % | {words} | {len(found)} |")
        return "\n".join(lines)


def run_mode(
    folder: Path,
    parts: DuplexParts,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    slots: int = 1,
    out: Path | None = None,
    recognise: Recogniser | None = None,
    tick: Tick | None = None,
) -> ModeReport:
    """Word errors of a recogniser or a synthesizer, both sides as Whisper's authors compare them (`words.normalise`).

    Args:
        slots: dialogues at once. recognise: (samples, rate) -> words, for a synthesizer.
        out: folder for `report.json`, `table.md`, and what the synthesizer says first.

    Raises:
        BadInput: no such dialogues, a dialogue model, or a synthesizer and nobody who listens.
    """
    rows, mode = chosen(folder, split, limit), parts.model.config.mode
    if mode == "dialogue":
        raise BadInput("this model holds conversations: score it with run_duplex")
    errors, recorded, texts = {}, {}, {}
    if mode == "recogniser":
        found = _written(rows, parts, slots)
    elif recognise is not None:
        found = _spoken(rows, parts, slots, seed, out, recognise, recorded)
    else:
        raise BadInput("word errors of a synthesizer need a listener: give --asr a faster-whisper folder or hub name")
    for done, (number, wanted, heard) in enumerate(found, 1):
        name = rows[number].id
        errors[name], texts[name] = _errors(wanted, heard), (wanted, heard)
        if tick is not None:
            tick("dialogues", done, len(rows))
    report = ModeReport(mode, dict(sorted(errors.items())), dict(sorted(recorded.items())), dict(sorted(texts.items())))
    if out is not None:
        write_report(out, report, {"mode": mode, "errors": report.errors, "recorded": recorded, "texts": report.texts})
    return report


def _errors(wanted: str, heard: str) -> tuple[int, int]:
    counts = compare(normalise(wanted).split(), normalise(heard).split())
    return counts.errors, counts.length


Found = Iterator[tuple[int, str, str]]
"""Which dialogue, the reference, and what was found."""


def _written(rows: list[DialogueRow], parts: DuplexParts, slots: int) -> Found:
    """What the recogniser writes down of each dialogue's user; backchannels ("mhm") are not in its training texts."""
    settings = DuplexSettings(text_temperature=0)
    late = parts.model.config.stream_delays[0] * parts.codec.frame_size

    def recordings() -> Iterator[tuple[np.ndarray, DuplexSettings]]:
        for row in rows:
            yield np.pad(read_channels(row)[0], (0, late)), settings

    recorded = sum(row.seconds for row in rows) / slots > RECORDED
    for number, found in play(parts, recordings(), min(slots, len(rows)), recorded=recorded):
        wanted = " ".join(e.text for e in rows[number].events if e.kind in ("turn", "interrupt"))
        yield number, wanted, found.text


def _spoken(
    rows: list[DialogueRow],
    parts: DuplexParts,
    slots: int,
    seed: int,
    out: Path | None,
    recognise: Callable[[np.ndarray, int], str],
    recorded: dict[str, tuple[int, int]],
) -> Found:
    """What Whisper hears of the assistant's second answer of each dialogue (the first is always a greeting), spoken by
    the model, and into `recorded` the errors of the recording."""
    answers = [_answer(row) for row in rows]
    batch = parts.batch(min(slots, len(rows)), recorded=len(rows) / slots > RECORDED / 4)
    settings = parts.settings.model_copy(update={"seed": seed})
    for number, audio in speak(batch, [text for text, _, _ in answers], settings):
        text, start, end = answers[number]
        own = read_channels(rows[number])[1][int(start * RATE) : int(end * RATE)]
        recorded[rows[number].id] = _errors(text, recognise(own, RATE))
        if out is not None and number == 0:
            _keep(out, audio)
        yield number, text, recognise(audio, RATE)


def _answer(row: DialogueRow) -> tuple[str, float, float]:
    """An answer of the assistant that was not interrupted: its words, and where it lies."""
    turns = [e for e in row.events if e.kind in ("turn", "interrupt", "end")]
    first, *later = pairwise(turns)
    for before, after in (*later, first):
        words = [w for w in row.words if before.end <= w[1] < after.start]
        if words and after.kind != "interrupt":
            return " ".join(w for w, _, _ in words), before.end, after.start
    raise BadInput(f"the assistant says nothing in the dialogue {row.id}")


def _keep(out: Path, audio: np.ndarray) -> None:
    import soundfile

    out.mkdir(parents=True, exist_ok=True)
    soundfile.write(out / "spoken.flac", audio, RATE)
