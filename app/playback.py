"""Playing audio while it is made: `sounddevice` when it is there, else the first player program that is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import MissingExtra, QuaverError
from .audio import to_pcm16, wav_header

# program -> arguments for 16-bit mono at a rate, from standard input
PROGRAMS: dict[str, Callable[[int], list[str]]] = {
    "paplay": lambda rate: ["--raw", "--format=s16le", f"--rate={rate}", "--channels=1"],
    "aplay": lambda rate: ["-q", "-t", "raw", "-f", "S16_LE", "-r", str(rate), "-c", "1", "-"],
    "ffplay": lambda rate: ["-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"],
}
WANTS_HEADER = ("ffplay",)


class Player:
    """Plays mono chunks in order; leaving the context waits until all has sounded. An error inside stops at once."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._device = _open_device(sample_rate)
        self._process = None if self._device else _start_program(sample_rate)

    def __enter__(self) -> Player:
        return self

    def write(self, samples: np.ndarray) -> None:
        """Play float samples [n] in [-1, 1]; returns as soon as the device has taken them."""
        if self._device is not None:
            self._device.write(np.ascontiguousarray(samples, dtype=np.float32).reshape(-1, 1))
        elif self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(to_pcm16(np.atleast_2d(samples)).tobytes())
                self._process.stdin.flush()
            except BrokenPipeError:
                raise QuaverError(self._complaint()) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device is not None:
            self._device.abort() if kind else self._device.stop()
            self._device.close()
        elif self._process is not None:
            self._end_program(stop=kind is not None)

    def _end_program(self, stop: bool) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        if stop:
            self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait() and not stop:
            raise QuaverError(self._complaint())

    def _complaint(self) -> str:
        assert self._process is not None
        name = self._process.args[0] if isinstance(self._process.args, list) else "the player"
        text = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        reason = text.splitlines()[-1] if text else "it gave no reason"
        return f"{name} could not play: {reason}; write a file with -o instead"


def _open_device(sample_rate: int) -> Any:
    """An open sounddevice stream, or None: the package, the PortAudio library or a device may each be missing."""
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]

        stream = sounddevice.OutputStream(samplerate=sample_rate, channels=1, dtype="float32")
        stream.start()
    except Exception:  # whatever is missing there, a player program is the next choice
        return None
    return stream


def _start_program(sample_rate: int) -> subprocess.Popen[bytes]:
    for name, arguments in PROGRAMS.items():
        if not (path := shutil.which(name)):
            continue
        command = [path, *arguments(sample_rate)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if name in WANTS_HEADER and process.stdin is not None:
            process.stdin.write(wav_header(sample_rate, 1))
        return process
    raise MissingExtra(
        "nothing here can play sound; pip install 'quaver[play]', or install paplay, aplay or ffplay, "
        "or write a file with -o, or pipe with --stream -o -"
    )
