"""WS /api/chat: Moshi's protocol over any duplex model, so that its web and command-line clients work unchanged."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
from fastapi import APIRouter, WebSocket

from ...errors import MissingExtra
from .duplex import DuplexAudio, DuplexEnd, DuplexLink, DuplexRequest, DuplexText
from .gate import Context
from .problems import CLOSE_OK, Problem, problem_of
from .protocol.moshi import HANDSHAKE, Control, Kind, MoshiMessage
from .service import SpeechService
from .wire import Gone, Wire, race

SAMPLE_RATE = 24_000  # of Moshi's clients

router = APIRouter()


@router.websocket("/api/chat")
async def chat(socket: WebSocket) -> None:
    """Serves one conversation."""
    service: SpeechService = socket.app.state.service
    wire = Wire(socket, service.limits)
    code, reason = CLOSE_OK, ""
    with contextlib.suppress(Gone):
        await wire.accept()
        try:
            await _serve(service, socket, wire)
        except Gone:
            return
        except TimeoutError:
            code, reason = await _refused(wire, Problem("session_expired", "the session has lasted as long as it may"))
        except Exception as error:
            problem = problem_of(error)
            code, reason = await _refused(wire, problem)
            if problem.code == "internal":
                raise
    await wire.close(code, reason)


async def _refused(wire: Wire, problem: Problem) -> tuple[int, str]:
    with contextlib.suppress(Problem):
        await wire.send(MoshiMessage(Kind.ERROR, f"{problem.code}: {problem.message}".encode()).pack())
    return problem.kind.close, problem.code


async def _serve(service: SpeechService, socket: WebSocket, wire: Wire) -> None:
    context: Context = socket.scope["quaver"]
    assert context.caller is not None
    if service.draining.is_set():
        raise Problem("draining", "the server is shutting down; another one may take this")
    model = socket.query_params.get("model", "default")
    backend = service.duplex_backend(model)
    if backend.sample_rate != SAMPLE_RATE:
        raise Problem("not_implemented", f"Moshi's clients speak {SAMPLE_RATE} Hz; this model has another rate")
    service.access.count(context.caller)
    with service.access.session(context.caller):
        link = backend.open(DuplexRequest(model=model, request_id=context.request_id))
        try:
            talk = Conversation(link, wire, service.limits.idle_seconds)
            await wire.send(HANDSHAKE.pack())
            drain = _draining(service)
            await race(talk.listen(), talk.speak(), drain, seconds=service.limits.session_seconds)
        finally:
            link.close("disconnect")


async def _draining(service: SpeechService) -> None:
    await service.draining.wait()
    raise Problem("draining", "the server is shutting down; another one may take this")


class Conversation:
    """One link, one socket: Ogg/Opus both ways."""

    def __init__(self, link: DuplexLink, wire: Wire, idle_seconds: float) -> None:
        try:
            import sphn
        except ImportError:
            raise MissingExtra("Moshi's protocol needs the package sphn: pip install 'quaver[serve]'") from None
        self.link, self.wire, self.idle_seconds = link, wire, idle_seconds
        self._reader: Any = sphn.OpusStreamReader(SAMPLE_RATE)
        self._writer: Any = sphn.OpusStreamWriter(SAMPLE_RATE)
        self._paused = False

    async def listen(self) -> None:
        """Takes messages until the client is gone.

        Raises:
            Gone; Problem: the audio is damaged, or nothing came for too long.
        """
        while True:
            try:
                data = await self.wire.receive(self.idle_seconds)
            except TimeoutError:
                raise Problem("idle", f"nothing was heard for {self.idle_seconds:g} s") from None
            if isinstance(data, str):
                continue  # "unknown types should be discarded"
            try:
                await self._take(MoshiMessage.unpack(data))
            except Problem as problem:
                self.wire.refuse(problem)
                await self.wire.send(MoshiMessage(Kind.ERROR, problem.message.encode()).pack())

    async def _take(self, message: MoshiMessage) -> None:
        if message.kind == Kind.AUDIO:
            try:
                samples = self._reader.append_bytes(message.payload)
            except ValueError:
                raise Problem("invalid_value", "the audio is not an Ogg/Opus stream of 24 kHz mono") from None
            if samples is not None and len(samples) and not self._paused:
                self.link.push(np.asarray(samples, dtype=np.float32).reshape(-1))
        elif message.kind == Kind.CONTROL:
            control = message.control
            self._paused = control == Control.PAUSE
            if control == Control.END_TURN:
                self.link.steer("speak")
            elif control == Control.RESTART:
                self.link.steer("interrupt")
        elif message.kind == Kind.PING:
            await self.wire.send(message.pack())

    async def speak(self) -> None:
        """Sends what the model says until the link ends."""
        async for event in self.link.events():
            if isinstance(event, DuplexAudio):
                data = await asyncio.to_thread(self._writer.append_pcm, event.samples.astype(np.float32))
                if data:
                    await self.wire.send(MoshiMessage(Kind.AUDIO, bytes(data)).pack())
            elif isinstance(event, DuplexText):
                await self.wire.send(MoshiMessage(Kind.TEXT, event.text.encode()).pack())
            elif isinstance(event, DuplexEnd):
                return
