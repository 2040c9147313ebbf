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

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal, get_args

from ..errors import BadInput, Draining, EngineError, Overloaded, QuaverError
from ..tts.speaking import SpeechSettings
from ..tts.token_synthesizer import TokenSynthesizer
from ..tts.voices import Voice
from .engine_lanes import SlotState, SpeechLane
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
from .engine_stats import Counts, EngineStats
from .engine_tokens import AnySynthesizer, TokenLane, check_token_request
from .engine_worker import IDLE_POLL, LaneFactory, Worker

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


log = logging.getLogger(__name__)
QUICK_DEATH = 10.0
"""Seconds: a thread that dies sooner than that after its start is not restarted at once."""


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


class Engine:
    """Runs the sessions of one or more models.

    Args:
        synthesizers: by the model name that requests use; "default" is the first unless one has that name.
        slots: concurrent sessions of each model. max_waiting: sessions that may wait for a slot, over all models.
        buffer: seconds of unread audio at which a session's generation is held, whatever its `ahead`.
        timeout: the longest that any session may last, in seconds. stall: a reader that takes nothing for so many
            seconds while its buffer is full is closed as `slow_consumer`.
        stuck: a tick that lasts longer (seconds) makes the watchdog start a new thread.
        chunks: frames per decoded chunk, the last for all further ones.
        observer: see `Observer`.
        clock: monotonic seconds; tests bring their own.
        lanes: further models with their own kind of session, which `accept` takes (a full-duplex model).
        warm_up: run each model once before `start` returns.
    """

    def __init__(
        self,
        synthesizers: Mapping[str, AnySynthesizer],
        *,
        slots: int = 8,
        max_waiting: int = 16,
        buffer: float = 60.0,
        timeout: float = 1800.0,
        stall: float = 30.0,
        stuck: float = 30.0,
        chunks: Sequence[int] = (2, 4),
        observer: Observer | None = None,
        lanes: Mapping[str, LaneFactory] | None = None,
        warm_up: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not synthesizers and not lanes:
            raise BadInput("an engine needs at least one model")
        if slots < 1 or max_waiting < 0:
            raise BadInput(f"an engine needs at least one slot and a queue of 0 or more, not {slots} and {max_waiting}")
        self._synthesizers = dict(synthesizers)
        self.slots, self.max_waiting = slots, max_waiting
        self.buffer, self.timeout, self.stall, self.stuck = buffer, timeout, stall, stuck
        self.observer = observer or Observer()
        self._factories: dict[str, LaneFactory] = {
            name: partial(TokenLane, name, its, slots, buffer)
            if isinstance(its, TokenSynthesizer)
            else partial(SpeechLane, name, its, slots, chunks, buffer)
            for name, its in self._synthesizers.items()
        } | dict(lanes or {})
        self._warm_up, self._clock = warm_up, clock
        self._changed = threading.Condition()
        self._queue: deque[Session] = deque()
        self._open: dict[int, Session] = {}
        self._state: Literal["new", "running", "draining", "stopped"] = "new"
        self._worker: Worker | None = None
        self._watchdog = threading.Thread(target=self._watch, name="quaver-watchdog", daemon=True)
        self._alarm = threading.Event()
        self._counts = Counts()

    # -- life ---------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts the engine thread and its watchdog; returns when the models are ready.

        Raises:
            EngineError: it was started before, or a model cannot run.
        """
        with self._changed:
            if self._state != "new":
                raise EngineError(f"this engine is {self._state}; make a new one")
            self._state = "running"
            self._worker = worker = Worker(self, self._factories, self._warm_up)
        worker.thread.start()
        worker.started.wait()
        if worker.error is not None:
            self.stop()
            raise EngineError(f"the engine could not start: {worker.error}") from worker.error
        self._watchdog.start()

    def by_hand(self) -> Worker:
        """Instead of `start`: no thread; the caller steps the engine with `turn` of what this returns, and `stop`s it.
        For tests and measurements, which bring their own clock."""
        with self._changed:
            if self._state != "new":
                raise EngineError(f"this engine is {self._state}; make a new one")
            self._state = "running"
            self._worker = Worker(self, self._factories, self._warm_up)
        self._worker.open()
        return self._worker

    @property
    def ready(self) -> bool:
        """Whether `submit` would be heard: started, alive, not stuck, not draining."""
        worker = self._worker
        return self._state == "running" and worker is not None and worker.started.is_set() and self._well(worker)

    def drain(self, timeout: float | None = None) -> bool:
        """Takes nothing new and waits until everything accepted has ended. After `timeout` seconds the rest is
        cancelled (`draining`); True when nothing had to be."""
        with self._changed:
            if self._state == "running":
                self._state = "draining"
            if self._changed.wait_for(lambda: not self._open, timeout):
                return True
            left = list(self._open.values())
        for session in left:
            session.cancel("draining")
        with self._changed:
            self._changed.wait_for(lambda: not self._open, self.stuck)
        return False

    def stop(self) -> None:
        """Cancels what is left (`stopped`) and ends the threads. May be called again."""
        with self._changed:
            self._state = "stopped"
            left, worker = list(self._open.values()), self._worker
        for session in left:
            session.cancel("stopped")
        self._alarm.set()
        if worker is not None:
            worker.retire()
            if worker.thread.is_alive() and worker.thread is not threading.current_thread():
                worker.thread.join(self.stuck)
        if self._watchdog.is_alive():
            self._watchdog.join(self.stuck)
        for session in left:
            self.closed(session)

    # -- work ---------------------------------------------------------------------------------------------------------
    @property
    def models(self) -> tuple[str, ...]:
        """Names that `SpeechRequest.model` may have, besides "default"."""
        return tuple(self._synthesizers)

    def synthesizer(self, model: str = "default") -> AnySynthesizer:
        """The model of that name, for its voices and sample rate.

        Raises:
            BadInput: there is none.
        """
        return self._synthesizers[self._name(model)]

    def _name(self, model: str) -> str:
        if model in self._synthesizers:
            return model
        if model == "default" and self._synthesizers:
            return next(iter(self._synthesizers))
        raise BadInput(f"no model {model!r}; choose one of {', '.join(self.models)}")

    def submit(self, request: SpeechRequest) -> SpeechSession:
        """Accepts a request, or refuses it at once; never blocks.

        Text that has words nobody can read (only emoji, say) is accepted and fails with BadInput as its first event:
        reading it takes the front end, which is the engine thread's business.

        Raises:
            BadInput: unknown model or voice, a setting out of range, an empty text.
            Overloaded: no slot is free and too many wait already (or the request does not want to wait).
            Draining: the engine takes nothing new (draining, stopped, or not started).
        """
        try:
            name = self._name(request.model)
            session = SpeechSession(request, self._checked(name, request), self.wake, self._clock)
        except BadInput as error:
            self._refused(request.model, error.kind)
            raise
        session.model = name
        timeout = self.timeout if request.timeout is None else min(self.timeout, request.timeout)
        session.expires = session.submitted + timeout
        self.accept(session, request.deadline)
        return session

    def _checked(self, name: str, request: SpeechRequest) -> SpeechSettings | None:
        if request.text is not None and not request.text.strip():
            raise BadInput("there is no text to speak; give at least one word")
        for what, value in (("ahead", request.ahead), ("timeout", request.timeout)):
            if value is not None and not value > 0:
                raise BadInput(f"{what} must be a positive number of seconds, not {value}")
        if not request.deadline >= 0:
            raise BadInput(f"deadline must be a number of seconds, not {request.deadline}")
        synthesizer = self._synthesizers[name]
        if isinstance(synthesizer, TokenSynthesizer):
            check_token_request(synthesizer, request)
            return None
        if request.speculate:
            raise BadInput("this model does not speculate along time (docs/speculation.md)")
        if isinstance(request.voice, Voice):
            raise BadInput("this model has voices of its own only, it cannot speak as a voice file")
        return synthesizer.settings_of(
            voice=request.voice,
            speed=request.speed,
            seed=request.seed,
            temperature=request.temperature,
            pause=request.pause,
            codebooks=request.codebooks,
        )

    def accept(self, session: Session, deadline: float) -> None:
        """Takes a session of any lane in (`session.model` names it), or refuses it at once; never blocks.

        Raises:
            Overloaded, Draining: as for `submit`.
        """
        error: QuaverError | None = None
        with self._changed:
            ahead = sum(s.model == session.model and s.outcome is None for s in self._queue)
            free = self._worker.free(session.model) if self._worker else 0
            if self._state != "running":
                error = Draining("this server takes no new work now; try another one")
            elif ahead >= free and (deadline <= 0 or len(self._queue) - free >= self.max_waiting):
                error = Overloaded("all slots are taken; try again later", self._counts.retry_after(ahead, self.slots))
            else:
                session.deadline = session.submitted + deadline if deadline > 0 else session.expires
                self._queue.append(session)
                self._open[id(session)] = session
        if error is not None:
            self._refused(session.model, error.kind)
            raise error
        self.wake()

    def stats(self) -> EngineStats:
        """A snapshot of the figures."""
        with self._changed:
            worker = self._worker
            lanes = worker.lanes if worker else {}
            slots: dict[str, Counter[str]] = {name: Counter(its.lane.states()) for name, its in list(lanes.items())}
            none = {str(state): 0 for state in get_args(SlotState)}
            return EngineStats(
                ready=self.ready,
                draining=self._state == "draining",
                slots={name: none | dict(of) for name, of in slots.items()},
                waiting=len(self._queue),
                open=len(self._open),
                **self._counts.snapshot(),
            )

    # -- what the worker calls (see `Host`) ---------------------------------------------------------------------------
    def seat_next(self, model: str, seats: list[Session | None], slot: int) -> Session | None:
        with self._changed:  # `accept` must never see a session that has left the queue and has no seat yet
            for session in self._queue:
                if session.model == model and session.outcome is None:
                    self._queue.remove(session)
                    seats[slot] = session
                    return session
        return None

    def sweep(self) -> float:
        now, soonest = self._clock(), IDLE_POLL
        with self._changed:
            waiting = list(self._queue)
        for session in waiting:
            end = min(session.deadline, session.expires)
            if session.outcome is None and now > end:
                error = Overloaded(
                    "no slot came free in time; try again later", self._counts.retry_after(1, self.slots)
                )
                session.finish("timeout", "deadline", error)
            if session.outcome is not None:
                with self._changed, suppress(ValueError):
                    self._queue.remove(session)
                self.closed(session)
            soonest = min(soonest, end - now)
        return soonest

    def admitted(self, worker: Worker, session: Session) -> None:
        with self._changed:
            self._counts.admissions += 1
        self._tell(self.observer.admitted, session)

    def sent(self, session: Session, audio: Audio) -> None:
        with self._changed:
            self._counts.audio += audio.seconds
        self._tell(self.observer.audio, session, audio)

    def ticked(self, model: str, seconds: float, active: int) -> None:
        with self._changed:
            self._counts.tick(seconds)
        self._tell(self.observer.ticked, model, seconds, active)

    def closed(self, session: Session) -> None:
        outcome = session.outcome
        with self._changed:
            if self._open.pop(id(session), None) is None or outcome is None:
                return
            self._counts.close(outcome)
            self._changed.notify_all()
        self._tell(self.observer.closed, session, outcome)

    def died(self, worker: Worker, error: BaseException) -> None:
        log.error("the engine thread died", exc_info=error)
        self._alarm.set()

    # -- the watchdog -------------------------------------------------------------------------------------------------
    def _well(self, worker: Worker) -> bool:
        busy = worker.busy_since
        return (
            worker.error is None and worker.thread.is_alive() and (busy is None or time.monotonic() - busy < self.stuck)
        )

    def _watch(self) -> None:
        quick = 0
        while self._state != "stopped":
            self._alarm.wait(min(0.25, self.stuck / 4))
            self._alarm.clear()
            worker = self._worker
            if self._state == "stopped" or worker is None or self._well(worker):
                continue
            quick = quick + 1 if time.monotonic() - worker.born < QUICK_DEATH else 0
            self._bury(worker)
            if quick:  # it dies at once, again and again: do not burn the machine
                self._alarm.wait(min(5.0, 0.1 * 2**quick))
            self._revive()

    def _bury(self, worker: Worker) -> None:
        """Ends the sessions that sat in a dead or stuck thread; those that still wait go on waiting."""
        reason = "stuck" if worker.error is None else "died"
        worker.retire()
        error = EngineError("the engine had to be restarted while it made this answer; send it again")
        error.__cause__ = worker.error
        sessions = worker.sessions()
        for session in sessions:
            session.finish("failed", error.kind, error)
            self.closed(session)
        with self._changed:
            self._counts.restarts += 1
        self._tell(self.observer.restarted, reason)

    def _revive(self) -> None:
        with self._changed:
            if self._state == "stopped":
                return
            self._worker = Worker(self, self._factories, False)
            self._worker.thread.start()

    # -- small things -------------------------------------------------------------------------------------------------
    def wake(self) -> None:
        """There is something to do; for sessions of `lanes`, which are made outside."""
        worker = self._worker
        if worker is not None:
            worker.wake.set()

    def _refused(self, model: str, reason: str) -> None:
        with self._changed:
            self._counts.refusals[reason] += 1
        self._tell(self.observer.refused, model, reason)

    @staticmethod
    def _tell(call: Callable[..., None], *what: object) -> None:
        try:
            call(*what)
        except Exception:  # metrics must not stop the speech
            log.exception("an observer failed")
