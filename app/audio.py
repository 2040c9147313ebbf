"""Audio files and pipes: anything libsndfile reads comes in, at any rate and channel count, block by block."""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from ..errors import BadInput, QuaverError
from .files import STDIO, check_readable, check_writable, replacing

MIN_RATE, MAX_RATE = 8_000, 192_000
MAX_CHANNELS = 8
BLOCK = 1 << 16  # samples per channel that are read at once
STDIN_IN_MEMORY = 1 << 26  # bytes; more than this is spooled to a temporary file

# suffix -> libsndfile format and subtype
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
RAW_SUFFIXES = (".raw", ".pcm")


class AudioSource:
    """An open audio file: its `sample_rate`, `channels`, and `frames` (samples per channel; None in a pipe)."""

    def __init__(self, file: soundfile.SoundFile, name: str) -> None:
        self._file = file
        self.name = name
        self.sample_rate: int = file.samplerate
        self.channels: int = file.channels
        # A WAV from a pipe carries no length, an MP3 only an estimate.
        self.frames: int | None = file.frames if file.format in ("WAV", "FLAC") and file.frames < 1 << 31 else None

    def blocks(self, sample_rate: int | None = None) -> Iterator[np.ndarray]:
        """float32 [channels, n] in [-1, 1], resampled to `sample_rate`; louder samples are clipped.

        n samples in give exactly ceil(n * sample_rate / self.sample_rate) out. Raises BadInput for NaN or infinity
        (with its position), for damaged files, and for files without a single sample.
        """
        target = sample_rate or self.sample_rate
        resampler = Resampler(self.sample_rate, target, self.channels) if target != self.sample_rate else None
        seen = 0
        for block in self._raw_blocks():
            _check_finite(block, seen, self.name)
            seen += block.shape[0]
            if resampler:
                block = resampler.push(block)
            if block.shape[0]:
                yield np.ascontiguousarray(np.clip(block, -1.0, 1.0).T)
        if not seen:
            raise BadInput(f"{self.name} has no samples; record or synthesise something first")
        if resampler:
            rest = resampler.close()
            if rest.shape[0]:
                yield np.ascontiguousarray(np.clip(rest, -1.0, 1.0).T)

    def _raw_blocks(self) -> Iterator[np.ndarray]:
        seen = 0
        try:
            while (block := self._file.read(BLOCK, dtype="float32", always_2d=True)).shape[0]:
                seen += block.shape[0]
                yield block
        except soundfile.LibsndfileError as error:
            raise BadInput(f"{self.name} is damaged after {seen} samples: {error.error_string}") from None
        if self.frames is not None and seen < self.frames:
            raise BadInput(f"{self.name} ends after {seen} of {self.frames} samples; it was cut, get it again")


class Resampler:
    """soxr as a stream of [n, channels], with an output length that is integer maths instead of nearly so."""

    def __init__(self, source: int, target: int, channels: int) -> None:
        self._stream = soxr.ResampleStream(source, target, channels, dtype="float32")
        self._source, self._target, self._channels = source, target, channels
        self._in = self._out = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        self._in += block.shape[0]
        return self._emit(self._stream.resample_chunk(block))

    def close(self) -> np.ndarray:
        rest = self._stream.resample_chunk(np.zeros((0, self._channels), dtype=np.float32), last=True)
        missing = self._wanted() - self._out - rest.shape[0]
        return self._emit(np.pad(rest, ((0, max(0, missing)), (0, 0))))

    def _wanted(self) -> int:
        return -(-self._in * self._target // self._source)

    def _emit(self, block: np.ndarray) -> np.ndarray:
        block = block[: self._wanted() - self._out]
        self._out += block.shape[0]
        return block


@contextmanager
def open_audio(source: str | Path) -> Iterator[AudioSource]:
    """Open a file, or standard input for "-". Raises MissingFile or BadInput that says what is wrong with it."""
    with ExitStack() as stack:
        name, handle = _input(source, stack)
        try:
            file = stack.enter_context(soundfile.SoundFile(handle))
        except soundfile.LibsndfileError as error:
            raise BadInput(
                f"{name} is not audio that can be read ({error.error_string.strip()}); use wav, flac, ogg or mp3"
            ) from None
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise BadInput(f"{name} has {file.samplerate} Hz; quaver takes {MIN_RATE} to {MAX_RATE} Hz")
        if file.channels > MAX_CHANNELS:
            raise BadInput(f"{name} has {file.channels} channels; quaver takes up to {MAX_CHANNELS}")
        yield AudioSource(file, name)


def _input(source: str | Path, stack: ExitStack) -> tuple[str, Any]:
    if str(source) != STDIO:
        path = check_readable(source, "audio file")
        if path.stat().st_size == 0 and path.is_file():
            raise BadInput(f"{source} is empty (0 bytes)")
        return str(source), str(path)
    # libsndfile must seek: spool the pipe, in memory as long as it is small.
    spool = tempfile.SpooledTemporaryFile(max_size=STDIN_IN_MEMORY)  # noqa: SIM115 (the stack closes it)
    stack.callback(spool.close)
    while data := sys.stdin.buffer.read(1 << 20):
        spool.write(data)
    if not spool.tell():
        raise BadInput("there was nothing on standard input")
    spool.seek(0)
    return "standard input", spool


def read_audio(source: str | Path, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """A whole file ("-": standard input) as float32 [channels, samples] in [-1, 1], and its rate.

    Resampled when `sample_rate` is given. Raises MissingFile, or BadInput (not audio, damaged, no samples, NaN).
    """
    with open_audio(source) as audio:
        blocks = list(audio.blocks(sample_rate))
        return np.concatenate(blocks, axis=1), sample_rate or audio.sample_rate


class AudioWriter:
    """Writes audio as it comes; the file appears under its name when it is complete.

    The suffix chooses the format (wav with 16 bits, flac, ogg, opus, mp3; .raw and .pcm are bare 16-bit samples).
    "-" streams a WAV of unknown length to standard output, or bare samples with `raw`. Nothing is opened before the
    first samples, so a failure before them leaves no trace. A context manager: an error inside it discards the file.
    """

    def __init__(self, target: str | Path, sample_rate: int, channels: int = 1, *, raw: bool = False) -> None:
        self.target = str(target)
        self.sample_rate = sample_rate
        self.channels = channels
        self.samples = 0
        suffix = Path(self.target).suffix.lower()
        self._piped = self.target == STDIO
        self._raw = raw or suffix in RAW_SUFFIXES
        if not self._piped:
            check_format(self.target, sample_rate, raw=raw)
            check_writable(self.target)
        self._format = FORMATS.get(suffix, FORMATS[".wav"])
        self._stack = ExitStack()
        self._out: BinaryIO | None = None
        self._sound: soundfile.SoundFile | None = None

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, samples: np.ndarray) -> None:
        """Append float samples [channels, n] or [n]; clipped to [-1, 1]. Raises QuaverError if one is not finite."""
        block = np.atleast_2d(np.asarray(samples, dtype=np.float32))
        if not np.isfinite(block).all():
            raise QuaverError("the model made samples that are not numbers; nothing was written")
        if self._out is None:
            self._open()
        pcm = to_pcm16(block)
        if self._sound is not None:
            self._write_sound(self._sound, pcm)
        elif self._out is not None:
            self._out.write(pcm.tobytes())
            self._out.flush()
        self.samples += block.shape[1]

    def _open(self) -> None:
        self._out = self._stack.enter_context(replacing(self.target))
        if self._raw:
            return
        if self._piped or not self._out.seekable():
            self._out.write(wav_header(self.sample_rate, self.channels))
            return
        form, subtype = self._format
        self._watched = _Watched(self._out)
        file: Any = (
            self._watched
        )  # libsndfile takes whatever writes, seeks and tells; its types ask for a whole BinaryIO
        self._stack.callback(self._watched.check)  # once libsndfile has closed: it writes its last bytes then
        self._sound = self._stack.enter_context(
            soundfile.SoundFile(file, "w", self.sample_rate, self.channels, format=form, subtype=subtype)
        )

    def _write_sound(self, sound: soundfile.SoundFile, pcm: np.ndarray) -> None:
        try:
            sound.write(pcm)
        except (soundfile.SoundFileError, AssertionError):  # the latter for a short write
            self._watched.check()
            raise
        self._watched.check()


class _Watched:
    """A file that libsndfile writes to. It cannot pass on what a write raises (a full disk): the first error is kept
    for `check`, and nothing more is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        return self._try(self._file.write, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._try(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, count: int = -1) -> bytes:
        return self._file.read(count)

    def flush(self) -> None:
        self._try(self._file.flush)

    def check(self) -> None:
        """Raises the error that was kept."""
        if self._error is not None:
            raise self._error

    def _try(self, call: Any, *arguments: Any) -> int:
        if self._error is None:
            try:
                return call(*arguments)
            except OSError as error:
                self._error = error
        return 0


def check_format(target: str | Path, sample_rate: int | None = None, *, raw: bool = False) -> None:
    """Raise BadInput unless the suffix of `target` names a format that can hold this rate."""
    path = Path(str(target))
    suffix = path.suffix.lower()
    device = path.exists() and not path.is_file()
    if raw or device or str(target) == STDIO or suffix in RAW_SUFFIXES:
        return
    if suffix not in FORMATS:
        known = ", ".join([*FORMATS, *RAW_SUFFIXES])
        raise BadInput(f"{target}: the format follows from the suffix, and {suffix or 'none'} is not one of {known}")
    if sample_rate and suffix == ".opus" and sample_rate not in (8000, 12000, 16000, 24000, 48000):
        raise BadInput(f"Opus cannot hold {sample_rate} Hz; write {path.with_suffix('.flac')}")


def write_audio(path: str | Path, samples: np.ndarray, sample_rate: int) -> None:
    """Write float samples [channels, n] or [n] as a whole file; see AudioWriter for formats and errors."""
    block = np.atleast_2d(samples)
    with AudioWriter(path, sample_rate, block.shape[0]) as writer:
        writer.write(block)


def to_pcm16(block: np.ndarray) -> np.ndarray:
    """float [channels, n] -> little-endian int16 [n, channels], rounded, clipped."""
    return np.clip(np.rint(block.T * 32767.0), -32768, 32767).astype("<i2")


def wav_header(sample_rate: int, channels: int) -> bytes:
    """Header of a 16-bit WAV of unknown length: both sizes are 0xFFFFFFFF, which readers take as "to the end"."""
    unknown, frame = 0xFFFFFFFF, 2 * channels
    form = struct.pack("<IHHIIHH", 16, 1, channels, sample_rate, sample_rate * frame, frame, 16)
    return struct.pack("<4sI4s4s", b"RIFF", unknown, b"WAVE", b"fmt ") + form + struct.pack("<4sI", b"data", unknown)


def _check_finite(block: np.ndarray, offset: int, name: str) -> None:
    bad = np.argwhere(~np.isfinite(block))
    if len(bad):
        sample, channel = int(bad[0][0]) + offset, int(bad[0][1])
        value = block[bad[0][0], bad[0][1]]
        raise BadInput(f"{name} has {value} at sample {sample} of channel {channel}; quaver takes finite audio only")
