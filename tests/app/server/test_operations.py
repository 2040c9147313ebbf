"""Under fire: full, draining, failing engines, and clients that stall, vanish or storm. Slots always come back."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from quaver.app.server.metrics import Meter
from quaver.tts.synthesizer import Synthesizer

from .conftest import Running, receive, serving, until, wait_for
from .storms import LONG, SPEECH, TEXT, post, raw_socket, storm


def test_over_capacity_every_refusal_is_typed_and_quick(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, slots=1, waiting=0) as running, running.http() as http:
        with http.stream("POST", SPEECH, json=LONG) as busy:
            pieces = busy.iter_raw()
            next(pieces)
            for _ in range(3):
                started = time.monotonic()
                refused = http.post(SPEECH, json=LONG)
                assert time.monotonic() - started < 1
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "overloaded"
                assert int(refused.headers["retry-after"]) >= 1
            with running.ws() as ws:
                ws.send('{"type": "session.config"}')
                ws.send('{"type": "input.text", "text": "Two cats."}')
                assert until(ws, "error")[-1]["error"]["code"] == "overloaded"
                with pytest.raises(ConnectionClosed) as end:
                    ws.recv(5)
                assert end.value.rcvd is not None
                assert end.value.rcvd.code == 1013
            with running.ws("/v1/realtime") as ws:
                receive(ws)
                ws.send(json.dumps({"type": "response.create", "response": {"instructions": "Two cats."}}))
                assert receive(ws)["error"]["code"] == "overloaded"
                ws.send('{"type": "session.close"}')
        assert running.settled()


def test_a_slot_that_does_not_come_free_in_time_is_a_503(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, limits={"queue_seconds": 0.2}, slots=1) as running, running.http() as http:
        with http.stream("POST", SPEECH, json=LONG | {"ahead": 0.5}) as busy:
            pieces = busy.iter_raw()
            next(pieces)
            refused = http.post(SPEECH, json=LONG)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded"
        assert running.settled()


def test_a_speech_that_takes_too_long_is_stopped(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, limits={"speech_seconds": 0.5}, slots=1) as running, running.http() as http:
        with pytest.raises(httpx.RemoteProtocolError), http.stream("POST", SPEECH, json=LONG | {"ahead": 0.5}) as cut:
            cut.read()
        assert running.settled()


def test_drain_finishes_what_was_accepted(synthesizer: Synthesizer, tmp_path: Path) -> None:
    expected = 2 * len(synthesizer.say(TEXT * 5).samples)
    with serving(synthesizer, tmp_path, slots=2) as running, running.http() as http, running.http() as other:
        idle = running.ws("/v1/realtime")
        receive(idle)
        with http.stream("POST", SPEECH, json={"input": TEXT * 5, "response_format": "pcm", "ahead": 1}) as answer:
            pieces = answer.iter_raw()
            size = len(next(pieces))
            loop = running.server._loop
            assert loop is not None
            loop.call_soon_threadsafe(running.server.begin_drain)
            assert wait_for(lambda: other.get("/readyz").status_code == 503)
            refused = other.post(SPEECH, json=LONG)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert receive(idle)["error"]["code"] == "draining"
            with pytest.raises(ConnectionClosed) as end:
                idle.recv(5)
            assert end.value.rcvd is not None
            assert end.value.rcvd.code == 1001
            with running.ws() as late:
                assert receive(late)["error"]["code"] == "draining"
            size += sum(len(piece) for piece in pieces)
        assert size == expected
        assert wait_for(lambda: running.server.should_exit)


def test_sigterm_ends_the_real_command_cleanly(tmp_path: Path) -> None:
    """`quaver serve` as a process, with the bundled voice: speaks, drains on SIGTERM, exits with 0."""
    options = ["serve", "--port", "0", "--keys", str(tmp_path / "k.json")]
    code = "import sys; from quaver.app.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        url = next(json.loads(line)["url"] for line in lines if '"listening"' in line)
        next(line for line in lines if '"started"' in line)
        with httpx.Client(base_url=url, timeout=60) as http:
            assert wait_for(lambda: http.get("/readyz").status_code == 200)
            with http.stream("POST", SPEECH, json={"input": "Hello there.", "response_format": "pcm"}) as answer:
                pieces = answer.iter_raw()
                size = len(next(pieces))
                process.send_signal(signal.SIGTERM)
                size += sum(len(piece) for piece in pieces)
        assert size > 24_000
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_failing_model_is_a_typed_500_and_the_next_request_works(
    synthesizer: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(synthesizer, tmp_path, slots=2) as running, running.http() as http:
        good = http.post(SPEECH, json={"input": TEXT}).status_code
        with monkeypatch.context() as broken:
            broken.setattr(synthesizer.codec, "decode", failing)
            failed = http.post(SPEECH, json={"input": TEXT})
            with running.ws() as ws:
                ws.send('{"type": "session.config"}')
                ws.send(json.dumps({"type": "input.text", "text": TEXT}))
                ws.send('{"type": "input.done"}')
                ended = until(ws, "session.done")
        assert (good, failed.status_code) == (200, 500)
        assert "defect" not in failed.text
        assert failed.json()["error"]["type"] == "server_error"
        assert [m["status"] for m in ended if m["type"] == "audio.done"] == ["failed"]
        assert wait_for(lambda: http.get("/readyz").status_code == 200)
        assert http.post(SPEECH, json={"input": TEXT}).status_code == 200
        assert running.settled()


def failing(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("a defect with a /secret/path")


def test_readiness_follows_the_engine(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, slots=1) as running, running.http() as http:
        assert http.get("/readyz").status_code == 200
        running.engine.stop()
        assert http.get("/readyz").json() == {"status": "engine not ready"}
        assert http.get("/healthz").status_code == 200
        refused = http.post(SPEECH, json={"input": TEXT})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")


# -- clients ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hasty(synthesizer: Synthesizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = {"send_seconds": 0.5, "sessions_per_key": 64, "requests_per_minute": 100_000, "grace_seconds": 0.3}
    with serving(synthesizer, tmp_path_factory.mktemp("hasty"), limits=limits, slots=4, waiting=32) as running:
        yield running


def test_an_http_client_that_stalls_loses_its_slot(hasty: Running) -> None:
    with raw_socket(hasty, buffer=2048) as stalled:
        stalled.sendall(post(LONG))
        assert wait_for(lambda: hasty.engine.stats().open > 0)
        assert hasty.settled(30)
    with hasty.http() as http:
        assert http.post(SPEECH, json={"input": TEXT}).status_code == 200


def test_a_websocket_client_that_stalls_loses_its_slot(hasty: Running) -> None:
    with raw_socket(hasty, buffer=2048) as stalled:
        head = f"GET {SPEECH}/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        stalled.sendall((head + key).encode())
        assert b" 101 " in stalled.recv(500)
        for message in (
            {"type": "session.config", "ahead": 600},
            {"type": "input.text", "text": TEXT * 130},
            {"type": "input.done"},
        ):
            data = json.dumps(message).encode()
            stalled.sendall(struct.pack("!BBH4s", 0x81, 0x80 | 126, len(data), b"\0\0\0\0") + data)
        assert wait_for(lambda: hasty.engine.stats().open > 0)
        assert hasty.settled(60)


def test_half_open_sockets_cost_no_slot(hasty: Running) -> None:
    half = [raw_socket(hasty) for _ in range(20)]
    for raw in half[:10]:
        raw.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: loc")
    with hasty.http() as http:
        assert http.post(SPEECH, json={"input": TEXT}).status_code == 200
    assert hasty.settled()
    for raw in half:
        raw.close()


def test_a_send_that_fails_gives_the_slot_back(hasty: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from quaver.app.server import http as module

    async def broken(*arguments: Any, **options: Any) -> None:
        raise OSError("send failed")

    monkeypatch.setattr(module.SpeechResponse, "_send", broken)
    with hasty.http() as http, pytest.raises(httpx.RemoteProtocolError):
        http.post(SPEECH, json={"input": TEXT, "response_format": "pcm"})
    assert hasty.settled()


def stormed(running: Running, rounds: int) -> None:
    threads = [threading.Thread(target=storm, args=(running, rounds, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert running.settled(60), running.engine.stats()
    service = running.app.state.service
    assert wait_for(lambda: not service.access.sessions and not service._running, 30)
    assert wait_for(lambda: running.app.state.gate.connections == 0, 30)
    assert wait_for(lambda: len(running.app.state.resume) == 0, 10)
    with running.http() as http:
        assert http.post(SPEECH, json={"input": TEXT}).status_code == 200


def test_a_storm_of_disconnects_leaks_nothing(hasty: Running) -> None:
    stormed(hasty, 12)


@pytest.mark.long
def test_a_thousand_disconnects_leak_nothing(hasty: Running) -> None:
    stormed(hasty, 250)


def test_continuity_is_what_the_formula_says() -> None:
    now = [0.0]
    meter = Meter(0.0, lambda: now[0])
    for at, seconds in (
        (0.3, 0.1),
        (0.35, 0.1),
        (0.65, 0.1),
        (0.70, 0.1),
    ):  # the third comes 0.15 s after the second ends
        now[0] = at
        meter.sent(seconds)
    assert meter.first == pytest.approx(0.3)
    assert meter.underrun == pytest.approx(0.15)
    assert (meter.chunks, meter.late) == (4, 1)
    assert meter.intervals == pytest.approx([0.05, 0.3, 0.05])
