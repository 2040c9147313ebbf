"""WS /v1/realtime: sockets for realtime sessions, and sessions without a socket until their grace runs out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import ExitStack

from fastapi import APIRouter, FastAPI, WebSocket

from .gate import Context
from .problems import CLOSE_OK, Problem
from .protocol import binary
from .protocol import realtime as rt
from .protocol.base import ErrorDetail, parse_json, to_json, validated
from .realtime_session import RealtimeSession
from .resumption import ResumeBook
from .service import SpeechService
from .wire import Gone, Wire, race

SWEEP_SECONDS = 0.5
FATAL = frozenset(["idle", "session_expired", "slow_consumer", "draining", "too_many_sessions"])
SUBPROTOCOLS = (binary.SUBPROTOCOL, "realtime")

router = APIRouter()


def book_of(app: FastAPI) -> ResumeBook[RealtimeSession]:
    """The application's sessions by resume token."""
    if not hasattr(app.state, "resume"):
        app.state.resume = ResumeBook(app.state.settings.limits.grace_seconds)
    return app.state.resume


async def sweep(app: FastAPI) -> None:
    """Ends dropped sessions whose grace has run out, for as long as the application runs."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        now = time.monotonic()
        if app.state.service.draining.is_set():  # nobody can come back to them
            now += app.state.settings.limits.grace_seconds
        for session in book_of(app).expired(now):
            await session.shut("resume_expired")


@router.websocket("/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    """Serves one realtime socket."""
    offered = socket.scope.get("subprotocols", ())
    chosen = next((p for p in SUBPROTOCOLS if p in offered), None)
    await RealtimeSocket(socket, binary_frames=chosen == binary.SUBPROTOCOL).run(chosen)


class RealtimeSocket:
    """One socket, attached to one session at a time."""

    def __init__(self, socket: WebSocket, binary_frames: bool) -> None:
        self.socket, self.binary = socket, binary_frames
        self.service: SpeechService = socket.app.state.service
        self.context: Context = socket.scope["quaver"]
        self.limits = self.service.limits
        self.book = book_of(socket.app)
        self.wire = Wire(socket, self.limits)
        self.replaced = asyncio.Event()
        self.closing = False
        self.session: RealtimeSession | None = None

    async def run(self, subprotocol: str | None) -> None:
        """Serves the socket to its end. A session whose client is gone waits to be resumed."""
        code, reason, gone = CLOSE_OK, "", False
        try:
            await self.wire.accept(subprotocol)
            await self._begin()
            await race(self._read(), self._pump(), self._drain(), self._replaced(), seconds=self.limits.session_seconds)
        except Gone as end:
            gone = not end.clean  # who says goodbye does not come back; a slot is not kept for it
        except Problem as problem:
            code, reason = problem.kind.close, problem.code
            gone = reason == "slow_consumer"
            await self._last_words(problem)
        except TimeoutError:
            problem = Problem("session_expired", f"a session may last {self.limits.session_seconds:g} s")
            code, reason = problem.kind.close, problem.code
            await self._last_words(problem)
        finally:
            await self._detach(gone)
        await self.wire.close(code, reason)

    async def _begin(self) -> None:
        if self.service.draining.is_set():
            raise Problem("draining", "the server is shutting down; another one may take this")
        caller = self.context.caller
        assert caller is not None
        headers, stack = self.socket.headers, ExitStack()
        stack.enter_context(self.service.access.session(caller))
        try:
            session = RealtimeSession(
                self.service,
                self.context,
                model=self.socket.query_params.get("model", "default"),
                beta="realtime=v1" in headers.get("openai-beta", ""),
                binary_frames=self.binary,
                stack=stack,
            )
        except BaseException:
            stack.close()
            raise
        session.token = self.book.open(session, caller.name)
        self._attach(session)
        session.emit(rt.SessionEvent(type="session.created", session=session.describe()))

    def _attach(self, session: RealtimeSession) -> None:
        self.session = session
        self.socket.app.state.attached = getattr(self.socket.app.state, "attached", {})
        self.socket.app.state.attached[session.id] = self

    async def _detach(self, gone: bool) -> None:
        session, self.session = self.session, None
        if session is None or self.replaced.is_set():
            return
        self.socket.app.state.attached.pop(session.id, None)
        if gone and not self.closing and self.limits.grace_seconds > 0 and not self.service.draining.is_set():
            self.book.drop(session.token, time.monotonic())
            return
        self.book.close(session.token)
        await session.shut("disconnect")

    async def _read(self) -> None:
        first = True
        while True:
            session = self.session
            if session is None:
                await self.replaced.wait()
                return
            event_id = None
            try:
                value = parse_json(await self._data())
                event_id = value.get("event_id") if isinstance(value.get("event_id"), str) else None
                message = validated(rt.CLIENT, value)
                if isinstance(message, rt.SessionClose):
                    self.closing = True
                    return
                was_first, first = first, first and isinstance(message, rt.Heartbeat)
                if isinstance(message, rt.Resume) and was_first:
                    await self._resume(message)
                else:
                    session.handle(message)
            except TimeoutError:
                if session.answer is None or session.answer.speech is None:  # a duplex model waits for the client
                    raise Problem("idle", f"nothing was said for {self.limits.idle_seconds:g} s") from None
            except Problem as problem:
                if problem.code in FATAL or (problem.code == "too_large" and event_id is None) or session.unheard:
                    raise
                self.wire.refuse(problem)
                session.refuse(problem, event_id)

    async def _data(self) -> str:
        """The next text message. Binary frames carry audio for a duplex model; those of other kinds are ignored."""
        while True:
            data = await self.wire.receive(self.limits.idle_seconds)
            if isinstance(data, str):
                return data
            if not self.binary:
                raise Problem("invalid_value", f"binary frames need the sub-protocol {binary.SUBPROTOCOL}")
            frame = binary.Frame.unpack(data)
            if frame.kind == binary.Kind.AUDIO_IN and self.session is not None:
                self.session.hear(frame)

    async def _resume(self, message: rt.Resume) -> None:
        caller = self.context.caller
        assert caller is not None
        assert self.session is not None
        old, token = self.book.resume(message.resume_token, caller.name, time.monotonic())
        if old is self.session:
            old.token = token
            raise Problem("conflict", "this is the session that the socket has already")
        if old.binary != self.binary:
            old.token = token
            self.book.drop(token, time.monotonic())
            raise Problem("conflict", "resume with the sub-protocol that the session began with")
        fresh, old.token = self.session, token
        before: RealtimeSocket | None = self.socket.app.state.attached.pop(old.id, None)
        if before is not None:  # its pump must not take from the journal any more
            before.session = None
            before.replaced.set()
        self.socket.app.state.attached.pop(fresh.id, None)
        self.book.close(fresh.token)
        await fresh.shut("resumed")
        resumed = rt.SessionResumed(
            session_id=old.id, resume_token=token, last_seq=message.last_seq, input_seq=old.input_seq
        )
        try:
            old.journal.rewind(message.last_seq)
        except Problem as problem:
            old.refuse(problem, message.event_id)
        await self.wire.send(to_json(resumed))
        self._attach(old)
        fresh.written.set()  # wakes the pump, which still waits for the fresh session

    async def _pump(self) -> None:
        while True:
            session = self.session
            if session is None:  # another socket has it
                await self.replaced.wait()
                return
            entry = session.journal.take()
            if entry is None:
                session.written.clear()
                await session.written.wait()
                continue
            session.room.set()
            await self.wire.send(entry.data)

    async def _drain(self) -> None:
        await self.service.draining.wait()
        while self.session is not None:
            await self.session.idle.wait()
            await asyncio.sleep(0.01)
            if self.session.idle.is_set() and not self.session.written.is_set():
                raise Problem("draining", "the server is shutting down; another one may take this", retry_after=5)

    async def _replaced(self) -> None:
        await self.replaced.wait()
        raise Problem("conflict", "another socket has resumed this session")

    async def _last_words(self, problem: Problem) -> None:
        error = rt.RealtimeError(error=ErrorDetail.model_validate(problem.body(self.context.request_id)))
        with contextlib.suppress(Gone, Problem):
            await self.wire.send(to_json(error))
