"""Scripted conversations as two-channel audio: who speaks when, with exact word times and labelled events.

A corpus folder holds `ID.flac` (left: the user's microphone, right: the assistant), and `dialogues.jsonl`, a row each:
`id`, `path`, `seconds`, `words` of the assistant [text, start, end], `events` of the user (see
`evaluation.duplex.Event`), `split`, `voice`. The seed of a dialogue makes all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, CorruptFile, MissingFile
from ..evaluation.duplex import Event, activity
from ..tts.phones import phones_from_misaki
from .corpus import beside, words_of
from .dialogues import BACKCHANNELS, STOP, Exchange, Split, script
from .durations import HibariDurations, KokoroDurations, symbol_starts
from .pack import ALIGN_RATE
from .teachers import SAMPLE_RATE, TeacherSpec, load_teacher

__all__ = ["Dialogue", "DialogueRow", "Speaker", "load_dialogues", "make_dialogue", "make_dialogues", "read_channels"]

TimedWord = tuple[str, float, float]
LEVEL = 0.08
"""RMS of speech before gain."""
FADE = 0.03


@dataclass
class Dialogue:
    """Two channels float32 `[2, sample]` at 24 kHz (user, assistant), and what happens in them."""

    audio: np.ndarray
    words: list[TimedWord]
    events: list[Event]
    topics: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DialogueRow:
    """A dialogue of a corpus; see the module's text."""

    id: str
    path: Path
    seconds: float
    words: tuple[TimedWord, ...]
    events: tuple[Event, ...]
    split: str
    voice: str


class Speaker:
    """A teacher's voice that says where its words are."""

    def __init__(self, spec: TeacherSpec, kokoro: str | None = None) -> None:
        self.spec, self.teacher = spec, load_teacher(spec.name, kokoro)
        self.voice = spec.voice or self.teacher.voices[0]
        self._durations: HibariDurations | KokoroDurations | None = None
        if spec.name == "hibari":
            self._durations = HibariDurations()
        elif spec.name == "kokoro":
            self._durations = KokoroDurations(kokoro)

    @property
    def knows_words(self) -> bool:
        """Whether its word times are exact (only then may it be the assistant)."""
        return self._durations is not None

    def say(self, text: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, list[TimedWord]]:
        """float32 `[n]` without silence at its ends, and word times in it (none where the teacher has no durations)."""
        audio, phonemes = self.teacher.say(text, self.voice, speed, rng)
        words = [] if self._durations is None or phonemes is None else self._words(text, phonemes, speed, len(audio))
        spurts = activity(audio, SAMPLE_RATE, 0.004)
        if not spurts:
            raise BadInput(f"{self.spec.label} said nothing for {text!r}")
        start, end = max(0.0, spurts[0][0] - 0.03), spurts[-1][1] + 0.05
        cut = audio[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
        loud = np.sqrt((cut.astype(np.float64) ** 2).mean())
        cut = np.asarray(cut * (LEVEL / max(loud, 1e-6)), np.float32)
        last = spurts[-1][1] - start  # the teacher's last phone holds the silence after it
        return cut, [(w, max(0.0, a - start), min(b - start, last)) for w, a, b in words]

    def _words(self, text: str, phonemes: str, speed: float, samples: int) -> list[TimedWord]:
        assert self._durations is not None
        frames = self._durations(phonemes, self.voice, speed)
        starts = symbol_starts(phonemes, frames, samples) / ALIGN_RATE
        phones, ranges = phones_from_misaki(phonemes)
        times = [*starts[1:], samples / SAMPLE_RATE]  # of each phone; starts[0] is the silence before
        spans = words_of(text, phones, ranges)
        return [(w.text, float(times[w.start]), float(times[min(w.end, len(times) - 1)])) for w in spans]


@dataclass
class _Stage:
    """Two growing channels and their labels."""

    rng: np.random.Generator
    user: list[tuple[float, np.ndarray]] = field(default_factory=list)
    own: list[tuple[float, np.ndarray]] = field(default_factory=list)
    words: list[TimedWord] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    now: float = 0.4

    def gap(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))


def make_dialogue(seed: int, split: Split, assistant: Speaker, user: Speaker, turns: int = 4) -> Dialogue:
    """Renders the dialogue of a seed.

    Raises:
        BadInput: the assistant's teacher does not know when its words sound.
    """
    if not assistant.knows_words:
        raise BadInput(f"{assistant.spec.name} has no exact word times; the assistant is hibari or a Kokoro voice")
    stage = _Stage(np.random.default_rng([seed, 1]))
    exchanges, speed = script(seed, split, turns), stage.gap(0.92, 1.1)
    for exchange in exchanges:
        _ask(stage, exchange, user, speed)
        _reply(stage, exchange, assistant, user, speed)
        stage.now += stage.gap(0.4, 1.4)
    stage.events.append(Event("end", stage.now, stage.now))
    stage.events.sort(key=lambda e: e.start)
    return Dialogue(_mix(stage), stage.words, stage.events, [e.topic for e in exchanges])


def _ask(stage: _Stage, exchange: Exchange, user: Speaker, speed: float) -> None:
    """The user's turn, now and then with a pause for thought within it."""
    begin = stage.now
    pausing = len(exchange.parts) > 1 and stage.rng.random() < 0.35
    for number, part in enumerate(exchange.parts if pausing else (exchange.user,)):
        if number:
            pause = stage.gap(0.5, 1.2)
            stage.events.append(Event("pause", stage.now, stage.now + pause))
            stage.now += pause
        audio, _ = user.say(part, speed, stage.rng)
        stage.user.append((stage.now, audio))
        stage.now += len(audio) / SAMPLE_RATE
    stage.events.append(Event("turn", begin, stage.now, exchange.user, exchange.answer, exchange.topic))


def _reply(stage: _Stage, exchange: Exchange, assistant: Speaker, user: Speaker, speed: float) -> None:
    """The assistant's turn; a long one may be interrupted, accompanied by a backchannel, or disturbed by a noise."""
    audio, words = assistant.say(exchange.reply, exchange.speed, stage.rng)
    audio = np.asarray(audio * 10 ** (exchange.gain / 20), np.float32)
    begin = stage.now + stage.gap(0.24, 0.4)
    seconds, dice = len(audio) / SAMPLE_RATE, stage.rng.random()
    if exchange.long and dice < 0.45:
        _interrupted(stage, begin, audio, words, assistant, user, speed)
        return
    if dice < (0.85 if exchange.long else 0.25):
        at = begin + seconds * stage.gap(0.35, 0.6)
        if exchange.long:
            sound, _ = user.say(str(stage.rng.choice(BACKCHANNELS)), speed, stage.rng)
            stage.events.append(Event("backchannel", at, at + len(sound) / SAMPLE_RATE))
        else:
            sound = _knock(stage.rng)
            stage.events.append(Event("noise", at, at + len(sound) / SAMPLE_RATE))
        stage.user.append((at, sound))
    _put(stage, begin, audio, words)
    stage.now = begin + seconds


def _interrupted(
    stage: _Stage,
    begin: float,
    audio: np.ndarray,
    words: list[TimedWord],
    assistant: Speaker,
    user: Speaker,
    speed: float,
) -> None:
    """The user says stop; the assistant is silent a third of a second later, and says that it heard."""
    seconds = len(audio) / SAMPLE_RATE
    sound, _ = user.say(STOP.user, speed, stage.rng)
    at = begin + seconds * stage.gap(0.3, 0.6)
    stops = min(seconds, at + stage.gap(0.28, 0.42) - begin)
    cut = audio[: int(stops * SAMPLE_RATE)].copy()
    fade = min(len(cut), int(FADE * SAMPLE_RATE))
    cut[len(cut) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    _put(stage, begin, cut, [w for w in words if w[2] <= stops])
    stage.user.append((at, sound))
    end = at + len(sound) / SAMPLE_RATE
    stage.events.append(Event("interrupt", at, end, STOP.user, STOP.answer, STOP.topic))
    okay, its = assistant.say(STOP.reply, 1.0, stage.rng)
    answer = max(end, begin + stops) + stage.gap(0.24, 0.4)
    _put(stage, answer, okay, its)
    stage.now = answer + len(okay) / SAMPLE_RATE


def _put(stage: _Stage, begin: float, audio: np.ndarray, words: Sequence[TimedWord]) -> None:
    stage.own.append((begin, audio))
    stage.words += [(w, begin + a, begin + b) for w, a, b in words]


def _knock(rng: np.random.Generator) -> np.ndarray:
    """A burst of noise that dies away: a door, a dropped book."""
    count = int(rng.uniform(0.1, 0.4) * SAMPLE_RATE)
    envelope = np.exp(-np.arange(count) / SAMPLE_RATE / rng.uniform(0.03, 0.1))
    return np.asarray(0.25 * rng.standard_normal(count) * envelope, np.float32)


def _mix(stage: _Stage) -> np.ndarray:
    """Both channels; the user's with a gain, a noise floor, and now and then an echo of the assistant."""
    rng, total = stage.rng, int((stage.now + 0.5) * SAMPLE_RATE)
    audio = np.zeros((2, total), np.float32)
    for channel, pieces in enumerate((stage.user, stage.own)):
        for begin, piece in pieces:
            first = int(begin * SAMPLE_RATE)
            room = audio[channel, first : first + len(piece)]
            room += piece[: len(room)]
    if rng.random() < 0.5:
        audio[0] *= 10 ** (rng.uniform(-12, 6) / 20)
    if rng.random() < 0.3:
        level = LEVEL * 10 ** (-rng.uniform(15, 40) / 20)
        audio[0] += np.asarray(level * rng.standard_normal(total), np.float32)
    if rng.random() < 0.3:
        late = int(rng.uniform(0.1, 0.5) * SAMPLE_RATE)
        audio[0, late:] += rng.uniform(0, 0.2) * audio[1, : total - late]
    return np.clip(audio, -0.99, 0.99)


Tick = Callable[[str, float, float], None]


def make_dialogues(
    out: Path,
    count: int,
    *,
    assistant: TeacherSpec,
    users: Sequence[TeacherSpec],
    split: Split = "train",
    seed: int = 0,
    turns: int = 4,
    kokoro: str | None = None,
    tick: Tick | None = None,
) -> list[DialogueRow]:
    """Makes `count` dialogues in a folder; what is there already is kept, and the run goes on after it.

    Raises:
        BadInput: no users, or one of them has the assistant's voice. MissingFile, MissingExtra: of a teacher.
    """
    if count < 1 or not users:
        raise BadInput("dialogues need a count of 1 or more and at least one user's voice")
    if any((u.name, u.voice) == (assistant.name, assistant.voice) or u.name == "hibari" for u in users):
        raise BadInput("the users' voices must be others than the assistant's (and not hibari, which has one voice)")
    import soundfile

    out.mkdir(parents=True, exist_ok=True)
    done = {row.id: row for row in load_dialogues(out)} if (out / "dialogues.jsonl").exists() else {}
    speakers = [Speaker(spec, kokoro) for spec in users]
    own = Speaker(assistant, kokoro)
    for number in range(count):
        name, user = f"{split}-{seed:04d}-{number:06d}", speakers[number % len(speakers)]
        if name not in done:
            made = make_dialogue(seed * 1_000_000 + number, split, own, user, turns)
            with beside(out / f"{name}.flac") as part:
                soundfile.write(part, made.audio.T, SAMPLE_RATE, subtype="PCM_16")
            row = DialogueRow(
                name,
                out / f"{name}.flac",
                made.audio.shape[1] / SAMPLE_RATE,
                tuple(made.words),
                tuple(made.events),
                split,
                user.spec.label,
            )
            done[name] = row
            with open(out / "dialogues.jsonl", "a", encoding="utf-8") as lines:
                lines.write(json.dumps({**asdict(row), "path": row.path.name}, ensure_ascii=False) + "\n")
        if tick is not None:
            tick(split, number + 1, count)
    return list(done.values())


def load_dialogues(folder: Path, split: str | None = None) -> list[DialogueRow]:
    """The dialogues of a corpus.

    Raises:
        MissingFile, CorruptFile: there is none, or a line is damaged.
    """
    path = folder / "dialogues.jsonl"
    if not path.is_file():
        raise MissingFile(f"no dialogues in {folder}; make them with `quaver corpus dialogues --out {folder}`")
    rows = [_row(line, folder, n) for n, line in _lines(path)]
    return [row for row in rows if split in (None, row.split)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    whole = path.read_text(encoding="utf-8")
    for number, line in enumerate(whole.splitlines(), 1):
        if line.strip():
            yield number, line


def _row(line: str, folder: Path, number: int) -> DialogueRow:
    try:
        raw: dict[str, Any] = json.loads(line)
        words = tuple((str(w), float(a), float(b)) for w, a, b in raw["words"])
        events = tuple(Event(**e) for e in raw["events"])
        path = folder / raw["path"]
        return DialogueRow(raw["id"], path, float(raw["seconds"]), words, events, raw["split"], raw["voice"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{folder / 'dialogues.jsonl'}, line {number}: no dialogue ({error})") from error


def read_channels(row: DialogueRow) -> np.ndarray:
    """float32 `[2, sample]` at 24 kHz."""
    import soundfile

    try:
        audio, rate = soundfile.read(row.path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise CorruptFile(f"{row.path} cannot be read as audio ({error.error_string}); make it again") from None
    if rate != SAMPLE_RATE or audio.shape[1] != 2:
        raise CorruptFile(f"{row.path} should have two channels at {SAMPLE_RATE} Hz; make it again")
    return audio.T
