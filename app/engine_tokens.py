"""Token language models (CosyVoice and its family) in the engine: a lane whose slots take turns.

These models speak one answer at a time (`TokenSynthesizer.stream`), so a tick makes the next chunk of every slot, one
slot after the other: no batch, hence no gain from company, but the same admission, cancel, bounds and failures as of
`SpeechLane`. Text that arrives in pieces goes into the answer as it comes: word by word where the model can begin
before its sentence is whole, else clause by clause. A slot whose text has not arrived is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

from ..errors import BadInput
from ..tts.flow_sound import FlowSound
from ..tts.speaking import AudioChunk
from ..tts.synthesizer import Synthesizer
from ..tts.token_synthesizer import TokenSynthesizer
from ..tts.voices import Voice, unknown_voice
from .engine_lanes import SlotState, Tick, slot_states
from .engine_session import Audio, Session, SpeechRequest, SpeechSession, Started

__all__ = ["AnySynthesizer", "TokenLane", "can_clone", "can_speculate", "check_token_request", "default_voice"]

AnySynthesizer = Synthesizer | TokenSynthesizer
ENOUGH = 2.0
"""Seconds of unplayed speech from which the answer of a paced stream need not hurry: it does not speculate then."""


def default_voice(synthesizer: AnySynthesizer) -> str:
    """Who speaks where a request names nobody."""
    if isinstance(synthesizer, TokenSynthesizer):
        return synthesizer.settings.voice or synthesizer.voices[0]
    return synthesizer.settings.default


def can_clone(synthesizer: AnySynthesizer) -> TypeGuard[TokenSynthesizer]:
    """Whether it speaks as whoever a voice file was made of."""
    return isinstance(synthesizer, TokenSynthesizer) and isinstance(synthesizer.sound, FlowSound)


def can_speculate(synthesizer: AnySynthesizer) -> bool:
    """Whether a request may ask for speculation."""
    return isinstance(synthesizer, TokenSynthesizer) and synthesizer.faster is not None


def check_token_request(synthesizer: TokenSynthesizer, request: SpeechRequest) -> None:
    """What can be said before the text is read; the rest fails the session as its first event.

    Raises:
        BadInput: an unknown voice, or speculation without a drafter.
    """
    if isinstance(request.voice, str) and request.voice not in synthesizer.voices:
        raise unknown_voice(request.voice, synthesizer.voices)
    if isinstance(request.voice, Voice) and not can_clone(synthesizer):
        raise BadInput("this model has no flow, so it cannot speak as a voice file")
    if request.speculate and not can_speculate(synthesizer):
        raise BadInput("this model has no drafter to speculate with (docs/speculation.md)")


class TokenLane:
    """See `Lane`. `buffer`: seconds of unread audio at which a slot is held."""

    def __init__(self, name: str, synthesizer: TokenSynthesizer, slots: int, buffer: float = 60.0) -> None:
        self.name, self.synthesizer, self.slots, self.buffer = name, synthesizer, slots, buffer
        self.sessions: list[SpeechSession | None] = [None] * slots
        self.answers: dict[int, Iterator[AudioChunk]] = {}
        self.sent: dict[int, int] = {}
        self.held: set[int] = set()
        self.waiting: set[int] = set()

    def join(self, slot: int, session: Session) -> None:
        assert isinstance(session, SpeechSession)
        self.sessions[slot], self.sent[slot] = session, 0
        session.put(Started(session.request_id, self.synthesizer.sample_rate))

    def leave(self, slot: int) -> None:
        self.sessions[slot] = None
        self.answers.pop(slot, None)  # a generator that is dropped is closed
        self.held.discard(slot)
        self.waiting.discard(slot)

    def tick(self) -> Tick:
        failed: dict[int, Exception] = {}
        finished: list[int] = []
        sent: list[tuple[Session, Audio]] = []
        moved, self.held, self.waiting = 0, set(), set()
        for slot, session in enumerate(self.sessions):
            if session is None or session.outcome is not None:
                continue
            try:
                answer = self._answer(slot, session)
                if slot in self.held:
                    continue
                chunk = next(answer, None)
            except Exception as error:
                failed[slot] = error
                continue
            if chunk is not None and not len(chunk.samples):
                self.waiting.add(slot)
                continue
            moved += 1
            if chunk is None:
                finished.append(slot)
            elif session.put(audio := self._audio(slot, chunk)):
                sent.append((session, audio))
        return Tick(moved, finished, failed, sent)

    def states(self) -> list[SlotState]:
        return slot_states(self.sessions, self.held, lambda slot: slot in self.answers and slot not in self.waiting)

    def warm_up(self) -> None:
        for _ in self.synthesizer.stream("Hello."):
            pass

    def _answer(self, slot: int, session: SpeechSession) -> Iterator[AudioChunk]:
        """The answer; marks the slot as held where it is to wait."""
        request = session.request
        if slot not in self.answers:
            self.answers[slot] = self.synthesizer.stream(
                _arriving(session) if request.text is None else request.text,
                split=request.split,
                voice=request.voice,
                speed=request.speed,
                seed=request.seed,
                temperature=request.temperature,
                pause=request.pause,
                codebooks=request.codebooks,
                speculate=request.speculate,
                ahead=None if request.ahead is None else lambda: session.ahead >= ENOUGH,
            )
        if session.unread >= self.buffer or (request.ahead is not None and session.ahead >= request.ahead):
            self.held.add(slot)
        return self.answers[slot]

    def _audio(self, slot: int, chunk: AudioChunk) -> Audio:
        start = self.sent[slot] / chunk.sample_rate
        self.sent[slot] += len(chunk.samples)
        return Audio(chunk.samples, chunk.sample_rate, start, progress=chunk.progress)


def _arriving(session: SpeechSession) -> Iterator[str | None]:
    """The pieces of a session's text as they come; None where there is none yet."""
    ended = False
    while not ended:
        text, ended = session.take_text()
        if text or not ended:
            yield text or None
