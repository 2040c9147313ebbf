"""WS /v1/realtime with a duplex model: a microphone in, turns out."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import numpy as np
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from quaver.app.engine_duplex import EngineBackend
from quaver.app.server.activity import Activity
from quaver.app.server.duplex import DuplexAudio, DuplexEnd, DuplexEvent, DuplexHeard, DuplexRequest, DuplexText
from quaver.app.server.protocol.binary import SUBPROTOCOL, Codec, Frame, Kind
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.loading import DuplexParts
from quaver.dialogue.session import DuplexSettings
from quaver.tts.synthesizer import Synthesizer

from ...dialogue.tiny import CODEC, VOCABULARY, noise_frames, talking_model
from ..engine_help import all_free
from .conftest import Running, receive, serving, until, wait_for

FRAME = 1920
LATE = 4  # frames


class EchoLink:
    """Says a frame for a frame: what it heard; and writes down a word for each loud frame, a little late.
    Deterministic turns for what is tested here, the protocol."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[DuplexEvent] = asyncio.Queue()
        self.rest, self.steered, self.forgot = np.zeros(0, np.float32), [], 0
        self.frames, self.loud = 0, list[bool]()

    def push(self, samples: np.ndarray) -> int:
        self.rest = np.concatenate([self.rest, samples])
        while len(self.rest) >= FRAME:
            self.queue.put_nowait(DuplexAudio(self.rest[:FRAME]))
            self.loud.append(bool(np.abs(self.rest[:FRAME]).max() > 0.1))
            if np.abs(self.rest[:FRAME]).max() > 0.9:
                self.queue.put_nowait(DuplexText(" loud"))
            self.frames += 1
            said = " word" if self.frames > LATE and self.loud[self.frames - 1 - LATE] else ""
            self.queue.put_nowait(DuplexHeard(said, (self.frames - LATE) * FRAME / 24_000))
            self.rest = self.rest[FRAME:]
        return 0

    def forget(self) -> int:
        self.forgot, self.rest = len(self.rest), self.rest[:0]
        return self.forgot

    def steer(self, action: Literal["speak", "listen", "interrupt"]) -> None:
        self.steered.append(action)

    def played(self, seconds: float) -> None:
        pass

    async def events(self) -> AsyncIterator[DuplexEvent]:
        while True:
            event = await self.queue.get()
            yield event
            if isinstance(event, DuplexEnd):
                return

    def close(self, reason: str) -> None:
        self.queue.put_nowait(DuplexEnd(reason))


class EchoBackend:
    sample_rate, frame_samples = 24_000, FRAME
    transcribes = True

    def __init__(self) -> None:
        self.links: list[EchoLink] = []

    def open(self, request: DuplexRequest) -> EchoLink:
        self.links.append(EchoLink())
        return self.links[-1]


@pytest.fixture(scope="module")
def echo(synthesizer: Synthesizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, EchoBackend]]:
    backend = EchoBackend()
    limits = {"requests_per_minute": 100_000, "grace_seconds": 1.0}
    folder = tmp_path_factory.mktemp("talk")
    with serving(synthesizer, folder, slots=2, duplex={"echo": backend}, limits=limits) as running:
        yield running, backend


@pytest.fixture(scope="module")
def talk(synthesizer: Synthesizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A real duplex model of random weights."""
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig.model_validate({**CODEC, "hop": 240, "n_fft": 960})).eval()
    backend = EngineBackend("talk", DuplexParts(talking_model(), codec, VOCABULARY, DuplexSettings(text_top_k=0)))
    limits = {"requests_per_minute": 100_000}
    folder = tmp_path_factory.mktemp("talk")
    with serving(synthesizer, folder, slots=2, waiting=0, duplex={"talk": backend}, limits=limits) as running:
        yield running


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def pcm16(samples: np.ndarray) -> bytes:
    return np.rint(samples * 32767).astype("<i2").tobytes()


def append(socket: ClientConnection, samples: np.ndarray) -> None:
    send(socket, "input_audio_buffer.append", audio=base64.b64encode(pcm16(samples)).decode())


def tone(seconds: float, level: float = 0.3, rate: int = 24_000) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def silence(seconds: float, rate: int = 24_000) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)


def opened(running: Running, query: str = "", **options: Any) -> ClientConnection:
    socket = running.ws(f"/v1/realtime{query}", **options)
    assert receive(socket)["type"] == "session.created"
    return socket


def kinds(messages: list[Any]) -> list[str]:
    return [m["type"] for m in messages if isinstance(m, dict)]


def audio(messages: list[Any]) -> np.ndarray:
    parts = [base64.b64decode(m["delta"]) for m in messages if m["type"] == "response.output_audio.delta"]
    return np.frombuffer(b"".join(parts), "<i2").astype(np.float32) / 32767


# -- turns ------------------------------------------------------------------------------------------------------------
def test_a_spoken_turn_has_openais_events_and_all_of_its_sound(echo: tuple[Running, EchoBackend]) -> None:
    running, _ = echo
    spoken = np.concatenate([silence(0.4), tone(0.8), tone(0.08, 1.0), tone(0.3), silence(1.6)])
    with opened(running) as socket:
        for piece in np.array_split(spoken, 13):
            append(socket, piece)
        messages = until(socket, "response.done")
    names = kinds(messages)
    assert [n for n in names if n.startswith("input")] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    by = {m["type"]: m for m in messages}
    started, stopped = by["input_audio_buffer.speech_started"], by["input_audio_buffer.speech_stopped"]
    assert started["audio_start_ms"] == pytest.approx(400 - 300, abs=20)
    assert stopped["audio_end_ms"] == pytest.approx(400 + 1180 + 500, abs=20)
    assert started["item_id"] == stopped["item_id"] == by["input_audio_buffer.committed"]["item_id"]
    users = [m["item"] for m in messages if m["type"] == "conversation.item.done" and m["item"]["role"] == "user"]
    assert [u["id"] for u in users] == [started["item_id"]]
    assert users[0]["content"][0]["type"] == "input_audio"
    assert by["response.done"]["response"]["status"] == "completed"
    assert by["response.output_audio_transcript.done"]["transcript"] == " loud" * len(
        [m for m in messages if m["type"] == "response.output_audio_transcript.delta"]
    )
    heard = audio(messages)
    body = np.concatenate([tone(0.8), tone(0.08, 1.0), tone(0.3)])
    at = int(np.argmax(np.abs(heard) > 0)) - 1
    assert np.abs(heard[at : at + len(body)] - body).max() < 2e-4  # nothing of it is missing, the onset least
    assert len(heard) < len(body) + round(1.2 * 24_000)  # and the long silence is not sent


def test_two_turns_are_two_responses_and_numbers_have_no_gap(echo: tuple[Running, EchoBackend]) -> None:
    running, _ = echo
    with opened(running) as socket:
        append(socket, np.concatenate([tone(0.4), silence(1.3), tone(0.4), silence(1.3)]))
        messages = until(socket, "response.done") + until(socket, "response.done")
    ids = [m["response"]["id"] for m in messages if m["type"] in ("response.created", "response.done")]
    assert len(ids) == 4
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert [m["server_event_seq"] for m in messages] == list(range(2, len(messages) + 2))


def test_the_user_can_be_given_the_floor_and_the_model_told_to_speak(echo: tuple[Running, EchoBackend]) -> None:
    """`interrupt_response` cuts the model off when the user starts, `create_response` makes it speak at the end."""
    running, backend = echo
    detection = {"type": "server_vad", "silence_duration_ms": 200, "interrupt_response": True, "create_response": True}
    with opened(running) as socket:
        send(socket, "session.update", session={"audio": {"input": {"turn_detection": detection}}})
        updated = until(socket, "session.updated")[-1]["session"]["audio"]["input"]
        assert updated["turn_detection"]["silence_duration_ms"] == 200
        assert updated["turn_detection"]["prefix_padding_ms"] == 300
        append(socket, np.concatenate([tone(0.3), silence(0.3)]))
        until(socket, "response.output_audio.delta")
        append(socket, tone(0.3))
        messages = until(socket, "response.done")
        assert messages[-1]["response"]["status"] == "cancelled"
        assert messages[-1]["epoch"] == 1
        append(socket, silence(0.3))
        until(socket, "input_audio_buffer.speech_stopped")
        send(socket, "session.heartbeat")
        until(socket, "session.heartbeat")
        assert backend.links[-1].steered[-2:] == ["interrupt", "speak"]


def test_without_turn_detection_the_client_commits(echo: tuple[Running, EchoBackend]) -> None:
    running, backend = echo
    with opened(running) as socket:
        send(socket, "session.update", session={"audio": {"input": {"turn_detection": None}}})
        send(socket, "input_audio_buffer.commit")
        refused = until(socket, "error")[-1]["error"]
        assert refused["code"] == "invalid_value"
        append(socket, silence(0.1))
        send(socket, "input_audio_buffer.commit")
        committed = until(socket, "input_audio_buffer.committed")[-1]
        done = until(socket, "conversation.item.done")[-1]
        assert done["item"]["id"] == committed["item_id"]
        send(socket, "response.create")
        append(socket, silence(0.03))
        send(socket, "input_audio_buffer.clear")
        until(socket, "input_audio_buffer.cleared")
        assert backend.links[-1].steered == ["speak"]
        assert backend.links[-1].forgot > 0
        send(socket, "input_audio_buffer.commit")  # nothing is left to commit
        assert until(socket, "error")[-1]["error"]["code"] == "invalid_value"


def test_a_text_is_spoken_beside_and_the_model_is_not_heard_meanwhile(echo: tuple[Running, EchoBackend]) -> None:
    running, _ = echo
    with opened(running) as socket:
        append(socket, silence(0.1))
        send(socket, "response.create", response={"instructions": "Two cats sat there. " * 5})
        until(socket, "response.created")
        append(socket, np.concatenate([tone(0.5), silence(0.2)]))
        messages = until(socket, "response.done")
        assert "response.created" not in kinds(messages)
        assert messages[-1]["response"]["status"] == "completed"


def test_rates_are_brought_to_the_models(echo: tuple[Running, EchoBackend]) -> None:
    running, _ = echo
    with opened(running) as socket:
        send(socket, "session.update", session={"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}})
        append(socket, np.concatenate([silence(0.2, 16_000), tone(1.0, 0.3, 16_000), silence(1.2, 16_000)]))
        messages = until(socket, "response.done")
        send(socket, "session.update", session={"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8_000}}}})
        assert until(socket, "error")[-1]["error"]["code"] == "conflict"
    heard = audio(messages)
    loud = heard[np.argmax(np.abs(heard) > 0.05) :][:20_000]
    crossings = np.count_nonzero(np.diff(np.signbit(loud))) / 2 / (len(loud) / 24_000)
    assert crossings == pytest.approx(220, abs=2)  # the same tone


def test_history_holds_what_was_heard_of_a_turn(echo: tuple[Running, EchoBackend]) -> None:
    running, _ = echo
    with opened(running) as socket:
        append(socket, np.concatenate([tone(0.4, 1.0), silence(1.2)]))
        messages = until(socket, "response.done")
        item = messages[-1]["response"]["output"][0]
        assert item["content"][0]["transcript"].count("loud") > 2
        first = next(m for m in messages if m["type"] == "response.output_audio_transcript.delta")["words"][0]
        end = round(1000 * first["end"])
        send(socket, "conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=end)
        send(socket, "conversation.item.retrieve", item_id=item["id"])
        kept = until(socket, "conversation.item.retrieved")[-1]["item"]
    assert kept["content"][0]["transcript"] == " loud"
    assert kept["status"] == "incomplete"


# -- the wire ---------------------------------------------------------------------------------------------------------
def test_binary_frames_both_ways_and_no_frame_counts_twice(echo: tuple[Running, EchoBackend]) -> None:
    running, _ = echo
    with opened(running, subprotocols=[SUBPROTOCOL]) as socket:
        parts = [tone(0.5), tone(0.5), silence(1.2)]
        for seq in (0, 0, 1, 0, 1, 2):  # sent again, as after a resume
            codec = Codec.F32LE if seq else Codec.S16LE
            data = parts[seq].astype("<f4").tobytes() if seq else pcm16(parts[seq])
            socket.send(Frame(Kind.AUDIO_IN, codec, 0, seq, 0, 0, 0, data).pack())
        messages = until(socket, "response.done")
        frames = [Frame.unpack(m) for m in messages if isinstance(m, bytes)]
        heard = sum(len(f.payload) // 2 for f in frames)
        assert {f.kind for f in frames} == {Kind.AUDIO_OUT}
        assert 1.0 * 24_000 <= heard < 2.2 * 24_000
        socket.send(Frame(Kind.AUDIO_IN, Codec.S16LE, 0, 3, 0, 0, 0, b"odd").pack())
        assert until(socket, "error")[-1]["error"]["code"] == "invalid_value"
        socket.send(Frame(Kind.AUDIO_IN, Codec.OPUS_PACKET, 0, 3, 0, 0, 0, b"").pack())
        assert until(socket, "error")[-1]["error"]["code"] == "invalid_value"
        socket.send(Frame(Kind.AUDIO_IN, Codec.F32LE, 0, 3, 0, 0, 0, b"\0\0\xc0\x7f").pack())  # NaN
        assert until(socket, "error")[-1]["error"]["code"] == "invalid_value"


def test_a_conversation_goes_on_after_a_dropped_socket(echo: tuple[Running, EchoBackend]) -> None:
    running, backend = echo
    socket = running.ws("/v1/realtime", subprotocols=[SUBPROTOCOL])
    token = receive(socket)["session"]["resume_token"]
    links = len(backend.links)
    socket.send(Frame(Kind.AUDIO_IN, Codec.S16LE, 0, 5, 0, 0, 0, pcm16(tone(0.4))).pack())
    before = until(socket, "response.created")
    last = before[-1]["server_event_seq"]
    socket.socket.close()  # no goodbye
    with opened(running, subprotocols=[SUBPROTOCOL]) as again:
        send(again, "session.resume", resume_token=token, last_seq=last)
        resumed = receive(again)
        assert (resumed["type"], resumed["input_seq"]) == ("session.resumed", 5)
        again.send(Frame(Kind.AUDIO_IN, Codec.S16LE, 0, 6, 0, 0, 0, pcm16(silence(1.2))).pack())
        after = until(again, "response.done")
        numbers = [Frame.unpack(m).seq if isinstance(m, bytes) else m["server_event_seq"] for m in after]
        assert numbers == list(range(last + 1, last + 1 + len(after)))
    assert len(backend.links) == links + 1


def test_the_models_end_is_told_and_the_next_audio_begins_anew(echo: tuple[Running, EchoBackend]) -> None:
    running, backend = echo
    with opened(running) as socket:
        append(socket, tone(0.4))
        until(socket, "response.created")
        running.server._loop.call_soon_threadsafe(backend.links[-1].close, "died")  # type: ignore[union-attr]
        messages = until(socket, "error")
        done = next(m for m in messages if m["type"] == "response.done")
        assert done["response"]["status"] == "failed"
        assert messages[-1]["error"]["code"] == "conversation_lost"
        append(socket, tone(0.4))
        until(socket, "response.created")


# -- a real model of random weights -----------------------------------------------------------------------------------
def test_the_stock_openai_client_converses(talk: Running) -> None:
    client = openai.OpenAI(base_url=f"{talk.url}/v1", api_key="unused")
    seen: list[str] = []
    with client.realtime.connect(model="talk") as connection:
        for frame in noise_frames(30, FRAME):
            connection.input_audio_buffer.append(audio=base64.b64encode(pcm16(np.clip(frame, -1, 1))).decode())
        for event in connection:
            assert event.type != "error", event
            seen.append(event.type)
            if seen.count("response.output_audio.delta") >= 8:
                connection.response.cancel()
            if event.type == "response.done":
                assert event.response.status == "cancelled"
                break
    assert "input_audio_buffer.speech_started" in seen
    assert "response.output_audio_transcript.delta" in seen
    assert talk_free(talk)


def talk_free(running: Running) -> bool:
    """A conversation that was closed before it had a slot may yet get one for a moment: it has to be gone as well."""
    return wait_for(lambda: all_free(running.engine))


def test_no_audio_of_an_old_epoch_comes_after_an_interruption(talk: Running) -> None:
    with opened(talk, "?model=talk", subprotocols=[SUBPROTOCOL]) as socket:
        for seq, frame in enumerate(noise_frames(60, FRAME)):
            socket.send(Frame(Kind.AUDIO_IN, Codec.F32LE, 0, seq, 0, 0, 0, frame.tobytes()).pack())
            if seq in (15, 40):
                send(socket, "response.cancel")
        send(socket, "session.heartbeat")
        messages = until(socket, "session.heartbeat")
    epoch = 0
    for message in messages:
        at = Frame.unpack(message).epoch if isinstance(message, bytes) else message["epoch"]
        assert at >= epoch
        epoch = at
    done = [m["response"]["id"] for m in messages if isinstance(m, dict) and m["type"] == "response.done"]
    assert len(done) == len(set(done))
    assert talk_free(talk)


def test_without_a_free_slot_a_conversation_is_refused_at_once_and_typed(talk: Running) -> None:
    with opened(talk, "?model=talk") as one, opened(talk, "?model=talk") as two, opened(talk, "?model=talk") as three:
        for socket in (one, two):
            append(socket, silence(0.2))
        assert wait_for(lambda: talk.engine.stats().slots["talk"]["free"] == 0)
        append(three, silence(0.2))
        assert until(three, "error")[-1]["error"]["code"] == "overloaded"
        with pytest.raises(ConnectionClosed) as end:
            three.recv(5)
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == 1013
        send(one, "session.heartbeat")
        until(one, "session.heartbeat")
    assert talk_free(talk)


def test_a_server_without_a_voice_converses_and_says_that_it_cannot_read(
    talk: Running, synthesizer: Synthesizer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk.engine, "_synthesizers", {})
    with talk.http() as http:
        assert http.post("/v1/audio/speech", json={"input": "Hello."}).status_code == 404
    for query in ("?model=talk", ""):  # which of one model needs no name
        with opened(talk, query) as socket:
            append(socket, silence(0.2))
            send(socket, "response.create", response={"instructions": "Hello."})
            assert until(socket, "error")[-1]["error"]["code"] == "model_not_found"
        assert talk_free(talk)
    with talk.ws("/v1/realtime?model=nobody") as socket:
        assert until(socket, "error")[-1]["error"]["code"] == "model_not_found"


MESSAGES = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda seq, codec, kind, data: Frame(kind, codec, 0, seq, 0, 0, 0, data).pack(),
        st.integers(0, 9),
        st.integers(0, 5),
        st.integers(1, 5),
        st.binary(max_size=4000),
    ),
    st.sampled_from(
        [
            {"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm16(tone(0.3))).decode()},
            {"type": "input_audio_buffer.append", "audio": "?"},
            {"type": "input_audio_buffer.commit"},
            {"type": "input_audio_buffer.clear"},
            {"type": "response.create"},
            {"type": "response.create", "response": {"instructions": "Two cats."}},
            {"type": "response.cancel"},
            {"type": "playback.ack", "played_ms": 5},
            {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}},
            {"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"threshold": 0.1}}}}},
        ]
    ).map(json.dumps),
)


@given(messages=st.lists(MESSAGES, max_size=14))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fuzz_never_breaks_a_conversation(talk: Running, messages: list[str | bytes]) -> None:
    """Typed errors only, each response done at most once, no audio of an old epoch, and the slot is free afterwards."""
    seen: list[Any] = []
    with opened(talk, "?model=talk", subprotocols=[SUBPROTOCOL]) as socket:
        for message in messages:
            socket.send(message)
        send(socket, "session.heartbeat")
        seen = until(socket, "session.heartbeat")
    epoch = 0
    for message in seen:
        at = Frame.unpack(message).epoch if isinstance(message, bytes) else message["epoch"]
        assert at >= epoch
        epoch = at
        if isinstance(message, dict) and message["type"] == "error":
            assert message["error"]["code"] != "internal", message
    assert talk_free(talk)


@given(cuts=st.lists(st.integers(0, 30_000), max_size=6), threshold=st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=30, deadline=None)
def test_speech_is_found_however_the_stream_is_cut(cuts: list[int], threshold: float) -> None:
    stream = np.concatenate([silence(0.3), tone(0.03), silence(0.2), tone(0.4), silence(0.3), tone(0.2), silence(0.7)])
    pieces = np.split(stream, sorted(cuts))

    def edges(parts: list[np.ndarray]) -> list[tuple[str, int]]:
        activity = Activity(24_000, threshold=threshold, silence=0.5)
        return [(e.kind, e.at) for part in parts for e in activity.push(part)]

    whole = edges([stream])
    assert edges(pieces) == whole
    assert [kind for kind, _ in whole] == ["start", "stop"]  # the click is none, the short pause ends nothing
    assert whole[0][1] == pytest.approx(0.53 * 24_000, abs=480)
    assert whole[1][1] == pytest.approx((0.53 + 0.9 + 0.5) * 24_000, abs=480)
