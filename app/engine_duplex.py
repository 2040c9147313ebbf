"""Conversations in the engine: a lane of slots that hear and speak, and the link between it and the transports.

A slot moves when its client has sent a whole frame: the model's clock is the client's microphone. What a client sends
faster than the model can hear is dropped from its oldest end, so that an answer is never late for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Literal

import numpy as np

from ..dialogue.loading import DuplexParts
from ..dialogue.session import Control, DuplexFrame, DuplexSettings
from ..errors import BadInput, Draining
from ..tts.timeline import TimedSpan
from .engine import Engine
from .engine_lanes import SlotState, Tick, slot_states
from .engine_session import Audio, Outcome, Session, Started
from .server.duplex import DuplexAudio, DuplexEnd, DuplexEvent, DuplexHeard, DuplexRequest, DuplexText

__all__ = ["DuplexLane", "EngineBackend", "EngineLink", "TalkSession"]

UNHEARD = 2.0
"""Seconds of a client's audio that may wait for the model."""
HUSH = 12
"""Frames of forced PAD after an interruption: the text stops at once, and the voice follows the text."""
ACTIONS: dict[str, list[Control | None]] = {
    "speak": ["speak"],
    "listen": ["listen"],
    "interrupt": ["listen", *[None] * (HUSH - 1), "free"],
}


class TalkSession(Session):
    """A session that brings audio; see `Session` for the rest."""

    def __init__(
        self, model: str, sample_rate: int, settings: DuplexSettings, request_id: str, wake: Callable[[], None]
    ) -> None:
        super().__init__(request_id, wake)
        self.model, self.sample_rate, self.settings = model, sample_rate, settings
        self._heard = np.zeros(0, np.float32)
        self._ended = False
        self._controls: deque[Control | None] = deque()

    def push_audio(self, samples: np.ndarray) -> int:
        """Takes float32 `[n]`; returns how many samples had to be dropped (the oldest).

        Raises:
            BadInput: not one channel, or samples that are no numbers.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise BadInput(f"audio must be finite samples of one channel, not {list(samples.shape)}")
        with self._changed:
            joined = np.concatenate([self._heard, samples])
            dropped = max(0, len(joined) - int(UNHEARD * self.sample_rate))
            self._heard = joined[dropped:]
        self._wake()
        return dropped

    def forget_audio(self) -> int:
        """Drops what has not been heard yet; returns how many samples."""
        with self._changed:
            dropped, self._heard = len(self._heard), self._heard[:0]
        return dropped

    def finish_audio(self) -> None:
        """Nothing more comes: the session is done when the last whole frame has been heard."""
        with self._changed:
            self._ended = True
        self._wake()

    def steer(self, *controls: Control | None) -> None:
        """See `DuplexBatch.steer`; one takes effect with each of the next frames. Replaces what was still to come."""
        with self._changed:
            self._controls = deque(controls)

    def take_frame(self, size: int) -> tuple[np.ndarray | None, Control | None, bool]:
        """The engine's side: the next frame if there is a whole one, its control, and whether the input is at its
        end."""
        with self._changed:
            if len(self._heard) < size:
                return None, None, self._ended
            frame, self._heard = self._heard[:size], self._heard[size:]
            return frame, self._controls.popleft() if self._controls else None, False


class DuplexLane:
    """A duplex model in the engine; see `Lane`."""

    def __init__(self, name: str, parts: DuplexParts, slots: int, buffer: float = 60.0) -> None:
        self.name, self.slots, self.buffer = name, slots, buffer
        self.batch = parts.batch(slots, recorded=True)
        self.late = parts.model.config.heard
        self.sessions: list[TalkSession | None] = [None] * slots
        self.sent: list[int] = [0] * slots
        self.held: set[int] = set()
        self.moved: set[int] = set()

    def join(self, slot: int, session: Session) -> None:
        assert isinstance(session, TalkSession)
        self.batch.join(slot, session.settings)
        self.sessions[slot], self.sent[slot] = session, 0
        session.put(Started(session.request_id, self.batch.sample_rate))

    def leave(self, slot: int) -> None:
        self.batch.leave(slot)
        self.sessions[slot] = None
        self.held.discard(slot)
        self.moved.discard(slot)

    def tick(self) -> Tick:
        frames: dict[int, np.ndarray] = {}
        finished: list[int] = []
        self.held = {i for i, s in enumerate(self.sessions) if s is not None and s.unread >= self.buffer}
        for slot, session in enumerate(self.sessions):
            if session is None or slot in self.held:
                continue
            frame, control, ended = session.take_frame(self.batch.frame_size)
            if control is not None:
                self.batch.steer(slot, control)
            if frame is not None:
                frames[slot] = frame
            elif ended:
                finished.append(slot)
        self.moved = set(frames)
        said = self.batch.step(frames)
        sent: list[tuple[Session, Audio]] = []
        for slot, frame in said.items():
            session, audio = self.sessions[slot], self._audio(slot, frame)
            if session is not None and session.put(audio):
                sent.append((session, audio))
        return Tick(len(frames), finished, {}, sent)

    def states(self) -> list[SlotState]:
        return slot_states(self.sessions, self.held, lambda slot: slot in self.moved)

    def warm_up(self) -> None:
        self.batch.join(0)
        self.batch.step({0: np.zeros(self.batch.frame_size, np.float32)})
        self.batch.leave(0)

    def _audio(self, slot: int, frame: DuplexFrame) -> Audio:
        rate, length = self.batch.sample_rate, self.batch.frame_size / self.batch.sample_rate
        start = self.sent[slot] / rate
        self.sent[slot] += len(frame.audio)
        words = [TimedSpan(frame.text, start, start + length)] if frame.text else []
        heard = None
        if self.late is not None:  # the answer's clock is that of the frames that came in: one for one
            said = start - self.late * length
            heard = TimedSpan(frame.heard, said, said + length)
        return Audio(frame.audio, rate, start, words, heard=heard)


class EngineLink:
    """One conversation, as the transports see it (`DuplexLink`)."""

    def __init__(self, session: TalkSession) -> None:
        self.session = session

    def push(self, samples: np.ndarray) -> int:
        return self.session.push_audio(samples)

    def forget(self) -> int:
        return self.session.forget_audio()

    def steer(self, action: Literal["speak", "listen", "interrupt"]) -> None:
        self.session.steer(*ACTIONS[action])
        if action == "interrupt":
            self.session.discard()

    def played(self, seconds: float) -> None:
        self.session.played(seconds)

    async def events(self) -> AsyncIterator[DuplexEvent]:
        async for event in self.session.events():
            if isinstance(event, Audio):
                if event.heard is not None:
                    yield DuplexHeard(event.heard.text, event.heard.end)
                if len(event.samples):
                    yield DuplexAudio(event.samples)
                for word in event.words:
                    yield DuplexText(word.text)
            elif isinstance(event, Outcome):
                yield DuplexEnd(event.reason)

    def close(self, reason: str) -> None:
        self.session.cancel(reason)


class EngineBackend:
    """A duplex model of an engine, for the transports (`DuplexBackend`).

    The engine comes later than the model (a server builds it when it starts): `bind` says which.
    """

    def __init__(self, name: str, parts: DuplexParts) -> None:
        self.name, self.parts = name, parts
        self.sample_rate, self.frame_samples = parts.codec.sample_rate, parts.codec.frame_size
        self.transcribes = parts.model.config.heard is not None
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    def lane(self, slots: int) -> Callable[[], DuplexLane]:
        """For `Engine(lanes=...)`."""
        return lambda: DuplexLane(self.name, self.parts, slots)

    def bind(self, engine: Engine) -> None:
        """The engine that has the lane."""
        with self._lock:
            self._engine = engine

    def open(self, request: DuplexRequest) -> EngineLink:
        """A slot for a session.

        Raises:
            BadInput: a seed or an option that the model does not take.
            Overloaded, Draining: as `Engine.submit`.
        """
        engine = self._engine
        if engine is None:
            raise Draining("the engine has not started yet; try again in a moment")
        settings = self.parts.settings.model_copy(update={"seed": request.seed % 2**62})
        session = TalkSession(self.name, self.sample_rate, settings, request.request_id, engine.wake)
        session.expires = session.submitted + engine.timeout
        engine.accept(session, 0)
        return EngineLink(session)
