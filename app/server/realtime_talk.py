"""The listening half of a realtime session: a client's microphone into a duplex model, its turns out as responses.

A duplex model hears and speaks all the time, a frame for each frame it is given. OpenAI's events know turns. So a
response is opened when the model begins to say something (a word, or sound), everything it sends goes out while the
response lasts, and the response ends after `PAUSE` seconds without either; the silence between is not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..audio import Resampler
from ..engine_duplex import HUSH
from . import logs
from .activity import Activity
from .duplex import DuplexAudio, DuplexBackend, DuplexEnd, DuplexHeard, DuplexRequest, DuplexText
from .metrics import Meter
from .problems import Problem
from .protocol import realtime as rt
from .protocol.speech import WordTime
from .realtime_writer import Answer
from .transcripts import Transcripts, Written

if TYPE_CHECKING:
    from .realtime_session import RealtimeSession

PAUSE = 0.8
"""Seconds without a word and without sound that end the model's turn."""
BEFORE = 2
"""Frames before a turn's first sign that belong to it: a voice sets in softly."""


class _Rate:
    """A stream of mono samples from one rate to another; nothing at all where they are equal."""

    def __init__(self, source: int, target: int) -> None:
        self._resampler = Resampler(source, target, 1) if source != target else None

    def push(self, samples: np.ndarray) -> np.ndarray:
        return samples if self._resampler is None else self._resampler.push(samples[:, None])[:, 0]


class Conversation:
    """One link to a duplex model, for as long as the session (or the model) lasts. All methods belong to the event
    loop's thread.

    Args:
        rate: of the session's output. settings: of its input.

    Raises:
        Problem, or what `DuplexBackend.open` raises: no slot.
    """

    def __init__(
        self,
        session: RealtimeSession,
        backend: DuplexBackend,
        request: DuplexRequest,
        rate: int,
        settings: rt.InputAudio,
    ) -> None:
        self.session, self.backend = session, backend
        self.link = backend.open(request)
        self.rate, self.settings = rate, settings
        self._in, self._out = _Rate(settings.rate, backend.sample_rate), _Rate(backend.sample_rate, rate)
        self.activity = self._detector()
        self.heard = self.uncommitted = 0  # samples at the input rate
        self._item = _new_item()  # of what the user is saying
        self._transcripts = Transcripts(self._item)
        self._unheard = 0.0  # seconds of the input that the model will never hear
        self._voice = Activity(rate, silence=PAUSE)
        self._before: deque[np.ndarray] = deque(maxlen=BEFORE)
        self._at = self._began = self._last_word = 0  # samples of the model's voice
        self._mute = 0  # frames
        self.turn: Answer | None = None
        self._meter: Meter | None = None
        self._closing = ""
        self._task = asyncio.create_task(self._run())

    # -- what the client sends ----------------------------------------------------------------------------------------
    def configure(self, settings: rt.InputAudio) -> None:
        """New settings of the input.

        Raises:
            Problem: `conflict`: another rate.
        """
        if settings.rate != self.settings.rate:
            raise Problem("conflict", "the input's rate cannot change any more: audio has been sent")
        changed, self.settings = settings != self.settings, settings
        if changed:
            self.activity = self._detector()
            self.activity.at = self.heard  # without turn detection it did not look

    def append(self, samples: np.ndarray) -> None:
        """Takes float32 `[n]` at the input's rate."""
        self.heard += len(samples)
        self.uncommitted += len(samples)
        if dropped := self.link.push(self._in.push(samples)):
            self._skip(dropped)
            self.session.service.metrics.unheard.inc(dropped / self.backend.sample_rate)
        if self.settings.turn_detection is None:
            return
        for edge in self.activity.push(samples):
            if edge.kind == "start":
                self._user_starts(edge.at)
            else:
                self._user_stops(edge.at)

    def commit(self, previous: str | None, at: int | None = None) -> rt.Item:
        """The user's turn is an item of the conversation; it ends `at` so many samples of what was appended, or now.

        Raises:
            Problem: `invalid_value`: nothing was appended since the last one.
        """
        if not self.uncommitted:
            raise Problem("invalid_value", "there is nothing to commit: append audio first")
        item = rt.Item(id=self._item, role="user", status="completed", content=[rt.ContentPart(type="input_audio")])
        self.session.emit(rt.InputCommitted(item_id=self._item, previous_item_id=previous))
        end = self.heard if at is None else at
        self._item, self.uncommitted = _new_item(), self.heard - end
        self._transcripts.commit(end / self.settings.rate, self._item)
        return item

    def clear(self) -> None:
        """Forgets what the model has not heard yet."""
        self._skip(self.link.forget())
        self._transcripts.forget()
        self.activity.reset()
        self.uncommitted = 0
        self.session.emit(rt.InputCleared())

    def speak(self) -> None:
        """The model is to say something now."""
        self.link.steer("speak")

    def played(self, seconds: float) -> None:
        """So much of the turn has been heard."""
        self.link.played(self._began / self.rate + seconds)

    def interrupt(self) -> None:
        """Ends the model's turn; the caller has advanced the epoch. Its voice is not heard until the model is quiet."""
        self.link.steer("interrupt")
        self._mute = HUSH
        self._hush("cancelled")

    def _user_starts(self, at: int) -> None:
        detection = self.settings.turn_detection
        assert detection is not None
        start = max(0, self._ms(at) - detection.prefix_padding_ms)
        self.session.emit(rt.SpeechStarted(audio_start_ms=start, item_id=self._item))
        if detection.interrupt_response:
            self.session.interrupt(None)

    def _user_stops(self, at: int) -> None:
        detection = self.settings.turn_detection
        assert detection is not None
        self.session.emit(rt.SpeechStopped(audio_end_ms=self._ms(at), item_id=self._item))
        self.session.commit(at)
        if detection.create_response:
            self.speak()

    def _skip(self, samples: int) -> None:
        """The model will not hear so many samples (at its own rate). Frames that it is answering just now count as if
        they came after them: a word near such a gap may be placed a moment late."""
        self._unheard += samples / self.backend.sample_rate

    def _written(self, written: Iterable[Written]) -> None:
        """Tells what the user says."""
        for piece in written:
            turn = piece.turn
            if piece.complete:
                self.session.transcribed(turn.item, turn.text)
            if self.settings.transcription is None:
                continue
            if piece.complete:
                usage = {"type": "duration", "seconds": round(turn.end - turn.start, 3)}
                self.session.emit(rt.InputTranscriptDone(item_id=turn.item, transcript=turn.text, usage=usage))
            else:
                self.session.emit(rt.InputTranscript(item_id=turn.item, delta=piece.delta))

    def _ms(self, samples: int) -> int:
        return round(1000 * samples / self.settings.rate)

    def _detector(self) -> Activity:
        wanted = self.settings.turn_detection or rt.TurnDetection()
        return Activity(self.settings.rate, threshold=wanted.threshold, silence=wanted.silence_duration_ms / 1000)

    # -- what the model says ------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        problem: Problem | None = None
        try:
            async for event in self.link.events():
                if isinstance(event, DuplexAudio):
                    await self._audio(self._out.push(event.samples))
                elif isinstance(event, DuplexText):
                    await self._text(event.text)
                elif isinstance(event, DuplexHeard):
                    self._written(self._transcripts.hear(event.text, event.until + self._unheard))
                elif isinstance(event, DuplexEnd):
                    problem = _problem_of(event.reason)
        except Exception as error:
            problem = Problem("internal", "the conversation failed; audio from now on begins a new one")
            logs.event("realtime.talk", 40, exc_info=error)
        finally:
            self._hush("cancelled" if self._closing else "failed", problem)
            if self.backend.transcribes:
                self._written(self._transcripts.close())
            if not self._closing:
                self.session.lost(self, problem or _problem_of("done"))

    async def _audio(self, samples: np.ndarray) -> None:
        self._at += len(samples)
        if self._muted():
            return
        self._voice.push(samples)
        if self.turn is None:
            self._before.append(samples)
            if self._voice.speaking:
                await self._begin()
            return
        await self._send(samples)
        if not self._voice.speaking and self._at - self._last_word > PAUSE * self.rate:
            self._hush("completed")

    def _muted(self) -> bool:
        """Whether this frame is not to be heard: after an interruption, or because a text is being spoken."""
        if self._mute:
            self._mute -= 1
        elif self.session.answer is None or self.session.answer is self.turn:
            return False
        self._before.clear()
        self._voice.reset()
        return True

    async def _text(self, text: str) -> None:
        if self._mute or (self.session.answer is not None and self.session.answer is not self.turn):
            return
        self._last_word = self._at
        if self.turn is None:
            await self._begin()
        turn = self.turn
        if turn is not None:
            end = (self._at - self._began) / self.rate
            start = max(0.0, end - self.backend.frame_samples / self.backend.sample_rate)
            self.session.words(turn, [WordTime(text=text, start=round(start, 3), end=round(end, 3))])

    async def _begin(self) -> None:
        """Opens a turn with the frames before its first sign."""
        frames = list(self._before)
        self._before.clear()
        self.turn = self.session.take_turn()
        self._began, self._last_word = self._at - sum(map(len, frames)), self._at
        self._meter = Meter(time.monotonic())
        self.session.begin(self.turn)
        for frame in frames:
            await self._send(frame)

    async def _send(self, frame: np.ndarray) -> None:
        turn = self.turn
        if turn is not None and await self.session.audio(turn, frame) and self._meter is not None:
            self._meter.sent(len(frame) / self.rate)

    def _hush(self, status: str, problem: Problem | None = None) -> None:
        turn, self.turn = self.turn, None
        self._before.clear()
        self._voice.reset()
        if turn is None:
            return
        if self._meter is not None:
            self.session.service.metrics.streamed(self._meter, "duplex")
        self.session.finish_turn(turn, status, problem)

    async def shut(self, reason: str) -> None:
        """Ends the link; its slot is free within one tick. May be called again."""
        self._closing = self._closing or reason
        self.link.close(reason)
        self.session.room.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


def _new_item() -> str:
    return f"item_{uuid.uuid4().hex}"


def _problem_of(reason: str) -> Problem:
    if reason in ("draining", "stopped"):
        return Problem("draining", "the server is shutting down; another one may take this", retry_after=5)
    if reason == "timeout":
        return Problem("session_expired", "the conversation has lasted as long as it may")
    return Problem(
        "conversation_lost",
        f"the model's side of the conversation ended ({reason}); audio from now on begins a new one",
    )
