"""WS /v1/audio/speech/stream: text pieces in, audio out, one utterance after the other (protocol/stream.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

from fastapi import APIRouter, WebSocket

from ..engine import Audio, Outcome
from .encoding import encoder_for
from .gate import Context
from .problems import CLOSE_OK, Problem, problem_of
from .protocol import stream
from .protocol.base import ErrorDetail, parse_json, to_json, validated
from .service import Speech, SpeechService, Wish, problem_of_outcome, word_times
from .wire import Gone, Wire, race

FATAL = frozenset(
    ["too_large", "text_too_long", "idle", "session_expired", "slow_consumer", "rate_limited", "too_many_sessions"]
    + ["overloaded", "draining", "not_ready", "model_not_found", "not_implemented", "no_duplex_model"]
)
"""Problems that end a session; after the others it goes on."""

router = APIRouter()


@router.websocket("/v1/audio/speech/stream")
async def speech_stream(socket: WebSocket) -> None:
    """Speaks text as it arrives."""
    await StreamSession(socket.app.state.service, socket.scope["quaver"], socket).run()


@dataclass
class Utterance:
    """One answer: its text so far and, once it is its turn, its speech."""

    index: int
    pieces: list[str] = field(default_factory=list)
    complete: bool = False
    cancelled: bool = False
    speech: Speech | None = None

    def push(self, text: str) -> None:
        if self.speech is None:
            self.pieces.append(text)
        else:
            self.speech.session.push_text(text)

    def finish(self) -> None:
        self.complete = True
        if self.speech is not None:
            self.speech.session.finish_text()

    def cancel(self) -> None:
        self.complete = self.cancelled = True
        if self.speech is not None:
            self.speech.session.cancel("client")

    def begin(self, speech: Speech) -> None:
        """Hands over what has arrived so far."""
        self.speech = speech
        for piece in self.pieces:
            speech.session.push_text(piece)
        self.pieces.clear()
        if self.complete:
            speech.session.finish_text()


class StreamSession:
    """One socket. The reader takes messages and the speaker speaks; whichever ends first ends the session."""

    def __init__(self, service: SpeechService, context: Context, socket: WebSocket) -> None:
        self.service, self.context, self.limits = service, context, service.limits
        self.wire = Wire(socket, service.limits)
        self.config = stream.SessionConfig(type="session.config")
        self.waiting: deque[Utterance] = deque()  # the first is the one that is spoken
        self.changed, self.idle = asyncio.Event(), asyncio.Event()
        self.closing = False
        self.utterances, self.characters, self.seconds = 0, 0, 0.0
        self.idle.set()

    async def run(self) -> None:
        """Serves the socket to its end; every end is typed."""
        caller = self.context.caller
        assert caller is not None
        code, reason = CLOSE_OK, ""
        with contextlib.suppress(Gone):
            await self.wire.accept()
            try:
                with self.service.access.session(caller):
                    await self._configure()
                    await race(self._read(), self._speak_all(), self._drain(), seconds=self.limits.session_seconds)
            except Gone:
                return
            except Problem as problem:
                code, reason = problem.kind.close, problem.code
                await self._error(problem)
            except TimeoutError:
                problem = Problem("session_expired", f"a session may last {self.limits.session_seconds:g} s")
                code, reason = problem.kind.close, problem.code
                await self._error(problem)
            await self.wire.close(code, reason)

    # -- reading ------------------------------------------------------------------------------------------------------
    async def _configure(self) -> None:
        if self.service.draining.is_set():
            raise Problem("draining", "the server is shutting down; another one may take this")
        try:
            message = await self._receive(self.limits.config_seconds)
        except TimeoutError:
            raise Problem("idle", "no session.config arrived in time") from None
        if not isinstance(message, stream.SessionConfig):
            raise Problem("invalid_value", "the first message must be session.config", "type")
        self.config = message
        owner = self.context.caller.name if self.context.caller else ""
        model = self.service.model_for(message.model, message.voice, owner)
        answer = stream.SessionConfigured(
            session_id=self.context.request_id,
            model=model,
            voice=self.service.voice(model, message.voice, owner),
            response_format=message.response_format,
            sample_rate=self.service.engine.synthesizer(model).sample_rate,
        )
        await self.wire.send(to_json(answer))

    async def _receive(self, seconds: float) -> stream.ClientMessage:
        data = await self.wire.receive(seconds)
        if isinstance(data, bytes):
            raise Problem("invalid_value", "this socket takes JSON text messages only")
        return validated(stream.CLIENT, parse_json(data))

    async def _read(self) -> None:
        while not self.closing:
            try:
                await self._take(await self._receive(self.limits.idle_seconds))
            except TimeoutError:
                if not self.waiting or not self.waiting[0].complete:  # nobody speaks, or we wait for text
                    seconds = f"{self.limits.idle_seconds:g}"
                    raise Problem("idle", f"nothing was said for {seconds} s; send session.heartbeat") from None
            except Problem as problem:
                if problem.code in FATAL:
                    raise
                self.wire.refuse(problem)
                await self._error(problem)
        while True:  # the speaker ends the session, unless the client is gone before
            await self.wire.receive()

    async def _take(self, message: stream.ClientMessage) -> None:
        open_one = self.waiting[-1] if self.waiting and not self.waiting[-1].complete else None
        match message:
            case stream.InputText(text=text):
                self._text(open_one, text)
            case stream.InputDone():
                if open_one is None:
                    raise Problem("invalid_value", "there is no text to finish; send input.text first", "type")
                open_one.finish()
            case stream.InputCancel():
                for utterance in self.waiting:
                    utterance.cancel()
            case stream.PlaybackAck(played_ms=played):
                if self.waiting and self.waiting[0].speech is not None:
                    self.waiting[0].speech.session.played(played / 1000)
            case stream.SessionClose():
                if open_one is not None:
                    open_one.finish()
                self.closing = True
                self.changed.set()
            case stream.Heartbeat():
                await self.wire.send(to_json(message))
            case stream.SessionConfig():
                raise Problem("invalid_value", "session.config comes once, as the first message", "type")

    def _text(self, open_one: Utterance | None, text: str) -> None:
        self.characters += len(text)
        if self.characters > self.limits.stream_text_characters:
            limit = self.limits.stream_text_characters
            raise Problem("text_too_long", f"one session may send {limit} characters", "text")
        if open_one is None:
            open_one = Utterance(self.utterances)
            self.utterances += 1
            self.waiting.append(open_one)
            self.idle.clear()
            self.changed.set()
        try:
            open_one.push(text)
        except Exception as error:
            raise problem_of(error) from None

    # -- speaking -----------------------------------------------------------------------------------------------------
    async def _speak_all(self) -> None:
        while True:
            while not self.waiting:
                if self.closing:
                    return
                self.changed.clear()
                await self.changed.wait()
            try:
                await self._speak(self.waiting[0])
            finally:
                done = self.waiting.popleft()
                done.complete = True
            if not self.waiting:
                await self.wire.send(
                    to_json(stream.SessionDone(utterances=self.utterances, seconds=round(self.seconds, 4)))
                )
                self.idle.set()

    async def _speak(self, utterance: Utterance) -> None:
        if utterance.cancelled:
            await self._end(utterance, "cancelled", 0, 0.0)
            return
        config = self.config
        wish = Wish(
            text=None,
            model=config.model,
            voice=config.voice,
            speed=config.speed,
            seed=config.seed,
            pause=config.pause,
            temperature=config.temperature,
            ahead=config.ahead or self.limits.ahead_seconds,
            split=config.split,
            speculate=config.speculate,
        )
        identity = f"{self.context.request_id}-{utterance.index}"
        with self.service.speak(wish, self.context, "stream", identity=identity) as speech:
            utterance.begin(speech)
            await self._relay(utterance, speech)

    async def _relay(self, utterance: Utterance, speech: Speech) -> None:
        encoder = None
        async for event in speech.events():
            if isinstance(event, Audio):
                if encoder is None:
                    encoder = encoder_for(self.config.response_format, event.sample_rate)
                    await self._start(utterance, event.sample_rate)
                await self._bytes(speech, encoder.push(event.samples), event.seconds)
                if self.config.word_timestamps and event.words:
                    words = stream.WordTimestamps(utterance_index=utterance.index, words=word_times(event))
                    await self.wire.send(to_json(words))
            elif isinstance(event, Outcome):
                problem = problem_of_outcome(event)
                if problem is None and encoder is not None:
                    await self._bytes(speech, encoder.close(), 0.0)
                cancelled = event.kind == "cancelled" and event.reason == "client"
                if problem is not None and not cancelled:
                    if problem.code in FATAL:
                        raise problem
                    await self._error(problem, speech.identity)
                status = "cancelled" if cancelled else "failed" if problem else "completed"
                self.seconds += speech.meter.audio
                await self._end(utterance, status, speech.bytes, speech.meter.audio)

    async def _start(self, utterance: Utterance, sample_rate: int) -> None:
        start = stream.AudioStart(
            utterance_index=utterance.index, format=self.config.response_format, sample_rate=sample_rate
        )
        await self.wire.send(to_json(start))

    async def _bytes(self, speech: Speech, data: bytes, seconds: float) -> None:
        if data:
            await self.wire.send(data)
        speech.sent(seconds, len(data))

    async def _end(self, utterance: Utterance, status: str, size: int, seconds: float) -> None:
        end = {"utterance_index": utterance.index, "status": status, "total_bytes": size, "seconds": round(seconds, 4)}
        await self.wire.send(to_json(stream.AudioEnd.model_validate(end)))

    async def _error(self, problem: Problem, identity: str = "") -> None:
        detail = ErrorDetail.model_validate(problem.body(identity or self.context.request_id))
        with contextlib.suppress(Problem):
            await self.wire.send(to_json(stream.StreamError(error=detail)))

    async def _drain(self) -> None:
        await self.service.draining.wait()
        await self.idle.wait()
        raise Problem("draining", "the server is shutting down; another one may take this", retry_after=5)
