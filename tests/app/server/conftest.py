"""A real server on a loopback socket, in a thread, with a tiny model of random weights."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from websockets.sync.client import ClientConnection, connect

from quaver.app.engine import Engine
from quaver.app.engine_duplex import EngineBackend
from quaver.app.server.app import create_app
from quaver.app.server.limits import Limits
from quaver.app.server.run import Server, listen, make_engine, make_server
from quaver.app.server.settings import ServerSettings
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.tts.lm import SpeechLM, SpeechLMConfig
from quaver.tts.synthesizer import Synthesizer, VoiceSettings

from ...laws import randomised

LM: dict[str, Any] = {
    "codebooks": 3,
    "vocab": 12,
    "head_hidden": 8,
    "backbone": {"width": 8, "layers": 1, "heads": 2, "hidden": 12, "window": 40, "slack": 4},
    "phone_blocks": 2,
    "phone_hidden": 8,
    "voices": ["high", "low"],
}
CODEC: dict[str, Any] = {
    "hop": 240,
    "n_fft": 960,
    "mels": 8,
    "width": 8,
    "hidden": 8,
    "encoder_blocks": (1, 1),
    "decoder_blocks": (1, 1),
    "dim": 4,
    "codebooks": 3,
    "vocab": 12,
    "semantic": "none",
}


@pytest.fixture(scope="session")
def synthesizer() -> Synthesizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = XCodec(XCodecConfig(**CODEC)).eval()
        lm = SpeechLM(SpeechLMConfig.model_validate(LM))
        randomised(lm, scale=0.2)
    return Synthesizer(lm.eval(), codec, VoiceSettings(names={"Alice": "high", "Bob": "low"}, default="Alice"))


@dataclass
class Running:
    """A running server, seen from outside; `engine` is for looking at its slots."""

    url: str
    app: FastAPI
    server: Server

    @property
    def engine(self) -> Engine:
        return self.app.state.service.engine

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(**{"base_url": self.url, "timeout": 60, **options})

    def ws(self, path: str = "/v1/audio/speech/stream", **options: Any) -> ClientConnection:
        return connect(self.url.replace("http", "ws") + path, compression=None, open_timeout=20, **options)

    def free(self) -> int:
        return sum(states["free"] for states in self.engine.stats().slots.values())

    def settled(self, seconds: float = 20.0) -> bool:
        """Waits until no session is open and every slot is free."""
        slots = self.app.state.settings.slots * len(self.engine.stats().slots)
        return wait_for(lambda: self.engine.stats().open == 0 and self.free() == slots, seconds)


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def serving(
    synthesizer: Synthesizer,
    folder: Path,
    *,
    limits: dict[str, Any] | None = None,
    duplex: Any = None,
    more: dict[str, Any] | None = None,
    extend: Callable[[FastAPI, ServerSettings], None] | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """A server until the block ends; afterwards no session and no thread of it is left.

    `more`: further models. `extend` adds to the application.
    """
    given: dict[str, Any] = {"keys": folder / "keys.json", "voices": folder / "voices", **settings}
    chosen = ServerSettings(port=0, limits=Limits(**(limits or {})), **given)
    lanes = {name: its for name, its in (duplex or {}).items() if isinstance(its, EngineBackend)}
    app = create_app(
        lambda metrics: make_engine({"tiny": synthesizer, **(more or {})}, chosen, metrics, lanes),
        chosen,
        duplex=duplex,
    )
    if extend is not None:
        extend(app, chosen)
    server, listener = make_server(app, chosen), listen(chosen)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), name="server")
    thread.start()
    try:
        assert wait_for(lambda: server.started or not thread.is_alive(), 300)  # a busy machine takes its time
        assert server.started
        scheme = "https" if chosen.tls_certificate else "http"
        yield Running(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", app, server)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(synthesizer: Synthesizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for the tests that need no settings of their own; each of them must leave every slot free."""
    limits = {"requests_per_minute": 100_000}
    with serving(synthesizer, tmp_path_factory.mktemp("server"), limits=limits, slots=4, waiting=8) as running:
        yield running


@pytest.fixture
def quiet(server: Running) -> Iterator[Running]:
    """The shared server; fails when the test leaves a session behind."""
    assert server.settled()
    yield server
    assert server.settled(), server.engine.stats()


def receive(socket: ClientConnection, seconds: float = 20.0) -> Any:
    """The next message: bytes, or a dictionary."""
    data = socket.recv(seconds)
    return data if isinstance(data, bytes) else json.loads(data)


def until(socket: ClientConnection, kind: str, seconds: float = 20.0) -> list[Any]:
    """All messages up to the first of that type, with it."""
    messages = []
    while True:
        messages.append(receive(socket, seconds))
        if isinstance(messages[-1], dict) and messages[-1]["type"] == kind:
            return messages
