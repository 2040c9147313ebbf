"""The engine as a state machine: clients, ticks, time and faults in any order; stepped by hand, on its own clock."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quaver.app.engine import Audio, Engine, Outcome, SpeechRequest, SpeechSession, Started
from quaver.errors import BadInput, Draining, Overloaded

from ..laws import TOLERANCE
from .engine_help import Fault, raiser, tiny_synthesizer

SYNTHESIZER = tiny_synthesizer()
TEXTS = ("No.", "Is it you? Good.", "...")
SLOTS = 2
expected: dict[tuple[str, int, bool], np.ndarray] = {}


def alone(text: str, seed: int, whole: bool) -> np.ndarray:
    """What one voice alone says. A text that arrives is begun before its end is known, so that a question is not known
    to be one: it is said as the same text is that arrives word by word, however it is cut."""
    if (text, seed, whole) not in expected:
        by = "sentence" if whole else "word"
        said = SYNTHESIZER.stream(text if whole else iter([text]), seed=seed, split=by)
        expected[text, seed, whole] = np.concatenate([np.zeros(0, np.float32), *(c.samples for c in said)])
    return expected[text, seed, whole]


class Client:
    """A session, what it should say, and what was read of it."""

    def __init__(self, session: SpeechSession, text: str, seed: int) -> None:
        self.session, self.text, self.seed = session, text, seed
        self.pushed = len(text) if session.request.text is not None else 0
        self.samples: list[np.ndarray] = []
        self.events: list[Any] = []

    def read(self) -> None:
        event = self.session.get_nowait()
        if event is None:
            return
        ended = bool(self.events) and isinstance(self.events[-1], Outcome)
        assert not ended or event is self.events[-1], "an event after the outcome"
        if not ended:
            assert isinstance(event, Started) == (not self.events) or isinstance(event, Outcome)
            self.events.append(event)
        if isinstance(event, Audio):
            self.samples.append(event.samples)

    def check(self) -> None:
        """What was read is the beginning of the answer, and all of it when it is done."""
        got = np.concatenate([np.zeros(0, np.float32), *self.samples])
        if not len(got):
            return
        whole = alone(self.text, self.seed, self.session.request.text is not None)
        assert np.abs(got - whole[: len(got)]).max() <= TOLERANCE
        if self.events and isinstance(self.events[-1], Outcome) and self.events[-1].kind == "done":
            assert len(got) == len(whole)


class EngineMachine(RuleBasedStateMachine):
    @initialize(ahead=st.booleans())
    def begin(self, ahead: bool) -> None:
        self.now = 0.0
        self.engine = Engine(
            {"tiny": SYNTHESIZER},
            slots=SLOTS,
            max_waiting=2,
            buffer=0.05 if ahead else 60.0,
            stall=5.0,
            timeout=1000.0,
            warm_up=False,
            clock=lambda: self.now,
        )
        self.worker = self.engine.by_hand()
        self.clients: list[Client] = []
        self.accepted = 0
        self.faults: list[Fault] = []

    # -- clients ------------------------------------------------------------------------------------------------------
    @rule(
        text=st.sampled_from(TEXTS), seed=st.integers(0, 2), whole=st.booleans(), deadline=st.sampled_from([0.0, 2.0])
    )
    def submit(self, text: str, seed: int, whole: bool, deadline: float) -> None:
        request = SpeechRequest(text if whole else None, seed=seed, deadline=deadline, timeout=100.0)
        try:
            session = self.engine.submit(request)
        except (Overloaded, Draining):
            return
        self.accepted += 1
        self.clients.append(Client(session, text, seed))

    def pick(self, number: int) -> Client:
        return self.clients[number % len(self.clients)]

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9), size=st.integers(1, 20))
    def push(self, number: int, size: int) -> None:
        client = self.pick(number)
        if client.session.request.text is None and client.pushed < len(client.text):
            client.session.push_text(client.text[client.pushed : client.pushed + size])
            client.pushed += size
            if client.pushed >= len(client.text):
                client.session.finish_text()

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9), count=st.integers(1, 30))
    def read(self, number: int, count: int) -> None:
        for _ in range(count):
            self.pick(number).read()

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9), seconds=st.floats(0, 2))
    def played(self, number: int, seconds: float) -> None:
        self.pick(number).session.played(seconds)

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9))
    def cancel_frees_the_slot_within_one_turn(self, number: int) -> None:
        client = self.pick(number)
        ended = client.session.outcome is not None
        assert client.session.cancel() == (not ended)
        self.worker.turn()
        assert client.session not in self.worker.sessions()

    # -- the engine ---------------------------------------------------------------------------------------------------
    @rule(count=st.integers(5, 40))
    def turn(self, count: int) -> None:
        for _ in range(count):
            self.worker.turn()

    @rule(seconds=st.sampled_from([0.1, 3.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(where=st.sampled_from([("lm", "run"), ("lm", "readout"), ("codec", "decode"), ("lm", "enter")]))
    def a_step_fails_once(self, where: tuple[str, str]) -> None:
        fault = Fault(getattr(SYNTHESIZER, where[0]), where[1], {1}, raiser(RuntimeError("once")))
        for _ in range(12):
            self.worker.turn()
        fault.remove()

    @precondition(lambda self: self.worker.sessions())
    @rule(slot=st.integers(0, SLOTS - 1))
    def a_slots_own_work_fails(self, slot: int) -> None:
        """Its session ends with a typed error; the neighbour's outcome is not touched."""
        seats = self.worker.lanes["tiny"]
        session, others = seats.sessions[slot], [s for i, s in enumerate(seats.sessions) if i != slot and s]
        if session is None or session.outcome is not None:
            return
        session.take_text = raiser(KeyError("broken"))  # type: ignore[attr-defined,method-assign]
        before = [s.outcome for s in others]
        self.worker._tick("tiny", seats)
        if session.request.text is None:  # type: ignore[attr-defined]
            assert session.outcome is not None
            assert (session.outcome.kind, session.outcome.reason) == ("failed", "engine")
        for other, was in zip(others, before, strict=True):
            assert other.outcome is was or (other.outcome is not None and not isinstance(other.outcome.error, KeyError))

    # -- laws ---------------------------------------------------------------------------------------------------------
    @invariant()
    def slots_are_conserved(self) -> None:
        stats = self.engine.stats()
        of = stats.slots["tiny"]
        assert sum(of.values()) == SLOTS
        lane: Any = self.worker.lanes["tiny"].lane
        seated = [s is not None for s in self.worker.lanes["tiny"].sessions]
        assert [s is not None for s in lane.sessions] == seated
        assert [a is not None for a in lane.batch.answers] == seated
        assert of["free"] == seated.count(False)
        assert all(plan is None or seat for plan, seat in zip(lane.batch.generation.plans, seated, strict=True))
        assert stats.open == stats.waiting + seated.count(True)
        assert stats.open + sum(stats.closes.values()) == self.accepted
        assert stats.waiting <= 2 + SLOTS

    @invariant()
    def nobody_hears_what_is_not_his(self) -> None:
        for client in self.clients:
            client.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for client in self.clients:
            if client.session.request.text is None:
                if client.pushed < len(client.text) and client.session.outcome is None:
                    client.session.push_text(client.text[client.pushed :])
                client.session.finish_text()
        for _ in range(150):
            for client in self.clients:
                client.read()
            self.worker.turn()
            if not self.worker.sessions():
                break
        for client in self.clients:
            for _ in range(30):
                client.read()
            client.check()
        self.engine.stop()
        self.worker.turn()
        stats = self.engine.stats()
        assert stats.open == 0
        assert stats.slots["tiny"]["free"] == SLOTS
        for client in self.clients:
            while not isinstance(client.session.get_nowait(), Outcome):
                client.read()
            outcome = client.session.outcome
            assert outcome is not None
            if outcome.kind == "failed":
                assert outcome.reason in ("engine", "bad_input")
                assert isinstance(outcome.error, BadInput) == (outcome.reason == "bad_input")


EngineMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestEngineStates = EngineMachine.TestCase
