"""Between the transports and the engine: one `Speech` per answer, which lets go of its slot on every path."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from ...tts.flow_sound import FlowSound
from ...tts.script import Split
from ..engine import Audio, Engine, Event, Outcome, SpeechRequest, SpeechSession
from ..engine_tokens import can_clone, can_speculate, default_voice
from . import logs
from .access import Access
from .duplex import DuplexBackend, no_duplex_model
from .gate import Context
from .metrics import Meter, Metrics
from .problems import Problem, problem_of
from .protocol.speech import ModelCard, SpeechOutcome, VoiceCard, VoiceId, WordTime
from .settings import OPENAI_MODELS, OPENAI_VOICES, ServerSettings
from .tracing import Tracing
from .voice_store import AddedVoice, VoiceStore


@dataclass(frozen=True)
class Wish:
    """What every surface asks for, in the engine's terms but for the names of model and voice."""

    text: str | None
    model: str = "default"
    voice: str | VoiceId | None = None
    speed: float = 1.0
    seed: int = 0
    pause: float = 1.0
    temperature: float | None = None
    ahead: float | None = None
    split: Split = "word"
    speculate: bool = False


@dataclass
class Speech:
    """One answer in the making: the engine's session and what is told about it. Leaving the context cancels it."""

    service: SpeechService
    session: SpeechSession
    identity: str
    owner: str
    surface: str
    model: str
    meter: Meter
    keep_words: bool = False
    ignored: list[str] = field(default_factory=list)
    words: list[WordTime] = field(default_factory=list)
    created: float = field(default_factory=time.time)
    bytes: int = 0
    owed: float = 0.0  # seconds of audio that an encoder keeps back

    def __enter__(self) -> Speech:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.session.cancel("disconnect" if error is None or isinstance(error, asyncio.CancelledError) else "error")
        self.service.ended(self)

    async def events(self) -> AsyncIterator[Event]:
        """The session's events; the words are noted on the way."""
        async for event in self.session.events():
            if isinstance(event, Audio) and self.keep_words:
                self.words += word_times(event)
            yield event

    def sent(self, seconds: float, size: int) -> None:
        """So much audio was encoded, and so many bytes have left the process (none, when the encoder keeps it back)."""
        self.bytes, self.owed = self.bytes + size, self.owed + seconds
        if size and self.owed:
            self.meter.sent(self.owed)
            self.owed = 0.0

    def report(self) -> SpeechOutcome:
        """How it goes, or went."""
        outcome, usage = self.session.outcome, self.session.usage
        return SpeechOutcome(
            id=self.identity,
            status=outcome.kind if outcome else "in_progress",
            reason=outcome.reason if outcome else None,
            model=self.model,
            created=self.created,
            characters=usage.characters,
            audio_seconds=round(usage.audio, 4),
            bytes=self.bytes,
            first_audio=self.meter.first,
            queue_wait=usage.queue_wait,
            total=usage.total,
            underrun=self.meter.underrun,
            words=self.words if self.keep_words else None,
            ignored=self.ignored,
        )


class SpeechService:
    """What the endpoints share: names, admission, the record of outcomes, and draining."""

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        metrics: Metrics,
        duplex: Mapping[str, DuplexBackend] | None = None,
    ) -> None:
        self.engine, self.settings, self.metrics = engine, settings, metrics
        self.limits = settings.limits
        self.access = Access(settings)
        self.tracing = Tracing(settings.tracing)
        self.duplex = dict(duplex or {})
        self.added = VoiceStore(settings.voices, settings.limits.voices_per_key)
        self.draining = asyncio.Event()
        self._running: dict[str, Speech] = {}
        self._outcomes: OrderedDict[str, tuple[str, SpeechOutcome]] = OrderedDict()

    # -- names --------------------------------------------------------------------------------------------------------
    def model(self, name: str) -> str:
        """The engine's name of a model.

        Raises:
            Problem: `model_not_found`.
        """
        if not self.engine.models:
            raise Problem("model_not_found", "no model of this server speaks texts; its models converse", "model")
        if self.no_name(name):
            return self.engine.models[0]
        if name not in self.engine.models:
            known = ", ".join(self.engine.models)
            raise Problem("model_not_found", f"no model {name[:80]!r}; this server has {known}", "model")
        return name

    def no_name(self, model: str) -> bool:
        """Whether a client names no model of this server in particular: `default`, or one of OpenAI's."""
        return model == "default" or (self.settings.aliases and model in OPENAI_MODELS)

    def voice(self, model: str, wanted: str | VoiceId | None, owner: str = "") -> str:
        """A voice of that model, or one that the owner has added for it.

        Raises:
            Problem: `invalid_value`, `cannot_clone`.
        """
        synthesizer = self.engine.synthesizer(model)
        name = wanted.id if isinstance(wanted, VoiceId) else wanted
        if name is None or name == "default":
            return default_voice(synthesizer)
        if name in synthesizer.voices:
            return name
        if self.added.find(name, owner) is not None:
            self.cloning_model(model)
            return name
        if self.settings.aliases and name in OPENAI_VOICES:
            return default_voice(synthesizer)
        known = ", ".join([*synthesizer.voices, *(v.id for v in self.added.of(owner))])
        raise Problem("invalid_value", f"no voice {name[:80]!r}; choose one of {known}", "voice")

    def cloning_model(self, model: str) -> tuple[str, FlowSound]:
        """A model that imitates, and what makes its voices: the one of that name, or with "default" the first.

        Raises:
            Problem: `model_not_found`, `cannot_clone` (it says which can).
        """
        able = {n: s.sound for n in self.engine.models if can_clone(s := self.engine.synthesizer(n))}
        named = model != "default" and not (self.settings.aliases and model in OPENAI_MODELS)
        name = self.model(model) if named else next(iter(able), "")
        sound = able.get(name)
        if isinstance(sound, FlowSound):
            return name, sound
        which = f"; take {' or '.join(able)}" if able else "; load a token model with a flow to add voices"
        raise Problem("cannot_clone", f"{name or 'no model of this server'} cannot imitate a voice{which}", "model")

    def model_for(self, model: str, wanted: str | VoiceId | None, owner: str) -> str:
        """The engine's name of a model; where none in particular is asked for, the one that an added voice is for."""
        name = wanted.id if isinstance(wanted, VoiceId) else wanted
        added = self.added.find(name, owner) if name else None
        free = self.no_name(model)
        return added.model if added is not None and free and added.model in self.engine.models else self.model(model)

    def models(self) -> list[ModelCard]:
        """All models."""
        cards = []
        for name in self.engine.models:
            synthesizer = self.engine.synthesizer(name)
            cards.append(ModelCard(id=name, sample_rate=synthesizer.sample_rate, voices=list(synthesizer.voices)))
        talkers = self.duplex.items()
        return cards + [ModelCard(id=n, sample_rate=m.sample_rate, voices=[], duplex=True) for n, m in talkers]

    def voices(self, owner: str = "") -> list[VoiceCard]:
        """All voices of all models, and those that the owner has added."""
        cards = []
        for name in self.engine.models:
            synthesizer = self.engine.synthesizer(name)
            for voice in synthesizer.voices:
                is_default = voice == default_voice(synthesizer)
                cards.append(VoiceCard(id=voice, name=voice, model=name, default=is_default))
        return cards + [self.card_of(voice) for voice in self.added.of(owner)]

    def card_of(self, voice: AddedVoice) -> VoiceCard:
        """How an added voice is listed."""
        return VoiceCard(id=voice.id, name=voice.name, model=voice.model, type="audio_sample", created_at=voice.created)

    def duplex_backend(self, model: str) -> DuplexBackend:
        """The duplex model of that name (or the only one).

        Raises:
            Problem: `no_duplex_model`.
        """
        backend = self.duplex.get(model) or next(iter(self.duplex.values()), None)
        if backend is None:
            raise no_duplex_model()
        return backend

    # -- answers ------------------------------------------------------------------------------------------------------
    def speak(
        self, wish: Wish, context: Context, surface: str, *, identity: str = "", keep_words: bool = False
    ) -> Speech:
        """Submits a request; use the result as a context manager.

        Raises:
            Problem: any refusal: rate, draining, names, text, no slot and no place in the queue.
        """
        caller = context.caller
        assert caller is not None
        if self.draining.is_set():
            raise Problem("draining", "the server is shutting down; another one may take this", retry_after=5)
        self.access.count(caller)
        if wish.text is not None and len(wish.text) > self.limits.text_characters:
            limit = self.limits.text_characters
            raise Problem("text_too_long", f"the text has {len(wish.text)} characters; {limit} are allowed", "input")
        model = self.model_for(wish.model, wish.voice, caller.name)
        voice = self.voice(model, wish.voice, caller.name)
        added = None if voice in self.engine.synthesizer(model).voices else self.added.find(voice, caller.name)
        request = SpeechRequest(
            text=wish.text,
            model=model,
            voice=voice if added is None else self.added.content(added),
            speed=wish.speed,
            seed=wish.seed,
            pause=wish.pause,
            temperature=wish.temperature,
            ahead=wish.ahead,
            split=wish.split,
            speculate=wish.speculate and can_speculate(self.engine.synthesizer(model)),
            deadline=self.limits.queue_seconds,
            timeout=self.limits.speech_seconds,
            request_id=identity or context.request_id,
        )
        started = time.monotonic()
        try:
            session = self.engine.submit(request)
        except Exception as error:
            problem = problem_of(error)
            if problem.code == "internal":
                raise
            raise problem from None
        speech = Speech(
            self, session, request.request_id, caller.name, surface, model, Meter(started), keep_words=keep_words
        )
        self._running[speech.identity] = speech
        return speech

    def ended(self, speech: Speech) -> None:
        """Notes how an answer went."""
        self._running.pop(speech.identity, None)
        report = speech.report()
        self._outcomes[speech.identity] = (speech.owner, report)
        while len(self._outcomes) > self.limits.outcomes:
            self._outcomes.popitem(last=False)
        self.metrics.streamed(speech.meter, speech.surface)
        figures = report.model_dump(include={"status", "reason", "audio_seconds", "first_audio", "total", "underrun"})
        logs.event("speech", speech=speech.identity, surface=speech.surface, model=speech.model, **figures)

    def outcome(self, identity: str, owner: str) -> SpeechOutcome:
        """How an answer of this caller goes, or went.

        Raises:
            Problem: `not_found`.
        """
        running = self._running.get(identity)
        if running is not None and running.owner == owner:
            return running.report()
        whose, report = self._outcomes.get(identity, ("", None))
        if report is None or whose != owner:
            raise Problem("not_found", "no speech with this id is known (any more)")
        return report

    def cancel(self, identity: str, owner: str) -> SpeechOutcome:
        """Ends an answer of this caller; one that has ended stays as it is.

        Raises:
            Problem: `not_found`.
        """
        running = self._running.get(identity)
        if running is not None and running.owner == owner:
            running.session.cancel("client")
        return self.outcome(identity, owner)


def word_times(event: Audio) -> list[WordTime]:
    """The words that a chunk completes, to the millisecond."""
    return [WordTime(text=w.text, start=round(w.start, 3), end=round(w.end, 3)) for w in event.words]


def problem_of_outcome(outcome: Outcome) -> Problem | None:
    """What a client is told about an ended session: None when it is done."""
    if outcome.kind == "done":
        return None
    if outcome.reason == "deadline":
        return Problem("overloaded", "no slot came free in time; try again", retry_after=2)
    if outcome.reason in ("draining", "stopped"):
        return Problem("draining", "the server is shutting down; another one may take this", retry_after=5)
    if outcome.kind == "failed" and outcome.error is not None:
        return problem_of(outcome.error)
    if outcome.kind == "timeout":
        return Problem("timeout", "the speech took too long to make and was stopped", retry_after=2)
    if outcome.reason == "slow_consumer":
        return Problem("slow_consumer", "the client took nothing of what was sent and was cut off")
    return Problem("conflict", "the speech was cancelled")
