"""`run_codec` in both forms. The codec splits 16-bit samples into two bytes: what it loses is known exactly."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from quaver.app.audio import write_audio
from quaver.codecs.base import Codec, FrameSpec
from quaver.errors import BadInput, CorruptFile, MissingFile
from quaver.evaluation.coding import CodeCounts, list_recordings
from quaver.evaluation.commands import run_codec
from quaver.nn.state import State

from .conftest import RATE, speechlike

SIGNAL = ["pesq", "stoi", "mel_distance", "audio_seconds", "cpu_rtf"]


class Bytes(Codec):
    """Level 1: the high byte of a sample, level 2: the low one."""

    sample_rate = RATE
    frame_spec = FrameSpec("codes", Fraction(RATE), 2, 256)
    frame_size = 1
    latency = 0

    def encode(self, audio: Tensor, lengths: Tensor | None = None, state: State | None = None) -> tuple[Tensor, Tensor]:
        pcm = (audio[:, 0] * 32767).round().long() + 32768
        return torch.stack([pcm // 256, pcm % 256], 1), torch.full((audio.shape[0],), audio.shape[-1])

    def decode(self, frames: Tensor, state: State | None = None) -> Tensor:
        low = frames[:, 1] if frames.shape[1] > 1 else torch.full_like(frames[:, 0], 128)
        return ((frames[:, 0] * 256 + low - 32768) / 32767).clamp(-1, 1)[:, None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for speaker, pitch in (("ann", 200.0), ("bob", 110.0)):
        (tmp_path / "in" / speaker).mkdir(parents=True)
        for take in range(2):
            write_audio(tmp_path / "in" / speaker / f"{take}.wav", speechlike(1.5, pitch=pitch, seed=take), RATE)
    return tmp_path / "in"


def test_a_codec_is_compared_with_the_originals(folder: Path, tmp_path: Path) -> None:
    report = run_codec(codec=Bytes(), files=folder, metrics=SIGNAL, sweep=[1], audio_dir=tmp_path / "kept")
    original, full, coarse = report.systems
    assert original.summary.keys() == {"audio_seconds"}
    assert full.summary["stoi"].value == pytest.approx(1.0, abs=1e-3)
    assert full.summary["mel_distance"].value < 0.05
    assert coarse.voice == "1 codebooks"
    assert coarse.summary["pesq"].value < full.summary["pesq"].value - 0.3
    codes = full.extra["codes"]
    assert codes["frames"] == 4 * 1.5 * RATE
    assert codes["bitrate"] == 16 * RATE
    assert codes["entropy_bitrate"] < codes["bitrate"]
    assert "Codes of" in report.markdown()
    assert len(list((tmp_path / "kept" / "Bytes").iterdir())) == 4
    assert [row["voice"] for row in full.rows] == ["ann", "ann", "bob", "bob"]


def test_two_files_are_compared_at_the_rate_of_the_first(speech: np.ndarray, noise: np.ndarray, tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("a.wav", "b.wav", "c.wav"))
    write_audio(a, speech, RATE)
    write_audio(b, np.repeat(speech, 2), 2 * RATE)  # another rate, a little longer, and stereo
    write_audio(c, np.stack([speech + 0.05 * noise] * 2), RATE)
    close = run_codec(a, b, metrics=["stoi", "pesq"]).systems[1].summary
    far = run_codec(a, c, metrics=["stoi", "pesq"]).systems[1].summary
    assert close["stoi"].value > 0.98
    assert far["stoi"].value < close["stoi"].value
    assert far["pesq"].value < close["pesq"].value


def test_a_recording_too_short_to_judge_is_counted_and_the_rest_goes_on(folder: Path) -> None:
    write_audio(folder / "ann" / "9.wav", np.full(800, 0.1, np.float32), RATE)
    report = run_codec(codec=Bytes(), files=folder, metrics=["stoi"])
    assert report.systems[1].summary["stoi"].count == 4
    assert "1 single scores could not be given" in report.markdown()


def test_counts_tell_use_and_entropy_exactly() -> None:
    counts = CodeCounts(2, 4)
    counts.add(np.array([[0, 1, 2, 3], [2, 2, 2, 2]]))
    assert counts.use() == [1.0, 0.25]
    assert counts.entropy() == pytest.approx([2.0, 0.0])
    assert counts.findings(25.0)["entropy_bitrate"] == pytest.approx(50.0)
    assert counts.findings(25.0)["bitrate"] == pytest.approx(100.0)


def test_a_manifest_gives_texts_and_a_limit_always_draws_the_same(folder: Path) -> None:
    manifest = folder / "m.jsonl"
    lines = [
        {"path": f"{voice}/{take}.wav", "text": "hi", "voice": voice} for voice in ("ann", "bob") for take in (0, 1)
    ]
    manifest.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    found = list_recordings(manifest)
    assert [(r.path.exists(), r.text, r.voice) for r in found[::3]] == [(True, "hi", "ann"), (True, "hi", "bob")]
    assert list_recordings(manifest, 2, seed=3) == list_recordings(manifest, 2, seed=3)
    assert len(list_recordings(manifest, 99)) == 4
    manifest.write_text('{"text": "no path"}\n')
    with pytest.raises(CorruptFile, match="line 1"):
        list_recordings(manifest)
    manifest.write_text("\n")
    with pytest.raises(MissingFile, match="no recordings"):
        list_recordings(manifest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "two files"),
        ({"reference": Path("a.wav")}, "two files"),
        ({"reference": Path("a.wav"), "decoded": Path("b.wav"), "files": Path("c")}, "either"),
        ({"files": Path("."), "codec": Bytes(), "metrics": ["first_audio"]}, "cannot be measured"),
        ({"files": Path("."), "codec": Bytes(), "limit": 0}, "--limit"),
    ],
)
def test_wrong_questions_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run_codec(**arguments)  # type: ignore[arg-type]


def test_a_sweep_beyond_the_codebooks_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="2 codebooks"):
        run_codec(codec=Bytes(), files=folder, metrics=["stoi"], sweep=[3])
