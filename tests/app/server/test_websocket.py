"""WS /v1/audio/speech/stream over a real socket."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from quaver.app.client import Client, ServerError
from quaver.app.demo.speculating import drafts_of
from quaver.app.server.protocol.stream import AudioEnd, AudioStart, SessionDone, WordTimestamps
from quaver.tts.speculative_voice import offer_speculation
from quaver.tts.synthesizer import Synthesizer
from quaver.tts.token_synthesizer import TokenSynthesizer, TokenVoiceSettings

from ...tts.test_token_synthesizer import cosyvoice
from ...tts.tokens import token_lm
from ..engine_help import drafting
from .conftest import Running, receive, serving, until

TEXT = "One day, two cats sat there."
CONFIG = {"type": "session.config", "response_format": "pcm"}


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def configured(running: Running, **fields: Any) -> ClientConnection:
    socket = running.ws()
    socket.send(json.dumps(CONFIG | fields))
    assert receive(socket)["type"] == "session.configured"
    return socket


def closed_with(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as end:
        while True:
            socket.recv(20)
    assert end.value.rcvd is not None
    return end.value.rcvd.code


def audio(messages: list[Any]) -> bytes:
    return b"".join(m for m in messages if isinstance(m, bytes))


@given(cuts=st.lists(st.integers(1, len(TEXT) - 1), max_size=4))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_in_any_pieces_gives_the_same_audio(quiet: Running, synthesizer: Synthesizer, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(TEXT)]
    with configured(quiet, seed=3) as socket:
        for a, b in itertools.pairwise(places):
            send(socket, "input.text", text=TEXT[a:b])
        send(socket, "input.done")
        messages = until(socket, "session.done")
    heard = np.frombuffer(audio(messages), "<i2").astype(np.float32) / 32767
    said = synthesizer.say([TEXT], seed=3, split="word")
    assert len(heard) == len(said.samples)
    assert np.abs(heard - np.clip(said.samples, -1, 1)).max() < 1e-3
    words = [w["text"] for m in messages if isinstance(m, dict) and m["type"] == "word.timestamps" for w in m["words"]]
    assert words == [w.text for w in said.words]


def test_the_order_of_messages_is_the_protocols(quiet: Running) -> None:
    with configured(quiet) as socket:
        send(socket, "input.text", text=TEXT)
        send(socket, "input.done")
        messages = until(socket, "session.done")
    kinds = [m["type"] if isinstance(m, dict) else "audio" for m in messages]
    assert kinds[0] == "audio.start"
    assert kinds[1] == "audio"
    assert kinds[-2:] == ["audio.done", "session.done"]
    assert set(kinds[1:-2]) == {"audio", "word.timestamps"}
    end = messages[-2]
    assert end["status"] == "completed"
    assert end["total_bytes"] == len(audio(messages))
    assert end["seconds"] == pytest.approx(len(audio(messages)) / 48_000, abs=1e-3)


def test_a_socket_speaks_one_utterance_after_the_other(quiet: Running) -> None:
    with configured(quiet) as socket:
        for _ in range(2):  # the second is sent while the first is spoken
            send(socket, "input.text", text=TEXT)
            send(socket, "input.done")
        messages = until(socket, "session.done")
        send(socket, "input.text", text=TEXT)
        send(socket, "session.close")
        messages += until(socket, "session.done")
        assert closed_with(socket) == 1000
    ends = [m for m in messages if isinstance(m, dict) and m["type"] == "audio.done"]
    assert [e["utterance_index"] for e in ends] == [0, 1, 2]
    assert {e["status"] for e in ends} == {"completed"}
    assert len({e["total_bytes"] for e in ends}) == 1


def test_cancel_ends_with_one_audio_done_and_no_audio_after_it(quiet: Running) -> None:
    with configured(quiet) as socket:
        send(socket, "input.text", text=TEXT * 50)
        assert receive(socket)["type"] == "audio.start"
        send(socket, "input.cancel")
        messages = until(socket, "session.done")
        assert [m["status"] for m in messages if isinstance(m, dict) and m["type"] == "audio.done"] == ["cancelled"]
        assert messages[-2]["type"] == "audio.done"
        send(socket, "input.text", text=TEXT)
        send(socket, "input.done")
        assert until(socket, "audio.done")[-1] | {"seconds": 0, "total_bytes": 0} == {
            "type": "audio.done",
            "utterance_index": 1,
            "status": "completed",
            "seconds": 0,
            "total_bytes": 0,
        }


def test_refused_messages_are_typed_and_the_session_goes_on(quiet: Running) -> None:
    with configured(quiet) as socket:
        for message, code in (
            ("nonsense", "bad_json"),
            ("[]", "bad_json"),
            ('{"type": "input.sing"}', "unknown_event"),
            ('{"type": "input.text"}', "invalid_value"),
            ('{"type": "input.text", "text": "a", "loud": 1}', "invalid_value"),
            ('{"type": "input.done"}', "invalid_value"),
            (b"\x00\x01", "invalid_value"),
            (json.dumps(CONFIG), "invalid_value"),
        ):
            socket.send(message)
            error = receive(socket)
            assert error["type"] == "error"
            assert error["error"]["code"] == code, message
        send(socket, "input.text", text=" ")
        send(socket, "input.done")
        failed = until(socket, "audio.done")
        assert failed[0]["error"]["code"] == "bad_input"
        assert failed[-1]["status"] == "failed"
        send(socket, "session.heartbeat")
        assert until(socket, "session.heartbeat")


@pytest.mark.parametrize(
    ("first", "code", "close"),
    [
        ('{"type": "input.text", "text": "a"}', "invalid_value", 1008),
        ("{", "bad_json", 1007),
        ('{"type": "session.config", "voice": "Nobody"}', "invalid_value", 1008),
        ('{"type": "session.config", "model": "none"}', "model_not_found", 1008),
        ('{"type": "session.config", "voice": "' + "a" * 300_000 + '"}', "too_large", 1009),
    ],
)
def test_a_bad_first_message_closes(quiet: Running, first: str, code: str, close: int) -> None:
    with quiet.ws() as socket:
        socket.send(first)
        assert receive(socket)["error"]["code"] == code
        assert closed_with(socket) == close


def test_a_message_beyond_the_wire_limit_closes_too(quiet: Running) -> None:
    with configured(quiet) as socket:
        socket.send("a" * 2_000_000)
        assert closed_with(socket) == 1009


def test_too_many_refused_messages_close(quiet: Running) -> None:
    with configured(quiet) as socket:
        for _ in range(40):
            socket.send("{")
        assert closed_with(socket) == 1007


def test_limits_of_time_and_text(synthesizer: Synthesizer, tmp_path: Path) -> None:
    limits = {"config_seconds": 0.2, "idle_seconds": 0.3, "session_seconds": 1.0, "stream_text_characters": 100}
    with serving(synthesizer, tmp_path, limits=limits, slots=2) as running:
        with running.ws() as socket:
            assert receive(socket)["error"]["code"] == "idle"
            assert closed_with(socket) == 1008
        with configured(running) as socket:
            assert receive(socket)["error"]["code"] == "idle"
        with configured(running) as socket:  # it begins, and never goes on: the slot comes back
            send(socket, "input.text", text="One")
            assert until(socket, "error")[-1]["error"]["code"] == "idle"
        with configured(running) as socket:
            send(socket, "input.text", text="a" * 101)
            assert until(socket, "error")[-1]["error"]["code"] == "text_too_long"
            assert closed_with(socket) == 1009
        with configured(running) as socket, pytest.raises(ConnectionClosed) as end:
            for _ in range(20):
                send(socket, "session.heartbeat")
                receive(socket)
                time.sleep(0.1)
        assert end.value.rcvd is not None
        assert end.value.rcvd.reason == "session_expired"
        assert running.settled()


MESSAGES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40),
    st.sampled_from(
        [
            {"type": "input.text", "text": "Two cats. "},
            {"type": "input.done"},
            {"type": "input.cancel"},
            {"type": "playback.ack", "played_ms": 10},
            {"type": "session.heartbeat"},
            {"type": "session.close"},
            {"type": "input.text", "text": "\ud800"},
            {"type": "playback.ack", "played_ms": float("nan")},
            {"type": ["input.done"]},
            {"type": None},
        ]
    ).map(json.dumps),
)


@given(messages=st.lists(MESSAGES, max_size=12), polite=st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fuzz_never_breaks_the_server(quiet: Running, messages: list[str | bytes], polite: bool) -> None:
    """Whatever comes: typed messages back, a known close code, every slot free afterwards."""
    with quiet.ws() as socket, pytest.raises(ConnectionClosed) as end:
        if polite:
            socket.send(json.dumps(CONFIG))
        for message in messages:
            socket.send(message)
        socket.send(json.dumps({"type": "session.close"}))
        while True:
            data = receive(socket)
            assert isinstance(data, bytes) or isinstance(data["type"], str)
            if isinstance(data, dict) and data["type"] == "error":
                assert data["error"]["code"] != "internal"
    assert end.value.rcvd is not None
    assert end.value.rcvd.code in (1000, 1007, 1008, 1009)
    with quiet.http() as http:
        assert http.get("/readyz").status_code == 200


# -- the client -------------------------------------------------------------------------------------------------------
def test_the_python_client_speaks(quiet: Running, synthesizer: Synthesizer) -> None:
    messages = list(Client(quiet.url).stream(iter(["One day, ", "two cats ", "sat there."]), voice="Bob"))
    assert isinstance(messages[1], AudioStart)
    assert isinstance(messages[-1], SessionDone)
    assert any(isinstance(m, WordTimestamps) for m in messages)
    ends = [m for m in messages if isinstance(m, AudioEnd)]
    assert [e.status for e in ends] == ["completed"]
    assert ends[0].total_bytes == sum(len(m) for m in messages if isinstance(m, bytes))


def test_the_python_client_tells_what_is_wrong(quiet: Running) -> None:
    with pytest.raises(ServerError, match="Nobody") as error:
        list(Client(quiet.url).stream("Hello", voice="Nobody"))
    assert error.value.code == "invalid_value"


def test_the_command_line_client_writes_a_file(quiet: Running, tmp_path: Path) -> None:
    import soundfile

    from quaver.app.client import main

    assert main([TEXT, "--url", quiet.url, "-o", str(tmp_path / "a.wav"), "--seed", "1"]) == 0
    assert soundfile.info(tmp_path / "a.wav").samplerate == 24000
    assert main([TEXT, "--url", "http://127.0.0.1:9", "-o", str(tmp_path / "b.wav")]) == 2


def test_a_token_model_sounds_before_the_text_is_whole(synthesizer: Synthesizer, tmp_path: Path) -> None:
    """Words go into its sentence as they are written, and what is said does not depend on when they came."""
    lm = token_lm("cosyvoice2", longest=1.2)
    voice = TokenSynthesizer(lm, cosyvoice().sound, TokenVoiceSettings())
    words = "One or two of them came. A word."
    with serving(synthesizer, tmp_path, slots=1, more={"token": voice}) as running:
        with configured(running, model="token", seed=2) as socket:
            for letter in words[:18]:
                send(socket, "input.text", text=letter)
            begun = until(socket, "audio.start", 60)  # nothing but the beginning has been sent
            send(socket, "input.text", text=words[18:])
            send(socket, "input.done")
            messages = begun + until(socket, "session.done", 60)
        assert running.settled()
    heard = np.frombuffer(audio(messages), "<i2").astype(np.float32) / 32767
    at_once = voice.say([words], split="word", seed=2)
    assert heard.shape == at_once.shape
    assert np.abs(heard - np.clip(at_once, -1, 1)).max() < 1e-4


def test_a_session_may_ask_for_speculation(synthesizer: Synthesizer, tmp_path: Path) -> None:
    """A model with a drafter speculates for those who ask; one without speaks all the same."""
    voice = drafting(tmp_path)
    assert offer_speculation(voice, str(tmp_path)) is not None
    with serving(synthesizer, tmp_path, more={"vita": voice}) as running:
        judged = []
        for fields in ({"model": "vita"}, {"model": "vita", "speculate": True}, {"speculate": True}):
            with configured(running, **fields) as socket:
                send(socket, "input.text", text=TEXT)
                send(socket, "input.done")
                assert audio(until(socket, "audio.done"))
            judged.append(drafts_of(voice)["judged"])
    assert judged[0] == 0
    assert judged[2] == judged[1] > 0
