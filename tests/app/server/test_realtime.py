"""WS /v1/realtime over a real socket: OpenAI's client, interruption, the binary sub-protocol, resuming."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from quaver.app.server.protocol.binary import SUBPROTOCOL, Flag, Frame, Kind
from quaver.tts.synthesizer import Synthesizer

from .conftest import Running, receive, serving, until, wait_for

TEXT = "One day, two cats sat there."


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def opened(running: Running, **options: Any) -> tuple[ClientConnection, dict[str, Any]]:
    socket = running.ws("/v1/realtime?model=gpt-realtime", **options)
    created = receive(socket)
    assert created["type"] == "session.created"
    return socket, created["session"]


def speak(socket: ClientConnection, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    send(socket, "conversation.item.create", item={"type": "message", "role": "user", "content": content})
    send(socket, "response.create")


def events(messages: list[Any], kind: str) -> list[dict[str, Any]]:
    return [m for m in messages if isinstance(m, dict) and m["type"] == kind]


def pcm(messages: list[Any]) -> bytes:
    return b"".join(base64.b64decode(m["delta"]) for m in events(messages, "response.output_audio.delta"))


def test_the_stock_openai_client_hears_its_text(quiet: Running, synthesizer: Synthesizer) -> None:
    client = openai.OpenAI(base_url=f"{quiet.url}/v1", api_key="unused")
    audio, said, kinds = b"", "", []
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.session.update(session={"type": "realtime", "audio": {"output": {"voice": "Bob"}}})
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}
        )
        connection.response.create()
        for event in connection:
            kinds.append(event.type)
            if event.type == "response.output_audio.delta":
                audio += base64.b64decode(event.delta)
            elif event.type == "response.output_audio_transcript.done":
                said = event.transcript
            elif event.type == "response.done":
                assert event.response.status == "completed"
                break
    expected = synthesizer.say(TEXT, voice="Bob")
    heard = np.frombuffer(audio, "<i2").astype(np.float32) / 32767
    assert len(heard) == len(expected.samples)
    assert np.abs(heard - np.clip(expected.samples, -1, 1)).max() < 1e-3
    assert said == " ".join(w.text for w in expected.words)
    assert kinds[:2] == ["session.created", "session.updated"]
    assert kinds[-6:] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]


def test_numbers_have_no_gap_and_every_event_an_id(quiet: Running) -> None:
    socket, _ = opened(quiet)
    with socket:
        speak(socket, TEXT)
        messages = until(socket, "response.done")
    assert [m["server_event_seq"] for m in messages] == list(range(2, len(messages) + 2))
    assert len({m["event_id"] for m in messages}) == len(messages)


def test_interruption_is_a_fence(quiet: Running) -> None:
    socket, _ = opened(quiet)
    with socket:
        speak(socket, TEXT * 50)
        until(socket, "response.output_audio.delta")
        send(socket, "output_audio_buffer.clear")
        messages = until(socket, "response.done")
        assert messages[-1]["response"]["status"] == "cancelled"
        cleared = next(i for i, m in enumerate(messages) if m["type"] == "output_audio_buffer.cleared")
        assert messages[cleared]["epoch"] == 1
        assert not events(messages[cleared:], "response.output_audio.delta")
        send(socket, "response.create", response={"instructions": TEXT})
        again = until(socket, "response.done")
        assert {m["epoch"] for m in again} == {1}
        assert again[-1]["response"]["status"] == "completed"


def test_history_holds_only_what_was_heard(quiet: Running) -> None:
    socket, _ = opened(quiet)
    with socket:
        speak(socket, TEXT * 50)
        delta = until(socket, "response.output_audio_transcript.delta")[-1]
        first = delta["words"][0]
        send(socket, "playback.ack", played_ms=1000 * first["end"] + 1)
        send(socket, "response.cancel")
        item = events(until(socket, "response.done"), "response.output_item.done")[0]["item"]
    assert item["content"][0]["transcript"] == first["text"]


def test_binary_frames_carry_the_same_samples(quiet: Running, synthesizer: Synthesizer) -> None:
    socket, _ = opened(quiet, subprotocols=[SUBPROTOCOL])
    assert socket.subprotocol == SUBPROTOCOL
    with socket:
        speak(socket, TEXT)
        messages = until(socket, "response.done")
    frames = [Frame.unpack(m) for m in messages if isinstance(m, bytes)]
    assert {f.kind for f in frames} == {Kind.AUDIO_OUT}
    assert [bool(f.flags & Flag.FIRST) for f in frames] == [True] + [False] * (len(frames) - 1)
    place = 0
    for frame in frames:
        assert frame.pts == place
        place += len(frame.payload) // 2
    assert place == len(synthesizer.say(TEXT).samples)


def test_beta_clients_get_beta_names(quiet: Running) -> None:
    socket, _ = opened(quiet, additional_headers={"OpenAI-Beta": "realtime=v1"})
    with socket:
        speak(socket, TEXT)
        kinds = {m["type"] for m in until(socket, "response.done")}
    assert {"response.audio.delta", "response.audio.done", "conversation.item.created"} <= kinds
    assert "response.output_audio.delta" not in kinds


def test_refusals_are_typed_and_name_the_clients_event(quiet: Running) -> None:
    socket, _ = opened(quiet)
    with socket:
        for message, code in (
            ({"type": "response.create"}, "invalid_value"),
            ({"type": "response.cancel", "response_id": "resp_0"}, "invalid_value"),
            ({"type": "conversation.item.delete", "item_id": "x"}, "invalid_value"),
            ({"type": "conversation.item.create", "item": {"type": "function_call"}}, "invalid_value"),
            ({"type": "session.update", "session": {"voice": "Nobody"}}, "invalid_value"),
            ({"type": "sing"}, "unknown_event"),
            ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "no_duplex_model"),
            ({"type": "session.event_ack", "server_event_seq": 10_000}, "invalid_value"),
            ({"type": "session.resume", "resume_token": "x"}, "invalid_value"),
        ):
            socket.send(json.dumps(message | {"event_id": "mine"}))
            error = receive(socket)["error"]
            assert (error["code"], error["event_id"]) == (code, "mine"), message


def test_a_dropped_session_is_resumed_without_loss(quiet: Running, synthesizer: Synthesizer) -> None:
    socket, session = opened(quiet)
    speak(socket, TEXT * 3)
    before = until(socket, "response.output_audio.delta")
    socket.socket.close()  # no goodbye
    again, _ = opened(quiet)
    with again:
        send(again, "session.resume", resume_token=session["resume_token"], last_seq=before[-1]["server_event_seq"])
        resumed = receive(again)
        assert resumed["type"] == "session.resumed"
        assert resumed["session_id"] == session["id"]
        after = until(again, "response.done")
        numbers = [m["server_event_seq"] for m in after]
        assert numbers == list(range(before[-1]["server_event_seq"] + 1, numbers[-1] + 1))
        heard = pcm(before + after)
        assert len(heard) == 2 * len(synthesizer.say(TEXT * 3).samples)
        # The old token is spent, the new one is good.
        third, _ = opened(quiet)
        with third:
            send(third, "session.resume", resume_token=session["resume_token"], last_seq=0)
            assert receive(third)["error"]["code"] == "conflict"
        send(again, "session.close")


def test_resuming_takes_a_session_from_a_socket_that_went_quiet(quiet: Running) -> None:
    socket, session = opened(quiet)
    again, _ = opened(quiet)
    with socket, again:
        send(again, "session.resume", resume_token=session["resume_token"], last_seq=1)
        assert receive(again)["session_id"] == session["id"]
        assert receive(socket)["error"]["code"] == "conflict"
        with pytest.raises(ConnectionClosed):
            socket.recv(5)
        speak(again, TEXT)
        assert until(again, "response.done")[-1]["response"]["status"] == "completed"
        send(again, "session.close")


def test_a_session_that_nobody_resumes_ends_after_its_grace(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, limits={"grace_seconds": 0.2}, slots=2) as running:
        socket, session = opened(running)
        speak(socket, TEXT * 140)
        until(socket, "response.output_audio.delta")
        socket.socket.close()
        assert running.settled(10)
        assert wait_for(lambda: not running.app.state.service.access.sessions)
        again, _ = opened(running)
        with again:
            send(again, "session.resume", resume_token=session["resume_token"], last_seq=1)
            assert receive(again)["error"]["code"] == "conflict"


def test_moshis_socket_says_that_there_is_no_duplex_model(quiet: Running) -> None:
    with quiet.ws("/api/chat") as socket:
        message = receive(socket)
        assert message[0] == 5
        assert b"no_duplex_model" in message
        with pytest.raises(ConnectionClosed) as end:
            socket.recv(5)
    assert end.value.rcvd is not None
    assert end.value.rcvd.code == 1008


ITEM = {"type": "message", "content": [{"type": "input_text", "text": "Two cats."}]}
MESSAGES = st.one_of(
    st.binary(max_size=30),
    st.text(max_size=30),
    st.sampled_from(
        [
            {"type": "conversation.item.create", "item": ITEM},
            {"type": "conversation.item.create", "item": {**ITEM, "id": "a"}},
            {"type": "conversation.item.truncate", "item_id": "a", "audio_end_ms": 3},
            {"type": "conversation.item.delete", "item_id": "a"},
            {"type": "response.create"},
            {"type": "response.create", "response": {"input": [ITEM]}},
            {"type": "response.cancel"},
            {"type": "output_audio_buffer.clear"},
            {"type": "playback.ack", "played_ms": 5},
            {"type": "session.event_ack", "server_event_seq": 3},
            {"type": "session.update", "session": {"voice": "Bob"}},
            {"type": "session.heartbeat"},
        ]
    ).map(json.dumps),
)


@given(messages=st.lists(MESSAGES, max_size=12), frames=st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fuzz_never_breaks_a_session(quiet: Running, messages: list[str | bytes], frames: bool) -> None:
    """Typed errors only; numbers without gaps; every response done once; no audio of an old epoch."""
    socket, _ = opened(quiet, subprotocols=[SUBPROTOCOL] if frames else None)
    seen: list[Any] = []
    with socket, pytest.raises(ConnectionClosed):
        for message in messages:
            socket.send(message)
        send(socket, "response.cancel")
        send(socket, "session.heartbeat", event_id="last")
        while True:
            seen.append(receive(socket, 2.0 if events(seen, "session.heartbeat") else 20.0))
            if events(seen[-1:], "session.heartbeat") and not events(seen[-1:], "error"):
                send(socket, "session.close")
    epoch = 0
    for message in seen:
        if isinstance(message, bytes):
            assert Frame.unpack(message).epoch == epoch
            continue
        assert message["epoch"] >= epoch
        epoch = message["epoch"]
        if message["type"] == "error":
            assert message["error"]["code"] != "internal"
    done = [m["response"]["id"] for m in events(seen, "response.done")]
    assert len(done) == len(set(done))
