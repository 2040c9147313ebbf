"""Float samples in, bytes of an audio format out, while they are made: no encoder waits for the end.

pcm and wav need nothing; flac, opus (in Ogg), mp3 and aac (in ADTS) are written by PyAV, which brings its own codecs.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np

from ...errors import MissingExtra
from ..audio import to_pcm16, wav_header

AudioFormat = Literal["pcm", "wav", "flac", "opus", "mp3", "aac"]

MEDIA_TYPES: dict[AudioFormat, str] = {
    "pcm": "audio/pcm",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "opus": "audio/ogg; codecs=opus",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
}
# format -> PyAV container, codec, and the rates that the codec holds (None: any)
_LIBAV: dict[AudioFormat, tuple[str, str, tuple[int, ...] | None]] = {
    "flac": ("flac", "flac", None),
    "opus": ("ogg", "libopus", (8000, 12000, 16000, 24000, 48000)),
    "mp3": ("mp3", "libmp3lame", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    "aac": ("adts", "aac", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
}
PAGE_MICROSECONDS = "20000"  # of an Ogg page; the muxer's own default keeps a second back


class AudioEncoder(Protocol):
    """Mono float32 `[n]` in [-1, 1] in, bytes out. `close` gives the last bytes; nothing follows it."""

    def push(self, samples: np.ndarray) -> bytes: ...
    def close(self) -> bytes: ...


class PcmEncoder:
    """16-bit little-endian samples; with `header`, a WAV of unknown length."""

    def __init__(self, sample_rate: int, header: bool) -> None:
        self._header = wav_header(sample_rate, 1) if header else b""

    def push(self, samples: np.ndarray) -> bytes:
        head, self._header = self._header, b""
        return head + to_pcm16(samples[None]).tobytes()

    def close(self) -> bytes:
        return self.push(np.zeros(0, np.float32)) if self._header else b""


class LibavEncoder:
    """A compressed format through PyAV, resampled where the codec does not hold the rate."""

    def __init__(self, form: AudioFormat, sample_rate: int) -> None:
        try:
            import av
        except ImportError:
            raise MissingExtra(f"{form} needs the package av: pip install 'quaver[serve]'") from None
        container, codec, rates = _LIBAV[form]
        rate = sample_rate if rates is None else min((r for r in rates if r >= sample_rate), default=rates[-1])
        self._av, self._sink, self._rate, self._next = av, _Sink(), sample_rate, 0
        options = {"page_duration": PAGE_MICROSECONDS, "flush_packets": "1"} if form == "opus" else {}
        # A sink without `seek` makes the muxer write what it has and never come back to it.
        self._container: Any = av.open(self._sink, "w", format=container, container_options=options)
        self._stream: Any = self._container.add_stream(codec, rate=rate, layout="mono")
        self._resampler = av.AudioResampler(format=self._stream.codec_context.format, layout="mono", rate=rate)

    def push(self, samples: np.ndarray) -> bytes:
        if len(samples):
            frame = self._av.AudioFrame.from_ndarray(to_pcm16(samples[None]).T.copy(), format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._next
            self._next += len(samples)
            self._encode(self._resampler.resample(frame))
        return self._sink.take()

    def close(self) -> bytes:
        if self._next:
            self._encode([*self._resampler.resample(None), None])
        self._container.close()
        return self._sink.take()

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)


class _Sink:
    """A file that cannot seek; PyAV writes, the encoder takes."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        out, self._bytes = bytes(self._bytes), bytearray()
        return out


def encoder_for(form: AudioFormat, sample_rate: int) -> AudioEncoder:
    """A fresh encoder for one answer.

    Raises:
        MissingExtra: the format needs a package that is not installed.
    """
    if form in ("pcm", "wav"):
        return PcmEncoder(sample_rate, header=form == "wav")
    return LibavEncoder(form, sample_rate)
