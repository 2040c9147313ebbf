"""`quaver codec` with checkpoints of published codecs: saved in their own format, found by folder, refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from quaver.app.audio import read_audio
from quaver.codecs.container import read_qvr
from quaver.codecs.loading import load_codec

from ..codecs.published import MODELS
from .conftest import Run, assert_one_line


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seconds", [0.005, 0.3])
def test_a_file_is_coded_and_comes_back_at_its_length(run: Run, tmp_path: Path, kind: str, seconds: float) -> None:
    """In blocks through a stream, or whole where the codec looks ahead: the codes of the library call either way."""
    with torch.no_grad():
        MODELS[kind]().save_pretrained(tmp_path / kind)
        codec = load_codec(str(tmp_path / kind))
        samples = max(1, int(seconds * codec.sample_rate)) + 700 * kind.startswith("xcodec")
        audio = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
        soundfile.write(tmp_path / "in.wav", audio, codec.sample_rate, subtype="FLOAT")
        assert run("codec", "encode", "in.wav", "a.qvr", "--codec", kind).code == 0
        with (tmp_path / "a.qvr").open("rb") as file:
            header, codes = read_qvr(file)
        wanted, _ = codec.encode(torch.from_numpy(audio)[None, None])
    assert header.model == kind
    assert np.array_equal(codes, wanted.numpy())
    assert run("codec", "decode", "a.qvr", "b.wav", "--codec", kind).code == 0
    back, rate = read_audio(tmp_path / "b.wav")
    assert (back.shape, rate) == ((1, samples), codec.sample_rate)
    sound = codec.decode(wanted)[0, :, :samples].clamp(-1, 1)
    np.testing.assert_allclose(back, sound.detach().numpy(), atol=1e-4)


def test_the_list_says_what_streams_and_what_does_not(run: Run) -> None:
    rows = {line.split("\t")[0]: line.split("\t")[1] for line in run("codec", "list").out.decode().splitlines()}
    assert rows["quaver-24k"] == rows["kyutai/mimi"] == rows["facebook/encodec_24khz"] == "streams"
    assert rows["descript/dac_16khz"].startswith("whole recordings only: ")
    assert rows["hf-audio/xcodec-hubert-general"].startswith("whole recordings only: ")
    assert rows["HKUSTAudio/xcodec2-hf"].startswith("whole recordings only: ")
    assert rows["facebook/encodec_48khz"].startswith("not supported: it codes stereo")


def test_bad_input_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    soundfile.write(tmp_path / "in.wav", np.zeros(2400, np.float32), 24_000)
    assert_one_line(run("codec", "encode", "in.wav", "--codec", "kyutai/mimi"), "config.json", "model.safetensors")
    assert_one_line(run("codec", "encode", "in.wav", "--codec", "facebook/encodec_48khz"), "stereo")
    MODELS["mimi"]().save_pretrained(tmp_path / "mimi")
    assert_one_line(run("codec", "encode", "in.wav", "--codec", "mimi", "--codebooks", 9), "between 1 and 4")
