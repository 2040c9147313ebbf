"""Lanes: what the engine steps. A lane is a model with a fixed number of slots and a batch over them.

`SpeechLane` turns text into speech. A full-duplex model is another lane with the same five methods: its sessions bring
audio instead of text (`push_audio` on its own `Session` class), its `tick` steps one frame of every slot.

Lanes belong to the engine's thread. Nothing here locks but the sessions themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ..tts.speaking import AudioChunk, Script
from ..tts.synthesizer import Synthesizer
from .engine_session import Audio, Session, SpeechSession, Started

__all__ = ["Lane", "SlotState", "SpeechLane", "Tick", "slot_states"]

SlotState = Literal["free", "speaking", "held", "waiting"]
"""`held`: far enough ahead of playback, or its reader does not read; `waiting`: for more input."""


@dataclass(frozen=True)
class Tick:
    """What one step of a lane did.

    Attributes:
        moved: how many slots were stepped. finished: slots whose session has given all. failed: slots whose own work
            raised, and what. sent: what was handed to the sessions.
    """

    moved: int = 0
    finished: list[int] = field(default_factory=list)
    failed: dict[int, Exception] = field(default_factory=dict)
    sent: Sequence[tuple[Session, Audio]] = ()


class Lane(Protocol):
    """A batch of slots. The engine calls `join` and `leave` between ticks only."""

    name: str
    slots: int

    def join(self, slot: int, session: Session) -> None:
        """Gives a free slot to a session; what it raises fails that session alone."""
        ...

    def leave(self, slot: int) -> None:
        """Frees a slot in whatever state it is. Never raises."""
        ...

    def tick(self) -> Tick:
        """One step of every slot that can move. What it raises fails every session of the lane."""
        ...

    def states(self) -> list[SlotState]:
        """Of every slot, as of the last tick."""
        ...

    def warm_up(self) -> None:
        """Runs everything once, so that the first request does not pay for it."""
        ...


def slot_states(
    sessions: Sequence[object | None], held: Container[int], speaking: Callable[[int], bool]
) -> list[SlotState]:
    """Of every slot of a lane: free, held back for its listener, speaking, or waiting for text or a frame."""

    def state(slot: int) -> SlotState:
        if sessions[slot] is None:
            return "free"
        if slot in held:
            return "held"
        return "speaking" if speaking(slot) else "waiting"

    return [state(slot) for slot in range(len(sessions))]


class SpeechLane:
    """Text to speech.

    Args:
        chunks: frames per decoded chunk, the last for all further ones.
        buffer: seconds of unread audio at which a slot is held.
    """

    def __init__(
        self, name: str, synthesizer: Synthesizer, slots: int, chunks: Sequence[int] = (2, 4), buffer: float = 60.0
    ) -> None:
        self.name, self.slots, self.synthesizer, self.buffer = name, slots, synthesizer, buffer
        self.batch = synthesizer.batch(slots, chunks)
        self.sessions: list[SpeechSession | None] = [None] * slots
        self.scripts: dict[int, Script] = {}
        self.sent: dict[int, int] = {}
        self.held: set[int] = set()

    def join(self, slot: int, session: Session) -> None:
        assert isinstance(session, SpeechSession)
        assert session.settings is not None
        request = session.request
        script = Script(self.synthesizer.frontend, request.text, by=request.split)
        self.batch.join(slot, script, session.settings)
        self.sessions[slot], self.scripts[slot], self.sent[slot] = session, script, 0
        session.put(Started(session.request_id, self.synthesizer.sample_rate))

    def leave(self, slot: int) -> None:
        self.batch.leave(slot)
        self.sessions[slot] = None
        self.scripts.pop(slot, None)
        self.held.discard(slot)

    def tick(self) -> Tick:
        occupied = {i: s for i, s in enumerate(self.sessions) if s is not None}
        failed: dict[int, Exception] = {}
        for slot, session in occupied.items():
            try:
                self._read(slot, session)
            except Exception as error:
                failed[slot] = error
        self.held = {slot for slot, session in occupied.items() if slot not in failed and self._ahead(session)}
        still = {slot for slot in occupied if slot in failed or slot in self.held or self.batch.waits(slot)}
        if len(still) == len(occupied):
            return Tick(failed=failed)
        chunks = self.batch.tick(still)
        failed |= self.batch.failures
        sent = [
            (occupied[slot], audio)
            for slot, its in chunks.items()
            if slot not in failed
            for audio in map(lambda c, s=slot: self._audio(s, c), its)
            if occupied[slot].put(audio)
        ]
        finished = [slot for slot in occupied if slot not in failed and self.batch.done(slot)]
        return Tick(len(occupied) - len(still), finished, failed, sent)

    def states(self) -> list[SlotState]:
        return slot_states(self.sessions, self.held, lambda slot: not self.batch.waits(slot))

    def warm_up(self) -> None:
        self.batch.generation.record()
        for _ in self.synthesizer.stream("Hello there, this is a warm-up."):
            pass

    def _read(self, slot: int, session: SpeechSession) -> None:
        """Text that has arrived since the last tick."""
        if session.request.text is None:
            text, ended = session.take_text()
            if text:
                self.scripts[slot].push(text)
            if ended:
                self.scripts[slot].close()

    def _ahead(self, session: SpeechSession) -> bool:
        limit = session.request.ahead
        return session.unread >= self.buffer or (limit is not None and session.ahead >= limit)

    def _audio(self, slot: int, chunk: AudioChunk) -> Audio:
        start = self.sent[slot] / chunk.sample_rate
        self.sent[slot] += len(chunk.samples)
        return Audio(chunk.samples, chunk.sample_rate, start, chunk.words, chunk.phones, chunk.progress)
