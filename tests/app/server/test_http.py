"""POST /v1/audio/speech and its neighbours over a real socket, and OpenAI's own client against it."""

from __future__ import annotations

import base64
import io
import json
import time

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile

from quaver.tts.synthesizer import Synthesizer

from .conftest import Running, wait_for

JSON = {"Content-Type": "application/json"}
TEXT = "One day, two cats sat there."


def error_of(answer: httpx.Response) -> dict[str, str]:
    body = answer.json()
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code", "request_id"} <= set(body["error"])
    assert body["error"]["request_id"] == answer.headers["x-request-id"]
    return body["error"]


def test_pcm_over_http_equals_the_synthesizer(quiet: Running, synthesizer: Synthesizer) -> None:
    with quiet.http() as http:
        answer = http.post(
            "/v1/audio/speech", json={"input": TEXT, "response_format": "pcm", "seed": 3, "voice": "Bob"}
        )
    assert answer.status_code == 200
    assert answer.headers["x-sample-rate"] == "24000"
    heard = np.frombuffer(answer.content, "<i2").astype(np.float32) / 32767
    said = synthesizer.say(TEXT, seed=3, voice="Bob").samples
    assert len(heard) == len(said)
    assert np.abs(heard - np.clip(said, -1, 1)).max() < 1e-3


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(frames, axis=1)[0], container.streams.audio[0].rate


@pytest.mark.parametrize("form", ["wav", "flac", "opus", "mp3", "aac"])
def test_every_format_is_readable_and_as_long(quiet: Running, synthesizer: Synthesizer, form: str) -> None:
    with quiet.http() as http:
        answer = http.post("/v1/audio/speech", json={"input": TEXT, "response_format": form})
    assert answer.status_code == 200
    samples, rate = decoded(answer.content)
    expected = len(synthesizer.say(TEXT).samples) / synthesizer.sample_rate
    assert abs(len(samples) / rate - expected) < 0.15


def test_audio_arrives_while_it_is_made(quiet: Running) -> None:
    body = {"input": TEXT * 20, "response_format": "pcm"}
    with quiet.http() as http, http.stream("POST", "/v1/audio/speech", json=body) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        identity = answer.headers["x-request-id"]
        assert http_get(quiet, identity)["status"] == "in_progress"


def http_get(running: Running, identity: str) -> dict[str, object]:
    with running.http() as http:
        return http.get(f"/v1/audio/speech/{identity}").json()


def test_outcome_is_remembered_with_words(quiet: Running, synthesizer: Synthesizer) -> None:
    with quiet.http() as http:
        answer = http.post("/v1/audio/speech", json={"input": TEXT, "response_format": "pcm", "word_timestamps": True})
        outcome = http.get(f"/v1/audio/speech/{answer.headers['x-request-id']}").json()
        missing = http.get("/v1/audio/speech/req_0")
    assert outcome["status"] == "done"
    assert outcome["bytes"] == len(answer.content)
    assert [w["text"] for w in outcome["words"]] == [w.text for w in synthesizer.say(TEXT).words]
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "not_found"


def test_delete_cancels_and_the_answer_is_cut_not_ended(quiet: Running) -> None:
    body = {"input": TEXT * 100, "response_format": "pcm"}
    with quiet.http() as http, quiet.http() as other, http.stream("POST", "/v1/audio/speech", json=body) as answer:
        identity = answer.headers["x-request-id"]
        assert other.delete(f"/v1/audio/speech/{identity}").json()["status"] == "cancelled"
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in answer.iter_raw():
                pass


def test_sse_carries_the_same_audio(quiet: Running) -> None:
    body = {"input": TEXT, "response_format": "pcm", "seed": 5}
    with quiet.http() as http:
        plain = http.post("/v1/audio/speech", json=body).content
        sse = http.post("/v1/audio/speech", json=body | {"stream_format": "sse", "word_timestamps": True})
    events = [json.loads(line.removeprefix("data: ")) for line in sse.text.splitlines() if line]
    assert sse.headers["content-type"].startswith("text/event-stream")
    assert b"".join(base64.b64decode(e["audio"]) for e in events if e["type"] == "speech.audio.delta") == plain
    assert any(e["type"] == "speech.word_timestamps" for e in events)
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"]["input_tokens"] == len(TEXT)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": "  "}, 400, "bad_input", None),
        ({"input": "Hello", "voice": "Nobody"}, 422, "invalid_value", "voice"),
        ({"input": "Hello", "model": "gpt-9"}, 404, "model_not_found", "model"),
        ({"input": "Hello", "speed": 9}, 422, "invalid_value", "speed"),
        ({"input": "Hello", "speeed": 1}, 422, "invalid_value", "speeed"),
        ({"input": "Hello", "response_format": "8bit"}, 422, "invalid_value", "response_format"),
        ({}, 422, "invalid_value", "input"),
        ({"input": "a" * 4097}, 413, "text_too_long", "input"),
        ({"input": "a" * 300_000}, 413, "too_large", None),
        ({"input": "Hello", "speed": 3}, 400, "bad_input", None),
    ],
)
def test_refusals_are_typed(quiet: Running, body: dict[str, object], status: int, code: str, param: str | None) -> None:
    with quiet.http() as http:
        answer = http.post("/v1/audio/speech", json=body)
    assert answer.status_code == status, answer.text
    assert error_of(answer)["code"] == code
    assert error_of(answer)["param"] == param


def test_what_is_not_json_or_not_here_is_typed(quiet: Running) -> None:
    with quiet.http() as http:
        assert error_of(http.post("/v1/audio/speech", content=b"{", headers=JSON))["code"] == "bad_json"
        assert error_of(http.get("/v1/nothing"))["code"] == "not_found"
        assert error_of(http.put("/v1/models"))["code"] == "method_not_allowed"
        assert http.post("/v1/audio/voices", content=b"").status_code == 415
        assert http.delete("/v1/audio/voices/Alice").status_code == 403
        assert http.delete("/v1/audio/voices/Nobody").status_code == 404


def test_lists_and_health(quiet: Running) -> None:
    with quiet.http() as http:
        assert [m["id"] for m in http.get("/v1/models").json()["data"]] == ["tiny"]
        assert [v["id"] for v in http.get("/v1/audio/voices").json()["data"]] == ["Alice", "Bob"]
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").json() == {"status": "ready"}


def test_metrics_tell_of_first_audio_slots_and_continuity(quiet: Running) -> None:
    with quiet.http() as http:
        http.post("/v1/audio/speech", json={"input": TEXT, "response_format": "pcm"})
        assert wait_for(lambda: 'quaver_sessions_closed_total{reason="done"}' in http.get("/metrics").text)
        page = http.get("/metrics").text
    for name in (
        'quaver_ttfa_seconds_count{surface="http"}',
        "quaver_rtf_count",
        "quaver_chunk_interval_seconds_count",
        "quaver_underrun_seconds_count",
        'quaver_continuity_ok_total{threshold_ms="100"}',
        "quaver_deadline_misses_total",
        'quaver_slots{model="tiny",state="free"}',
        'quaver_admissions_total{result="admitted"}',
    ):
        assert name in page, name
    assert TEXT[:10] not in page


# -- OpenAI's client --------------------------------------------------------------------------------------------------
def test_the_stock_openai_client_works_unchanged(quiet: Running, synthesizer: Synthesizer) -> None:
    client = openai.OpenAI(base_url=f"{quiet.url}/v1", api_key="unused", max_retries=0)
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=TEXT, response_format="pcm"
    ) as answer:
        audio = b"".join(answer.iter_bytes())
    assert len(audio) == 2 * len(synthesizer.say(TEXT).samples)
    mp3 = client.audio.speech.create(model="gpt-4o-mini-tts", voice="coral", input=TEXT, instructions="Calmly.")
    assert soundfile.info(io.BytesIO(mp3.content)).format == "MP3"
    assert mp3.response.headers["x-ignored"] == "instructions"
    assert client.models.list().data[0].id == "tiny"


def test_the_stock_openai_client_gets_its_own_exceptions(quiet: Running) -> None:
    client = openai.OpenAI(base_url=f"{quiet.url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.BadRequestError) as bad:
        client.audio.speech.create(model="tts-1", voice="alloy", input=" ")
    assert bad.value.code == "bad_input"
    with pytest.raises(openai.NotFoundError):
        client.audio.speech.create(model="none", voice="alloy", input="Hello")
    with pytest.raises(openai.UnprocessableEntityError):
        client.audio.speech.create(model="tts-1", voice="nobody", input="Hello")


# -- clients that go, and clients that stall ---------------------------------------------------------------------------
def test_a_client_that_leaves_frees_its_slot(quiet: Running) -> None:
    body = {"input": TEXT * 100, "response_format": "pcm"}
    with quiet.http() as http, http.stream("POST", "/v1/audio/speech", json=body) as answer:
        next(answer.iter_raw())
        identity = answer.headers["x-request-id"]
    started = time.monotonic()
    assert quiet.settled()
    assert time.monotonic() - started < 5
    assert http_get(quiet, identity)["reason"] == "disconnect"
