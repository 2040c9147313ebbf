"""What the user said, as text: whose words are whose, and the events that tell it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quaver.app.engine_duplex import EngineBackend
from quaver.app.server.transcripts import Transcripts
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.loading import DuplexParts
from quaver.dialogue.session import DuplexSettings
from quaver.tts.synthesizer import Synthesizer

from ...dialogue.tiny import CODEC, VOCABULARY, noise_frames, talking_model
from .conftest import receive, serving, until, wait_for
from .test_realtime_talk import append, echo, opened, pcm16, send, silence, tone  # noqa: F401 (the fixture)

DELTA = "conversation.item.input_audio_transcription.delta"
DONE = "conversation.item.input_audio_transcription.completed"
PIECES = st.sampled_from(["", "", " hello", " ", "a", "lo", " yes"])


@given(
    pieces=st.lists(st.tuples(PIECES, st.integers(0, 3)), max_size=30),
    commits=st.lists(st.integers(0, 40), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_every_piece_is_in_one_turn_and_every_committed_turn_is_complete_once(
    pieces: list[tuple[str, int]], commits: list[int]
) -> None:
    """Wherever the turns are cut: nothing is lost or doubled, and a turn is complete after its last piece."""
    transcripts, now, heard = Transcripts("0"), 0, []
    cuts, made, opened_ = sorted(commits), 0, 0
    for text, step in pieces:
        now += step
        while cuts and cuts[0] <= now + 2:  # a turn is cut before the model has heard so far
            made += 1
            transcripts.commit(cuts.pop(0), str(made))
        heard += list(transcripts.hear(text, now))
    heard += list(transcripts.close())
    told = "".join(w.delta.strip() for w in heard)
    assert told == "".join(text.strip() for text, _ in pieces)
    complete = [w.turn.item for w in heard if w.complete]
    assert complete == [str(i) for i in range(made)]
    for written in heard:
        item = int(written.turn.item)
        assert item >= opened_  # no piece of a turn comes after it was complete
        opened_ = item + written.complete
    texts: dict[str, str] = {}
    for written in heard:
        texts[written.turn.item] = texts.get(written.turn.item, "") + written.delta
    assert all(texts[w.turn.item] == w.turn.text for w in heard if w.complete)


def test_a_word_stays_in_the_turn_in_which_it_began() -> None:
    transcripts = Transcripts("one")
    transcripts.commit(1.0, "two")
    said = [w for text, t in ((" hel", 0.98), ("lo", 1.06), (" you", 1.1)) for w in transcripts.hear(text, t)]
    assert [(w.turn.item, w.delta, w.complete) for w in said] == [
        ("one", "hel", False),
        ("one", "lo", False),
        ("one", "", True),
        ("two", "you", False),
    ]


def test_what_the_user_says_is_written_into_the_items_of_the_turns(echo: Any) -> None:  # noqa: F811
    running, _ = echo
    turn = [silence(0.24), tone(0.4), silence(1.2)]
    with opened(running) as socket:
        append(socket, np.concatenate(turn * 2))
        messages: list[Any] = []
        while sum(m["type"] == DONE for m in messages) < 2:
            messages.append(receive(socket))
        items = [m["item_id"] for m in messages if m["type"] == "input_audio_buffer.committed"]
        done = [m for m in messages if m["type"] == DONE]
        assert [m["item_id"] for m in done] == items
        for item, complete in zip(items, done, strict=True):
            deltas = [m["delta"] for m in messages if m["type"] == DELTA and m["item_id"] == item]
            assert "".join(deltas) == complete["transcript"] == " ".join(["word"] * len(deltas))
            assert 5 <= len(deltas) <= 6  # frames of 80 ms in 0.4 s
        assert done[0]["usage"]["seconds"] == pytest.approx(0.24 + 0.4 + 0.5, abs=0.03)
        send(socket, "conversation.item.retrieve", item_id=items[0])
        kept = until(socket, "conversation.item.retrieved")[-1]["item"]
        assert kept["content"] == [{"type": "input_audio", "transcript": done[0]["transcript"]}]


def test_transcription_can_be_left_out(echo: Any) -> None:  # noqa: F811
    running, _ = echo
    with running.ws("/v1/realtime") as socket:
        ear = receive(socket)["session"]["audio"]["input"]
        assert ear["transcription"] == {"model": "default"}
        send(socket, "session.update", session={"audio": {"input": {"transcription": None}}})
        assert until(socket, "session.updated")[-1]["session"]["audio"]["input"]["transcription"] is None
        append(socket, np.concatenate([tone(0.4), silence(1.4)]))
        messages = until(socket, "response.done")
        assert not any(m["type"] in (DELTA, DONE) for m in messages)


def test_an_interruption_does_not_lose_the_words_that_interrupt(echo: Any) -> None:  # noqa: F811
    running, _ = echo
    detection = {"type": "server_vad", "silence_duration_ms": 400, "interrupt_response": True}
    with opened(running) as socket:
        send(socket, "session.update", session={"audio": {"input": {"turn_detection": detection}}})
        append(socket, np.concatenate([tone(0.4), silence(0.5)]))
        until(socket, "input_audio_buffer.speech_stopped")
        append(socket, np.concatenate([tone(0.4), silence(1.0)]))
        messages = until(socket, DONE) + until(socket, DONE)
    transcripts = [m["transcript"] for m in messages if m["type"] == DONE]
    assert all(t.count("word") >= 5 for t in transcripts)
    assert any(m["type"] == "response.done" and m["response"]["status"] == "cancelled" for m in messages)


def test_a_real_model_writes_down_and_openais_client_reads_it(synthesizer: Synthesizer, tmp_path: Any) -> None:
    """The second text head of random weights: the pieces are those that a session gives without a server."""
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig.model_validate({**CODEC, "hop": 240, "n_fft": 960})).eval()
    parts = DuplexParts(talking_model(heard=3), codec, VOCABULARY, DuplexSettings(text_top_k=0))
    frames = np.clip(noise_frames(60, codec.frame_size), -1, 1)
    alone = parts.session()
    wanted = "".join(alone.step(np.rint(f * 32767).astype(np.float32) / 32768).heard for f in frames)
    assert wanted.strip()
    backend = EngineBackend("talk", parts)
    with serving(synthesizer, tmp_path, slots=1, duplex={"talk": backend}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused")
        told, complete = "", None
        with client.realtime.connect(model="talk") as connection:
            connection.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
            for i, frame in enumerate(frames):
                connection.input_audio_buffer.append(audio=base64.b64encode(pcm16(frame)).decode())
                if i == 40:
                    connection.input_audio_buffer.commit()
            for event in connection:
                assert event.type != "error", event
                if event.type == "conversation.item.input_audio_transcription.delta":
                    told += event.delta or ""
                if event.type == "conversation.item.input_audio_transcription.completed":
                    complete = event.transcript
                    break
        assert complete
        assert told.startswith(complete)
        assert wanted.replace(" ", "").startswith(told.replace(" ", ""))
        assert wait_for(lambda: running.engine.stats().open == 0)
