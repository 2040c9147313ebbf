"""The engine under faults: failing, slow, stuck and dead models, broken observers, storms of clients."""

from __future__ import annotations

import random
import threading
import time
from functools import partial

import numpy as np
import pytest

from quaver.app.engine import Audio, Engine, Observer, Outcome, Session, Started
from quaver.app.engine import SpeechRequest as PlainRequest
from quaver.errors import BadInput, Overloaded
from quaver.tts.synthesizer import Synthesizer

from ..laws import TOLERANCE
from .engine_help import Fault, all_free, raiser, read, running, sound, tiny_synthesizer, wait_until

TEXT = "Hello world. Is it you?"
SpeechRequest = partial(PlainRequest, deadline=60.0)  # a busy machine must not fail a test
LONG = "The quick brown fox jumps over the lazy dog, and on it goes. " * 40


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return tiny_synthesizer()


def test_an_observer_sees_everything_and_cannot_break_anything(synthesizer: Synthesizer) -> None:
    seen: list[str] = []

    class Watching(Observer):
        def admitted(self, session: Session) -> None:
            seen.append("admitted")

        def audio(self, session: Session, event: Audio) -> None:
            seen.append("audio")
            raise ValueError("a broken exporter")

        def closed(self, session: Session, outcome: Outcome) -> None:
            seen.append(outcome.reason)

        def ticked(self, model: str, seconds: float, active: int) -> None:
            assert model == "tiny"
            assert seconds > 0
            assert active == 1

        def refused(self, model: str, reason: str) -> None:
            seen.append(f"refused {reason}")

    with running(synthesizer, observer=Watching()) as engine:
        read(engine.submit(SpeechRequest(TEXT)))
        with pytest.raises(BadInput):
            engine.submit(SpeechRequest(""))
        wait_until(lambda: all_free(engine))
    assert seen[0] == "admitted"
    assert seen[-2:] == ["done", "refused bad_input"]
    assert set(seen[1:-2]) == {"audio"}


@pytest.mark.parametrize(
    ("target", "name"), [("lm", "run"), ("lm", "readout"), ("codec", "decode"), ("codec", "flush"), ("lm", "enter")]
)
@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError()], ids=["bug", "memory"])
def test_a_model_that_always_fails_ends_sessions_not_the_engine(target: str, name: str, error: Exception) -> None:
    synthesizer = tiny_synthesizer()
    with running(synthesizer) as engine:
        fault = Fault(getattr(synthesizer, target), name, set(range(1, 100_000)), raiser(error))
        for session in [engine.submit(SpeechRequest("No.", seed=i)) for i in range(4)]:
            outcome = read(session)[-1]
            assert isinstance(outcome, Outcome)
            assert (outcome.kind, outcome.reason) == ("failed", "engine")
            assert outcome.error is not None
            assert outcome.error.__cause__ is error
        fault.remove()
        wait_until(lambda: all_free(engine))
        assert engine.ready
        assert engine.stats().restarts == 0
        assert sound(read(engine.submit(SpeechRequest("No.", seed=1)))).size


def test_a_lane_that_fails_as_a_whole_is_built_anew(synthesizer: Synthesizer) -> None:
    with running(synthesizer) as engine:
        session = engine.submit(SpeechRequest(LONG))
        wait_until(lambda: session.unread > 0)
        assert engine._worker is not None
        lane = engine._worker.lanes["tiny"].lane
        Fault(lane, "tick", {1}, raiser(RuntimeError("half written")))
        outcome = read(session)[-1]
        assert isinstance(outcome, Outcome)
        assert outcome.reason == "engine"
        wait_until(lambda: all_free(engine))
        wait_until(lambda: engine._worker is not None and engine._worker.lanes["tiny"].lane is not lane)
        assert sound(read(engine.submit(SpeechRequest("No.", seed=1)))).size


def test_the_watchdog_restarts_a_dead_thread() -> None:
    synthesizer = tiny_synthesizer()
    with running(synthesizer, slots=1) as engine:
        session = engine.submit(SpeechRequest(LONG))
        waiting = engine.submit(SpeechRequest("No.", seed=1, deadline=60))
        wait_until(lambda: session.unread > 0)
        readiness: list[bool] = []
        fault = Fault(synthesizer.lm, "run", {1}, lambda: (_ for _ in ()).throw(SystemExit()))
        wait_until(lambda: readiness.append(engine.ready) or session.outcome)
        fault.remove()
        outcome = session.outcome
        assert outcome is not None
        assert (outcome.kind, outcome.reason) == ("failed", "engine")
        assert False in readiness
        assert sound(read(waiting)).size  # who had no slot yet loses nothing
        assert engine.ready
        assert engine.stats().restarts == 1


def test_the_watchdog_replaces_a_stuck_thread_and_its_late_audio_reaches_nobody() -> None:
    synthesizer = tiny_synthesizer()
    release = threading.Event()
    with running(synthesizer, slots=1, stuck=1.0) as engine:
        stuck = engine.submit(SpeechRequest(LONG))
        wait_until(lambda: stuck.unread > 0)
        fault = Fault(synthesizer.lm, "run", {1}, lambda: release.wait(60))
        wait_until(lambda: stuck.outcome)
        assert not engine.ready or engine.stats().restarts == 1
        fault.remove()
        fresh = engine.submit(SpeechRequest("No.", seed=1, deadline=60))
        release.set()
        assert sound(read(fresh)).shape == synthesizer.say("No.", seed=1).samples.shape
        assert [type(e) for e in read(stuck)] == [Started, Outcome]
        assert engine.stats().restarts == 1


def test_a_slow_step_delays_but_breaks_nothing(synthesizer: Synthesizer) -> None:
    own = tiny_synthesizer()
    with running(own) as engine:
        Fault(own.lm, "run", {3, 5}, lambda: time.sleep(0.2))
        events = read(engine.submit(SpeechRequest(TEXT, seed=4)))
    assert np.abs(sound(events) - synthesizer.say(TEXT, seed=4).samples).max() <= TOLERANCE
    assert isinstance(events[-1], Outcome)


def storm(engine: Engine, count: int, seed: int = 0) -> None:
    """Connects, pushes, reads, cancels and leaves at random, from several threads."""

    def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        for _ in range(count // 4):
            whole = chance.random() < 0.5
            try:
                session = engine.submit(
                    SpeechRequest(
                        TEXT if whole else None, seed=chance.randrange(9), deadline=chance.choice([0, 0.01, 5])
                    )
                )
            except Overloaded:
                time.sleep(0.001)
                continue
            if not whole:
                session.push_text("Is it ")
            for _ in range(chance.randrange(4)):
                session.get_nowait()
                time.sleep(chance.random() * 0.003)
            if not whole and chance.random() < 0.3:
                session.finish_text()
            if chance.random() < 0.2:
                read(session) if whole else session.cancel("abandoned")
            else:
                session.cancel(chance.choice(["client", "disconnect"]))
            outcome = read(session)[-1]
            assert outcome is session.outcome

    threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_thousand_connects_and_cancels_leave_nothing_behind(synthesizer: Synthesizer) -> None:
    before = threading.active_count()
    with running(synthesizer) as engine:
        storm(engine, 1000)
        wait_until(lambda: all_free(engine))
        stats = engine.stats()
        assert sum(stats.closes.values()) + stats.refusals.get("overloaded", 0) == 1000
        assert engine.ready
        assert sound(read(engine.submit(SpeechRequest("No.", seed=1)))).shape
        assert threading.active_count() == before + 2
    assert threading.active_count() == before


@pytest.mark.long
def test_soak_memory_descriptors_and_threads_stay_flat(synthesizer: Synthesizer) -> None:
    """Five rounds of storms; slopes from the second on."""
    import os

    import psutil

    process, figures = psutil.Process(), []
    with running(synthesizer) as engine:
        for round_ in range(6):
            storm(engine, 1500, round_)
            wait_until(lambda: all_free(engine))
            figures.append(
                (process.memory_info().rss / 2**20, len(os.listdir("/proc/self/fd")), threading.active_count())
            )
    settled = np.array(figures[1:])
    slopes = np.polyfit(np.arange(len(settled)), settled, 1)[0]
    assert slopes[0] < 2.0, figures  # MiB per 1,500 sessions
    assert slopes[1] < 0.5, figures
    assert slopes[2] < 0.5, figures
