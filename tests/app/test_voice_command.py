"""`quaver voice`, `quaver convert` and `quaver say --voice FILE` with a real flow of few random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from quaver.app.audio import read_audio
from quaver.tts.voices import load_voice

from ..tts.test_token_synthesizer import folder
from ..tts.test_voices import SOUND, speech, tokenizer
from ..tts.tokens import token_lm
from .conftest import Run, assert_one_line


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow, its vocoder and tokenizer, and a language model over its tokens, side by side."""
    where = tmp_path_factory.mktemp("cosyvoice")
    folder(where / "flow", "flow", SOUND.flow, codec="tokens")
    folder(where / "mel-vocoder", "mel", SOUND.vocoder)
    folder(where / "tokens", "semantic", tokenizer())
    folder(where / "lm", "token_lm", token_lm("cosyvoice2"), codec="tokens")
    (where / "lm" / "settings.json").write_text('{"flow": "flow", "vocoder": "mel-vocoder", "voice": "b"}')
    return where


def record(path: Path, seconds: float, rate: int = 24_000, level: float = 0.2) -> Path:
    wave = speech(seconds * rate / 24_000, level=level)
    soundfile.write(path, np.stack([wave, wave], 1), rate)
    return path


def test_a_recording_becomes_a_voice_that_speaks_and_converts(run: Run, models: Path, tmp_path: Path) -> None:
    record(tmp_path / "ref.wav", 1.6, rate=96_000)  # stereo at 96 kHz
    made = run("voice", "create", "ref.wav", "-o", "my.voice", "--model", models / "flow", "--text", "Hello there.")
    assert made.code == 0, made.err
    assert made.out == b"my.voice\n"
    assert "a speaker vector, with transcript" in made.err
    voice = load_voice(tmp_path / "my.voice")
    assert (voice.name, voice.text, voice.codec) == ("my", "Hello there.", "tokens")
    shown = run("voice", "show", "my.voice").out.decode()
    assert "name: my" in shown
    assert "transcript: Hello there." in shown
    for who in ("my.voice", "a"):
        said = run("say", "Hi.", "--model", models / "lm", "--voice", who, "-o", f"{who}.wav")
        assert said.code == 0, said.err
    assert not np.array_equal(read_audio("my.voice.wav")[0], read_audio("a.wav")[0])
    done = run("convert", "ref.wav", "--voice", "my.voice", "--model", models / "lm")
    assert done.out == b"ref-my.wav\n"
    assert read_audio("ref-my.wav")[0].shape == (1, 38_400)
    assert run("convert", "ref.wav", "--voice", "b", "--model", models / "flow", "-o", "-", "-q").out[:4] == b"RIFF"


@pytest.mark.parametrize(
    ("seconds", "level", "words"), [(0.2, 0.2, "0.2 s"), (601, 0.0, "at most 600 s"), (2, 0.0, "silent")]
)
def test_recordings_that_cannot_be_used(
    run: Run, models: Path, tmp_path: Path, seconds: float, level: float, words: str
) -> None:
    record(tmp_path / "ref.wav", seconds, rate=8000, level=level)
    assert_one_line(run("voice", "create", "ref.wav", "--model", models / "flow"), words)
    assert not (tmp_path / "ref.voice").exists()


def test_bad_input_is_one_line(run: Run, models: Path, tmp_path: Path) -> None:
    record(tmp_path / "ref.wav", 1.5)
    flow, lm = models / "flow", models / "lm"
    (tmp_path / "bad.voice").write_bytes(b"nothing of the kind")
    (tmp_path / "empty.txt").write_text(" ")
    create = ("voice", "create", "ref.wav", "--model", flow)
    assert_one_line(run(*create, "-o", "my.wav"), ".voice")
    assert_one_line(run(*create, "--text", "empty.txt"), "empty")
    assert_one_line(run(*create, "--text", "none.txt"), "none.txt")
    assert_one_line(run("voice", "create", "none.wav", "--model", flow), "none.wav")
    assert_one_line(run("voice", "create", "ref.wav", "--model", models / "tokens"), "no flow")
    assert_one_line(run("convert", "ref.wav", "--voice", "bad.voice", "--model", flow), "not a voice file")
    assert_one_line(run("convert", "ref.wav", "--voice", "nobody", "--model", flow), "choose one of a, b")
    assert_one_line(run("say", "Hi.", "--model", lm, "--voice", "none.voice"), "voice create")
    assert_one_line(run("say", "Hi.", "--model", lm, "--voice", "c"), "no voice")
    assert_one_line(run("say", "Hi.", "--model", lm, "-t", "a.json"), "pointer model")
    assert_one_line(run("say", "Hi.", "--model", lm, "--duration", 0), "may last")
    assert_one_line(run("say", "Hi.", "--model", lm, "--tokens", 5, "--duration", 1), "takes the place")
    assert_one_line(run("say", "Hi.", "--model", lm, "--pause", 2), "cannot change its pauses")
    assert_one_line(run("say", "Hi.", "--model", lm, "--instruct", "sadly"), "trained without any")
    assert_one_line(run("say", '<break strength="none" time="1s"/> Hi.', "--model", lm), "contradicts itself")
