"""Audio in at any rate, out in any format, and nothing that is not finite in between."""

from __future__ import annotations

import errno
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from quaver.app.audio import BLOCK, FORMATS, AudioWriter, open_audio, read_audio, to_pcm16, wav_header, write_audio
from quaver.errors import BadInput, MissingFile, QuaverError


def tone(samples: int, rate: int, channels: int = 1) -> np.ndarray:
    time = np.arange(samples) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * 300 * (c + 1) * time) for c in range(channels)]).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_any_rate_and_channel_count_comes_in_at_the_wanted_rate(tmp_path: Path, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate, rate, channels).T, rate, subtype="FLOAT")
    audio, got = read_audio(tmp_path / "a.wav", 24000)
    assert got == 24000
    assert audio.shape == (channels, 24000)
    assert audio.dtype == np.float32
    if rate >= 16000:  # the highest tone has 2400 Hz
        wanted = tone(24000, 24000, channels)
        assert np.abs(audio - wanted)[:, 1000:-1000].max() < 2e-3


@pytest.mark.parametrize("samples", [1, 2, 3, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_resampled_length_is_integer_maths(tmp_path: Path, samples: int, rate: int) -> None:
    write_audio(tmp_path / "a.wav", tone(samples, rate), rate)
    audio, _ = read_audio(tmp_path / "a.wav", 24000)
    assert audio.shape == (1, -(-samples * 24000 // rate))
    assert np.isfinite(audio).all()


def test_blocks_equal_the_whole(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(3 * BLOCK + 5, 24000), 24000)
    with open_audio(tmp_path / "a.wav") as source:
        assert source.frames == 3 * BLOCK + 5
        blocks = list(source.blocks())
    assert len(blocks) == 4
    assert np.array_equal(np.concatenate(blocks, 1), read_audio(tmp_path / "a.wav")[0])


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_written_and_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_audio(path, tone(24000, 24000), 24000)
    audio, rate = read_audio(path)
    assert rate == 24000
    assert abs(audio.shape[1] - 24000) < 3000
    assert 0.3 < np.sqrt(np.mean(audio**2)) < 0.4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert soundfile.info(path).subtype == FORMATS[suffix][1]


def test_16_bit_samples_are_rounded_and_clipped(tmp_path: Path) -> None:
    values = np.array([0.0, 1.0, -1.0, 1.5, -7.0, 1e-5, 0.5], dtype=np.float32)
    assert to_pcm16(values[None])[:, 0].tolist() == [0, 32767, -32767, 32767, -32768, 0, 16384]
    write_audio(tmp_path / "a.wav", values, 24000)
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == to_pcm16(values[None])[:, 0].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_with_its_place(tmp_path: Path, value: float) -> None:
    audio = tone(2 * BLOCK, 24000, 2)
    audio[1, BLOCK + 17] = value
    soundfile.write(tmp_path / "a.wav", audio.T, 24000, subtype="FLOAT")
    with pytest.raises(BadInput, match=rf"at sample {BLOCK + 17} of channel 1"):
        read_audio(tmp_path / "a.wav", 16000)


def test_too_loud_is_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.5, 3e30, -2.0]), 24000, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav")[0].tolist() == [[0.5, 1.0, -1.0]]


def test_what_is_not_audio_is_named(tmp_path: Path) -> None:
    text, empty, hollow = tmp_path / "a.txt", tmp_path / "empty.wav", tmp_path / "hollow.wav"
    text.write_text("this is no audio at all")
    empty.write_bytes(b"")
    soundfile.write(hollow, np.zeros(0), 24000)
    for path, message in ((text, "not audio"), (empty, "empty"), (hollow, "no samples"), (tmp_path, "folder")):
        with pytest.raises(BadInput, match=message):
            read_audio(path)
    with pytest.raises(MissingFile, match="no audio file"):
        read_audio(tmp_path / "none.wav")


def test_rates_and_channels_out_of_range_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(10), 4000)
    soundfile.write(tmp_path / "wide.wav", np.zeros((10, 9)), 24000)
    with pytest.raises(BadInput, match="4000 Hz"):
        read_audio(tmp_path / "slow.wav")
    with pytest.raises(BadInput, match="9 channels"):
        read_audio(tmp_path / "wide.wav")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_flac_is_refused_not_shortened(tmp_path: Path, share: float) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48000)
    soundfile.write(tmp_path / "a.flac", noise, 24000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput):
        read_audio(tmp_path / "cut.flac")


def test_standard_input_reads_files_and_the_endless_wav(monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = to_pcm16(tone(5000, 24000))
    for data in (wav_header(24000, 1) + pcm.tobytes(),):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        audio, rate = read_audio("-")
        assert rate == 24000
        assert np.array_equal(to_pcm16(audio), pcm)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(BadInput, match="nothing on standard input"):
        read_audio("-")


def test_the_wav_header_of_a_stream_is_canonical() -> None:
    header = wav_header(24000, 2)
    assert len(header) == 44
    assert struct.unpack_from("<HHIIHH", header, 20) == (1, 2, 24000, 96000, 4, 16)
    assert header[4:8] == header[40:44] == b"\xff" * 4


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, tone(100, 24000), 24000)
    before = path.read_bytes()
    with pytest.raises(QuaverError, match="not numbers"), AudioWriter(path, 24000) as writer:
        writer.write(tone(100, 24000))
        writer.write(np.array([0.0, np.nan]))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_a_writer_without_samples_writes_nothing(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.wav", 24000):
        pass
    assert not list(tmp_path.iterdir())


def test_unknown_suffixes_and_impossible_rates_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.wav, \.flac"):
        AudioWriter(tmp_path / "a.doc", 24000)
    with pytest.raises(BadInput, match="none is not one of"):
        AudioWriter(tmp_path / "a", 24000)
    with pytest.raises(BadInput, match="Opus"):
        AudioWriter(tmp_path / "a.opus", 44100)


def test_raw_is_bare_samples(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.raw", tone(100, 24000), 24000)
    assert (tmp_path / "a.raw").read_bytes() == to_pcm16(tone(100, 24000)).tobytes()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".opus", ".mp3", ".raw"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    """libsndfile cannot pass on what a write raises: an assertion came out, and lines of a traceback on stderr. The
    kernel's limit on the size of a file stands in for the disk."""
    code = """
import resource, sys, numpy
from quaver.app.audio import AudioWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = numpy.random.default_rng(0).uniform(-0.5, 0.5, 480000)
try:
    with AudioWriter(sys.argv[1], 24000) as writer:
        for start in range(0, len(noise), 2400):
            writer.write(noise[start:start + 2400])
except OSError as error:
    sys.exit(f"OSError {error.errno}")
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / f"a{suffix}")], capture_output=True, text=True, timeout=60
    )
    assert result.stderr == f"OSError {errno.EFBIG}\n"
    assert not list(tmp_path.iterdir())
