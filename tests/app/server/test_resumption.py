"""Fence, journal and resume book as state machines: nothing is lost, doubled, reordered, or said after its epoch."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quaver.app.server.problems import Problem
from quaver.app.server.resumption import Fence, Journal, ResumeBook


class JournalMachine(RuleBasedStateMachine):
    """A client that takes, loses its socket, resumes and interrupts, against a list of all that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.journal, self.fence = Journal(200), Fence()
        self.written: dict[int, tuple[str, int | None]] = {}
        self.heard: list[int] = []  # numbers that the client has, in order
        self.lost: list[int] = []  # sent into a dead socket

    @rule(size=st.integers(1, 40), control=st.booleans())
    def write(self, size: int, control: bool) -> None:
        if not control and self.journal.full:
            return
        epoch = None if control else self.fence.epoch
        entry = self.journal.append(lambda seq: f"{seq}:" + "x" * size, epoch)
        self.written[entry.seq] = (str(entry.data), epoch)

    @rule(arrives=st.booleans())
    def send(self, arrives: bool) -> None:
        entry = self.journal.take()
        if entry is None:
            return
        assert self.written[entry.seq] == (entry.data, entry.epoch)
        assert entry.epoch is None or not self.fence.stale(entry.epoch)
        if arrives and not self.lost:
            assert not self.heard or entry.seq > self.heard[-1]
            self.heard.append(entry.seq)
        else:
            self.lost.append(entry.seq)

    @rule()
    def interrupt(self) -> None:
        self.journal.fence(self.fence.advance())
        self.lost = [s for s in self.lost if self.written[s][1] is None]

    @rule()
    def acknowledge(self) -> None:
        if self.heard:
            self.journal.acknowledge(self.heard[-1])

    @precondition(lambda self: bool(self.lost))
    @rule()
    def resume(self) -> None:
        last = self.heard[-1] if self.heard else 0
        try:
            self.journal.rewind(last)
        except Problem as problem:  # only because too much was lost to be kept
            assert problem.code == "conflict"  # noqa: PT017
            assert sum(len(self.written[s][0]) for s in self.lost) > self.journal.limit
            self.heard.append(max(self.lost))
            self.lost = []
            return
        waiting = [e.seq for e in self.journal._waiting]
        assert waiting[: len(self.lost)] == self.lost
        self.lost = []

    @invariant()
    def bounded(self) -> None:
        assert self.journal._sent_bytes == sum(e.size for e in self.journal._sent) <= self.journal.limit
        assert self.journal._waiting_bytes == sum(e.size for e in self.journal._waiting)

    @invariant()
    def in_order(self) -> None:
        numbers = [e.seq for e in (*self.journal._sent, *self.journal._waiting)]
        assert numbers == sorted(set(numbers))
        assert self.heard == sorted(set(self.heard))


JournalMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestJournal = JournalMachine.TestCase


class BookMachine(RuleBasedStateMachine):
    """Sessions that drop, resume and expire in any order: each is in the book or was given back, never both."""

    def __init__(self) -> None:
        super().__init__()
        self.book: ResumeBook[int] = ResumeBook(10.0)
        self.now, self.count = 0.0, 0
        self.tokens: dict[int, str] = {}
        self.dropped: dict[int, float] = {}
        self.spent: list[str] = []
        self.gone: set[int] = set()

    @rule()
    def open(self) -> None:
        self.count += 1
        self.tokens[self.count] = self.book.open(self.count, "alice")

    @rule(pick=st.integers(0, 100))
    def drop(self, pick: int) -> None:
        if self.tokens:
            session = sorted(self.tokens)[pick % len(self.tokens)]
            self.book.drop(self.tokens[session], self.now)
            self.dropped[session] = self.now

    @rule(pick=st.integers(0, 100), owner=st.sampled_from(["alice", "eve"]))
    def resume(self, pick: int, owner: str) -> None:
        if not self.tokens:
            return
        session = sorted(self.tokens)[pick % len(self.tokens)]
        late = session in self.dropped and self.now > self.dropped[session] + 10.0
        if owner == "eve" or late:
            with pytest.raises(Problem):
                self.book.resume(self.tokens[session], owner, self.now)
            return
        self.spent.append(self.tokens[session])
        found, self.tokens[session] = self.book.resume(self.tokens[session], owner, self.now)
        assert found == session
        self.dropped.pop(session, None)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for session in self.book.expired(self.now):
            assert self.now > self.dropped.pop(session) + 10.0
            self.spent.append(self.tokens.pop(session))
            assert session not in self.gone
            self.gone.add(session)

    @rule(pick=st.integers(0, 100))
    def close(self, pick: int) -> None:
        if self.tokens:
            session = sorted(self.tokens)[pick % len(self.tokens)]
            self.spent.append(self.tokens.pop(session))
            assert self.book.close(self.spent[-1]) == session
            self.dropped.pop(session, None)

    @invariant()
    def conserved(self) -> None:
        assert len(self.book) == len(self.tokens)
        assert self.book.dropped == len(self.dropped)
        for token in self.spent[-3:]:
            with pytest.raises(Problem):
                self.book.resume(token, "alice", self.now)


BookMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBook = BookMachine.TestCase
