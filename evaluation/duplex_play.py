"""Recordings played to a duplex model: one conversation, many at once in one batch, or a session without end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..dialogue.loading import DuplexParts
from ..dialogue.session import DuplexBatch, DuplexFrame, DuplexSettings

__all__ = ["Conversation", "LongSession", "converse", "play"]


@dataclass(frozen=True)
class Conversation:
    """What a model made of a recording.

    Attributes:
        audio: float32 `[n]` at the codec's rate, what it said, as long as the recording and in its time.
        said, heard: pieces of its own text and of its record of the user's, with the seconds at which they came.
    """

    audio: np.ndarray
    said: tuple[tuple[float, str], ...]
    heard: tuple[tuple[float, str], ...]

    @property
    def text(self) -> str:
        """All that it said."""
        return between(self.said, 0.0, np.inf)


def between(pieces: Sequence[tuple[float, str]], start: float, end: float) -> str:
    """The text of the pieces of a span of time."""
    return " ".join("".join(piece for at, piece in pieces if start <= at < end).split())


@dataclass
class _Seat:
    """A recording on its way through a slot. A frame must be heard whole before it can be answered: `before` is what
    the model says while it hears the first."""

    number: int
    user: np.ndarray
    before: np.ndarray
    said: list[DuplexFrame] = field(default_factory=list)

    def frame(self) -> np.ndarray:
        """The next frame of the recording, its last one filled with silence."""
        size, at = len(self.before), len(self.said)
        frame = self.user[at * size : (at + 1) * size].astype(np.float32)
        return np.pad(frame, (0, size - len(frame)))

    @property
    def done(self) -> bool:
        return len(self.said) * len(self.before) >= len(self.user)

    def conversation(self, batch: DuplexBatch) -> Conversation:
        seconds = len(self.before) / batch.sample_rate
        late = (batch.model.config.heard or 0) * seconds
        voice = np.concatenate([self.before, *(frame.audio for frame in self.said)])
        at = [(i + 1) * seconds for i in range(len(self.said))]
        return Conversation(
            voice[: len(self.user)],
            tuple((t, f.text) for t, f in zip(at, self.said, strict=True) if f.text),
            tuple((t - late, f.heard) for t, f in zip(at, self.said, strict=True) if f.heard),
        )


def play(
    parts: DuplexParts,
    recordings: Iterable[tuple[np.ndarray, DuplexSettings]],
    slots: int = 1,
    *,
    recorded: bool = False,
) -> Iterator[tuple[int, Conversation]]:
    """Plays recordings float32 `[n]` at the codec's rate to a model, `slots` at once; yields (number, conversation) as
    they end. Which slot a recording sits in, and beside which others, changes nothing (laws of `DuplexBatch`).

    Args:
        recordings: read one by one, as slots become free. recorded: see `DuplexBatch`.
    """
    batch, waiting = parts.batch(slots, recorded=recorded), enumerate(recordings)
    silence = np.zeros(batch.frame_size, np.float32)
    seats: dict[int, _Seat] = {}
    while True:
        for slot in set(range(slots)) - seats.keys():
            if (following := next(waiting, None)) is not None:
                number, (user, settings) = following
                batch.join(slot, settings)
                seats[slot] = _Seat(number, user, silence)
        if not seats:
            return
        frames = batch.step({slot: seat.frame() for slot, seat in seats.items() if not seat.done})
        for slot, seat in list(seats.items()):
            if slot in frames:
                seat.said.append(frames[slot])
            if seat.done:
                yield seat.number, seat.conversation(batch)
                batch.leave(slot)
                del seats[slot]


def converse(parts: DuplexParts, user: np.ndarray, settings: DuplexSettings | None = None) -> Conversation:
    """Plays one recording float32 `[n]` at the codec's rate to a model."""
    return next(play(parts, [(user, settings or parts.settings)]))[1]


class LongSession:
    """Recordings one after the other in one session that is never reset."""

    def __init__(self, parts: DuplexParts, settings: DuplexSettings | None = None, *, recorded: bool = False) -> None:
        self.batch = parts.batch(1, recorded=recorded)
        self.batch.join(0, settings or parts.settings)
        self._last = np.zeros(self.batch.frame_size, np.float32)

    @property
    def nbytes(self) -> int:
        """Size of all that the session remembers."""
        return self.batch.state.nbytes()

    def converse(self, user: np.ndarray) -> Conversation:
        """The next recording float32 `[n]`; silence fills its last frame."""
        seat = _Seat(0, user, self._last)
        while not seat.done:
            seat.said.append(self.batch.step({0: seat.frame()})[0])
        if seat.said:
            self._last = seat.said[-1].audio
        return seat.conversation(self.batch)
