"""A conversation with a server's duplex model over `WS /v1/realtime`, in binary frames: a microphone, a file or a pipe
in, the model's voice and both sides' words out."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np

from .audio import to_pcm16
from .client import ServerError, connected
from .server.protocol import realtime as rt
from .server.protocol.base import parse_json, validated
from .server.protocol.binary import SUBPROTOCOL, Codec, Frame, Kind, samples_of

__all__ = ["BLOCK", "RATE", "Heard", "Timeline", "talk"]

RATE = 24_000
BLOCK = 0.04
"""Seconds of the microphone that are sent at a time."""


@dataclass(frozen=True)
class Heard:
    """A piece of the model's voice.

    Attributes:
        samples: float32 `[n]` in [-1, 1]. response: number of the turn it belongs to. start: seconds from the turn's
            beginning. at: seconds of the user's audio that had been sent when it came.
    """

    samples: np.ndarray
    response: int
    start: float
    at: float


def talk(
    url: str,
    blocks: Iterable[np.ndarray],
    *,
    key: str | None = None,
    model: str | None = None,
    seed: int | None = None,
    sample_rate: int = RATE,
    tail: float = 3.0,
    pace: float = 1.0,
) -> Iterator[Heard | rt.ServerMessage]:
    """Lets the model hear a recording, or a microphone, and gives what it says and all events until the end.

    Args:
        url: the server's. blocks: float32 `[n]` of one channel, of any lengths. sample_rate: theirs, 8 to 48 kHz.
        tail: seconds of silence after them, in which the model can answer.
        pace: times real time; what comes more than 2 s faster than the model hears is lost.

    Raises:
        ServerError: a refusal or failure (`no_duplex_model`, `overloaded`, ...). MissingExtra, OSError: as `Client`.
            What `blocks` raises.
    """
    query = "" if model is None else "?" + urlencode({"model": model})
    first = rt.SessionSettings(
        seed=seed, audio=rt.AudioConfig(input=rt.InputAudio(format=rt.InputFormat(rate=sample_rate)))
    )
    with connected(url, f"/v1/realtime{query}", key, subprotocols=[SUBPROTOCOL]) as socket:
        update = rt.SessionUpdate(type="session.update", session=first)
        socket.send(update.model_dump_json(exclude_unset=True))
        sender = _Sender(socket, blocks, sample_rate, tail, pace)
        sender.start()
        try:
            yield from _received(socket, sender)
        finally:
            sender.stop()
        if sender.error is not None:
            raise sender.error


def _received(socket: Any, sender: _Sender) -> Iterator[Heard | rt.ServerMessage]:
    rate = RATE
    for data in socket:
        if isinstance(data, bytes):
            frame = Frame.unpack(data)
            if frame.kind == Kind.AUDIO_OUT:
                yield Heard(samples_of(frame.codec, frame.payload), frame.stream, frame.pts / rate, sender.seconds)
            continue
        message = validated(rt.SERVER, parse_json(data))
        if isinstance(message, rt.RealtimeError):
            raise ServerError(message.error.message, message.error.code or "error")
        if isinstance(message, rt.SessionEvent):
            rate = int(message.session["audio"]["output"]["format"]["rate"])
        yield message


class _Sender(threading.Thread):
    """Sends the user's audio on time, then silence, then says goodbye."""

    def __init__(self, socket: Any, blocks: Iterable[np.ndarray], rate: int, tail: float, pace: float) -> None:
        super().__init__(name="quaver-talk", daemon=True)
        self.socket, self.blocks, self.rate, self.tail, self.pace = socket, blocks, rate, tail, pace
        self.samples = 0
        self.error: Exception | None = None
        self._stopped = threading.Event()

    @property
    def seconds(self) -> float:
        """How much has been sent."""
        return self.samples / self.rate

    def stop(self) -> None:
        """Sends no more; waits a moment, for the thread may sit in a read of its own."""
        self._stopped.set()
        self.join(0.5)

    def run(self) -> None:
        size, begun = round(BLOCK * self.rate), time.monotonic()
        with contextlib.suppress(Exception):  # a closed socket: the reader tells why
            try:
                for number, block in enumerate(_even(self.blocks, size, round(self.tail * self.rate))):
                    due = begun + number * BLOCK / self.pace
                    if self._stopped.wait(max(0.0, due - time.monotonic())):
                        return
                    pcm = to_pcm16(block[None]).tobytes()
                    self.socket.send(Frame(Kind.AUDIO_IN, Codec.S16LE, 0, number, 0, 0, self.samples, pcm).pack())
                    self.samples += len(block)
            except Exception as error:
                self.error = error
            self.socket.send('{"type": "session.close"}')


def _even(blocks: Iterable[np.ndarray], size: int, tail: int) -> Iterator[np.ndarray]:
    """The same samples and `tail` zeros in blocks of `size`; the last one may be shorter."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, np.asarray(block, np.float32).reshape(-1)])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    rest = np.concatenate([rest, np.zeros(tail, np.float32)])
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


class Timeline:
    """Sets the turns of an answer where they were heard: silence between them, so that the reply is as long as what the
    user said and can be laid beside it."""

    def __init__(self, sample_rate: int = RATE) -> None:
        self.sample_rate = sample_rate
        self.written = 0
        self._turn: int | None = None

    def place(self, heard: Heard) -> np.ndarray:
        """What comes next of the reply, float32 `[n]`: the piece, and the silence before it where a turn begins."""
        gap = 0
        if heard.response != self._turn:
            self._turn = heard.response
            gap = max(0, round(heard.at * self.sample_rate) - self.written)
        block = np.concatenate([np.zeros(gap, np.float32), heard.samples])
        self.written += len(block)
        return block

    def rest(self, seconds: float) -> np.ndarray:
        """Silence up to so many seconds."""
        return np.zeros(max(0, round(seconds * self.sample_rate) - self.written), np.float32)
