"""`quaver eval` and `quaver train`: options arrive where they should, and what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from .conftest import Run, assert_one_line


def buzz(path: Path, noise: float = 0.0) -> Path:
    time = np.arange(48000) / 24000
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20)) * (
        0.6 + 0.4 * np.sin(2 * np.pi * 3 * time)
    )
    soundfile.write(path, 0.2 * voice + noise * np.random.default_rng(0).normal(size=48000), 24000)
    return path


def test_two_files_are_compared(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pystoi")
    original, decoded = buzz(tmp_path / "a.wav"), buzz(tmp_path / "b.wav", 0.05)
    result = run("eval", "codec", original, decoded, "--metric", "stoi", "--out", "report.json", "--quiet")
    assert result.code == 0, result.err
    assert b"STOI" in result.out
    assert b"| decoded |" in result.out
    assert "stoi" in json.dumps(json.loads((tmp_path / "report.json").read_text()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["codec"], "two files"),
        (["codec", "none.wav", "none.wav"], "none.wav"),
        (["codec", "--files", "none"], "none"),
        (["codec", "--files", ".", "--limit", "0"], "--limit"),
        (["tts", "--texts", "none.txt"], "none.txt"),
        (["tts"], "--texts"),
        (["tts", "--texts", "a.txt", "--threads", "0"], "--threads"),
        (["tts", "--texts", "a.txt", "--metric", "beauty"], "beauty"),
    ],
)
def test_wrong_questions_are_one_line(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "a.txt").write_text("A sentence.\n")
    assert_one_line(run("eval", *arguments), words)


def test_train_hands_its_options_over(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import quaver.training.run

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(quaver.training.run, "train", lambda *args, **named: calls.append((*args, named)))
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    assert run("train", "tiny.yaml").code == 0
    assert run("train", "tiny.yaml", "steps=3", "optimizer.lr=1", "--out", "x", "--fresh", "-p", "2").code == 0
    assert calls == [
        (Path("tiny.yaml"), Path("runs/tiny"), [], {"resume": True, "processes": 1}),
        (Path("tiny.yaml"), Path("x"), ["steps=3", "optimizer.lr=1"], {"resume": False, "processes": 2}),
    ]


def test_recipes_that_are_wrong_are_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("colour: blue\n")
    assert_one_line(run("train", "none.yaml"), "none.yaml")
    assert_one_line(run("train", "bad.yaml"), "bad.yaml")
    assert_one_line(run("train", "bad.yaml", "steps"), "'steps'")
    assert_one_line(run("train", "bad.yaml", "-p", "0"), "--processes")
