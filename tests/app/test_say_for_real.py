"""`quaver say` with the real synthesizer, few random weights: it babbles, but by the same laws as a trained one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from quaver.app.audio import read_audio

from .conftest import Run, assert_one_line


@pytest.fixture(scope="session")
def tiny_voice(tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model that has two voices, and its codec beside it."""
    import torch

    from quaver.tts.lm import SpeechLM, SpeechLMConfig

    folder = tmp_path_factory.mktemp("voices")
    shutil.copytree(tiny_codec, folder / "tiny")
    sizes = {
        "codebooks": 4,
        "vocab": 100,
        "head_hidden": 16,
        "backbone": {"width": 32, "layers": 1, "heads": 2, "hidden": 48, "window": 64, "slack": 8},
        "phone_blocks": 1,
        "phone_hidden": 32,
        "voices": ["high", "low"],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SpeechLM(SpeechLMConfig.model_validate(sizes))
    voice = folder / "voice"
    voice.mkdir()
    save_file(model.state_dict(), str(voice / "model.safetensors"))
    (voice / "config.json").write_text(json.dumps({"kind": "lm", "codec": "tiny", **sizes}))
    return voice


@pytest.mark.parametrize(
    "text",
    [
        "Hello world.",
        "a",
        "5",
        "Dr. Who paid $3.50; really?",
        "hmm 你好 \x00 🎉",
        "<break time='200ms'/> so",
        "x" * 300,
    ],
)
def test_any_text_is_finite_audio(run: Run, tiny_voice: Path, tmp_path: Path, text: str) -> None:
    result = run("say", text, "--model", tiny_voice, "-o", "a.wav", "-t", "a.json")
    assert result.code == 0, result.err
    audio, rate = read_audio(tmp_path / "a.wav")
    assert rate == 24000
    assert audio.shape[1] >= 960
    assert np.isfinite(audio).all()
    table = json.loads((tmp_path / "a.json").read_text())
    assert abs(table["seconds"] - audio.shape[1] / rate) < 1e-3
    assert table["words"]
    times = [time for word in table["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= table["seconds"] + 1e-3


@pytest.mark.parametrize("text", ["...", "?!", "\x00", "🎉", "你好", '"'])
def test_nothing_to_say_is_one_line(run: Run, tiny_voice: Path, tmp_path: Path, text: str) -> None:
    assert_one_line(run("say", text, "--model", tiny_voice, "-o", "a.wav"))
    assert_one_line(run("say", "-", "--model", tiny_voice, "-o", "-", stdin=text.encode()))
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_bytes_in_a_file_and_in_a_pipe(run: Run, tiny_voice: Path, tmp_path: Path) -> None:
    text = "One sentence. And then another one!"
    run("say", text, "--model", tiny_voice, "-o", "a.wav", "--seed", "3")
    piped = run("say", text, "--model", tiny_voice, "-o", "-", "--seed", "3").out
    assert (tmp_path / "a.wav").read_bytes()[44:] == piped[44:]
    typed = run(
        "say", "-", "--model", tiny_voice, "-o", "-", "--seed", "3", stdin=b"One sentence.\nAnd then another one!"
    ).out
    assert typed[44:] == piped[44:]
    assert run("say", text, "--model", tiny_voice, "-o", "-", "--seed", "4").out != piped


def test_what_the_model_lacks_is_one_line(run: Run, tiny_voice: Path) -> None:
    assert run("voices", "--model", tiny_voice).out == b"high\nlow\n"
    assert_one_line(run("say", "x", "--model", tiny_voice, "--voice", "tenor"), "high, low")
    assert_one_line(run("say", "x", "--model", tiny_voice, "--codebooks", "5"), "4")
    assert_one_line(run("say", "x", "--model", "no-such-model"), "no-such-model")
    assert_one_line(run("say", "x", "--model", tiny_voice.parent / "tiny"), "not a speech language model")
