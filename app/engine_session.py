"""A session: one client's request inside the engine, seen from both sides.

The client's side may be any thread or an asyncio loop: it pushes text, reads events, acknowledges playback, cancels.
The engine's side is the one thread that owns torch: it takes text and puts audio. Between them stands one lock per
session and one rule: the first outcome wins, it is the last event, and nothing comes after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ..errors import BadInput, QuaverError
from ..tts.script import Split
from ..tts.speaking import SpeechSettings
from ..tts.timeline import TimedSpan
from ..tts.voices import Voice

__all__ = ["Audio", "Event", "Outcome", "OutcomeKind", "Session", "SpeechRequest", "SpeechSession", "Started", "Usage"]

OutcomeKind = Literal["done", "cancelled", "failed", "timeout"]


@dataclass(frozen=True)
class SpeechRequest:
    """What a client asks to have spoken. Checked by `Engine.submit`.

    Attributes:
        text: the whole text, or None when it arrives in pieces through `push_text`.
        model: one of the engine's models. voice: one of the model's, the content of a voice file (of a model that
            imitates), or None for the model's own choice.
        speed, seed, pause, temperature, codebooks: as for `Synthesizer.stream`.
        ahead: seconds that generation may run ahead of playback (None: only the session's buffer bounds it). Playback
            is what `Session.played` told; until the first such call it is taken to run in real time from the moment
            when the first audio was read.
        deadline: seconds to wait for a slot; 0 = refuse at once when none is free.
        timeout: seconds from submission to the end, whatever happens; None = the engine's own limit.
        split: how text that arrives in pieces is spoken: `word` by word as it comes (audio after about three words),
            `clause` by clause, or `sentence` by sentence (which is what the whole text would give).
        request_id: made up when empty.
        speculate: with the model's drafter (a token model that `offer_speculation` found one for).
    """

    text: str | None
    model: str = "default"
    voice: str | Voice | None = None
    speed: float = 1.0
    seed: int = 0
    pause: float = 1.0
    temperature: float | None = None
    codebooks: int | None = None
    ahead: float | None = None
    deadline: float = 10.0
    timeout: float | None = None
    request_id: str = ""
    split: Split = "word"
    speculate: bool = False


@dataclass(frozen=True)
class Usage:
    """What a session cost so far. Times are seconds of the wall clock since submission; None = not reached.

    Attributes:
        audio: seconds of speech made. characters: of text taken.
        queue_wait: until a slot was given. first_audio: until the first audio was there to be read. total: until the
            outcome (until now, while it lasts).
        chunks: how many; late: how many came more than 100 ms after gapless playback needed them. underrun: the longest
            such lateness in seconds.
    """

    audio: float = 0.0
    characters: int = 0
    queue_wait: float | None = None
    first_audio: float | None = None
    total: float = 0.0
    chunks: int = 0
    late: int = 0
    underrun: float = 0.0


@dataclass(frozen=True)
class Started:
    """A slot was given: the first event of every session that gets one."""

    request_id: str
    sample_rate: int


@dataclass(frozen=True)
class Audio:
    """A chunk of speech: samples float32 `[n]` in [-1, 1] (n may be 0 when only times became known).

    Attributes:
        start: seconds from the start of the answer. words, phones: those that this chunk completes, with times from the
            start of the answer. progress: 0..1 of the text (0 while text still arrives).
        heard: of a conversation whose model writes down what the other side says: what that was in a stretch of the
            audio that it was given, "" included, with its times in that audio.
    """

    samples: np.ndarray
    sample_rate: int
    start: float
    words: list[TimedSpan] = field(default_factory=list)
    phones: list[TimedSpan] = field(default_factory=list)
    progress: float = 0.0
    heard: TimedSpan | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True)
class Outcome:
    """How a session ended: the last event, exactly one per session.

    Attributes:
        reason: a short stable word: `done`; what `cancel` was given (`client`, `disconnect`, ...), `draining`,
            `stopped`; the error's kind; `deadline` (no slot in time), `timeout` (took too long), `slow_consumer`.
        error: what failed, for `failed` and `timeout`.
    """

    kind: OutcomeKind
    reason: str
    usage: Usage
    error: QuaverError | None = None


Event = Started | Audio | Outcome


class Session:
    """The side of a session that all kinds share: output, cancel, playback.

    All methods may be called from any thread. `for event in session` and `async for event in session.events()` end
    after the outcome; leaving either early cancels the session.
    """

    def __init__(self, request_id: str, wake: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.request_id = request_id or uuid.uuid4().hex
        self.model, self.deadline, self.expires = "default", float("inf"), float("inf")  # the engine sets these
        self._wake, self.clock = wake, clock
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._listener: Callable[[], None] | None = None
        self._outcome: Outcome | None = None
        self._usage = Usage()
        self._played: float | None = None
        self._first_read: float | None = None
        self._taken = 0.0  # seconds of audio that the reader took
        self._needed: float | None = None  # when gapless playback needs the next chunk
        self.submitted = self.last_read = clock()

    # -- the client's side --------------------------------------------------------------------------------------------
    @property
    def outcome(self) -> Outcome | None:
        """How the session ended, or None while it lasts. Set before the reader has seen all events."""
        return self._outcome

    @property
    def usage(self) -> Usage:
        """Figures so far."""
        with self._changed:
            if self._outcome is not None:
                return self._outcome.usage
            return replace(self._usage, total=self.clock() - self.submitted)

    def get(self, timeout: float | None = None) -> Event:
        """The next event. After the outcome it gives the outcome again.

        Raises:
            TimeoutError: none came within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self._outcome, timeout):
                raise TimeoutError(f"no event of session {self.request_id} within {timeout} s")
            return self._take()

    def get_nowait(self) -> Event | None:
        """The next event, or None when there is none yet. After the outcome it gives the outcome again."""
        with self._changed:
            return self._take() if self._events or self._outcome else None

    def __iter__(self) -> Iterator[Event]:
        try:
            while True:
                event = self.get()
                yield event
                if isinstance(event, Outcome):
                    return
        finally:
            self.cancel("abandoned")

    async def events(self) -> AsyncIterator[Event]:
        """All events, for asyncio. One reader at a time."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                loop.call_soon_threadsafe(ready.set)

        with self._changed:
            self._listener = wake
        try:
            while True:
                ready.clear()
                event = self.get_nowait()
                if event is None:
                    await ready.wait()
                    continue
                yield event
                if isinstance(event, Outcome):
                    return
        finally:
            with self._changed:
                self._listener = None
            self.cancel("abandoned")

    def cancel(self, reason: str = "client") -> bool:
        """Ends the session now: unread audio is dropped, the outcome is `cancelled(reason)`, the engine frees the slot
        before its next step. False when the session had ended already."""
        return self.finish("cancelled", reason)

    def discard(self) -> float:
        """Drops the audio that nobody has read yet, as if it had been read: seconds of it. What was heard of the other
        side stays: an interruption is the other side's word."""
        with self._changed:
            seconds = sum(e.seconds for e in self._events if isinstance(e, Audio))
            kept = (_only_heard(e) if isinstance(e, Audio) else e for e in self._events)
            self._events = deque(e for e in kept if e is not None)
            self._taken += seconds
        self._wake()
        return seconds

    def played(self, seconds: float) -> None:
        """The client has played so many seconds of the answer. Never goes back."""
        if not 0 <= seconds < float("inf"):
            raise BadInput(f"played seconds must be a number of seconds since the start, not {seconds}")
        with self._changed:
            self._played = max(self._played or 0.0, seconds)
        self._wake()

    def _take(self) -> Event:
        """Under the lock: the next event, the outcome last and for ever."""
        if not self._events:
            assert self._outcome is not None
            return self._outcome
        event = self._events.popleft()
        self.last_read = self.clock()
        if isinstance(event, Audio):
            self._taken += event.seconds
            if self._first_read is None:
                self._first_read = self.last_read
            self._wake()
        return event

    # -- the engine's side --------------------------------------------------------------------------------------------
    @property
    def unread(self) -> float:
        """Seconds of audio that wait for the reader."""
        return self._usage.audio - self._taken

    @property
    def ahead(self) -> float:
        """Seconds of audio made beyond what has been played (see `SpeechRequest.ahead`)."""
        if self._played is not None:
            return self._usage.audio - self._played
        playing = 0.0 if self._first_read is None else self.clock() - self._first_read
        return self._usage.audio - playing

    def put(self, event: Started | Audio) -> bool:
        """Hands an event to the reader; False when the session has ended, and the event is dropped."""
        with self._changed:
            if self._outcome is not None:
                return False
            self._count(event)
            self._events.append(event)
            self._notify()
        return True

    def finish(self, kind: OutcomeKind, reason: str, error: QuaverError | None = None) -> bool:
        """Ends the session; only the first call counts. What was made is still read when it is done; otherwise it is
        dropped."""
        with self._changed:
            if self._outcome is not None:
                return False
            if kind != "done":
                self._events = deque(e for e in self._events if isinstance(e, Started))
            usage = replace(self._usage, total=self.clock() - self.submitted)
            self._outcome = Outcome(kind, reason, usage, error)
            self._notify()
        self._wake()
        return True

    def _count(self, event: Started | Audio) -> None:
        now, usage = self.clock(), self._usage
        if isinstance(event, Started):
            self._usage = replace(usage, queue_wait=now - self.submitted)
            return
        if not len(event.samples):
            return
        late = 0.0 if self._needed is None else max(0.0, now - self._needed)
        self._needed = max(now, self._needed or now) + event.seconds
        self._usage = replace(
            usage,
            audio=usage.audio + event.seconds,
            first_audio=now - self.submitted if usage.first_audio is None else usage.first_audio,
            chunks=usage.chunks + 1,
            late=usage.late + (late > 0.1),
            underrun=max(usage.underrun, late),
        )

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._listener is not None:
            self._listener()


def _only_heard(audio: Audio) -> Audio | None:
    return None if audio.heard is None else replace(audio, samples=audio.samples[:0], words=[], phones=[])


class SpeechSession(Session):
    """A session that turns text into speech."""

    def __init__(
        self,
        request: SpeechRequest,
        settings: SpeechSettings | None,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(request.request_id, wake, clock)
        self.request, self.settings = request, settings
        self.model = request.model
        self._pieces: deque[str] = deque()
        self._text_ended = request.text is not None
        self._usage = Usage(characters=len(request.text or ""))

    def push_text(self, text: str) -> None:
        """More text. After the session has ended it is dropped silently: the client cannot know yet.

        Raises:
            BadInput: the text was given whole, or has been finished.
        """
        with self._changed:
            if self._text_ended:
                raise BadInput("the text of this session is complete; open another session for more")
            if self._outcome is None:
                self._pieces.append(text)
                self._usage = replace(self._usage, characters=self._usage.characters + len(text))
        self._wake()

    def finish_text(self) -> None:
        """No more text comes; the session is done when everything has been spoken. May be called again."""
        with self._changed:
            self._text_ended = True
        self._wake()

    def take_text(self) -> tuple[str, bool]:
        """The engine's side: the text that has arrived since the last call, and whether it was the last."""
        with self._changed:
            text = "".join(self._pieces)
            self._pieces.clear()
            return text, self._text_ended
