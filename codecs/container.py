"""The .qvr file: codes of a codec, bit-packed and checksummed, written and read as a stream in constant memory.

Layout, all integers little endian (docs/container.md has the table):

    magic 8 bytes | version u8 | header length u32 | header JSON | CRC-32 of everything so far u32
    chunk: payload length u32 | frames u32 | CRC-32 of chunk number, both and the payload u32 | payload
    ...
    end:   0 u32 | 0 u32 | CRC-32 of chunk number, both and the totals u32 | samples u64 | frames u64

A payload holds its frames one after another; a frame holds channel after channel, a channel codebook after codebook,
a code is `bits` bits, most significant first. So a prefix of chunks can be decoded while the rest is still on its way.
The totals stand in the header when they are known before the first chunk, and always at the end: a pipe can be written,
and a file without its end is known to be cut. Counts are integers, the frame rate is an exact fraction.

A file of version 2 is entropy coded: its header names the tables (`tables`), its payloads are those of
`entropy.EntropyTables`, integers throughout; all else is the same. Files without it stay version 1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pydantic

from ..errors import BadInput, CorruptFile
from .entropy import EntropyTables, most_bytes

MAGIC = b"\x89QVR\r\n\x1a\n"  # as PNG's: a transfer that changes line ends or strips bit 8 is seen at once
PACKED, CODED = 1, 2
"""Versions: every code in so many bits, or entropy coded."""
MAX_HEADER_BYTES = 1 << 16
MAX_VOCAB = 1 << 24
DEFAULT_CHUNK_FRAMES = 50

_PREFIX = struct.Struct("<8sBI")
_CHUNK = struct.Struct("<III")
_TOTALS = struct.Struct("<QQ")
_CRC = struct.Struct("<I")


class QvrHeader(pydantic.BaseModel):
    """What a decoder must know before the first chunk. Frozen; unknown keys are refused.

    `samples` and `frames` count one channel, `samples` at `sample_rate`; None while they are unknown (a pipe).
    `rate_num / rate_den` is the frame rate in Hz, `chunk_frames` the frames of every chunk but the last.
    `tables` names the tables that an entropy coded file needs; None: its codes are packed.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str = pydantic.Field(min_length=1, max_length=1000)
    weights_sha256: str = pydantic.Field(pattern=r"^([0-9a-f]{64})?$")
    sample_rate: int = pydantic.Field(ge=1, le=1_000_000)
    channels: int = pydantic.Field(ge=1, le=8)
    codebooks: int = pydantic.Field(ge=1, le=256)
    vocab: int = pydantic.Field(ge=1, le=MAX_VOCAB)
    rate_num: int = pydantic.Field(ge=1, le=1 << 31)
    rate_den: int = pydantic.Field(ge=1, le=1 << 31)
    chunk_frames: int = pydantic.Field(default=DEFAULT_CHUNK_FRAMES, ge=1, le=1 << 16)
    samples: int | None = pydantic.Field(default=None, ge=0, lt=1 << 63)
    frames: int | None = pydantic.Field(default=None, ge=0, lt=1 << 63)
    tables: str | None = pydantic.Field(default=None, pattern=r"^[0-9a-f]{16}$")

    @property
    def version(self) -> int:
        return PACKED if self.tables is None else CODED

    @property
    def rate(self) -> Fraction:
        """Frames per second, exact."""
        return Fraction(self.rate_num, self.rate_den)

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return max(1, (self.vocab - 1).bit_length())

    @property
    def frame_bits(self) -> int:
        """Bits of one frame of all channels."""
        return self.bits * self.codebooks * self.channels

    @property
    def bitrate(self) -> Fraction:
        """Nominal bits per second of all channels, without header and checksums."""
        return self.frame_bits * self.rate

    def payload_bytes(self, frames: int) -> int:
        """Bytes that `frames` frames occupy in one chunk, packed."""
        return (frames * self.frame_bits + 7) // 8

    def payload_fits(self, length: int, frames: int) -> bool:
        """Whether a chunk of so many frames can be so long."""
        if self.tables is None:
            return length == self.payload_bytes(frames)
        return length <= most_bytes(frames * self.codebooks * self.channels)

    def with_totals(self, samples: int, frames: int) -> QvrHeader:
        return self.model_copy(update={"samples": samples, "frames": frames})


def qvr_size(header: QvrHeader, frames: int) -> int:
    """Exact size in bytes of a packed file with this header and so many frames."""
    whole, rest = divmod(frames, header.chunk_frames)
    chunks = whole + bool(rest)
    payload = whole * header.payload_bytes(header.chunk_frames) + header.payload_bytes(rest)
    return len(_header_bytes(header)) + payload + (chunks + 1) * _CHUNK.size + _TOTALS.size


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Integers [n] below 2**bits -> bytes, `bits` bits each, most significant first, zero-filled to a whole byte."""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    planes = (codes.astype(np.uint32)[:, None] >> shifts) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1)).tobytes()


def unpack_codes(payload: bytes, count: int, bits: int) -> np.ndarray:
    """The inverse of `pack_codes`: int64 [count]. ValueError if the fill bits are not zero or bytes are missing."""
    flat = np.unpackbits(np.frombuffer(payload, dtype=np.uint8))
    if flat.size < count * bits or flat[count * bits :].any():
        raise ValueError("the payload does not end where its codes end")
    weights = np.left_shift(np.int64(1), np.arange(bits - 1, -1, -1, dtype=np.int64))
    return flat[: count * bits].reshape(count, bits).astype(np.int64) @ weights


class QvrWriter:
    """Writes codes as they come; keeps less than one chunk in memory. `file` needs only `write`.

    With `tables` the codes are entropy coded; they must be those that the header names. `bytes` counts what was
    written.

    Use as a context manager and call `finish(samples)`; a writer that is left without `finish` leaves a file that
    every reader reports as cut, which is what it is.
    """

    def __init__(self, file: BinaryIO, header: QvrHeader, tables: EntropyTables | None = None) -> None:
        _check_tables(header, tables)
        self.header = header
        self.frames = 0
        self.bytes = 0
        self._tables = tables
        self._file = file
        self._chunk = 0
        self._pending: list[np.ndarray] = []
        self._pending_frames = 0
        self._finished = False
        self._put(_header_bytes(header))

    def __enter__(self) -> QvrWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._finished:
            raise RuntimeError("QvrWriter was left without finish(samples)")

    def write(self, codes: Any) -> None:
        """Append codes [channels, codebooks, frames] (numpy or a CPU tensor), any number of frames.

        Raises BadInput if the shape is not the header's or a value is not in 0..vocab-1.
        """
        block = np.asarray(codes)
        wanted = (self.header.channels, self.header.codebooks)
        if block.ndim != 3 or block.shape[:2] != wanted or block.dtype.kind not in "iu":
            raise BadInput(
                f"codes must be integers [{wanted[0]}, {wanted[1]}, frames], not {block.dtype} {block.shape}"
            )
        if block.size and not (int(block.min()) >= 0 and int(block.max()) < self.header.vocab):
            raise BadInput(f"codes must lie in 0..{self.header.vocab - 1}, found {block.min()}..{block.max()}")
        self._pending.append(block.astype(np.uint32))
        self._pending_frames += block.shape[2]
        while self._pending_frames >= self.header.chunk_frames:
            self._emit(self.header.chunk_frames)

    def finish(self, samples: int) -> None:
        """Write the last chunk and the end. `samples` per channel is the length to which a decoder must trim.

        Raises BadInput if the frames cannot hold so many samples, or the header promised other totals.
        """
        if self._pending_frames:
            self._emit(self._pending_frames)
        problem = _check_totals(self.header, samples, self.frames)
        if problem:
            raise BadInput(problem)
        self._write_record(0, 0, _TOTALS.pack(samples, self.frames))
        self._finished = True

    def _emit(self, frames: int) -> None:
        joined = np.concatenate(self._pending, axis=2)
        block, rest = joined[:, :, :frames], joined[:, :, frames:]
        self._pending = [rest] if rest.shape[2] else []
        self._pending_frames = rest.shape[2]
        if self._tables is None:
            payload = pack_codes(block.transpose(2, 0, 1).reshape(-1), self.header.bits)
        else:
            payload = self._tables.encode(block)
        self._write_record(len(payload), frames, payload)
        self.frames += frames
        self._chunk += 1

    def _write_record(self, length: int, frames: int, payload: bytes) -> None:
        self._put(_CHUNK.pack(length, frames, _record_crc(self._chunk, length, frames, payload)) + payload)

    def _put(self, part: bytes) -> None:
        self._file.write(part)
        self.bytes += len(part)


class QvrReader:
    """Reads and verifies a .qvr file; iterate over it for int64 codes [channels, codebooks, frames], chunk by chunk.

    `file` needs only `read`. `header` is there at once; `samples` and `frames` are None until they are known, and sure
    once the iteration has ended; `bytes` counts what was read. Raises CorruptFile that names the place of the damage.

    Args:
        tables: finds the tables of an entropy coded file by its header.

    Raises:
        BadInput: no tables, or not those that the file names.
    """

    def __init__(
        self, file: BinaryIO, name: str = "the file", tables: Callable[[QvrHeader], EntropyTables] | None = None
    ) -> None:
        self._file = file
        self._find = tables
        self._name = name
        self._offset = 0
        self.header = self._read_header()
        self.samples = self.header.samples
        self.frames = self.header.frames

    @property
    def bytes(self) -> int:
        return self._offset

    def __iter__(self) -> Iterator[np.ndarray]:
        tables = None
        if self.header.tables is not None:
            tables = self._find(self.header) if self._find else None
            _check_tables(self.header, tables)
        for payload, frames, place in self.chunks():
            yield self._codes(payload, frames, place, tables)

    def chunks(self) -> Iterator[tuple[bytes, int, str]]:
        """Every payload as it stands, its frames, and where it lies; checked against its checksum."""
        number, seen, short = 0, 0, False
        while True:
            start = self._offset
            place = f"chunk {number} at byte {start}"
            length, frames, crc = _CHUNK.unpack(self._read(_CHUNK.size, place))
            if length == 0 and frames == 0:
                self._read_end(number, crc, seen, place)
                return
            if short or not 1 <= frames <= self.header.chunk_frames or not self.header.payload_fits(length, frames):
                raise self._corrupt(place, f"impossible size ({length} bytes, {frames} frames)")
            payload = self._read(length, place)
            if _record_crc(number, length, frames, payload) != crc:
                raise self._corrupt(place, "checksum does not match")
            yield payload, frames, place
            short = frames < self.header.chunk_frames
            seen += frames
            number += 1

    def _codes(self, payload: bytes, frames: int, place: str, tables: EntropyTables | None) -> np.ndarray:
        shape = (frames, self.header.channels, self.header.codebooks)
        try:
            if tables is not None:
                return tables.decode(payload, *shape[1:], frames)
            flat = unpack_codes(payload, frames * shape[1] * shape[2], self.header.bits)
        except ValueError as error:
            raise self._corrupt(place, str(error)) from None
        if int(flat.max()) >= self.header.vocab:
            raise self._corrupt(place, f"code {int(flat.max())} in a vocabulary of {self.header.vocab}")
        return np.ascontiguousarray(flat.reshape(shape).transpose(1, 2, 0))

    def _read_end(self, number: int, crc: int, seen: int, place: str) -> None:
        payload = self._read(_TOTALS.size, place)
        if _record_crc(number, 0, 0, payload) != crc:
            raise self._corrupt(place, "checksum of the end does not match")
        samples, frames = _TOTALS.unpack(payload)
        problem = f"{seen} frames where {frames} were promised" if frames != seen else None
        problem = problem or _check_totals(self.header, samples, frames)
        if problem:
            raise self._corrupt(place, problem)
        if self._file.read(1):
            raise self._corrupt(f"byte {self._offset}", "there is data after the end")
        self.samples, self.frames = samples, frames

    def _read_header(self) -> QvrHeader:
        prefix = self._read(_PREFIX.size, "the first bytes")
        magic, version, length = _PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise CorruptFile(
                f"{self._name} is not a .qvr file (or its first bytes are damaged); encode the audio again"
            )
        if version not in (PACKED, CODED):
            raise CorruptFile(
                f"{self._name} has .qvr version {version}, this quaver reads versions {PACKED} and {CODED}; "
                "use the quaver that wrote it, or encode the audio again"
            )
        if length > MAX_HEADER_BYTES:
            raise self._corrupt("the header", f"impossible length {length}")
        text = self._read(length, "the header")
        (crc,) = _CRC.unpack(self._read(_CRC.size, "the header"))
        if zlib.crc32(prefix + text) != crc:
            raise self._corrupt("the header", "checksum does not match")
        try:
            header = QvrHeader.model_validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise self._corrupt("the header", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if header.version != version:
            raise self._corrupt("the header", f"version {version} does not go with tables")
        return header

    def _read(self, size: int, place: str) -> bytes:
        """Exactly `size` bytes; a pipe may hand them out in pieces."""
        parts: list[bytes] = []
        missing = size
        while missing:
            part = self._file.read(missing)
            if not part:
                at = self._offset + size - missing
                raise self._corrupt(place, f"the file ends at byte {at}, {missing} bytes short")
            parts.append(part)
            missing -= len(part)
        self._offset += size
        return b"".join(parts)

    def _corrupt(self, place: str, problem: str) -> CorruptFile:
        return CorruptFile(f"{self._name} is damaged: {place}: {problem}; encode the audio again")


def write_qvr(file: BinaryIO, header: QvrHeader, blocks: Iterable[Any]) -> int:
    """Write blocks of codes [channels, codebooks, frames] under a header that knows its `samples`; returns the frames.

    Raises BadInput for codes that do not fit the header.
    """
    if header.samples is None:
        raise BadInput("write_qvr needs header.samples; use QvrWriter when the length is not known beforehand")
    with QvrWriter(file, header) as writer:
        for block in blocks:
            writer.write(block)
        writer.finish(header.samples)
        return writer.frames


def read_qvr(
    file: BinaryIO, name: str = "the file", tables: Callable[[QvrHeader], EntropyTables] | None = None
) -> tuple[QvrHeader, np.ndarray]:
    """The whole file: header with its totals, and int64 codes [channels, codebooks, frames]. Raises CorruptFile."""
    reader = QvrReader(file, name, tables)
    blocks = list(reader)
    header = reader.header.with_totals(reader.samples or 0, reader.frames or 0)
    empty = np.zeros((header.channels, header.codebooks, 0), dtype=np.int64)
    return header, np.concatenate([empty, *blocks], axis=2)


def verify_qvr(file: BinaryIO, name: str = "the file") -> QvrHeader:
    """Read everything, keep nothing: the header with its totals. Raises CorruptFile at the first damage."""
    return verified(QvrReader(file, name))


def verified(reader: QvrReader) -> QvrHeader:
    """As `verify_qvr`. Entropy coded payloads are checked by their checksums alone: their tables are not asked for."""
    for _ in reader.chunks() if reader.header.tables else reader:
        pass
    return reader.header.with_totals(reader.samples or 0, reader.frames or 0)


def _header_bytes(header: QvrHeader) -> bytes:
    text = header.model_dump_json(exclude={"tables"} if header.version == PACKED else None).encode()
    start = _PREFIX.pack(MAGIC, header.version, len(text)) + text
    return start + _CRC.pack(zlib.crc32(start))


def _record_crc(number: int, length: int, frames: int, payload: bytes) -> int:
    """The chunk's number is in the sum, though not in the file: two chunks that changed places are found out."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<QII", number, length, frames)))


def _check_totals(header: QvrHeader, samples: int, frames: int) -> str | None:
    if header.samples not in (None, samples) or header.frames not in (None, frames):
        return f"{samples} samples in {frames} frames, where the header says {header.samples} in {header.frames}"
    if samples * header.rate_num > frames * header.rate_den * header.sample_rate:
        return f"{frames} frames cannot hold {samples} samples"
    return None


def _check_tables(header: QvrHeader, tables: EntropyTables | None) -> None:
    if header.tables is None and tables is None:
        return
    found = None if tables is None else tables.mark
    if tables is None or found != header.tables:
        raise BadInput(
            f"the file is entropy coded with the tables {header.tables} of {header.model}, "
            f"here are {found}; use the codec folder that it was made with"
        )
    if tables.vocab != header.vocab or tables.codebooks < header.codebooks:
        raise BadInput("the entropy tables are for codes of another kind; use the codec folder that the file names")
