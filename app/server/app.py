"""The application: routes, the gate before them, and the engine's life around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from ..engine import Engine
from ..engine_duplex import EngineBackend
from . import http, logs, moshi, realtime, websocket
from .duplex import DuplexBackend
from .gate import Gate
from .metrics import Metrics
from .problems import Problem
from .service import SpeechService
from .settings import ServerSettings

STATIC = Path(__file__).parent.parent / "static"
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 400: "bad_json", 415: "unsupported_media_type"}


def create_app(
    make_engine: Callable[[Metrics], Engine],
    settings: ServerSettings,
    *,
    duplex: Mapping[str, DuplexBackend] | None = None,
) -> FastAPI:
    """The ASGI application. The engine is made and started when it starts, and stopped when it stops.

    Args:
        make_engine: gives the engine, which is to report to the metrics (its `observer`).
        duplex: duplex models by name.
    """
    metrics = Metrics()
    app = FastAPI(title="quaver", version="1", docs_url=None, redoc_url=None, lifespan=_life(make_engine, duplex))
    app.state.settings, app.state.metrics = settings, metrics
    app.include_router(http.router)
    app.include_router(websocket.router)
    app.include_router(realtime.router)
    app.include_router(moshi.router)
    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(_LateGate, app)
    if settings.origins:  # outermost: a browser's preflight carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-sample-rate", "x-channels", "x-ignored", "retry-after"],
        )
    return app


class _LateGate:
    """The gate, which needs the service that the lifespan makes."""

    def __init__(self, inner: Any, owner: FastAPI) -> None:
        self.inner, self.owner = inner, owner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if not hasattr(self.owner.state, "gate"):
            service: SpeechService = self.owner.state.service
            self.owner.state.gate = Gate(self.inner, service.access, service.metrics, service.tracing)
        await self.owner.state.gate(scope, receive, send)


def _life(
    make_engine: Callable[[Metrics], Engine], duplex: Mapping[str, DuplexBackend] | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        metrics: Metrics = app.state.metrics
        # By anyio's threads, as every file and form goes through them: what they import need not wait for a visitor.
        engine = await anyio.to_thread.run_sync(make_engine, metrics)
        for backend in (duplex or {}).values():
            if isinstance(backend, EngineBackend):
                backend.bind(engine)
        service = SpeechService(engine, app.state.settings, metrics, duplex)
        app.state.service = service
        metrics.watch(engine.stats)
        engine.start()
        sweeper = asyncio.create_task(realtime.sweep(app))
        logs.event("started", models=list(engine.models), slots=app.state.settings.slots)
        try:
            yield
        finally:
            service.draining.set()
            sweeper.cancel()
            await asyncio.to_thread(engine.stop)
            logs.event("stopped")

    return life


async def drain(app: FastAPI, seconds: float) -> bool:
    """Takes nothing new, and waits until what was accepted is done; True when nothing had to be cut off."""
    service: SpeechService = app.state.service
    logs.event("draining", open=service.engine.stats().open)
    service.draining.set()
    clean = await asyncio.to_thread(service.engine.drain, seconds)
    await asyncio.sleep(0.05)  # the last bytes of the last answers
    logs.event("drained", clean=clean)
    return clean


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    return _answer(request, http.validation_problem(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _STATUS_CODES.get(error.status_code, "internal")
    problem = Problem(code, f"{request.method} is not answered here" if code == "method_not_allowed" else error.detail)
    answer = _answer(request, problem)
    answer.headers.update(error.headers or {})
    if code == "method_not_allowed":  # of all routes with this path; the error knows only the first one's
        matching = [r for r in request.app.routes if r.matches(request.scope)[0] != Match.NONE]
        answer.headers["allow"] = ", ".join(sorted({m for r in matching for m in getattr(r, "methods", None) or ()}))
    return answer


def _answer(request: Request, problem: Problem) -> Response:
    body = {"error": problem.body(request.scope["quaver"].request_id)}
    return JSONResponse(body, problem.kind.status, problem.headers())
