"""Load on the engine, without sockets: `python benchmarks/serving.py --minutes 5`.

Everything is measured in one run on one CPU thread. Throughput is speech made per second of the engine thread's own
CPU time, so that a busy machine spoils it little. Continuity (C50, C100, C200: the share of streams whose longest stall
stays under so many milliseconds) is measured twice: with the engine stepped by hand on a clock that counts its CPU time
(what it does on a core of its own), and on the wall clock, which on a busy machine is worse through no fault of the
engine's.

Playback is as a client would do it: it starts at the first chunk, and a chunk is late when it comes after the one
before has been played (the formula of vllm-omni's serving benchmark).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from quaver.app.engine import Audio, Engine, Observer, Outcome, Session, SpeechRequest, Usage
from quaver.app.engine_worker import HELD_POLL
from quaver.errors import Overloaded
from quaver.tts.synthesizer import Synthesizer

TEXT = (
    "The birch canoe slid on the smooth planks, and the sun went down behind the hills. "
    "Four hours of steady work faced us. Is it far to the next village?"
)
AHEAD = 2.0
WIDTHS = (1, 2, 4, 8, 16)


class ThreadClock(Observer):
    """CPU seconds of the engine thread, and the ticks in which slots came free."""

    def __init__(self) -> None:
        self.begun: float | None = None
        self.cpu, self.ticks = 0.0, 0
        self.closed_at: dict[str, int] = {}

    def ticked(self, model: str, seconds: float, active: int) -> None:
        now = time.thread_time()
        if self.begun is not None:
            self.cpu += now - self.begun
        self.begun = now
        self.ticks += 1

    def closed(self, session: Session, outcome: Outcome) -> None:
        self.closed_at[session.request_id] = self.ticks


@dataclass
class Stream:
    """What one client saw: seconds to the first audio, seconds of audio, longest stall."""

    first: float = 0.0
    audio: float = 0.0
    stall: float = 0.0
    chunks: int = 0


@dataclass
class Load:
    """Clients that speak one text after the other until the time is up."""

    engine: Engine
    ahead: float | None
    done: list[Stream] = field(default_factory=list)

    def run(self, clients: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(i, end)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int, end: float) -> None:
        seed = number
        while time.monotonic() < end:
            stream = listen(self.engine.submit(SpeechRequest(TEXT, seed=seed, ahead=self.ahead)))
            self.done.append(stream)
            seed += 100


def listen(session: Session) -> Stream:
    """Reads a session to its end."""
    stream, head = Stream(), 0.0
    for event in session:
        now = session.clock()
        if isinstance(event, Audio) and event.seconds:
            if not stream.chunks:
                stream.first, head = now - session.submitted, now
            stream.stall = max(stream.stall, now - head)
            head = max(head, now) + event.seconds
            stream.audio += event.seconds
            stream.chunks += 1
    return stream


def share(streams: Sequence[Stream], limit: float) -> float:
    return mean(s.stall <= limit for s in streams) if streams else 0.0


def engine_of(synthesizer: Synthesizer, slots: int, clock: ThreadClock, chunks: Sequence[int]) -> Engine:
    engine = Engine(
        {"voice": synthesizer}, slots=slots, max_waiting=slots, observer=clock, chunks=chunks, warm_up=False
    )
    engine.start()
    return engine


def throughput(synthesizer: Synthesizer, width: int, seconds: float, chunks: Sequence[int]) -> dict[str, Any]:
    """As many streams as slots, as fast as they go."""
    clock = ThreadClock()
    engine = engine_of(synthesizer, width, clock, chunks)
    load, begun = Load(engine, None), time.monotonic()
    load.run(width, seconds)
    wall, stats = time.monotonic() - begun, engine.stats()
    engine.stop()
    return {
        "streams": width,
        "speech_per_cpu_second": sum(s.audio for s in load.done) / clock.cpu,
        "speech_per_second": sum(s.audio for s in load.done) / wall,
        "core_share": clock.cpu / wall,
        "step_ms": dict(stats.step_ms),
        "first_audio_ms": 1000 * median(s.first for s in load.done),
    }


def continuity(synthesizer: Synthesizer, width: int, seconds: float, chunks: Sequence[int]) -> dict[str, Any]:
    """As many streams as slots, each in real time (at most two seconds ahead of playback)."""
    clock = ThreadClock()
    engine = engine_of(synthesizer, width, clock, chunks)
    load, begun = Load(engine, AHEAD), time.monotonic()
    load.run(width, seconds)
    wall = time.monotonic() - begun
    engine.stop()
    firsts = sorted(s.first for s in load.done)
    audio = sum(s.audio for s in load.done)
    return {
        "streams": width,
        "answers": len(load.done),
        **{f"C{ms}": share(load.done, ms / 1000) for ms in (50, 100, 200)},
        "first_audio_ms": {"p50": 1000 * median(firsts), "p95": 1000 * firsts[int(0.95 * (len(firsts) - 1))]},
        "cpu_rtf": clock.cpu / audio,
        "core_share": clock.cpu / wall,
    }


class OwnCore:
    """Seconds on a core that does nothing but step the engine: CPU time, and the naps in between."""

    def __init__(self) -> None:
        self.offset = -time.thread_time()

    def __call__(self) -> float:
        return time.thread_time() + self.offset

    def nap(self, seconds: float) -> None:
        self.offset += seconds


def own_core(synthesizer: Synthesizer, width: int, seconds: float, chunks: Sequence[int]) -> dict[str, Any]:
    """As `continuity`, on the engine's own clock. Clients start one after the other, a tenth of a second apart."""
    clock = OwnCore()
    engine = Engine({"voice": synthesizer}, slots=width, chunks=chunks, warm_up=False, clock=clock)
    worker, begun, naps = engine.by_hand(), clock(), 0.0
    sessions: list[Session | None] = [None] * width
    done: list[Usage] = []
    seed = 0
    while (now := clock() - begun) < seconds or any(sessions):
        for i, session in enumerate(sessions):
            while session is not None and session.get_nowait() not in (None, session.outcome):
                pass
            if session is not None and session.outcome is not None and not session.unread:
                done.append(session.usage)
                session = sessions[i] = None
            if session is None and 0.1 * i <= now < seconds:
                sessions[i] = engine.submit(SpeechRequest(TEXT, seed=seed, ahead=AHEAD))
                seed += 1
        if not worker.turn():
            clock.nap(HELD_POLL)
            naps += HELD_POLL
    whole = clock() - begun
    engine.stop()
    streams = [Stream(u.first_audio or 0.0, u.audio, u.underrun, u.chunks) for u in done]
    firsts, audio = sorted(s.first for s in streams), sum(s.audio for s in streams)
    return {
        "streams": width,
        "answers": len(streams),
        **{f"C{ms}": share(streams, ms / 1000) for ms in (50, 100, 200)},
        "first_audio_ms": {"p50": 1000 * median(firsts), "p95": 1000 * firsts[int(0.95 * (len(firsts) - 1))]},
        "cpu_rtf": (whole - naps) / audio,
        "core_share": (whole - naps) / whole,
    }


def second_request(synthesizer: Synthesizer, slots: int, chunks: Sequence[int], repeats: int = 7) -> dict[str, float]:
    """First audio of one request on an idle engine, and of another while the first one speaks."""
    engine = engine_of(synthesizer, slots, ThreadClock(), chunks)
    alone, beside = [], []
    for seed in range(repeats):
        first = engine.submit(SpeechRequest(TEXT, seed=seed, ahead=AHEAD))
        alone.append(until_audio(first))
        second = engine.submit(SpeechRequest(TEXT, seed=seed, ahead=AHEAD))
        beside.append(until_audio(second))
        first.cancel()
        second.cancel()
        while engine.stats().open:
            time.sleep(0.005)
    engine.stop()
    return {
        "slots": slots,
        "first_ms": 1000 * median(alone),
        "second_ms": 1000 * median(beside),
        "ratio": median(b / a for a, b in zip(alone, beside, strict=True)),
    }


def second_on_own_core(
    synthesizer: Synthesizer, slots: int, chunks: Sequence[int], repeats: int = 9
) -> dict[str, float]:
    """As `second_request`, on the engine's own clock, which no neighbour disturbs. A request that comes while a step
    runs waits for its end: `within` counts it as having come at an even share of that step."""
    clock = time.thread_time
    engine = Engine({"voice": synthesizer}, slots=slots, chunks=chunks, warm_up=False, clock=clock)
    worker = engine.by_hand()

    def steps(session: Session) -> float:
        begun = clock()
        while True:
            worker.turn()
            while (event := session.get_nowait()) is not None:
                if isinstance(event, Audio) and event.seconds:
                    return clock() - begun

    alone, between, within = [], [], []
    for seed in range(repeats):
        first = engine.submit(SpeechRequest(TEXT, seed=seed, ahead=AHEAD))
        alone.append(steps(first))
        begun = clock()
        worker.turn()
        running = clock() - begun
        second = engine.submit(SpeechRequest(TEXT, seed=seed, ahead=AHEAD))
        between.append(steps(second))
        within.append(between[-1] + running * (1 - (seed + 0.5) / repeats))
        first.cancel()
        second.cancel()
        worker.turn()
    engine.stop()
    return {
        "first_ms": 1000 * median(alone),
        "between": median(b / a for a, b in zip(alone, between, strict=True)),
        "within": median(w / a for a, w in zip(alone, within, strict=True)),
    }


def until_audio(session: Session) -> float:
    while True:
        event = session.get(60)
        if isinstance(event, Audio) and event.seconds:
            return session.clock() - session.submitted
        if isinstance(event, Outcome):
            raise RuntimeError(f"no audio: {event}")


def cancels(synthesizer: Synthesizer, slots: int, chunks: Sequence[int], repeats: int = 20) -> dict[str, Any]:
    """Ticks that ended between a cancel and the free slot, while the other slots speak."""
    clock = ThreadClock()
    engine = engine_of(synthesizer, slots, clock, chunks)
    others = [engine.submit(SpeechRequest(TEXT * 20, seed=i)) for i in range(slots - 1)]
    ticks = []
    for seed in range(repeats):
        session = engine.submit(SpeechRequest(TEXT, seed=seed))
        until_audio(session)
        before = clock.ticks
        session.cancel()
        while session.request_id not in clock.closed_at:
            time.sleep(0.0005)
        ticks.append(clock.closed_at[session.request_id] - before)
    for session in others:
        session.cancel()
    engine.stop()
    return {"most_ticks": max(ticks), "mean_ticks": mean(ticks)}


def refusals(synthesizer: Synthesizer, slots: int, chunks: Sequence[int], count: int = 300) -> dict[str, Any]:
    """How long a refusal takes while every slot speaks and the queue is full."""
    engine = engine_of(synthesizer, slots, ThreadClock(), chunks)
    held = [engine.submit(SpeechRequest(TEXT * 20, seed=i, deadline=600)) for i in range(2 * slots)]
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        try:
            engine.submit(SpeechRequest(TEXT))
        except Overloaded:
            times.append(1000 * (time.perf_counter() - begun))
        time.sleep(0.002)
    for session in held:
        session.cancel()
    engine.stop()
    return {"asked": count, "refused": len(times), "most_ms": max(times), "p50_ms": median(times)}


def measure(
    minutes: float, widths: Sequence[int], chunks: Sequence[int], say: Callable[[str], object]
) -> dict[str, Any]:
    torch.set_num_threads(1)
    synthesizer = Synthesizer.load()
    for _ in synthesizer.stream(TEXT):
        pass
    each = max(2.0, minutes * 60 * 0.85 / (3 * len(widths)))
    report: dict[str, Any] = {
        "minutes": minutes,
        "chunks": list(chunks),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "throughput": [],
        "own_core": [],
        "continuity": [],
    }
    for width in widths:
        say(f"{width} streams as fast as they go\n")
        report["throughput"].append(throughput(synthesizer, width, each, chunks))
    one = report["throughput"][0]["speech_per_cpu_second"]
    for row in report["throughput"]:
        row["ratio_to_one"] = row["speech_per_cpu_second"] / one
    for width in widths:
        say(f"{width} streams in real time, on a core of its own\n")
        report["own_core"].append(own_core(synthesizer, width, each, chunks))
    for width in widths:
        say(f"{width} streams in real time\n")
        report["continuity"].append(continuity(synthesizer, width, each, chunks))
    for name, rows in (("knee", report["own_core"]), ("knee_wall", report["continuity"])):
        report[name] = max([row["streams"] for row in rows if row["C100"] >= 0.99], default=0)
    say("single figures\n")
    report["second_request"] = second_request(synthesizer, 8, chunks)
    report["second_own_core"] = second_on_own_core(synthesizer, 8, chunks)
    report["cancel"] = cancels(synthesizer, 4, chunks)
    report["refusal"] = refusals(synthesizer, 4, chunks)
    return report


def markdown(report: dict[str, Any]) -> str:
    lines = [
        f"One CPU thread of {report['cores']} cores (load average {report['load_average']:.1f}), "
        f"chunks {report['chunks']}, torch {report['torch']}, {report['minutes']} minutes.",
        "",
        "| streams | speech per CPU second | ratio to one | speech per second | share of a core | tick p50 / p95 ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["throughput"]:
        step = row["step_ms"]
        lines.append(
            f"| {row['streams']} | {row['speech_per_cpu_second']:.2f} | {row['ratio_to_one']:.2f} "
            f"| {row['speech_per_second']:.2f} | {row['core_share']:.2f} | {step['p50']:.1f} / {step['p95']:.1f} |"
        )
    for name, title in (("own_core", "a core of its own"), ("continuity", "wall clock")):
        lines += ["", f"Streams in real time, {title}:", ""]
        lines += ["| streams | answers | C50 | C100 | C200 | first audio p50 / p95 ms | CPU RTF | share of a core |"]
        lines += ["|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for row in report[name]:
            first = row["first_audio_ms"]
            lines.append(
                f"| {row['streams']} | {row['answers']} | {row['C50']:.2f} | {row['C100']:.2f} | {row['C200']:.2f} "
                f"| {first['p50']:.0f} / {first['p95']:.0f} | {row['cpu_rtf']:.3f} | {row['core_share']:.2f} |"
            )
    own = report["second_own_core"]
    second, cancel, refusal = report["second_request"], report["cancel"], report["refusal"]
    lines += [
        "",
        f"- knee (most streams with C100 of 99 % or more): {report['knee']} on a core of its own, "
        f"{report['knee_wall']} by the wall clock",
        f"- first audio of request 2 beside request 1: {second['ratio']:.2f} times ({second['second_ms']:.0f} ms and "
        f"{second['first_ms']:.0f} ms, {second['slots']} slots)",
        f"- the same on a core of its own: {own['between']:.2f} times between two steps, {own['within']:.2f} times "
        f"when it comes while one runs ({own['first_ms']:.0f} ms alone)",
        f"- cancel to free slot: at most {cancel['most_ticks']} ticks, {cancel['mean_ticks']:.2f} on average",
        f"- {refusal['refused']} of {refusal['asked']} requests over capacity refused, the slowest in "
        f"{refusal['most_ms']:.1f} ms",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="load on the engine")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--streams", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--chunks", type=int, nargs="+", default=[2, 4], help="frames per decoded chunk")
    parser.add_argument("--output", type=Path, help="folder for serving.json and serving.md")
    options = parser.parse_args()
    report = measure(options.minutes, options.streams, options.chunks, sys.stderr.write)
    sys.stdout.write(markdown(report))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "serving.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.output / "serving.md").write_text(markdown(report))


if __name__ == "__main__":
    main()
