"""POST, GET, DELETE /v1/audio/voices: voices of people, each its owner's."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from quaver.app.server.auth import KeyStore
from quaver.app.server.voice_store import VoiceStore
from quaver.tts.synthesizer import Synthesizer
from quaver.tts.token_synthesizer import TokenSynthesizer, TokenVoiceSettings

from ...tts.test_voices import SOUND
from ...tts.tokens import token_lm
from .conftest import Running, serving, until

pytest.importorskip("python_multipart", reason="uploads need python-multipart")

VOICES = "/v1/audio/voices"
SPEECH = "/v1/audio/speech"
TEXT = "Hello there."


def clip(seconds: float = 1.5, seed: int = 0, rate: int = 24_000, form: str = "WAV", level: float = 0.2) -> bytes:
    file = io.BytesIO()
    count = round(seconds * rate)
    samples = (level * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)
    soundfile.write(file, np.clip(samples, -1, 1), rate, format=form)
    return file.getvalue()


def upload(http: httpx.Client, data: bytes, **fields: str) -> httpx.Response:
    form = {"name": "Mine", "consent": "cons_1", **fields}
    return http.post(VOICES, data=form, files={"audio_sample": ("mine.wav", data, "audio/wav")})


@pytest.fixture(scope="module")
def cloner() -> TokenSynthesizer:
    return TokenSynthesizer(token_lm("cosyvoice2"), SOUND, TokenVoiceSettings())


@pytest.fixture(scope="module")
def server(
    synthesizer: Synthesizer, cloner: TokenSynthesizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    limits = {"requests_per_minute": 100_000, "voices_per_key": 3, "voice_bytes": 40_000_000}
    folder = tmp_path_factory.mktemp("voices")
    with serving(synthesizer, folder, limits=limits, slots=2, more={"clone": cloner}) as running:
        yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client
        for voice in client.get(VOICES).json()["data"]:
            if voice["type"] == "audio_sample":
                client.delete(f"{VOICES}/{voice['id']}")


def pcm(http: httpx.Client, **body: Any) -> np.ndarray:
    answer = http.post(SPEECH, json={"input": TEXT, "response_format": "pcm", "seed": 1, **body})
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<i2").astype(np.float32) / 32767


def test_an_added_voice_speaks_at_once_and_is_gone_when_deleted(http: httpx.Client, cloner: TokenSynthesizer) -> None:
    made = upload(http, clip(), text="hello there")
    assert made.status_code == 200, made.text
    card = made.json()
    assert (card["object"], card["name"], card["model"], card["type"]) == (
        "audio.voice",
        "Mine",
        "clone",
        "audio_sample",
    )
    listed = {v["id"]: v for v in http.get(VOICES).json()["data"]}
    assert listed[card["id"]] == card
    assert listed["Alice"]["type"] == "built_in"

    wanted = SOUND.describe(soundfile.read(io.BytesIO(clip()), dtype="float32")[0], name="Mine", text="hello there")
    expected = np.clip(cloner.say(TEXT, voice=wanted, seed=1), -1, 1)
    for voice in (card["id"], {"id": card["id"]}):  # model "default": the voice's own
        heard = pcm(http, voice=voice)
        assert heard.shape == expected.shape
        assert np.abs(heard - expected).max() < 1e-3
    assert np.abs(pcm(http, model="clone")[: len(expected)] - expected[: len(pcm(http, model="clone"))]).max() > 1e-3

    assert http.delete(f"{VOICES}/{card['id']}").json() == {
        "id": card["id"],
        "object": "audio.voice.deleted",
        "deleted": True,
    }
    gone = http.post(SPEECH, json={"input": TEXT, "voice": card["id"]})
    assert gone.json()["error"]["code"] == "invalid_value"
    assert http.delete(f"{VOICES}/{card['id']}").status_code == 404
    assert http.delete(f"{VOICES}/Alice").status_code == 403


def test_the_stock_openai_client_makes_and_uses_a_voice(server: Running, http: httpx.Client) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    voice = client.audio.voices.create(name="Mine", audio_sample=("a.flac", clip(form="FLAC")), consent="cons_1")
    assert voice.type == "audio_sample"
    answer = client.audio.speech.create(model="tts-1", voice={"id": voice.id}, input=TEXT, response_format="pcm")
    assert len(answer.content) > 1000


def test_every_surface_takes_it(server: Running, http: httpx.Client) -> None:
    voice = upload(http, clip()).json()["id"]
    with server.ws() as socket:
        socket.send(json.dumps({"type": "session.config", "voice": voice}))
        assert until(socket, "session.configured")[-1]["model"] == "clone"
        socket.send(json.dumps({"type": "input.text", "text": TEXT}))
        socket.send('{"type": "input.done"}')
        assert until(socket, "audio.done")[-1]["status"] == "completed"
    with server.ws("/v1/realtime?model=clone") as socket:
        socket.send(json.dumps({"type": "session.update", "session": {"audio": {"output": {"voice": voice}}}}))
        assert until(socket, "session.updated")[-1]["session"]["audio"]["output"]["voice"] == voice
        socket.send(json.dumps({"type": "response.create", "response": {"instructions": TEXT}}))
        assert until(socket, "response.done")[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (clip(0.2), "bad_input", "0.2 s"),
        (clip(601, rate=8000, form="FLAC", level=0.01), "bad_input", "longer than 30 s"),
        (clip(3, level=0.0), "bad_input", "silent"),
        (b"this is no audio at all", "bad_input", "not audio"),
        (b"", "bad_input", "empty"),
        (clip()[:30], "bad_input", "upload"),
    ],
)
def test_recordings_that_make_no_voice(http: httpx.Client, data: bytes, code: str, words: str) -> None:
    answer = upload(http, data)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code)
    assert words in error["message"]
    assert "/tmp" not in error["message"]  # the server's own files are nobody's business


def test_forms_that_are_refused(http: httpx.Client) -> None:
    for fields, code in (
        ({"consent": "false"}, "forbidden"),
        ({"consent": " "}, "forbidden"),
        ({"name": ""}, "invalid_value"),
        ({"name": "x" * 81}, "invalid_value"),
        ({"type": "prompt"}, "invalid_value"),
        ({"colour": "blue"}, "invalid_value"),
        ({"model": "nothing"}, "model_not_found"),
        ({"model": "tiny"}, "cannot_clone"),
    ):
        answer = upload(http, clip(), **fields)
        assert answer.json()["error"]["code"] == code, (fields, answer.text)
    assert http.post(VOICES, json={}).json()["error"]["code"] == "unsupported_media_type"
    assert http.post(VOICES, data={"name": "x", "consent": "y"}).status_code in (415, 422)
    broken = {"content-type": "multipart/form-data; boundary=b"}
    assert http.post(VOICES, content=b"--b\r\nnonsense", headers=broken).status_code in (400, 422)
    assert [v for v in http.get(VOICES).json()["data"] if v["type"] == "audio_sample"] == []


def test_a_model_that_cannot_imitate_says_which_can(http: httpx.Client) -> None:
    voice = upload(http, clip()).json()["id"]
    error = http.post(SPEECH, json={"input": TEXT, "voice": voice, "model": "tiny"}).json()["error"]
    assert error["code"] == "cannot_clone"
    assert "clone" in error["message"].split("take", 1)[1]


def test_a_server_whose_models_cannot_imitate_says_so(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, slots=1) as running, running.http() as http:
        answer = upload(http, clip())
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "cannot_clone")
        big = http.post(VOICES, content=b"x" * (running.app.state.settings.limits.voice_bytes + 1))
        assert big.status_code == 413


def test_one_key_may_keep_so_many(http: httpx.Client) -> None:
    for seed in range(3):
        assert upload(http, clip(seed=seed)).status_code == 200
    assert upload(http, clip()).json()["error"]["code"] == "conflict"


def test_a_voice_is_its_owners_alone_and_outlives_the_server(
    synthesizer: Synthesizer, cloner: TokenSynthesizer, tmp_path: Path
) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    mine, other = ({"Authorization": f"Bearer {keys.add(name)}"} for name in ("mine", "other"))
    with serving(synthesizer, tmp_path, slots=1, more={"clone": cloner}) as running:
        with running.http(headers=mine) as http:
            voice = upload(http, clip()).json()["id"]
        with running.http(headers=other) as http:
            assert voice not in [v["id"] for v in http.get(VOICES).json()["data"]]
            assert http.post(SPEECH, json={"input": TEXT, "voice": voice}).json()["error"]["code"] == "invalid_value"
            assert http.delete(f"{VOICES}/{voice}").status_code == 404
    assert (tmp_path / "voices").stat().st_mode & 0o077 == 0
    (tmp_path / "voices" / "voice_broken.json").write_text("{")
    with serving(synthesizer, tmp_path, slots=1, more={"clone": cloner}) as running, running.http(headers=mine) as http:
        assert len(pcm(http, voice=voice)) > 1000
        assert http.delete(f"{VOICES}/{voice}").status_code == 200
    assert [p.name for p in (tmp_path / "voices").iterdir()] == ["voice_broken.json"]


def test_a_note_that_names_another_file_is_not_read(tmp_path: Path) -> None:
    """An id is part of a path: only what the store itself makes is one."""
    note = {"id": "../../secret", "name": "x", "owner": "o", "model": "m", "created": 1, "consent": "y"}
    (tmp_path / "voice_1.json").write_text(json.dumps(note))
    store = VoiceStore(tmp_path, 3)
    assert store.of("o") == []
    assert store.find("../../secret", "o") is None
