"""Scripted dialogues played to a duplex model, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..dialogue.loading import DuplexParts
from ..dialogue.monologue import clean_word
from ..dialogue.session import DuplexSettings
from ..errors import BadInput
from ..training.dialogue_audio import DialogueRow, load_dialogues, read_channels
from .duplex import DuplexScores, activity, answers, draw_timeline, score, table

__all__ = ["Conversation", "DuplexReport", "converse", "recogniser", "run_duplex"]

Recogniser = Callable[[np.ndarray, int], str]


@dataclass(frozen=True)
class DuplexReport:
    """All dialogues together, and each."""

    total: DuplexScores
    each: dict[str, DuplexScores]
    texts: dict[str, str]

    def markdown(self) -> str:
        """The table."""
        return table(self.total)


@dataclass(frozen=True)
class Conversation:
    """What a model made of a recording.

    Attributes:
        audio: float32 `[n]` at 24 kHz, what it said, as long as the recording and in its time.
        said, heard: pieces of its own text and of its record of the user's, with the seconds at which they came.
    """

    audio: np.ndarray
    said: tuple[tuple[float, str], ...]
    heard: tuple[tuple[float, str], ...]

    @property
    def text(self) -> str:
        """All that it said."""
        return _between(self.said, 0.0, np.inf)


def _between(pieces: Sequence[tuple[float, str]], start: float, end: float) -> str:
    return " ".join("".join(piece for at, piece in pieces if start <= at < end).split())


def converse(parts: DuplexParts, user: np.ndarray, settings: DuplexSettings | None = None) -> Conversation:
    """Plays a recording float32 `[n]` at 24 kHz to a model; a frame must be heard whole before it can be answered."""
    session = parts.session(settings)
    size = session.frame_size
    padded = np.pad(user, (0, -len(user) % size)).astype(np.float32)
    said = [session.step(padded[i : i + size]) for i in range(0, len(padded), size)]
    voice = np.concatenate([np.zeros(size, np.float32), *(frame.audio for frame in said)])
    at = [(i + 1) * size / session.sample_rate for i in range(len(said))]
    late = (parts.model.config.heard or 0) * size / session.sample_rate
    return Conversation(
        voice[: len(user)],
        tuple((t, f.text) for t, f in zip(at, said, strict=True) if f.text),
        tuple((t - late, f.heard) for t, f in zip(at, said, strict=True) if f.heard),
    )


def run_duplex(
    folder: Path,
    parts: DuplexParts | None,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    recognise: Recogniser | None = None,
    tick: Callable[[str, float, float], None] | None = None,
) -> DuplexReport:
    """Scores a model on the dialogues of a corpus; without one, the recorded assistant (what can be reached at most).

    Args:
        out: folder for `report.json`, `table.md`, and the timeline and audio of the first dialogue.
        recognise: (samples, rate) -> words, for the answers.

    Raises:
        BadInput: there are no such dialogues.
    """
    rows = load_dialogues(folder, split)[:limit]
    if not rows:
        raise BadInput(f"{folder} has no dialogues of the split {split!r}; make some with `quaver corpus dialogues`")
    each: dict[str, DuplexScores] = {}
    texts: dict[str, str] = {}
    for number, row in enumerate(rows):
        channels = read_channels(row)
        user, own, text = channels[0], channels[1], " ".join(w for w, _, _ in row.words)
        found = None
        if parts is not None:
            found = converse(parts, user, parts.settings.model_copy(update={"seed": seed + number}))
            own, text = found.audio, found.text
        each[row.id], texts[row.id] = _scored(row, user, own, recognise) + _written(row, found), text
        if out is not None and number == 0:
            _keep(out, row, user, own)
        if tick is not None:
            tick("dialogues", number + 1, len(rows))
    report = DuplexReport(sum(each.values(), DuplexScores()), each, texts)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(report.markdown() + "\n")
        figures = {"all": report.total.figures(), "each": {k: v.figures() for k, v in each.items()}, "texts": texts}
        (out / "report.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False))
    return report


def _scored(row: DialogueRow, user: np.ndarray, own: np.ndarray, recognise: Recogniser | None) -> DuplexScores:
    rate = 24_000
    # The user's speech is where the script has it: echo and noise in the microphone are none of it.
    speech = [(e.start, e.end) for e in row.events if e.kind in ("turn", "interrupt", "backchannel")]
    found = score(speech, activity(own, rate), row.events, row.seconds)
    if recognise is None:
        return found
    return found + DuplexScores(right=answers(_heard(row, own, rate, recognise)))


def _heard(row: DialogueRow, own: np.ndarray, rate: int, recognise: Recogniser) -> Sequence[tuple[str, str]]:
    """For every turn that asks something: what is heard of the assistant until the next turn, and the right answer."""
    turns = [e for e in row.events if e.kind in ("turn", "interrupt", "end")]
    pairs = []
    for event, following in pairwise(turns):
        if event.answer:
            pairs.append((recognise(own[int(event.end * rate) : int(following.start * rate)], rate), event.answer))
    return pairs


def _written(row: DialogueRow, found: Conversation | None) -> DuplexScores:
    """What the model's own texts are worth: its answers, and its record of the user's words."""
    if found is None:
        return DuplexScores()
    turns = [e for e in row.events if e.kind in ("turn", "interrupt", "end")]
    # A frame or two of the text may stand before the user's last word is over.
    pairs = [
        (_between(found.said, e.end - 0.1, following.start), e.answer) for e, following in pairwise(turns) if e.answer
    ]
    misheard = (0, 0)
    if found.heard:
        import jiwer

        wanted = " ".join(_plain(e.text) for e in turns if e.text)
        counted = jiwer.process_words(wanted, _between(found.heard, 0.0, np.inf))
        misheard = (counted.substitutions + counted.deletions + counted.insertions, len(wanted.split()))
    return DuplexScores(written=answers(pairs), misheard=misheard)


def _plain(text: str) -> str:
    return " ".join(clean_word(w) for w in text.split())


def _keep(out: Path, row: DialogueRow, user: np.ndarray, own: np.ndarray) -> None:
    import soundfile

    out.mkdir(parents=True, exist_ok=True)
    draw_timeline(out / "timeline.png", user, own, 24_000, row.events)
    soundfile.write(out / "dialogue.flac", np.stack([user, own], 1), 24_000)


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
