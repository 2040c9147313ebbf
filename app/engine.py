"""The engine: many sessions, one thread that owns torch, one batch.

    engine = Engine({"default": Synthesizer.load()}, slots=8)
    engine.start()
    session = engine.submit(SpeechRequest("Hello world."))
    for event in session:
        if isinstance(event, Audio): play(event.samples)
    engine.stop()

`submit` never blocks and never queues without bound: it gives a session, or raises. A tick steps every occupied slot in
one batch; sessions join and leave between ticks. See docs/engine.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..tts.synthesizer import Synthesizer
from .engine_session import (
    Audio,
    Event,
    Outcome,
    OutcomeKind,
    Session,
    SpeechRequest,
    SpeechSession,
    Started,
    Usage,
)

__all__ = [
    "Audio",
    "Engine",
    "EngineStats",
    "Event",
    "Observer",
    "Outcome",
    "OutcomeKind",
    "Session",
    "SpeechRequest",
    "SpeechSession",
    "Started",
    "Usage",
]


class Observer:
    """What a metrics exporter overrides. Called on the engine's thread (`refused`: on the caller's); must be quick; an
    exception in it is logged and goes no further."""

    def refused(self, model: str, reason: str) -> None:
        """`submit` raised: reason is the error's kind (`overloaded`, `draining`, `bad_input`)."""

    def admitted(self, session: Session) -> None:
        """A session got a slot."""

    def audio(self, session: Session, event: Audio) -> None:
        """A chunk was handed to the session; `session.usage` holds first audio, lateness and underrun."""

    def closed(self, session: Session, outcome: Outcome) -> None:
        """A session ended and its slot, if it had one, is free."""

    def ticked(self, model: str, seconds: float, active: int) -> None:
        """One tick of a model's batch took so many seconds with so many moving slots."""

    def restarted(self, reason: str) -> None:
        """The watchdog started a new engine thread (`died` or `stuck`)."""


@dataclass(frozen=True)
class EngineStats:
    """A snapshot.

    Attributes:
        ready: takes work now. draining: finishes what it has.
        slots: by model, slots by state: `free`, `speaking`, `held` (ahead of playback), `waiting` (for text).
        waiting: sessions without a slot yet. open: sessions not yet ended (with and without slot).
        admissions: sessions that got a slot. refusals, closes: by reason.
        ticks: steps of a batch. restarts: of the engine thread.
        audio: seconds of speech made. busy: seconds spent in ticks; rtf = busy / audio (0 without audio).
        step_ms: percentiles `p50`, `p95`, `p99`, `max` of the latest ticks in milliseconds.
    """

    ready: bool
    draining: bool
    slots: Mapping[str, Mapping[str, int]]
    waiting: int
    open: int
    admissions: int
    refusals: Mapping[str, int]
    closes: Mapping[str, int]
    ticks: int
    restarts: int
    audio: float
    busy: float
    rtf: float
    step_ms: Mapping[str, float] = field(default_factory=dict)


class Engine:
    """Runs the sessions of one or more models.

    Args:
        synthesizers: by the model name that requests use; the first is also known as "default".
        slots: concurrent sessions of each model. max_waiting: sessions that may wait for a slot, over all models.
        buffer: seconds of unread audio at which a session's generation is held, whatever its `ahead`.
        timeout: the longest that any session may last, in seconds. stall: a reader that takes nothing for so many
            seconds while its buffer is full is closed as `slow_consumer`.
        stuck: a tick that lasts longer makes the watchdog start a new thread.
        observer: see `Observer`.
    """

    def __init__(
        self,
        synthesizers: Mapping[str, Synthesizer],
        *,
        slots: int = 8,
        max_waiting: int = 16,
        buffer: float = 60.0,
        timeout: float = 1800.0,
        stall: float = 30.0,
        stuck: float = 30.0,
        observer: Observer | None = None,
    ) -> None:
        raise NotImplementedError("being written")

    def start(self) -> None:
        """Starts the engine thread and its watchdog."""
        raise NotImplementedError("being written")

    @property
    def ready(self) -> bool:
        """Whether `submit` would be heard: started, alive, not stuck, not draining."""
        raise NotImplementedError("being written")

    @property
    def models(self) -> tuple[str, ...]:
        """Names that `SpeechRequest.model` may have, besides "default"."""
        raise NotImplementedError("being written")

    def synthesizer(self, model: str = "default") -> Synthesizer:
        """The model of that name, for its voices and sample rate.

        Raises:
            BadInput: there is none.
        """
        raise NotImplementedError("being written")

    def submit(self, request: SpeechRequest) -> SpeechSession:
        """Accepts a request, or refuses it at once; never blocks.

        Raises:
            BadInput: unknown model or voice, a setting out of range, an empty text.
            Overloaded: no slot is free and too many wait already (or the request does not want to wait).
            Draining: the engine takes nothing new (draining, stopped, or not started).
        """
        raise NotImplementedError("being written")

    def drain(self, timeout: float | None = None) -> bool:
        """Takes nothing new and waits until everything accepted has ended. After `timeout` seconds the rest is
        cancelled (`draining`); True when nothing had to be."""
        raise NotImplementedError("being written")

    def stop(self) -> None:
        """Cancels what is left (`stopped`) and ends the threads. May be called again."""
        raise NotImplementedError("being written")

    def stats(self) -> EngineStats:
        """A snapshot of the figures."""
        raise NotImplementedError("being written")
