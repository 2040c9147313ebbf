"""The ASGI layer in front of everything: request ids, origin, key, rate, body size, refusals, one log line each."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import logs
from .access import Access, Caller
from .metrics import Metrics
from .problems import Problem, problem_of
from .tracing import Tracing

OPEN_PATHS = ("/healthz", "/readyz", "/static/", "/openapi.json")
UPLOAD_PATHS = ("/v1/audio/voices", "/demo/gradio_api/upload")
SURFACES = {"/v1/audio/speech/stream": "stream", "/v1/realtime": "realtime", "/api/chat": "moshi"}


@dataclass(frozen=True)
class Context:
    """What the gate knows about a request: `scope["quaver"]`."""

    request_id: str
    caller: Caller | None


class Gate:
    """Wraps the application. HTTP bodies are read here, whole, within their limits, before any other code runs."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, tracing: Tracing) -> None:
        self.app, self.access, self.metrics, self.tracing = app, access, metrics, tracing
        self.limits = access.limits
        self.connections = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        identity = f"req_{uuid.uuid4().hex}"
        token = logs.request_id.set(identity)
        self.connections += 1
        try:
            handle = self._http if scope["type"] == "http" else self._websocket
            await handle(scope, receive, send, identity)
        finally:
            self.connections -= 1
            logs.request_id.reset(token)

    def _admit(self, scope: Scope, identity: str) -> None:
        """Origin, key and room; sets `scope["quaver"]`."""
        scope["quaver"] = Context(identity, None)
        if scope["path"].startswith(OPEN_PATHS):
            return
        if self.connections > self.limits.connections:
            raise Problem("overloaded", "too many connections", retry_after=1)
        self.access.check_origin(Headers(scope=scope))
        scope["quaver"] = Context(identity, self.access.authenticate(scope))

    # -- HTTP ---------------------------------------------------------------------------------------------------------
    async def _http(self, scope: Scope, receive: Receive, send: Send, identity: str) -> None:
        started, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
            await send(message)

        try:
            self._admit(scope, identity)
            body = await self._body(scope, receive)
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
            with self.tracing.span("http", headers, path=scope["path"], request_id=identity):
                await self.app(scope, _replay(body, receive), answer)
        except Problem as problem:
            if not status:
                await answer_problem(problem, identity, answer)
        except Exception as error:
            logs.event("request.failed", logging.ERROR, exc_info=error)
            if status:
                return  # the answer ends without its end: the client sees that it is cut
            await answer_problem(problem_of(error), identity, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status or 499)).inc()
            seconds = round(time.monotonic() - started, 4)
            caller = scope["quaver"].caller
            name = caller.name if caller else None
            logs.event("request", method=scope["method"], path=route, status=status, seconds=seconds, caller=name)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.limits.voice_bytes if scope["path"] in UPLOAD_PATHS else self.limits.body_bytes
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            raise Problem("too_large", f"the body is larger than {limit} bytes")
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem("bad_json", "the client left before its request was complete")
                    data += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(data) > limit:
                        raise Problem("too_large", f"the body is larger than {limit} bytes")
        except TimeoutError:
            seconds = f"{self.limits.body_seconds:g}"
            raise Problem("idle", f"the body did not arrive within {seconds} seconds") from None
        return bytes(data)

    # -- WebSocket ----------------------------------------------------------------------------------------------------
    async def _websocket(self, scope: Scope, receive: Receive, send: Send, identity: str) -> None:
        surface = SURFACES.get(scope["path"], "other")
        started, code = time.monotonic(), 1006

        async def answer(message: Message) -> None:
            nonlocal code
            if message["type"] == "websocket.close":
                code = message.get("code", 1000)
            elif message["type"] == "websocket.accept":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
            await send(message)

        async def listen() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code", 1005) or 1005
            return message

        try:
            self._admit(scope, identity)
        except Problem as problem:
            await _deny(scope, problem, identity, receive, send)
            self.metrics.socket_closes.labels(surface, str(problem.kind.status)).inc()
            logs.event("websocket.denied", surface=surface, code=problem.code)
            return
        self.metrics.sockets.labels(surface).inc()
        try:
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
            with self.tracing.span("websocket", headers, path=scope["path"], request_id=identity):
                await self.app(scope, listen, answer)
        finally:
            self.metrics.sockets.labels(surface).dec()
            self.metrics.socket_closes.labels(surface, str(code)).inc()
            seconds, name = round(time.monotonic() - started, 3), scope["quaver"].caller
            logs.event("websocket", surface=surface, close=code, seconds=seconds, caller=name and name.name)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives the body once, and then what comes after it (the disconnect)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def answer_problem(problem: Problem, identity: str, send: Send) -> None:
    """A whole HTTP answer with the error body."""
    await _send_body(problem, identity, send, "http.response")


async def _deny(scope: Scope, problem: Problem, identity: str, receive: Receive, send: Send) -> None:
    """Refuses the handshake: with status and body where the server can, else by a close before the accept (403)."""
    await receive()  # websocket.connect
    if "websocket.http.response" in scope.get("extensions", {}):
        await _send_body(problem, identity, send, "websocket.http.response")
    else:
        await send({"type": "websocket.close", "code": problem.kind.close, "reason": problem.code})


async def _send_body(problem: Problem, identity: str, send: Send, prefix: str) -> None:
    body = json.dumps({"error": problem.body(identity)}).encode()
    extra: dict[str, str] = problem.headers() | {"content-type": "application/json", "content-length": str(len(body))}
    if problem.kind.status == 401:
        extra["www-authenticate"] = "Bearer"
    headers: list[Any] = [(k.lower().encode(), v.encode()) for k, v in extra.items()]
    await send({"type": f"{prefix}.start", "status": problem.kind.status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})
