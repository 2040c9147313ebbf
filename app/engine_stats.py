"""The engine's figures."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .engine_session import Outcome

__all__ = ["Counts", "EngineStats"]


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


@dataclass
class Counts:
    """The running figures behind `EngineStats`."""

    admissions: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    closes: Counter[str] = field(default_factory=Counter)
    ticks: int = 0
    restarts: int = 0
    audio: float = 0.0
    busy: float = 0.0
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    lasted: float = 2.0
    """Seconds that a session lasts, a moving average."""

    def tick(self, seconds: float) -> None:
        self.ticks += 1
        self.busy += seconds
        self.steps.append(seconds)

    def close(self, outcome: Outcome) -> None:
        self.closes[outcome.reason] += 1
        self.lasted += 0.1 * (outcome.usage.total - self.lasted)

    def retry_after(self, ahead: int, slots: int) -> float:
        """Seconds until a slot may be free for one more."""
        return min(60.0, max(1.0, self.lasted * (ahead + 1) / slots))

    def snapshot(self) -> dict[str, Any]:
        ordered, last = sorted(self.steps), len(self.steps) - 1
        places = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {
            "admissions": self.admissions,
            "refusals": dict(self.refusals),
            "closes": dict(self.closes),
            "ticks": self.ticks,
            "restarts": self.restarts,
            "audio": self.audio,
            "busy": self.busy,
            "rtf": self.busy / self.audio if self.audio else 0.0,
            "step_ms": {name: 1000 * ordered[int(p * last)] if ordered else 0.0 for name, p in places.items()},
        }
