"""Who can be judged: a voice of a synthesizer, a teacher, a folder of recordings, each as `say(index, text, seed)`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..app.audio import FORMATS, read_audio
from ..errors import BadInput, MissingExtra, MissingFile

__all__ = [
    "RecordedVoice", "Spoken", "StreamingVoice", "SynthesizerLike", "TeacherVoice", "Voice", "audio_files", "read_mono",
    "teacher_voice",
]  # fmt: skip


@dataclass(frozen=True)
class Spoken:
    """One sentence. Attributes: samples float32 [sample]; wall, cpu: seconds it took; first: wall seconds until the
    first samples came (None: it came at once, or from a file)."""

    samples: np.ndarray
    sample_rate: int
    wall: float | None = None
    cpu: float | None = None
    first: float | None = None


class Voice(Protocol):
    """Something that says a text. `timed`: whether its times mean anything; `takes_long_text`: any length in one go."""

    name: str
    voice: str
    timed: bool
    takes_long_text: bool

    def say(self, index: int, text: str, seed: int) -> Spoken: ...


class ChunkLike(Protocol):
    """The part of tts.synthesizer.AudioChunk that is looked at."""

    @property
    def samples(self) -> np.ndarray: ...


class SynthesizerLike(Protocol):
    """The part of tts.synthesizer.Synthesizer that is judged."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def voices(self) -> Sequence[str]: ...

    def stream(self, text: str, *, voice: str | None = None, seed: int = 0) -> Iterator[Any]: ...


class StreamingVoice:
    """A voice of a synthesizer, listened to as it streams."""

    timed = True
    takes_long_text = True

    def __init__(self, synthesizer: SynthesizerLike, name: str, voice: str) -> None:
        self._synthesizer = synthesizer
        self.name = name
        self.voice = voice

    def say(self, index: int, text: str, seed: int) -> Spoken:
        wall, cpu = time.perf_counter(), time.process_time()
        first: float | None = None
        parts: list[np.ndarray] = []
        for chunk in self._synthesizer.stream(text, voice=self.voice or None, seed=seed):
            if first is None and len(chunk.samples):
                first = time.perf_counter() - wall
            parts.append(chunk.samples)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        samples = np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)
        return Spoken(samples, self._synthesizer.sample_rate, wall, cpu, first)


class TeacherVoice:
    """A voice of training/teachers.py: the same judges on the same sentences show what the data could teach."""

    timed = True
    takes_long_text = False

    def __init__(self, teacher: Any, sample_rate: int, name: str, voice: str) -> None:
        self._teacher = teacher
        self._sample_rate = sample_rate
        self.name = name
        self.voice = voice

    def say(self, index: int, text: str, seed: int) -> Spoken:
        wall, cpu = time.perf_counter(), time.process_time()
        samples = self._teacher.say(text, self.voice, 1.0, np.random.default_rng(seed))[0]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Spoken(np.asarray(samples, np.float32), self._sample_rate, wall, cpu)


class RecordedVoice:
    """A folder of recordings whose names end in the number of the sentence, from 0: `000.wav`, `am_12.flac`.

    Raises:
        MissingFile: the folder does not exist or holds none.
        BadInput: two recordings of one sentence.
    """

    timed = False
    takes_long_text = False

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.name = name or folder.name
        self.voice = ""
        self._files: dict[int, Path] = {}
        for path in audio_files(folder):
            number = re.search(r"(\d+)$", path.stem)
            if not number:
                continue
            if int(number[1]) in self._files:
                raise BadInput(f"{path} and {self._files[int(number[1])]} are both sentence {int(number[1])}")
            self._files[int(number[1])] = path
        if not self._files:
            raise MissingFile(f"{folder} holds no recordings named by sentence number, such as 000.wav")

    def say(self, index: int, text: str, seed: int) -> Spoken:
        if index not in self._files:
            raise MissingFile(f"{self.name} has no recording of sentence {index} ({text})")
        return Spoken(*read_mono(self._files[index]))


def teacher_voice(spec: str) -> TeacherVoice:
    """`hibari`, `kokoro:am_michael`: a teacher and its voice (its first one if none is named).

    Raises:
        BadInput: no such teacher or voice. MissingExtra, MissingFile: it is not installed.
    """
    try:
        from ..training.teachers import SAMPLE_RATE, load_teacher
    except ImportError as error:
        raise MissingExtra(f"teachers need the training extra ({error.name}): pip install 'quaver[train]'") from None
    name, _, voice = spec.partition(":")
    teacher = load_teacher(name)
    voices = teacher.voices
    if voice and voice not in voices:
        raise BadInput(f"{name} has no voice {voice}; choose from {', '.join(voices)}")
    return TeacherVoice(teacher, SAMPLE_RATE, name, voice or voices[0])


def read_mono(path: Path, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """A recording as float32 [sample], channels averaged, and its rate. Raises as app.audio.read_audio."""
    samples, rate = read_audio(path, sample_rate)
    return samples.mean(axis=0), rate


def audio_files(folder: Path) -> list[Path]:
    """All recordings under a folder, sorted. Raises MissingFile if it does not exist or holds none."""
    if not folder.is_dir():
        raise MissingFile(f"there is no folder {folder}; check the name")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    if not found:
        raise MissingFile(f"{folder} holds no recordings ({', '.join(FORMATS)})")
    return found
