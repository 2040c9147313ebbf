"""The HTTP endpoints: OpenAI's speech API, models and voices, health and metrics."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ..engine import Audio, Outcome
from . import voices
from .encoding import MEDIA_TYPES, AudioEncoder, encoder_for
from .gate import Context, answer_problem
from .metrics import CONTENT_TYPE
from .problems import Problem
from .protocol.base import ErrorBody, to_json
from .protocol.speech import (
    AudioDelta,
    AudioDone,
    ModelCard,
    ModelList,
    SpeechBody,
    SpeechError,
    SpeechOutcome,
    SpeechUsage,
    TicketAnswer,
    TicketBody,
    WordTimes,
)
from .service import Speech, SpeechService, Wish, problem_of_outcome, word_times

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "The request cannot be read, or the text cannot be spoken",
        401: "No API key, or a wrong one",
        403: "This origin or key may not",
        404: "There is no such model, voice or speech",
        408: "The client was too slow",
        409: "The speech was cancelled",
        413: "The body or the text is too large",
        422: "A field is unknown or out of range",
        429: "Too many requests or sessions",
        500: "A defect of the server",
        501: "Not implemented",
        503: "No room now, or shutting down",
    }.items()
}
_ANY_AUDIO = {media.partition(";")[0]: {} for media in MEDIA_TYPES.values()}

router = APIRouter(responses=REFUSALS)
router.include_router(voices.router)


def service_of(request: Request) -> SpeechService:
    """The application's service."""
    return request.app.state.service


def context_of(request: Request) -> Context:
    """What the gate found out."""
    return request.scope["quaver"]


def _owner(request: Request) -> str:
    caller = context_of(request).caller
    assert caller is not None
    return caller.name


# -- speech -----------------------------------------------------------------------------------------------------------
@router.post(
    "/v1/audio/speech",
    response_class=Response,
    responses={200: {"content": {**_ANY_AUDIO, "text/event-stream": {}}, "description": "The audio, as it is made"}},
)
async def create_speech(body: SpeechBody, request: Request) -> Response:
    """Speaks a text. The answer begins with the first audio and is sent while the rest is made."""
    return SpeechResponse(service_of(request), body, context_of(request))


@router.get("/v1/audio/speech/{speech_id}")
async def get_speech(speech_id: str, request: Request) -> SpeechOutcome:
    """How a speech goes, or went: raw audio has no room to say so. The id is the answer's `X-Request-Id`."""
    return service_of(request).outcome(speech_id, _owner(request))


@router.delete("/v1/audio/speech/{speech_id}")
async def cancel_speech(speech_id: str, request: Request) -> SpeechOutcome:
    """Stops a speech; its slot is free within one step."""
    return service_of(request).cancel(speech_id, _owner(request))


class SpeechResponse(Response):
    """Speaks while it is being sent. Whatever happens (client gone, client stalled, failure), the speech ends here."""

    def __init__(self, service: SpeechService, body: SpeechBody, context: Context) -> None:
        super().__init__()
        self.service, self.wanted, self.context = service, body, context
        self.started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = self.context.caller
        assert caller is not None
        try:
            with self.service.access.session(caller), self._open() as speech:
                watcher = asyncio.create_task(_cancel_when_gone(speech, receive))
                try:
                    await self._answer(speech, send)
                finally:
                    watcher.cancel()
        except Problem as problem:
            if not self.started:  # afterwards the answer ends without its end, and the client sees that it is cut
                await answer_problem(problem, self.context.request_id, send)

    def _open(self) -> Speech:
        body = self.wanted
        wish = Wish(
            text=body.input,
            model=body.model,
            voice=body.voice,
            speed=body.speed,
            seed=body.seed,
            pause=body.pause,
            temperature=body.temperature,
            ahead=body.ahead,
            speculate=body.speculate,
        )
        speech = self.service.speak(wish, self.context, "http", keep_words=body.word_timestamps)
        lacking = body.speculate and not speech.session.request.speculate
        speech.ignored = [n for n, v in (("instructions", body.instructions), ("speculate", lacking)) if v]
        return speech

    async def _answer(self, speech: Speech, send: Send) -> None:
        sse = self.wanted.stream_format == "sse"
        encoder: AudioEncoder | None = None
        async for event in speech.events():
            if isinstance(event, Outcome):
                problem = problem_of_outcome(event)
                if problem is not None and not (sse and self.started):
                    raise problem
                tail = encoder.close() if encoder and problem is None else b""
                body = self._last_events(speech, tail, problem) if sse else tail
                await self._send(send, speech, body, 0.0, last=True)
            elif isinstance(event, Audio):
                if encoder is None:
                    encoder = encoder_for(self.wanted.response_format, event.sample_rate)
                    await self._begin(send, speech, event.sample_rate, sse)
                data = encoder.push(event.samples)
                if sse:
                    data = self._events(event, data)
                if data:
                    await self._send(send, speech, data, event.seconds)
                else:
                    speech.sent(event.seconds, 0)

    async def _begin(self, send: Send, speech: Speech, sample_rate: int, sse: bool) -> None:
        media = "text/event-stream; charset=utf-8" if sse else MEDIA_TYPES[self.wanted.response_format]
        if self.wanted.response_format == "pcm" and not sse:
            media = f"audio/pcm; rate={sample_rate}; channels=1"
        headers = {
            "content-type": media,
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            "x-sample-rate": str(sample_rate),
            "x-channels": "1",
            "x-model": speech.model,
        }
        if speech.ignored:
            headers["x-ignored"] = ", ".join(speech.ignored)
        raw = [(k.encode(), v.encode("latin-1", "replace")) for k, v in headers.items()]
        self.started = True
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _send(self, send: Send, speech: Speech, data: bytes, seconds: float, last: bool = False) -> None:
        if not self.started:
            raise Problem("internal", "the model made no audio for this text; say it in other words")
        message: Message = {"type": "http.response.body", "body": data, "more_body": not last}
        try:
            async with asyncio.timeout(self.service.limits.send_seconds):
                await send(message)
        except TimeoutError:
            speech.session.cancel("slow_consumer")
            raise Problem("slow_consumer", "the client took nothing of what was sent") from None
        speech.sent(seconds, len(data))

    def _events(self, event: Audio, data: bytes) -> bytes:
        lines = []
        if data:
            lines.append(_sse(AudioDelta(audio=base64.b64encode(data).decode())))
        if self.wanted.word_timestamps and event.words:
            lines.append(_sse(WordTimes(words=word_times(event))))
        return b"".join(lines)

    def _last_events(self, speech: Speech, tail: bytes, problem: Problem | None) -> bytes:
        if problem is not None:
            return _sse(SpeechError(error=problem.body(speech.identity)))
        usage = speech.session.usage
        made = round(usage.audio * 25)  # frames of the bundled models; OpenAI's clients expect a count of tokens
        done = AudioDone(
            usage=SpeechUsage(
                input_tokens=usage.characters,
                output_tokens=made,
                total_tokens=usage.characters + made,
                audio_seconds=round(usage.audio, 4),
            )
        )
        return (_sse(AudioDelta(audio=base64.b64encode(tail).decode())) if tail else b"") + _sse(done)


def _sse(message: Any) -> bytes:
    return f"data: {to_json(message)}\n\n".encode()


async def _cancel_when_gone(speech: Speech, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    speech.session.cancel("disconnect")


# -- models, tickets --------------------------------------------------------------------------------------------------
@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """The models that are loaded."""
    return ModelList(data=service_of(request).models())


@router.get("/v1/models/{model_id}")
async def get_model(model_id: str, request: Request) -> ModelCard:
    """One model."""
    service = service_of(request)
    name = model_id if model_id in service.duplex else service.model(model_id)
    return next(card for card in service.models() if card.id == name)


@router.post("/v1/realtime/client_secrets")
async def create_ticket(request: Request, body: TicketBody | None = None) -> TicketAnswer:
    """A single-use ticket, good for a minute: a browser shows it in place of the API key."""
    service = service_of(request)
    caller = context_of(request).caller
    assert caller is not None
    service.access.count(caller)
    value, expires = service.access.tickets.issue(caller.name)
    return TicketAnswer(value=value, expires_at=int(expires))


# -- operations -------------------------------------------------------------------------------------------------------
@router.get("/healthz")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=dict[str, str], responses={503: {"description": "It does not take work now"}})
async def ready(request: Request) -> Response:
    """Whether new work would be taken: the engine lives, and the server is not shutting down."""
    service = service_of(request)
    if service.draining.is_set():
        return JSONResponse({"status": "draining"}, 503)
    if not service.engine.ready:
        return JSONResponse({"status": "engine not ready"}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(service_of(request).metrics.page(), headers={"content-type": CONTENT_TYPE})


def validation_problem(error: Any) -> Problem:
    """FastAPI's validation error as one of ours."""
    from .protocol.base import problem_of_validation

    errors = error.errors()
    if errors and errors[0]["type"] == "json_invalid":
        return Problem("bad_json", "the body is not JSON")
    return problem_of_validation(errors)


__all__ = ["REFUSALS", "SpeechResponse", "context_of", "router", "service_of", "validation_problem"]
