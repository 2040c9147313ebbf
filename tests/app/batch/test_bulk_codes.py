"""Recordings in bulk: the same jobs, the same .qvr files as one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ..conftest import Run
from .conftest import lines, tree

pytestmark = pytest.mark.batch


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "rec"
    (folder / "sub").mkdir(parents=True)
    dice = np.random.default_rng(0)
    for name, samples, channels in (("a.wav", 3000, 1), ("sub/b.flac", 5000, 2), ("c.wav", 1, 1)):
        soundfile.write(folder / name, dice.uniform(-0.5, 0.5, (samples, channels)), 24000)
    return folder


def test_a_folder_is_coded_like_its_files(run: Run, tmp_path: Path, recordings: Path, tiny_codec: Path) -> None:
    (recordings / "bad.wav").write_text("no audio")
    result = run("codec", "encode", recordings, "out", "--codec", tiny_codec, "-w", 1)
    assert result.code == 3, result.err
    assert [row["id"] for row in lines(tmp_path / "out" / "failed.jsonl")] == ["bad"]
    for name in ("a.wav", "sub/b.flac", "c.wav"):
        assert run("codec", "encode", recordings / name, "one.qvr", "--codec", tiny_codec, "-q").code == 0
        inside = tmp_path / "out" / Path(name).with_suffix(".qvr")
        assert inside.read_bytes() == (tmp_path / "one.qvr").read_bytes()
    before = tree(tmp_path / "out")
    (recordings / "bad.wav").unlink()
    assert run("codec", "encode", recordings, "out", "--codec", tiny_codec, "-w", 1).code == 0
    assert {k: v for k, v in tree(tmp_path / "out").items() if k.endswith(".qvr")}.items() <= before.items()
    assert len(lines(tmp_path / "out" / ".batch" / "journal.jsonl")) == 4  # nothing was coded twice


def test_a_folder_needs_a_target(run: Run, recordings: Path, tiny_codec: Path) -> None:
    result = run("codec", "encode", recordings, "--codec", tiny_codec)
    assert result.code == 2
    assert "name the folder" in result.err


def test_the_tokens_of_a_corpus_keep_text_and_speaker(
    run: Run, tmp_path: Path, recordings: Path, tiny_codec: Path
) -> None:
    rows = [
        {"id": "x", "path": "a.wav", "text": "Hello.", "voice": "me", "seconds": 0.1, "phonemes": "həlˈO."},
        {"id": "y", "path": "sub/b.flac", "text": "Bye.", "voice": "you", "seconds": 0.2},
        {"id": "z", "path": "gone.wav", "text": "Gone.", "voice": "you", "seconds": 0.2},
    ]
    (recordings / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("corpus", "tokens", recordings / "m.jsonl", "-o", "tok", "-c", tiny_codec, "-w", 1, "--shard-rows", 2)
    assert result.code == 3, result.err
    first, second = lines(tmp_path / "tok" / "manifest-00000.jsonl")
    assert (first["text"], first["voice"], first["phonemes"]) == ("Hello.", "me", "həlˈO.")
    assert (second["path"], second["channels"], second["samples"]) == ("00000/y.qvr", 2, 5000)
    assert run("codec", "info", tmp_path / "tok" / "00000" / "y.qvr").code == 0
    (failed,) = lines(tmp_path / "tok" / "failed.jsonl")
    assert failed["error"] == "missing_file"
