"""From settings to a running server: sockets, TLS, models, and a shutdown that finishes what was accepted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from ...errors import BadInput
from ..engine import Engine
from ..runtime import use_threads
from . import logs
from .app import create_app, drain
from .auth import KeyStore
from .metrics import Metrics
from .settings import ServerSettings, check_safe_to_bind

if TYPE_CHECKING:
    from ..engine_duplex import EngineBackend
    from ..engine_tokens import AnySynthesizer

BACKLOG = 128
KEEPALIVE_SECONDS = 20
SEND_BUFFER = 1 << 17  # bytes; the kernel would keep minutes of speech, which nobody could call back


class Server(uvicorn.Server):
    """uvicorn, but for the first SIGTERM or SIGINT: it drains before it stops. A second one stops at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float) -> None:
        super().__init__(config)
        self._app, self._drain_seconds = app, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self._asked = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked or self._loop is None or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._asked = True
        self._loop.call_soon_threadsafe(self.begin_drain)

    def begin_drain(self) -> None:
        """Starts the shutdown, from within the loop."""
        self._drain = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            await drain(self._app, self._drain_seconds)
        finally:
            self.should_exit = True


def make_server(app: FastAPI, settings: ServerSettings) -> Server:
    """uvicorn with our limits on the wire."""
    limits = settings.limits
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="websockets-sansio",
        ws_max_size=2 * limits.message_bytes,  # past our own limit, which answers with a typed error
        ws_ping_interval=KEEPALIVE_SECONDS,
        ws_ping_timeout=KEEPALIVE_SECONDS,
        ws_per_message_deflate=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    return Server(config, app, settings.drain_seconds)


def listen(settings: ServerSettings) -> socket.socket:
    """The listening socket. Dead peers are noticed by the kernel: the options are inherited by every connection.

    Raises:
        OSError: the port is taken. BadInput: the host is no address of this machine.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise BadInput(f"{settings.host} is no address to bind to") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    for name, value in (("TCP_KEEPIDLE", KEEPALIVE_SECONDS), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # data that nobody takes, also when the window is shut
        milliseconds = int(1000 * (settings.limits.send_seconds + KEEPALIVE_SECONDS))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"{settings.host}:{settings.port}") from None
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def make_engine(
    synthesizers: Mapping[str, AnySynthesizer],
    settings: ServerSettings,
    metrics: Metrics,
    duplex: Mapping[str, EngineBackend] | None = None,
) -> Engine:
    """The engine with the server's settings; `duplex`: models that listen and speak."""
    return Engine(
        synthesizers,
        slots=settings.slots,
        max_waiting=settings.waiting,
        timeout=max(settings.limits.speech_seconds, settings.limits.session_seconds),
        observer=metrics,
        lanes={name: backend.lane(settings.slots) for name, backend in (duplex or {}).items()},
    )


def load_app(settings: ServerSettings, prepare: Callable[[str, AnySynthesizer], None] | None = None) -> FastAPI:
    """The application; its models are loaded when it starts. `prepare` gets each one that speaks texts."""

    def engine(metrics: Metrics) -> Engine:
        from ...tts.speculative_voice import offer_speculation
        from ...tts.synthesizer import load_synthesizer
        from ...tts.token_synthesizer import TokenSynthesizer

        use_threads(settings.threads)
        speaking = {_name(m): load_synthesizer(m) for m in settings.models if m not in talking}
        for model in settings.models:
            its = speaking.get(_name(model))
            if its is not None:
                settings.speculation.apply(its, model)
            if isinstance(its, TokenSynthesizer) and (figures := offer_speculation(its, model)) is not None:
                metrics.speculating(_name(model), figures)
            if prepare is not None and model not in talking:
                prepare(model, speaking[_name(model)])
        return make_engine(speaking, settings, metrics, duplex)

    from ...codecs.loading import model_folder, read_config
    from ...dialogue.loading import load_duplex
    from ..engine_duplex import EngineBackend

    talking = [m for m in settings.models if m != "default" and read_config(model_folder(m)).get("kind") == "duplex"]
    duplex = {_name(m): EngineBackend(_name(m), load_duplex(m)) for m in talking}
    return create_app(engine, settings, duplex=duplex)


def run(
    settings: ServerSettings,
    *,
    prepare: Callable[[str, AnySynthesizer], None] | None = None,
    extend: Callable[[FastAPI], None] | None = None,
) -> None:
    """Serves until it is told to stop. `prepare`: see `load_app`. `extend` adds to the application (the web demo).

    Raises:
        BadInput: keys are missing for this host. QuaverError, OSError: a model, a file or the port cannot be had.
    """
    check_safe_to_bind(settings, bool(KeyStore(settings.keys).keys()))
    logs.configure(settings.log_format, settings.log_level)
    app = load_app(settings, prepare)
    if extend is not None:
        extend(app)
    server = make_server(app, settings)
    listener = listen(settings)
    try:
        scheme = "https" if settings.tls_certificate else "http"
        host, port = listener.getsockname()[:2]
        logs.event("listening", url=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        asyncio.run(server.serve([listener]))
    finally:
        listener.close()
    if not server.started:
        raise BadInput("the server could not start; its log says why")


def _name(model: str) -> str:
    """The name that requests use, besides "default": a folder's last part."""
    from ...tts.synthesizer import DEFAULT_VOICE_MODEL

    return DEFAULT_VOICE_MODEL if model == "default" else model.rstrip("/").rsplit("/", 1)[-1]
