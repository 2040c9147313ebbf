"""`quaver chat`, `quaver corpus dialogues`, `quaver eval duplex`: files and pipes, and what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.model import delays_of

from ..dialogue.tiny import CODEC, VOCABULARY, talking_model
from .conftest import Run, assert_one_line

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random duplex model and its codec as folders."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    codec, model = XCodec(XCodecConfig(**CODEC)), talking_model()
    speaks, writes = (talking_model(delays=delays_of(3, 2, text=text)) for text in (-3, 4))
    duplex = '"kind": "duplex", "codec": "codec"'
    extra = {"codec": '"kind": "codec"', "talk": duplex, "speaks": duplex, "writes": duplex}
    for name, module in (("codec", codec), ("talk", model), ("speaks", speaks), ("writes", writes)):
        (root / name).mkdir()
        save_file(module.state_dict(), root / name / "model.safetensors")
        (root / name / "config.json").write_text(module.config.model_dump_json()[:-1] + f", {extra[name]}}}")
        VOCABULARY.save(root / name / "vocabulary.json")
    return root / "talk"


@pytest.fixture
def user(tmp_path: Path) -> np.ndarray:
    samples = (0.3 * np.random.default_rng(0).uniform(-1, 1, 10 * SIZE + 5)).astype(np.float32)
    soundfile.write(tmp_path / "user.wav", samples, 24_000)
    return samples


def test_a_file_is_answered_frame_by_frame(run: Run, folder: Path, user: np.ndarray, tmp_path: Path) -> None:
    result = run("chat", "--in", "user.wav", "--out", "reply.wav", "--model", folder, "--tail", 0.01, "--seed", 3)
    assert result.code == 0, result.err
    reply, rate = soundfile.read(tmp_path / "reply.wav")
    assert rate == 24_000
    assert len(reply) == (11 + round(0.01 * 24_000 / SIZE)) * SIZE
    assert result.err.strip()  # the monologue of a random model is never empty
    both = run(
        "chat", "--in", "user.wav", "--out", "both.wav", "--model", folder, "--tail", 0.01, "--seed", 3, "--both"
    )
    assert both.code == 0
    two, _ = soundfile.read(tmp_path / "both.wav")
    assert two.shape == (len(reply), 2)
    assert np.array_equal(two[:, 1], reply)
    assert np.abs(two[: len(user), 0] - user).max() < 1e-3


def test_a_pipe_gives_as_much_as_it_takes(run: Run, folder: Path, user: np.ndarray) -> None:
    pcm = (user * 32767).astype("<i2").tobytes()
    result = run("chat", "--stream", "--model", folder, "--no-text", stdin=pcm)
    assert result.code == 0, result.err
    assert len(result.out) == 11 * SIZE * 2
    assert result.err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat"], "--in user.wav --out"),
        (["chat", "--stream", "--in", "user.wav"], "--stream"),
        (["chat", "--in", "none.wav", "--out", "r.wav", "--model", "MODEL"], "none.wav"),
        (["chat", "--in", "user.wav", "--out", "r.xyz", "--model", "MODEL"], ".xyz"),
        (["chat", "--in", "user.wav", "--out", "r.wav", "--model", "nothing"], "nothing"),
        (["chat", "--in", "user.wav", "--out", "r.wav", "--model", "quaver-24k"], "not a duplex model"),
        (["corpus", "dialogues", "--out", "d", "--user", "nobody"], "nobody"),
        (["corpus", "dialogues", "--out", "d", "--user", "joe", "--split", "dev"], "dev"),
        (["eval", "duplex", "--dialogues", "none", "--model", "none"], "corpus dialogues"),
        (["eval", "duplex", "--dialogues", "none", "--minutes", "3", "--slots", "2"], "--slots"),
        (["chat", "--in", "nan.wav", "--out", "r.wav", "--model", "MODEL"], "at sample 100"),
        (["chat", "--in", "user.wav", "--out", "r.wav", "--model", "SPEAKER"], "hears nothing"),
        (["eval", "duplex", "--dialogues", "d", "--model", "SPEAKER", "--minutes", "1"], "--minutes"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Run, folder: Path, user: np.ndarray, tmp_path: Path, arguments: list[str], words: str
) -> None:
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(200) == 100, np.nan, user[:1]), 24_000, subtype="FLOAT")
    names = {"MODEL": str(folder), "SPEAKER": str(folder.parent / "speaks")}
    assert_one_line(run(*[names.get(a, a) for a in arguments]), words)


def test_dialogues_are_made_and_judged(run: Run, tmp_path: Path) -> None:
    made = run("corpus", "dialogues", "-o", "d", "-n", 1, "--user", "espeak", "--turns", 1, "--split", "test", "-q")
    assert made.code == 0, made.err
    judged = run("eval", "duplex", "--dialogues", "d", "--model", "none", "-o", "report", "-q")
    assert judged.code == 0, judged.err
    assert b"| response rate | 1.000 |" in judged.out
    assert (tmp_path / "report" / "timeline.png").exists()
    assert b"| goodbye |" not in judged.out  # nobody listened to the answers
    long = run("eval", "duplex", "--dialogues", "d", "--model", "none", "--minutes", 1, "-q")
    assert b"| silence collapses | 0.000 |" in long.out, long.err


def test_word_errors_of_a_recogniser(run: Run, folder: Path, tmp_path: Path) -> None:
    """A random one, on half a second: it writes something, and what it writes is counted; chat shows it."""
    samples = (0.1 * np.random.default_rng(0).standard_normal((12_000, 2))).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", samples, 24_000)
    event = {"kind": "turn", "start": 0.0, "end": 0.4, "text": "hello seven"}
    row = {"id": "a", "path": "a.flac", "seconds": 0.5, "words": [], "events": [event], "split": "test", "voice": "x"}
    (tmp_path / "dialogues.jsonl").write_text(json.dumps(row) + "\n")
    model = folder.parent / "writes"
    judged = run("eval", "duplex", "--dialogues", ".", "--model", model, "-o", "report", "-q")
    assert judged.code == 0, judged.err
    assert b"user's words, as the model writes them down" in judged.out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["errors"]["a"][1] == 2
    assert report["texts"]["a"][0] == "hello seven"
    chat = run("chat", "--in", "a.flac", "--out", "r.wav", "--model", model, "--tail", 0)
    assert chat.code == 0, chat.err
    assert chat.err.strip()
    assert not soundfile.read(tmp_path / "r.wav")[0].any()
    spoken = run("eval", "duplex", "--dialogues", ".", "--model", folder.parent / "speaks", "-q")
    assert_one_line(spoken, "--asr")
