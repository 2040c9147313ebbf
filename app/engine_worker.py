"""The thread that owns torch, and the watch over it.

A worker is one life of the engine's thread, with its own lanes: when it dies or gets stuck, it is retired together with
them, and the next one starts with fresh state. A retired worker that comes back from a stuck step finds its sessions
ended and leaves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import EngineError, QuaverError
from .engine_lanes import Lane, Tick
from .engine_session import Audio, Session

__all__ = ["Host", "LaneFactory", "Worker", "as_quaver_error"]

log = logging.getLogger(__name__)
LaneFactory = Callable[[], Lane]
HELD_POLL = 0.02
"""Seconds between looks at slots that are held until playback has moved on."""
IDLE_POLL = 0.5


class Host(Protocol):
    """What a worker needs of the engine. All of it is thread-safe."""

    stall: float
    buffer: float

    def seat_next(self, model: str, seats: list[Session | None], slot: int) -> Session | None:
        """Moves the next waiting session of a model from the queue into a free seat."""
        ...

    def admitted(self, worker: Worker, session: Session) -> None: ...
    def closed(self, session: Session) -> None: ...
    def sent(self, session: Session, audio: Audio) -> None: ...
    def ticked(self, model: str, seconds: float, active: int) -> None: ...
    def died(self, worker: Worker, error: BaseException) -> None: ...
    def sweep(self) -> float:
        """Ends waiting sessions whose time is up; seconds until the next is."""
        ...


def as_quaver_error(error: BaseException) -> QuaverError:
    """The error as a client may see it: what quaver raises on purpose as it is, anything else as an EngineError."""
    if isinstance(error, QuaverError):
        return error
    wrapped = EngineError(f"the model failed while it made this answer ({type(error).__name__}); send it again")
    wrapped.__cause__ = error
    return wrapped


@dataclass
class _LaneSlots:
    """A lane and who sits in its slots."""

    lane: Lane
    sessions: list[Session | None]


class Worker:
    """One life of the engine's thread."""

    def __init__(self, host: Host, factories: Mapping[str, LaneFactory], warm_up: bool) -> None:
        self.host, self.factories, self.warm_up = host, factories, warm_up
        self.lanes: dict[str, _LaneSlots] = {}
        self.wake = threading.Event()
        self.started = threading.Event()  # or failed to
        self.error: BaseException | None = None
        self.retired = False
        self.busy_since: float | None = None
        self.born = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="quaver-engine", daemon=True)

    def retire(self) -> None:
        """Asks the thread to end before its next step."""
        self.retired = True
        self.wake.set()

    def sessions(self) -> list[Session]:
        """Who sits in a slot, from any thread."""
        return [s for seats in list(self.lanes.values()) for s in list(seats.sessions) if s is not None]

    def free(self, model: str) -> int:
        """Free slots of a model, from any thread."""
        seats = self.lanes.get(model)
        return sum(s is None for s in list(seats.sessions)) if seats else 0

    # -- the thread ---------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            self.open()
            self.started.set()
            while not self.retired:
                self.wake.clear()
                if not self.turn():
                    self.wake.wait(self._pause())
        except BaseException as error:  # whatever it was: the engine must know that this thread is gone
            self.error = error
            self.host.died(self, error)
        finally:
            self.started.set()

    def open(self) -> None:
        """Builds the lanes."""
        for name, factory in self.factories.items():
            lane = factory()
            if self.warm_up:
                lane.warm_up()
            self.lanes[name] = _LaneSlots(lane, [None] * lane.slots)

    def turn(self) -> int:
        """Sessions leave and join, then every lane makes one step. Returns how many slots moved."""
        self.host.sweep()
        moved = 0
        for name, seats in self.lanes.items():
            self._reap(seats)
            self._admit(name, seats)
            if any(seats.sessions) and not self.retired:
                moved += self._tick(name, seats)
        return moved

    def _reap(self, seats: _LaneSlots) -> None:
        """Frees the slots of sessions that have ended, by whoever's will."""
        for slot, session in enumerate(seats.sessions):
            if session is None:
                continue
            now = session.clock()
            if now > session.expires:
                session.finish("timeout", "timeout", EngineError("the session took longer than it may; ask for less"))
            elif session.unread >= self.host.buffer and now - session.last_read > self.host.stall:
                session.finish("cancelled", "slow_consumer")
            if session.outcome is not None:
                self._leave(seats, slot)
                self.host.closed(session)

    def _leave(self, seats: _LaneSlots, slot: int) -> None:
        seats.lane.leave(slot)
        seats.sessions[slot] = None

    def _admit(self, name: str, seats: _LaneSlots) -> None:
        for slot, there in enumerate(seats.sessions):
            while there is None and not self.retired:
                session = self.host.seat_next(name, seats.sessions, slot)
                if session is None:
                    return
                self.host.admitted(self, session)
                try:
                    seats.lane.join(slot, session)
                    break
                except Exception as error:
                    self._fail(seats, slot, error)

    def _fail(self, seats: _LaneSlots, slot: int, error: BaseException) -> None:
        session = seats.sessions[slot]
        self._leave(seats, slot)
        if session is not None:
            if not isinstance(error, QuaverError):
                log.error("session %s failed", session.request_id, exc_info=error)
            told = as_quaver_error(error)
            session.finish("failed", told.kind, told)
            self.host.closed(session)

    def _tick(self, name: str, seats: _LaneSlots) -> int:
        self.busy_since = begun = time.monotonic()
        try:
            tick = seats.lane.tick()
        except Exception as error:
            # The lane could not say whose fault it was, and its state may be half written: nobody can go on in it.
            log.error("lane %s failed", name, exc_info=error)
            tick = Tick(failed={slot: error for slot, s in enumerate(seats.sessions) if s is not None})
            if not self.retired:
                self._close_failed(seats, tick)
                seats.lane = self.factories[name]()
            return 0
        finally:
            self.busy_since = None
        if self.retired:
            return 0
        if tick.moved:
            self.host.ticked(name, time.monotonic() - begun, tick.moved)
        for session, audio in tick.sent:
            self.host.sent(session, audio)
        self._close_failed(seats, tick)
        for slot in tick.finished:
            session = seats.sessions[slot]
            self._leave(seats, slot)  # first: who reads "done" may at once ask for a slot again
            if session is not None:
                session.finish("done", "done")
                self.host.closed(session)
        return tick.moved + len(tick.finished) + len(tick.failed)

    def _close_failed(self, seats: _LaneSlots, tick: Tick) -> None:
        for slot, error in tick.failed.items():
            self._fail(seats, slot, error)

    def _pause(self) -> float:
        """How long nothing will happen by itself."""
        held = any(state == "held" for seats in self.lanes.values() for state in seats.lane.states())
        if held:
            return HELD_POLL
        expiries = [s.expires - s.clock() for s in self.sessions()]
        return max(0.0, min([IDLE_POLL, self.host.sweep(), *expiries]))
