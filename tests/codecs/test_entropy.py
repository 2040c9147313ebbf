"""Entropy coding: integers only, the same codes on any machine, smaller than packed, and typed errors for damage."""

from __future__ import annotations

import io
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quaver.codecs.container import QvrHeader, QvrReader, QvrWriter, qvr_size, read_qvr, verify_qvr
from quaver.codecs.entropy import (
    ENTROPY_FILE,
    EntropyTables,
    classes_of,
    code_vectors,
    fit_tables,
    load_tables,
    most_bytes,
    save_tables,
)
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile

from ..laws import few

K, VOCAB = 3, 50


def speech_like(frames: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Codes `[channel, K, frames]` that stay near the last one, and depend on the level below."""
    rng = np.random.default_rng(seed)
    codes = np.zeros((channels, K, frames), np.int64)
    for t in range(1, frames):
        codes[:, 0, t] = (codes[:, 0, t - 1] + rng.integers(-2, 3, channels)) % VOCAB
        codes[:, 1, t] = (codes[:, 0, t] + rng.integers(0, 4, channels)) % VOCAB
        codes[:, 2, t] = rng.integers(0, VOCAB, channels)
    return codes


@cache
def tables(classes: int = 8) -> EntropyTables:
    groups = np.tile(np.arange(VOCAB) * classes // VOCAB, (K, 1))
    return fit_tables([speech_like(1500, seed)[0] for seed in range(3)], K, VOCAB, groups)


def header(coder: EntropyTables | None, chunk_frames: int = 20, channels: int = 1) -> QvrHeader:
    return QvrHeader(
        model="m", weights_sha256="", sample_rate=100, channels=channels, codebooks=K, vocab=VOCAB, rate_num=10,
        rate_den=1, chunk_frames=chunk_frames, tables=None if coder is None else coder.mark,
    )  # fmt: skip


def written(codes: np.ndarray, coder: EntropyTables | None, chunk_frames: int = 20) -> bytes:
    file = io.BytesIO()
    with QvrWriter(file, header(coder, chunk_frames, len(codes)), coder) as writer:
        for part in np.array_split(codes, 7, 2):
            writer.write(part)
        writer.finish(codes.shape[2] * 10)
    assert writer.bytes == len(file.getvalue())
    return file.getvalue()


@few
@given(st.integers(0, 70), st.integers(1, 3), st.integers(1, K), st.integers(0, 99))
def test_any_codes_come_back(frames: int, channels: int, levels: int, seed: int) -> None:
    """Random ones too, which the tables find unlikely: nothing has probability zero."""
    coder = tables()
    wild = np.random.default_rng(seed).integers(0, VOCAB, (channels, levels, frames))
    for codes in (wild, speech_like(frames, seed, channels)[:, :levels]):
        payload = coder.encode(codes)
        assert len(payload) <= most_bytes(codes.size)
        assert np.array_equal(coder.decode(payload, channels, levels, frames), codes)


def test_carries_run_through_bytes_that_are_full() -> None:
    """The likeliest and the unlikeliest codes in turn drive the coder to the edges of its interval."""
    frequencies = np.ones((2, 1, 1, 3), np.uint16)
    frequencies[..., 2] = 65534
    coder = EntropyTables(frequencies, np.zeros((1, 3), np.uint8))
    rng = np.random.default_rng(0)
    for p in (0.001, 0.01, 0.3):
        for _ in range(30):
            codes = np.where(rng.random((1, 1, 400)) < p, rng.integers(0, 2, (1, 1, 400)), 2)
            assert np.array_equal(coder.decode(coder.encode(codes), 1, 1, 400), codes)


def test_the_size_is_what_the_shares_say() -> None:
    coder, codes = tables(), speech_like(3000, 9)
    groups, bits, before = coder.classes, 0.0, [0] * K
    for frame in codes[0].T:
        below = before[0]
        for level, code in enumerate(frame):
            share = int(coder.frequencies[0, level, before[level], code]) + int(
                coder.frequencies[1, level, below, code]
            )
            bits += 17 - np.log2(share)
            below = before[level] = int(groups[level, code])
    assert bits / 8 <= len(coder.encode(codes)) <= 1.005 * bits / 8 + 4


def test_it_is_smaller_than_packing_and_than_frequencies_alone() -> None:
    codes = speech_like(2000, 5)
    packed, alone, contexts = (len(written(codes, coder)) for coder in (None, tables(1), tables(8)))
    assert contexts < 0.9 * alone
    assert contexts < 0.85 * packed


def test_a_stream_is_read_and_written_chunk_by_chunk() -> None:
    codes, coder = speech_like(130, 3, channels=2), tables()
    data = written(codes, coder)
    reader = QvrReader(io.BytesIO(data), tables=lambda _: coder)
    blocks = list(reader)
    assert [block.shape[2] for block in blocks] == [20] * 6 + [10]
    assert np.array_equal(np.concatenate(blocks, 2), codes)
    cut = QvrReader(io.BytesIO(data[: len(data) * 2 // 3]), tables=lambda _: coder)
    got = []
    with pytest.raises(CorruptFile):
        for block in cut:
            got.append(block)
    assert len(got) >= 3
    assert np.array_equal(np.concatenate(got, 2), codes[..., : 20 * len(got)])


def test_version_and_header_say_that_it_is_coded() -> None:
    """Packed files stay what they were, byte for byte: an older reader refuses only what it cannot read."""
    codes, coder = speech_like(30), tables()
    plain, coded = written(codes, None), written(codes, coder)
    assert (plain[8], coded[8]) == (1, 2)
    assert b"tables" not in plain
    assert coder.mark.encode() in coded
    assert len(plain) == qvr_size(header(None), 30)
    forged = bytearray(coded)
    forged[8] = 1
    with pytest.raises(CorruptFile, match="checksum"):
        verify_qvr(io.BytesIO(bytes(forged)))


def test_any_flipped_bit_is_found() -> None:
    coder = tables()
    data = written(speech_like(60, 4), coder)
    for place in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(CorruptFile):
            read_qvr(io.BytesIO(bytes(damaged)), "a.qvr", lambda _: coder)
        with pytest.raises(CorruptFile):
            verify_qvr(io.BytesIO(bytes(damaged)))
    assert verify_qvr(io.BytesIO(data)).frames == 60  # without tables


@few
@given(st.binary(max_size=60), st.integers(1, 12))
def test_a_forged_payload_ends_as_codes_or_as_an_error(payload: bytes, frames: int) -> None:
    coder = tables()
    try:
        codes = coder.decode(payload, 1, K, frames)
    except ValueError:
        return
    assert 0 <= codes.min() <= codes.max() < VOCAB
    assert coder.encode(codes) == payload or len(coder.encode(codes)) <= len(payload)


def test_a_payload_with_a_tail_is_refused() -> None:
    coder, codes = tables(), speech_like(20)
    for tail in (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", b"\0"):
        with pytest.raises(ValueError, match="does not end"):
            coder.decode(coder.encode(codes) + tail, 1, K, 20)


def test_other_tables_are_refused_before_a_code_is_read() -> None:
    data = written(speech_like(30), tables(8))
    for found in (None, lambda _: tables(4)):
        with pytest.raises(BadInput, match="tables"):
            read_qvr(io.BytesIO(data), "a.qvr", found)
    with pytest.raises(BadInput, match="tables"):
        QvrWriter(io.BytesIO(), header(tables(8)), tables(4))


def test_tables_lie_beside_the_weights_that_they_are_for(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="fit-entropy"):
        load_tables(tmp_path, "ab")
    coder = tables()
    save_tables(coder, tmp_path, "ab")
    assert load_tables(tmp_path, "ab").mark == coder.mark
    with pytest.raises(ConfigError, match="other weights"):
        load_tables(tmp_path, "cd")
    path = tmp_path / ENTROPY_FILE
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFile, match="damaged"):
        load_tables(tmp_path, "ab")


def test_tables_that_are_none_are_refused() -> None:
    good = tables()
    for change in ("zero", "sum", "dtype", "classes"):
        frequencies, classes = good.frequencies.copy(), good.classes.copy()
        if change == "zero":
            frequencies[0, 0, 0, 0] = 0
        if change == "sum":
            frequencies[1, 2, 3, 4] += 1
        if change == "classes":
            classes[0, 0] = 200
        with pytest.raises(CorruptFile):
            EntropyTables(frequencies.astype(np.int32) if change == "dtype" else frequencies, classes)
    with pytest.raises(BadInput, match="no codes"):
        fit_tables([], K, VOCAB)
    with pytest.raises(BadInput, match="65536"):
        fit_tables([], 1, 65536)


@pytest.mark.parametrize("bottleneck", ["rvq", "split_rvq", "rfsq"])
def test_classes_come_from_what_codes_stand_for(bottleneck: str) -> None:
    sizes = {"width": 16, "hidden": 16, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "codebooks": 3}
    more = {"dim": 2, "levels": (3, 4)} if bottleneck == "rfsq" else {"dim": 4, "vocab": 12}
    codec = XCodec(XCodecConfig.model_validate({"bottleneck": bottleneck, "semantic": "none", **sizes, **more}))
    vectors = code_vectors(codec)
    assert vectors is not None
    assert vectors.shape[:2] == (3, 12)
    classes = classes_of(vectors, 4)
    assert classes.shape == (3, 12)
    assert 2 <= len(np.unique(classes[0])) <= 4


def test_a_file_decodes_the_same_with_other_threads_and_dtypes(tmp_path: Path) -> None:
    """encodec issues 85 and 94: files written with the language model could not be decoded on other hardware."""
    codes, coder = speech_like(90, 2), tables()
    save_tables(coder, tmp_path, "ab")
    data = written(codes, coder)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        for other, narrow in ((1, torch.float32), (3, torch.bfloat16)):
            torch.set_num_threads(other)
            torch.set_default_dtype(narrow)
            _, read = read_qvr(io.BytesIO(data), "a.qvr", lambda _: load_tables(tmp_path, "ab"))
            assert np.array_equal(read, codes)
            assert written(codes, load_tables(tmp_path, "ab")) == data
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def test_decoding_touches_no_float() -> None:
    """Every value between payload and code is an integer: the law that makes files portable."""
    coder, seen = tables(), set()
    payload = coder.encode(speech_like(10))

    def watch(frame, event, arg):
        if frame.f_code.co_filename.endswith("entropy.py"):
            seen.update(type(value) for value in frame.f_locals.values())
            return watch
        return None

    sys.settrace(watch)
    try:
        coder.decode(payload, 1, K, 10)
    finally:
        sys.settrace(None)
    assert int in seen
    assert float not in seen
    assert not any(issubclass(kind, np.floating | torch.Tensor) for kind in seen)


def test_the_bundled_tables_are_those_of_the_bundled_weights() -> None:
    from quaver.codecs.loading import MODELS, weights_sha256

    folder = MODELS / "quaver-24k"
    assert (folder / ENTROPY_FILE).exists()
    coder = load_tables(folder, weights_sha256(folder))
    config = json.loads((folder / "config.json").read_text())
    assert (coder.codebooks, coder.vocab) == (config.get("codebooks", 8), config.get("vocab", 1024))
