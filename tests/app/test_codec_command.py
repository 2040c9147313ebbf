"""`quaver codec`: what goes in comes out at its exact length, and damage never passes for audio."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from quaver.app.audio import read_audio
from quaver.codecs.container import read_qvr
from quaver.codecs.loading import load_codec

from .conftest import Run, assert_one_line


def record(path: Path, samples: int, rate: int = 24000, channels: int = 1) -> Path:
    noise = np.random.default_rng(samples).normal(0, 0.1, (samples, channels))
    soundfile.write(path, np.clip(noise, -1, 1), rate)
    return path


@pytest.mark.parametrize(
    ("samples", "rate", "channels"),
    [
        (1, 24000, 1),
        (1, 192000, 2),
        (959, 24000, 1),
        (960, 24000, 1),
        (961, 24000, 1),
        (8000, 8000, 1),
        (70001, 44100, 2),
    ],
)
def test_round_trip_keeps_length_and_channels(
    run: Run, tiny_codec: Path, tmp_path: Path, samples: int, rate: int, channels: int
) -> None:
    source = record(tmp_path / "in.wav", samples, rate, channels)
    assert run("codec", "encode", source, "a.qvr", "--codec", tiny_codec).code == 0
    result = run("codec", "decode", "a.qvr", "b.wav", "--codec", tiny_codec)
    assert result.code == 0
    assert result.out == b"b.wav\n"
    assert "times real time" in result.err
    audio, rate_out = read_audio(tmp_path / "b.wav")
    assert rate_out == 24000
    assert audio.shape == (channels, -(-samples * 24000 // rate))
    assert np.isfinite(audio).all()


def test_the_stream_of_the_command_equals_the_offline_codec(run: Run, tiny_codec: Path, tmp_path: Path) -> None:
    source = record(tmp_path / "in.wav", 70_000, channels=2)
    run("codec", "encode", source, "a.qvr", "--codec", tiny_codec, "--chunk-frames", "7")
    run("codec", "decode", "a.qvr", "b.wav", "--codec", tiny_codec)
    codec = load_codec(str(tiny_codec))
    with torch.inference_mode():
        codes, _ = codec.encode(torch.from_numpy(read_audio(source)[0])[:, None])
        audio = codec.decode(codes)[:, 0, :70_000].clamp(-1, 1).numpy()
    with (tmp_path / "a.qvr").open("rb") as file:
        header, read = read_qvr(file)
    assert np.array_equal(read, codes.numpy())
    assert (header.samples, header.frames, header.chunk_frames, header.model) == (70_000, 73, 7, "tiny")
    assert np.abs(read_audio(tmp_path / "b.wav")[0] - audio).max() < 3e-4  # 16 bits, and fp32 sums in another order


def test_fewer_codebooks_at_both_ends(run: Run, tiny_codec: Path, tmp_path: Path) -> None:
    source = record(tmp_path / "in.wav", 9600)
    run("codec", "encode", source, "full.qvr", "--codec", tiny_codec)
    run("codec", "encode", source, "two.qvr", "--codec", tiny_codec, "--codebooks", "2")
    run("codec", "decode", "full.qvr", "full2.wav", "--codec", tiny_codec, "--codebooks", "2")
    run("codec", "decode", "two.qvr", "two.wav", "--codec", tiny_codec)
    assert (tmp_path / "full2.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()
    assert_one_line(
        run("codec", "encode", source, "x.qvr", "--codec", tiny_codec, "--codebooks", "5"), "between 1 and 4"
    )
    assert not (tmp_path / "x.qvr").exists()


def test_pipes(run: Run, tiny_codec: Path, tmp_path: Path) -> None:
    source = record(tmp_path / "in.wav", 9601)
    encoded = run("codec", "encode", "-", "-", "--codec", tiny_codec, stdin=source.read_bytes())
    assert encoded.code == 0
    decoded = run("codec", "decode", "-", "-", "--codec", tiny_codec, "--quiet", stdin=encoded.out)
    assert decoded.err == ""
    assert len(decoded.out) == 44 + 2 * 9601
    raw = run("codec", "decode", "-", "-", "--codec", tiny_codec, "--raw", stdin=encoded.out)
    assert raw.out == decoded.out[44:]
    again = run("codec", "encode", "-", "-", "--codec", tiny_codec, stdin=decoded.out)  # a WAV of unknown length
    assert again.code == 0
    assert b"9601 at 24000 Hz" in run("codec", "info", "-", stdin=again.out).out


def test_info_names_what_is_inside(run: Run, tiny_codec: Path, tmp_path: Path) -> None:
    run("codec", "encode", record(tmp_path / "in.wav", 48000), "a.qvr", "--codec", tiny_codec)
    text = run("codec", "info", "a.qvr").out.decode()
    for line in (
        "model: tiny",
        "seconds: 2.000",
        "codes: 4 codebooks of 100",
        "bitrate: 0.7 kbit/s",
        "frames: 50 at 25 Hz",
    ):
        assert line in text
    assert f"bytes: {(tmp_path / 'a.qvr').stat().st_size}\n" in text


def test_damage_is_one_line_and_leaves_the_old_file(run: Run, tiny_codec: Path, tmp_path: Path) -> None:
    run("codec", "encode", record(tmp_path / "in.wav", 96000), "a.qvr", "--codec", tiny_codec)
    data = bytearray((tmp_path / "a.qvr").read_bytes())
    old = tmp_path / "b.wav"
    old.write_bytes(b"the old file")
    flipped = data.copy()
    flipped[-40] ^= 1
    for damaged in (data[:-1], data[:-200], data[:5], data[:0], flipped, data + b"x"):
        (tmp_path / "bad.qvr").write_bytes(bytes(damaged))
        for command in (["decode", "bad.qvr", "b.wav", "--codec", tiny_codec], ["info", "bad.qvr"]):
            assert_one_line(run("codec", *command), "bad.qvr", "encode the audio again")
    assert old.read_bytes() == b"the old file"


def test_bad_audio_is_one_line_and_leaves_the_old_file(run: Run, tiny_codec: Path, tmp_path: Path) -> None:
    (tmp_path / "a.qvr").write_bytes(b"the old file")
    bad = record(tmp_path / "nan.wav", 10)
    soundfile.write(bad, np.array([0.0, np.nan]), 24000, subtype="FLOAT")
    hollow = record(tmp_path / "hollow.wav", 0)
    (tmp_path / "text.wav").write_text("no audio")
    for path, words in (
        (bad, "nan at sample 1"),
        (hollow, "no samples"),
        ("text.wav", "not audio"),
        ("no.wav", "no.wav"),
    ):
        assert_one_line(run("codec", "encode", path, "a.qvr", "--codec", tiny_codec), words)
    assert (tmp_path / "a.qvr").read_bytes() == b"the old file"


def test_codes_are_not_decoded_by_other_weights(run: Run, tiny_codec: Path, tmp_path: Path) -> None:
    run("codec", "encode", record(tmp_path / "in.wav", 960), "a.qvr", "--codec", tiny_codec)
    assert_one_line(
        run("codec", "decode", "a.qvr"), "'tiny'", "--codec"
    )  # not bundled: the file may not choose a folder
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((tiny_codec / name).read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(weights))
    assert_one_line(run("codec", "decode", "a.qvr", "--codec", other), "made by weights")


def test_unknown_codecs_and_targets_are_named(run: Run, tmp_path: Path, tiny_codec: Path) -> None:
    source = record(tmp_path / "in.wav", 960)
    assert_one_line(run("codec", "encode", source, "--codec", "no-such-codec"), "no-such-codec")
    assert_one_line(run("codec", "encode", source, "no/a.qvr"), "does not exist")
    assert_one_line(run("codec", "decode", "none.qvr"), "none.qvr")
    run("codec", "encode", source, "a.qvr", "--codec", tiny_codec)
    assert_one_line(run("codec", "decode", "a.qvr", "b.doc", "--codec", tiny_codec), ".wav, .flac")


@pytest.fixture
def coded_codec(run: Run, tiny_codec: Path, tmp_path: Path) -> Path:
    """The tiny codec with entropy tables, in a folder of its own."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_codec, folder)
    (tmp_path / "heard").mkdir()
    for i in range(3):
        record(tmp_path / "heard" / f"{i}.wav", 40_000 + i)
    result = run("codec", "fit-entropy", folder, tmp_path / "heard", "--minutes", "1")
    assert result.code == 0
    assert "minutes heard" in result.err
    return folder


def test_entropy_coded_files_are_smaller_and_sound_the_same(run: Run, coded_codec: Path, tmp_path: Path) -> None:
    source = record(tmp_path / "in.wav", 60_000, channels=2)
    run("codec", "encode", source, "plain.qvr", "--codec", coded_codec)
    assert run("codec", "encode", source, "coded.qvr", "--codec", coded_codec, "--entropy").code == 0
    plain, coded = (tmp_path / "plain.qvr").stat().st_size, (tmp_path / "coded.qvr").stat().st_size
    assert coded < plain
    for name in ("plain", "coded"):
        assert run("codec", "decode", f"{name}.qvr", f"{name}.wav", "--codec", coded_codec).code == 0
    assert (tmp_path / "plain.wav").read_bytes() == (tmp_path / "coded.wav").read_bytes()
    said = run("codec", "info", "coded.qvr").out.decode()
    assert "coder: entropy, tables " in said
    assert f"bytes: {coded}\n" in said
    assert "coder: packed\n" in run("codec", "info", "plain.qvr").out.decode()


def test_entropy_coded_pipes(run: Run, coded_codec: Path, tmp_path: Path) -> None:
    source = record(tmp_path / "in.wav", 9601)
    encoded = run("codec", "encode", "-", "-", "--codec", coded_codec, "--entropy", stdin=source.read_bytes())
    decoded = run("codec", "decode", "-", "-", "--codec", coded_codec, "--quiet", stdin=encoded.out)
    assert len(decoded.out) == 44 + 2 * 9601


def test_entropy_coding_without_the_right_tables_is_one_line(
    run: Run, coded_codec: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    source = record(tmp_path / "in.wav", 9600)
    assert_one_line(run("codec", "encode", source, "x.qvr", "--codec", tiny_codec, "--entropy"), "fit-entropy")
    assert not (tmp_path / "x.qvr").exists()
    run("codec", "encode", source, "a.qvr", "--codec", coded_codec, "--entropy")
    assert_one_line(run("codec", "decode", "a.qvr", "b.wav", "--codec", tiny_codec), "no entropy tables")
    run("codec", "fit-entropy", coded_codec, source)
    assert_one_line(run("codec", "decode", "a.qvr", "b.wav", "--codec", coded_codec), "tables")
    data = bytearray((tmp_path / "a.qvr").read_bytes())
    data[-40] ^= 1
    (tmp_path / "a.qvr").write_bytes(data)
    assert_one_line(run("codec", "info", "a.qvr"), "damaged")


def test_export_writes_the_graphs_of_a_native_codec(run: Run, tiny_codec: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx comes with quaver[train]")
    result = run("codec", "export-onnx", tiny_codec, "-o", tmp_path / "graphs")
    assert result.code == 0
    assert [Path(line).name for line in result.out.decode().split()] == ["encoder.onnx", "decoder.onnx", "codec.json"]
    assert_one_line(run("codec", "export-onnx", "no-such-codec", "-o", tmp_path / "x"), "no-such-codec")
