"""The .qvr container: exact round trips, exact sizes, and no damage that goes unseen."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaver.codecs.container import (
    MAX_VOCAB,
    QvrHeader,
    QvrReader,
    QvrWriter,
    pack_codes,
    qvr_size,
    read_qvr,
    unpack_codes,
    verify_qvr,
    write_qvr,
)
from quaver.errors import BadInput, CorruptFile


def make_header(**changes: Any) -> QvrHeader:
    values: dict[str, Any] = {
        "model": "quaver-24k",
        "weights_sha256": "ab" * 32,
        "sample_rate": 24000,
        "channels": 1,
        "codebooks": 8,
        "vocab": 1024,
        "rate_num": 25,
        "rate_den": 1,
        "chunk_frames": 50,
    }
    return QvrHeader(**(values | changes))


def random_codes(header: QvrHeader, frames: int, seed: int = 0) -> np.ndarray:
    shape = (header.channels, header.codebooks, frames)
    return np.random.default_rng(seed).integers(0, header.vocab, shape)


def encode(header: QvrHeader, codes: np.ndarray, pieces: list[int] | None = None, samples: int | None = None) -> bytes:
    file = io.BytesIO()
    writer = QvrWriter(file, header)
    start = 0
    for size in [*(pieces or []), codes.shape[2]]:
        writer.write(codes[:, :, start : start + size])
        start += size
    writer.finish(samples if samples is not None else codes.shape[2])
    return file.getvalue()


@given(
    bits=st.integers(1, 24),
    values=st.lists(st.integers(0, MAX_VOCAB - 1), max_size=50),
)
def test_pack_and_unpack_are_inverse(bits: int, values: list[int]) -> None:
    codes = np.array([value % (1 << bits) for value in values], dtype=np.int64)
    packed = pack_codes(codes, bits)
    assert len(packed) == (len(values) * bits + 7) // 8
    assert np.array_equal(unpack_codes(packed, len(values), bits), codes)


@settings(max_examples=150, deadline=None)
@given(
    codebooks=st.integers(1, 12),
    channels=st.integers(1, 8),
    frames=st.integers(0, 40),
    vocab=st.one_of(st.integers(1, 40), st.integers(1, MAX_VOCAB)),
    chunk_frames=st.integers(1, 20),
    pieces=st.lists(st.integers(0, 13), max_size=6),
    seed=st.integers(0, 1000),
)
def test_round_trip_any_shape_vocabulary_and_chunking(
    codebooks: int, channels: int, frames: int, vocab: int, chunk_frames: int, pieces: list[int], seed: int
) -> None:
    header = make_header(codebooks=codebooks, channels=channels, vocab=vocab, chunk_frames=chunk_frames)
    codes = random_codes(header, frames, seed)
    data = encode(header, codes, pieces)
    assert data == encode(header, codes)  # the file does not depend on how the codes came
    assert len(data) == qvr_size(header, frames)
    read_header, read = read_qvr(io.BytesIO(data))
    assert read_header == header.with_totals(frames, frames)
    assert read.dtype == np.int64
    assert np.array_equal(read, codes)


def test_size_is_the_nominal_bitrate_plus_small_overhead() -> None:
    header = make_header()
    assert header.bitrate == 2000
    minute, hour = qvr_size(header, 25 * 60), qvr_size(header, 25 * 3600)
    assert 0 < minute - 2000 * 60 // 8 < 700
    assert 1 < hour / (2000 * 3600 / 8) < 1.025


SMALL = make_header(codebooks=3, channels=2, vocab=1000, chunk_frames=4, model="tiny", weights_sha256="")


def test_every_single_bit_flip_is_detected() -> None:
    data = encode(SMALL, random_codes(SMALL, 10))
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << (position % 8)
        with pytest.raises(CorruptFile):
            verify_qvr(io.BytesIO(bytes(damaged)))


def test_every_truncation_and_any_extension_is_detected() -> None:
    data = encode(SMALL, random_codes(SMALL, 10))
    for size in range(len(data)):
        with pytest.raises(CorruptFile):
            verify_qvr(io.BytesIO(data[:size]))
    with pytest.raises(CorruptFile, match="after the end"):
        verify_qvr(io.BytesIO(data + b"\0"))


def test_chunks_that_changed_places_or_got_lost_are_detected() -> None:
    header = SMALL
    data = encode(header, random_codes(header, 12))
    size = header.payload_bytes(4) + 12
    start = len(data) - 28 - 3 * size
    first, second = data[start : start + size], data[start + size : start + 2 * size]
    for damaged in (second + first, second, first):
        with pytest.raises(CorruptFile, match="chunk"):
            verify_qvr(io.BytesIO(data[:start] + damaged + data[start + 2 * size :]))


def test_damage_is_named_with_chunk_and_offset_and_what_to_do() -> None:
    data = bytearray(encode(SMALL, random_codes(SMALL, 12)))
    size = SMALL.payload_bytes(4) + 12
    offset = len(data) - 28 - 2 * size
    data[offset + 15] ^= 4
    with pytest.raises(CorruptFile, match=rf"a\.qvr is damaged: chunk 1 at byte {offset}: .*encode the audio again"):
        verify_qvr(io.BytesIO(bytes(data)), "a.qvr")


def test_a_valid_checksum_does_not_excuse_a_code_outside_the_vocabulary() -> None:
    wide = make_header(codebooks=1, vocab=1024)
    narrow = make_header(codebooks=1, vocab=1000)  # as many bits, fewer values
    body = encode(wide, np.array([[[5, 1001, 7]]]))
    start = len(encode(wide, random_codes(wide, 0))) - 28
    forged = encode(narrow, random_codes(narrow, 0))[:-28] + body[start:]
    with pytest.raises(CorruptFile, match="code 1001 in a vocabulary of 1000"):
        verify_qvr(io.BytesIO(forged))


def test_a_forged_length_cannot_make_the_reader_allocate() -> None:
    data = encode(SMALL, random_codes(SMALL, 4))
    start = len(data) - 28 - 12 - SMALL.payload_bytes(4)
    forged = data[:start] + b"\xff\xff\xff\x7f" + data[start + 4 :]
    with pytest.raises(CorruptFile, match="impossible size"):
        verify_qvr(io.BytesIO(forged))


def test_chunks_are_read_as_they_come_and_writing_holds_less_than_a_chunk() -> None:
    header = make_header(chunk_frames=5)
    codes = random_codes(header, 12)
    data = encode(header, codes)
    cut = data[: len(data) - 28 - 12 - header.payload_bytes(2)]
    reader = QvrReader(io.BytesIO(cut))
    stream = iter(reader)
    assert np.array_equal(next(stream), codes[:, :, :5])
    assert np.array_equal(next(stream), codes[:, :, 5:10])
    with pytest.raises(CorruptFile, match="chunk 2 "):
        next(stream)
    file = io.BytesIO()
    writer = QvrWriter(file, header)
    before = file.tell()
    writer.write(codes[:, :, :11])
    assert file.tell() - before == 2 * (12 + header.payload_bytes(5))


def test_a_pipe_that_hands_out_single_bytes_is_read() -> None:
    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size, 1) if size and size > 0 else size)

    codes = random_codes(SMALL, 9)
    assert np.array_equal(read_qvr(Dribble(encode(SMALL, codes)))[1], codes)


def test_totals_must_agree_with_the_header_and_with_each_other() -> None:
    header = make_header(samples=24000, frames=25)
    codes = random_codes(header, 25)
    assert write_qvr(io.BytesIO(), header, [codes]) == 25
    with pytest.raises(BadInput, match="where the header says"):
        write_qvr(io.BytesIO(), header, [codes[:, :, 1:]])
    with pytest.raises(BadInput, match="cannot hold"):
        encode(make_header(), codes, samples=24001)


@pytest.mark.parametrize(
    "codes",
    [
        np.full((1, 8, 2), 1024),
        np.full((1, 8, 2), -1),
        np.zeros((1, 7, 2), dtype=np.int64),
        np.zeros((2, 8, 2), dtype=np.int64),
        np.zeros((8, 2), dtype=np.int64),
        np.zeros((1, 8, 2), dtype=np.float32),
    ],
)
def test_codes_that_do_not_fit_the_header_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(BadInput):
        QvrWriter(io.BytesIO(), make_header()).write(codes)


def test_a_writer_that_was_not_finished_is_an_error_and_leaves_a_file_known_to_be_cut() -> None:
    file = io.BytesIO()
    with pytest.raises(RuntimeError, match="finish"), QvrWriter(file, SMALL) as writer:
        writer.write(random_codes(SMALL, 9))
    with pytest.raises(CorruptFile, match="bytes short"):
        verify_qvr(io.BytesIO(file.getvalue()))


def test_other_files_and_later_versions_get_their_own_message() -> None:
    data = bytearray(encode(SMALL, random_codes(SMALL, 3)))
    data[8] = 3
    with pytest.raises(CorruptFile, match="version 3"):
        verify_qvr(io.BytesIO(bytes(data)))
    with pytest.raises(CorruptFile, match=r"not a \.qvr file"):
        verify_qvr(io.BytesIO(b"RIFF" + bytes(100)))
    with pytest.raises(CorruptFile):
        verify_qvr(io.BytesIO(b""))
