"""Prometheus metrics: what the client got (measured as bytes leave), and what the engine did (its observer)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from ...tts.speculative_plan import Figures
from ..engine import Audio, EngineStats, Observer, Outcome, Session

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONTINUITY_MS = (50, 100, 200)
LATE_SECONDS = 0.1
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_FINE = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)
_RTF = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 5)


class Meter:
    """Continuity of one stream as its client hears it: playback starts with the first chunk; each later chunk that
    comes after what is there has been played stalls it."""

    def __init__(self, started: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.started, self.clock = started, clock
        self.first: float | None = None  # seconds from the request to the first audio that left
        self.chunks, self.late = 0, 0
        self.audio = self.underrun = 0.0
        self.intervals: list[float] = []
        self._play_head = self._last = 0.0

    def sent(self, seconds: float) -> None:
        """A chunk of so many seconds has left."""
        now = self.clock()
        if self.first is None:
            self.first, self._play_head = now - self.started, now
        else:
            self.intervals.append(now - self._last)
            stall = max(0.0, now - self._play_head)
            self.underrun, self.late = max(self.underrun, stall), self.late + (stall > LATE_SECONDS)
        self._play_head, self._last = max(self._play_head, now) + seconds, now
        self.chunks, self.audio = self.chunks + 1, self.audio + seconds


class Metrics(Observer):
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._drafted: dict[str, Figures] = {}
        r = self.registry
        self.ttfa = Histogram(
            "quaver_ttfa_seconds", "Request to first audio sent", ["surface"], buckets=_SECONDS, registry=r
        )
        self.rtf = Histogram("quaver_rtf", "Seconds of a slot per second of speech", buckets=_RTF, registry=r)
        self.interval = Histogram(
            "quaver_chunk_interval_seconds", "Time between sent chunks of one stream", buckets=_FINE, registry=r
        )
        self.underrun = Histogram(
            "quaver_underrun_seconds", "Longest stall of a stream's playback", buckets=(0.0, *_FINE, 5), registry=r
        )
        self.streams = Counter("quaver_streams", "Streams of two chunks and more (for continuity)", registry=r)
        self.continuity = Counter(
            "quaver_continuity_ok", "Streams that never stalled longer", ["threshold_ms"], registry=r
        )
        self.misses = Counter("quaver_deadline_misses", "Chunks sent over 100 ms after they were needed", registry=r)
        self.audio_seconds = Counter("quaver_audio_seconds", "Seconds of speech made", registry=r)
        self.unheard = Counter(
            "quaver_unheard_seconds", "Audio of clients that came too fast for a duplex model", registry=r
        )
        self.admissions = Counter("quaver_admissions", "Requests by what became of them", ["result"], registry=r)
        self.queue_wait = Histogram(
            "quaver_queue_wait_seconds", "Request to slot", buckets=(0.0, *_SECONDS), registry=r
        )
        self.closes = Counter("quaver_sessions_closed", "Engine sessions by how they ended", ["reason"], registry=r)
        self.tick = Histogram("quaver_tick_seconds", "One batched step", ["model"], buckets=_FINE, registry=r)
        self.restarts = Counter("quaver_engine_restarts", "New engine threads", ["reason"], registry=r)
        self.requests = Counter("quaver_http_requests", "HTTP requests", ["route", "status"], registry=r)
        self.sockets = Gauge("quaver_websockets", "Open WebSockets", ["surface"], registry=r)
        self.socket_closes = Counter(
            "quaver_websockets_closed", "WebSockets by close code", ["surface", "code"], registry=r
        )
        for threshold in CONTINUITY_MS:
            self.continuity.labels(str(threshold))

    def speculating(self, model: str, figures: Figures) -> None:
        """A model that speculates: what its drafter is worth, read at every scrape."""
        if not self._drafted:
            self.registry.register(_SpeculationCollector(self._drafted))
        self._drafted[model] = figures

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Adds the engine's gauges, read at every scrape."""
        self.registry.register(_EngineCollector(stats))

    def streamed(self, meter: Meter, surface: str) -> None:
        """A stream has ended, well or not."""
        if meter.first is None:
            return
        self.ttfa.labels(surface).observe(meter.first)
        for interval in meter.intervals:
            self.interval.observe(interval)
        self.misses.inc(meter.late)
        if meter.chunks < 2:  # nothing could stall
            return
        self.streams.inc()
        self.underrun.observe(meter.underrun)
        for threshold in CONTINUITY_MS:
            if meter.underrun * 1000 <= threshold:
                self.continuity.labels(str(threshold)).inc()

    def page(self) -> bytes:
        """What Prometheus scrapes."""
        return generate_latest(self.registry)

    # -- the engine's observer ----------------------------------------------------------------------------------------
    def refused(self, model: str, reason: str) -> None:
        self.admissions.labels(reason).inc()

    def admitted(self, session: Session) -> None:
        self.admissions.labels("admitted").inc()

    def audio(self, session: Session, event: Audio) -> None:
        self.audio_seconds.inc(event.seconds)

    def closed(self, session: Session, outcome: Outcome) -> None:
        self.closes.labels(outcome.reason).inc()
        usage = outcome.usage
        if usage.queue_wait is not None:
            self.queue_wait.observe(usage.queue_wait)
            if usage.audio and outcome.kind == "done":
                self.rtf.observe((usage.total - usage.queue_wait) / usage.audio)

    def ticked(self, model: str, seconds: float, active: int) -> None:
        self.tick.labels(model).observe(seconds)

    def restarted(self, reason: str) -> None:
        self.restarts.labels(reason).inc()


class _SpeculationCollector:
    def __init__(self, figures: Mapping[str, Figures]) -> None:
        self._figures = figures

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        kept = GaugeMetricFamily(
            "quaver_speculation_accepted_share", "Share of the judged drafted tokens that were kept", labels=["model"]
        )
        made = GaugeMetricFamily("quaver_speculation_tokens_per_call", "Tokens a call of the target", labels=["model"])
        for model, figures in self._figures.items():
            kept.add_metric([model], figures.acceptance)
            made.add_metric([model], figures.tokens_per_call)
        yield kept
        yield made


class _EngineCollector:
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def describe(self) -> list[Metric]:
        return []  # nothing is asked of the engine before the first scrape

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        slots = GaugeMetricFamily("quaver_slots", "Slots by state", labels=["model", "state"])
        for model, states in stats.slots.items():
            for state, count in states.items():
                slots.add_metric([model, state], count)
        yield slots
        yield GaugeMetricFamily("quaver_sessions_waiting", "Sessions without a slot yet", value=stats.waiting)
        yield GaugeMetricFamily("quaver_sessions_open", "Sessions that have not ended", value=stats.open)
        yield GaugeMetricFamily("quaver_engine_ready", "1 when the engine takes work", value=float(stats.ready))
        yield GaugeMetricFamily("quaver_engine_rtf", "Seconds of ticks per second of speech, so far", value=stats.rtf)
