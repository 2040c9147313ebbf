"""Texts into speech: slots of the same `SpeechBatch` that the server's engine runs, always as full as they can be.

Slots, chunk sizes and the kernels below them are the same for all rows, and no row's bits depend on its slot or its
neighbours (law 3), so a row's samples are the same in every worker.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import BadInput, QuaverError
from ..files import replacing
from ..speculation import Speculating
from .journal import Entry
from .names import inside
from .rows import Row
from .work import Task, failure

if TYPE_CHECKING:
    from ...tts.speaking import AudioChunk

__all__ = ["CHUNKS", "SLOTS", "SpeechWork"]

SLOTS = 16
CHUNKS = (8,)
"""Frames per decoded chunk: nobody waits for the first one, and larger ones cost less per frame."""
MODELS = 3
"""How many models a station keeps, besides those that are speaking."""
DEFAULT_MODEL = "quaver-en"


@dataclass(frozen=True)
class SpeechWork:
    """How texts are spoken where their rows do not say.

    Attributes:
        model, voice, speed, pause, temperature, codebooks: as for `quaver say`.
        suffix: of the audio files. timestamps: suffix of a table beside each (.json, .srt), or "".
        slots: rows that one worker speaks at once; another number gives other roundings.
        speculation: how answers are drafted and verified; a fixed draft length, as no row may depend on the machine.
        asr: a recogniser that reads back what was spoken (word error rate), or None. check: read back phones.
    """

    model: str = "default"
    voice: str | None = None
    speed: float = 1.0
    pause: float = 1.0
    temperature: float | None = None
    codebooks: int | None = None
    suffix: str = ".wav"
    timestamps: str = ""
    slots: int = SLOTS
    speculation: Speculating = field(default_factory=Speculating)
    asr: str | None = None
    check_phones: bool = False

    @property
    def width(self) -> int:
        return self.slots

    @property
    def modules(self) -> tuple[str, ...]:
        return "quaver.tts.synthesizer", "quaver.tts.script", "quaver.app.audio", "soundfile", "hibari.g2p"

    def name_of(self, row: Row) -> str:
        """The row's model, "default" resolved."""
        name = row.model or self.model
        return DEFAULT_MODEL if name == "default" else name

    def voice_of(self, row: Row) -> tuple[str, str]:
        name = self.name_of(row)
        return row.voice or self.voice or _default_voice(name), name

    def settings(self, row: Row) -> dict[str, Any]:
        voice, name = self.voice_of(row)
        keep = ("pause", "temperature", "codebooks", "suffix", "timestamps", "slots", "asr", "check_phones")
        options = {key: getattr(self, key) for key in keep}
        speed = self.speed if row.speed is None else row.speed
        if self.speculation.on:
            options["speculation"] = self.speculation.fingerprint(name)
        return {**options, "voice": voice, "speed": speed, "models": model_hashes(name)}

    def check(self) -> None:
        model_hashes(self.name_of(Row(0, "")))
        self.speculation.check()
        if self.speculation.on and self.speculation.length == "auto":
            raise BadInput("--draft-length auto measures a machine, and no row may depend on one; give a number")
        if self.asr or self.check_phones:
            from .check import Checker

            Checker(self).check()

    def station(self, out: Path, threads: int) -> SpeechStation:
        from ..runtime import use_threads

        use_threads(threads)
        return SpeechStation(self, out)


@lru_cache(maxsize=64)
def model_hashes(name: str) -> tuple[str, str]:
    """SHA-256 of the weights of a model and of its codec.

    Raises:
        MissingFile, CorruptFile: there is no such model.
    """
    from ...codecs.folders import model_folder, read_config, weights_sha256

    folder = model_folder(name)
    codec = str(read_config(folder).get("codec", ""))
    local = folder.parent / Path(codec).name
    try:
        place = local if (local / "config.json").exists() else model_folder(codec)
    except QuaverError:  # a flow without a codec; loading says more if that is wrong
        place = folder
    return weights_sha256(folder), weights_sha256(place)


@lru_cache(maxsize=64)
def _default_voice(name: str) -> str:
    from ...codecs.folders import model_folder, read_config, read_json

    folder = model_folder(name)
    settings = read_json(folder / "settings.json") if (folder / "settings.json").exists() else {}
    voice = settings.get("default") or settings.get("voice")
    return str(voice or (read_config(folder).get("voices") or ["default"])[0])


# -- models with slots ------------------------------------------------------------------------------------------------
class _Lane(Protocol):
    """A model that speaks some rows at once."""

    sample_rate: int

    @property
    def room(self) -> bool: ...
    @property
    def busy(self) -> bool: ...
    def join(self, key: str, text: str, options: dict[str, Any]) -> None: ...
    def leave(self, key: str) -> None: ...
    def tick(self) -> tuple[Mapping[str, list[AudioChunk]], list[str], dict[str, Exception]]:
        """Chunks by key, keys that are done, keys that failed."""
        ...


class _Slots:
    """A pointer voice: `SpeechBatch`, every slot in one step."""

    def __init__(self, synthesizer: Any, slots: int) -> None:
        self.synthesizer, self.sample_rate = synthesizer, synthesizer.sample_rate
        self.batch = synthesizer.batch(slots, CHUNKS)
        self.keys: list[str | None] = [None] * slots

    @property
    def room(self) -> bool:
        return None in self.keys

    @property
    def busy(self) -> bool:
        return any(key is not None for key in self.keys)

    def join(self, key: str, text: str, options: dict[str, Any]) -> None:
        from ...tts.script import Script

        slot = self.keys.index(None)
        self.batch.join(slot, Script(self.synthesizer.frontend, text), self.synthesizer.settings_of(**options))
        self.keys[slot] = key

    def leave(self, key: str) -> None:
        slot = self.keys.index(key)
        self.batch.leave(slot)
        self.keys[slot] = None

    def tick(self) -> tuple[Mapping[str, list[AudioChunk]], list[str], dict[str, Exception]]:
        chunks = {str(self.keys[slot]): its for slot, its in self.batch.tick().items()}
        failed = {str(self.keys[slot]): error for slot, error in self.batch.failures.items()}
        done = [key for slot, key in enumerate(self.keys) if key and key not in failed and self.batch.done(slot)]
        return chunks, done, failed


class _OneByOne:
    """A token model, which has no slots: one row at a time."""

    def __init__(self, synthesizer: Any) -> None:
        self.synthesizer, self.sample_rate = synthesizer, synthesizer.sample_rate
        self.key = ""
        self.chunks: Iterator[AudioChunk] = iter(())

    @property
    def room(self) -> bool:
        return not self.key

    @property
    def busy(self) -> bool:
        return bool(self.key)

    def join(self, key: str, text: str, options: dict[str, Any]) -> None:
        self.chunks = iter(self.synthesizer.stream(text, **options))
        self.key = key

    def leave(self, key: str) -> None:
        self.key, self.chunks = "", iter(())

    def tick(self) -> tuple[Mapping[str, list[AudioChunk]], list[str], dict[str, Exception]]:
        try:
            chunk = next(self.chunks, None)
        except Exception as error:
            return {}, [], {self.key: error}
        return ({}, [self.key], {}) if chunk is None else ({self.key: [chunk]}, [], {})


# -- rows in the making -----------------------------------------------------------------------------------------------
class _Saying:
    """A row that is being spoken: its file so far, and what the manifest will say of it."""

    def __init__(self, work: SpeechWork, task: Task, out: Path, sample_rate: int) -> None:
        from ..audio import AudioWriter

        self.work, self.task, self.sample_rate = work, task, sample_rate
        self.target = inside(out, task.path)
        self.words: list[Any] = []
        self.phones: list[Any] = []
        self.hash = hashlib.sha256()
        self.kept: list[np.ndarray] | None = [] if work.asr or work.check_phones else None
        self.files = ExitStack()
        self.writer = self.files.enter_context(AudioWriter(self.target, sample_rate))

    def add(self, chunk: AudioChunk) -> None:
        from ..audio import to_pcm16

        self.words += chunk.words
        self.phones += chunk.phones
        if len(chunk.samples):
            self.writer.write(chunk.samples)
            self.hash.update(to_pcm16(chunk.samples[None]).tobytes())
            if self.kept is not None:
                self.kept.append(chunk.samples)

    def end(self, checker: Any) -> Entry:
        """Completes the files; the entry."""
        if not self.writer.samples:
            raise QuaverError("the model made no audio for this text; say it in other words")
        seconds = self.writer.samples / self.sample_rate
        checked = checker(self.task.row.text, np.concatenate(self.kept), self.sample_rate) if self.kept else {}
        if self.work.timestamps:
            self._write_table(seconds)
        self.files.close()
        voice, model = self.work.voice_of(self.task.row)
        row, (weights, codec) = self.task.row, model_hashes(model)
        return {
            "digest": self.task.digest,
            "number": row.number,
            "id": row.id,
            "path": self.task.path,
            "bytes": self.target.stat().st_size,
            "text": row.text,
            "voice": voice,
            "model": model,
            "model_sha256": weights,
            "codec_sha256": codec,
            "speed": self.work.speed if row.speed is None else row.speed,
            "seed": self.task.seed,
            "seconds": round(seconds, 4),
            "samples": self.writer.samples,
            "sample_rate": self.sample_rate,
            "pcm_sha256": self.hash.hexdigest(),
            "words": [[w.text, round(w.start, 3), round(w.end, 3)] for w in self.words],
            **checked,
        }

    def _write_table(self, seconds: float) -> None:
        from ..timestamps import WRITERS

        text = WRITERS[self.work.timestamps](self.words, self.phones, seconds)
        with replacing(self.target.with_suffix(self.work.timestamps)) as file:
            file.write(text.encode())

    def drop(self, error: BaseException) -> None:
        """Leaves nothing behind."""
        self.files.__exit__(type(error), error, None)


@dataclass
class SpeechStation:
    """The rows that one process speaks."""

    work: SpeechWork
    out: Path
    lanes: dict[str, _Lane] = field(default_factory=dict)
    waiting: deque[Task] = field(default_factory=deque)
    saying: dict[str, dict[str, _Saying]] = field(default_factory=dict)
    failed: list[Entry] = field(default_factory=list)
    checker: Any = None

    @property
    def room(self) -> bool:
        return len(self.waiting) + sum(map(len, self.saying.values())) < self.work.slots

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.failed or any(self.saying.values()))

    def take(self, task: Task) -> None:
        self.waiting.append(task)

    def step(self) -> list[Entry]:
        self._seat()
        entries, self.failed = self.failed, []
        for name, rows in self.saying.items():
            if rows:
                entries += self._tick(self.lanes[name], rows)
        return entries

    def close(self) -> None:
        for name, rows in self.saying.items():
            for key, saying in rows.items():
                self.lanes[name].leave(key)
                saying.drop(QuaverError("stopped"))
        self.saying.clear()
        self.waiting.clear()

    def _seat(self) -> None:
        """Gives waiting rows the free slots of their models."""
        for task in [self.waiting.popleft() for _ in range(len(self.waiting))]:
            name = self.work.name_of(task.row)
            try:
                lane = self._lane(name)
                if not lane.room:
                    self.waiting.append(task)
                    continue
                saying = _Saying(self.work, task, self.out, lane.sample_rate)
                lane.join(task.digest, task.row.text, self._options(task, lane))
                self.saying.setdefault(name, {})[task.digest] = saying
            except Exception as error:
                self.failed.append(failure(task, error))

    def _options(self, task: Task, lane: _Lane) -> dict[str, Any]:
        row, work = task.row, self.work
        return {
            "voice": row.voice or work.voice,
            "speed": work.speed if row.speed is None else row.speed,
            "seed": task.seed,
            "temperature": work.temperature,
            "pause": work.pause,
            "codebooks": work.codebooks,
        }

    def _lane(self, name: str) -> _Lane:
        if name not in self.lanes:
            from ...tts.synthesizer import load_synthesizer

            idle = [other for other in self.lanes if not self.saying.get(other)]
            for other in idle[: max(0, len(self.lanes) - MODELS + 1)]:
                del self.lanes[other]
            synthesizer = load_synthesizer(name)
            if self.work.timestamps and not synthesizer.timed:
                raise BadInput("this model does not know when its words sound; leave --timestamps away")
            self.work.speculation.apply(synthesizer, name)
            timed = synthesizer.timed
            self.lanes[name] = _Slots(synthesizer, self.work.slots) if timed else _OneByOne(synthesizer)
        return self.lanes[name]

    def _tick(self, lane: _Lane, rows: dict[str, _Saying]) -> list[Entry]:
        chunks, done, failed = lane.tick()
        for key, its in chunks.items():
            try:
                for chunk in its:
                    rows[key].add(chunk)
            except Exception as error:  # of writing: a full disk
                failed[key] = error
        entries = []
        for key in [*done, *(key for key in failed if key not in done)]:
            saying = rows.pop(key)
            lane.leave(key)
            try:
                if key in failed:
                    raise failed[key]
                entries.append(saying.end(self._check))
            except Exception as error:
                saying.drop(error)
                entries.append(failure(saying.task, error))
        return entries

    def _check(self, text: str, samples: np.ndarray, sample_rate: int) -> dict[str, Any]:
        if self.checker is None:
            from .check import Checker

            self.checker = Checker(self.work)
        return self.checker(text, samples, sample_rate)
