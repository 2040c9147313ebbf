"""Entropy coding of codes: frequency tables of integers, and a range coder in integer arithmetic.

A decoder must follow its encoder exactly, or everything after the first difference is lost: EnCodec's `--lm` files,
whose probabilities came out of a float softmax, do not decode on other hardware (encodec issues 85 and 94). Here the
model of the codes is a table of integers that lies beside the codec's weights (`entropy.safetensors`), and no float is
touched between a code and its bits: a file decodes the same with any number of threads, in any dtype, on any machine.

A code is foretold by two contexts: the class of the same level's code one frame before, and the class of the code one
level below in the same frame (for the first level, the former once more); the shares of both rows are added. Classes
are a few groups of codes with similar vectors, also stored as integers. Each chunk starts anew.

The coder is the range coder of Martin (1979) with the carry resolved in the bytes already written. Packages of entropy
coders exist (`constriction`), but they take probabilities as floats, which is what must not enter a file format.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput, ConfigError, CorruptFile, MissingFile

if TYPE_CHECKING:
    from .base import Codec

__all__ = [
    "ENTROPY_FILE",
    "EntropyTables",
    "classes_of",
    "code_vectors",
    "fit_tables",
    "load_tables",
    "most_bytes",
    "save_tables",
]

ENTROPY_FILE = "entropy.safetensors"
_ROW = 1 << 16
"""Every row of frequencies adds up to this."""
_PRECISION = 17
_TOTAL = 1 << _PRECISION
"""Two rows together."""
MAX_VOCAB = 1 << 14
"""Larger ones would have less than four counts a code."""
_TOP, _BOTTOM = 1 << 32, 1 << 24


class EntropyTables:
    """How often each code follows a context, in integers.

    Args:
        frequencies: uint16 `[2, codebook, class, vocab]`, at least 1 each, given the class of the code before and of
            the code below; a row adds up to 65536.
        classes: uint8 `[codebook, vocab]`, the class of each code.

    Raises:
        CorruptFile: they are not such tables.
    """

    def __init__(self, frequencies: np.ndarray, classes: np.ndarray) -> None:
        if frequencies.dtype != np.uint16 or frequencies.ndim != 4 or classes.dtype != np.uint8:
            raise CorruptFile("entropy tables must be uint16 [2, codebook, class, vocab] with uint8 classes; fit anew")
        pair, self.codebooks, count, self.vocab = frequencies.shape
        if pair != 2 or classes.shape != (self.codebooks, self.vocab) or not 2 <= self.vocab <= MAX_VOCAB:
            raise CorruptFile("the classes of the entropy tables do not fit their frequencies; fit them anew")
        if int(classes.max(initial=0)) >= count or not frequencies.all():
            raise CorruptFile("entropy tables must have a row for every class and no zeros; fit them anew")
        if (frequencies.sum(3, dtype=np.int64) != _ROW).any():
            raise CorruptFile(f"rows of entropy tables must add up to {_ROW}; fit them anew")
        self.frequencies, self.classes = frequencies, classes
        self._classes: list[list[int]] = classes.tolist()
        self._starts: dict[tuple[int, int, int], list[int]] = {}

    @property
    def mark(self) -> str:
        """What a file says of the tables that it needs: the start of their SHA-256 (short files need short headers)."""
        shape = np.array([*self.frequencies.shape], "<i8").tobytes()
        little = self.frequencies.astype("<u2").tobytes()
        return hashlib.sha256(shape + little + self.classes.tobytes()).hexdigest()[:16]

    def encode(self, codes: np.ndarray) -> bytes:
        """Codes int `[channel, codebook, frame]` of a chunk, frame after frame -> bytes. At most as many codebooks as
        the tables have."""
        coder = _Encoder()
        for channel in codes.tolist():
            before = [0] * len(channel)
            for frame in zip(*channel, strict=True):
                below = before[0]
                for level, code in enumerate(frame):
                    one, other = self._row(0, level, before[level]), self._row(1, level, below)
                    start = one[code] + other[code]
                    coder.put(start, one[code + 1] + other[code + 1] - start)
                    below = before[level] = self._classes[level][code]
        return coder.finish()

    def decode(self, payload: bytes, channels: int, codebooks: int, frames: int) -> np.ndarray:
        """The inverse: int64 `[channel, codebook, frame]`.

        Raises:
            ValueError: the payload does not end where its codes end.
        """
        coder, out = _Decoder(payload), np.empty((channels, codebooks, frames), np.int64)
        for channel in range(channels):
            before = [0] * codebooks
            for frame in range(frames):
                below = before[0]
                for level in range(codebooks):
                    code = coder.get(self._row(0, level, before[level]), self._row(1, level, below))
                    out[channel, level, frame] = code
                    below = before[level] = self._classes[level][code]
        coder.finish()
        return out

    def _row(self, which: int, level: int, context: int) -> list[int]:
        """Where each code's share begins, and at last the total."""
        key = (which, level, context)
        row = self._starts.get(key)
        if row is None:
            row = [0, *np.cumsum(self.frequencies[key], dtype=np.int64).tolist()]
            self._starts[key] = row
        return row


def most_bytes(codes: int) -> int:
    """No payload of so many codes is longer: a share is at least two of 2**17."""
    return codes * _PRECISION // 8 + 8


class _Encoder:
    def __init__(self) -> None:
        self._out = bytearray()
        self._low, self._range = 0, _TOP - 1

    def put(self, start: int, share: int) -> None:
        unit = self._range >> _PRECISION
        self._low += unit * start
        self._range = unit * share
        if self._low >= _TOP:
            self._carry()
        while self._range < _BOTTOM:
            self._out.append(self._low >> 24)
            self._low = self._low << 8 & _TOP - 1
            self._range <<= 8

    def _carry(self) -> None:
        self._low -= _TOP
        place = len(self._out) - 1
        while self._out[place] == 255:
            self._out[place] = 0
            place -= 1
        self._out[place] += 1

    def finish(self) -> bytes:
        """The shortest bytes within the last interval; a decoder reads zeros after the end."""
        for length in range(5):
            step = _TOP >> 8 * length
            value = -(-self._low // step) * step
            if value < self._low + self._range:
                self._low = value
                break
        if self._low >= _TOP:
            self._carry()
        return bytes(self._out + self._low.to_bytes(4, "big")).rstrip(b"\0")


class _Decoder:
    def __init__(self, payload: bytes) -> None:
        self._payload, self._place = payload, 4
        self._code, self._range = int.from_bytes(payload[:4].ljust(4, b"\0"), "big"), _TOP - 1

    def get(self, one: list[int], other: list[int]) -> int:
        unit = self._range >> _PRECISION
        place = min(self._code // unit, _TOTAL - 1)
        code = bisect_right(range(len(one)), place, key=lambda i: one[i] + other[i]) - 1
        start = one[code] + other[code]
        self._code -= unit * start
        self._range = unit * (one[code + 1] + other[code + 1] - start)
        while self._range < _BOTTOM:
            byte = self._payload[self._place] if self._place < len(self._payload) else 0
            self._code = (self._code << 8 | byte) & _TOP - 1
            self._range <<= 8
            self._place += 1
        return code

    def finish(self) -> None:
        if self._place < len(self._payload) or (self._payload and not self._payload[-1]):
            raise ValueError("the payload does not end where its codes end")


def fit_tables(
    codes: Iterable[np.ndarray], codebooks: int, vocab: int, classes: np.ndarray | None = None, smoothing: int = 200
) -> EntropyTables:
    """Counts codes int `[codebook, frame]` of recordings.

    Args:
        classes: int `[codebook, vocab]` (`classes_of`); by default one: only a code's own frequency counts.
        smoothing: how many counts the context-free frequencies are worth in every context.

    Raises:
        BadInput: a vocabulary too large for the tables, or no codes at all.
    """
    if not 2 <= vocab <= MAX_VOCAB:
        raise BadInput(f"entropy tables are for 2 to {MAX_VOCAB} codes, this codec has {vocab}")
    classes = np.zeros((codebooks, vocab), np.uint8) if classes is None else classes.astype(np.uint8)
    counts = np.zeros((2, codebooks, int(classes.max()) + 1, vocab), np.int64)
    for block in codes:
        own = np.take_along_axis(classes, block.astype(np.int64), 1).astype(np.int64)
        before = np.pad(own[:, :-1], ((0, 0), (1, 0)))[:, : block.shape[1]]
        below = np.concatenate([before[:1], own[:-1]])
        for level in range(codebooks):
            np.add.at(counts[0, level], (before[level], block[level]), 1)
            np.add.at(counts[1, level], (below[level], block[level]), 1)
    if not counts.any():
        raise BadInput("there are no codes to count; give recordings")
    return EntropyTables(_quantized(counts, smoothing), classes)


def classes_of(vectors: np.ndarray, count: int = 12) -> np.ndarray:
    """Groups the codes of each level by their vectors `[codebook, vocab, dim]` (k-means): uint8 `[codebook, vocab]`."""
    levels, vocab = vectors.shape[:2]
    classes, rng = np.zeros((levels, vocab), np.uint8), np.random.default_rng(0)
    for level, rows in enumerate(vectors.astype(np.float64)):
        means = rows[rng.choice(vocab, min(count, vocab), replace=False)]
        for _ in range(30):
            label = ((rows[:, None] - means) ** 2).sum(-1).argmin(1)
            for j in np.unique(label):
                means[j] = rows[label == j].mean(0)
        classes[level] = label
    return classes


def code_vectors(codec: Codec) -> np.ndarray | None:
    """What each code stands for, float `[codebook, vocab, dim]`; None where it cannot be told."""
    import torch

    from .quantizers import FSQ, ResidualFSQ, ResidualVQ, SplitVQ

    quantizer = getattr(codec, "quantizer", None)
    if isinstance(quantizer, ResidualVQ):
        return quantizer.codebook.numpy()
    if isinstance(quantizer, SplitVQ):
        return torch.cat([quantizer.semantic.codebook, quantizer.acoustic.codebook]).numpy()
    if isinstance(quantizer, FSQ | ResidualFSQ):
        rows = quantizer.decode(torch.arange(quantizer.vocab)[None, None])[0].T  # every level has the same grid
        return rows.expand(quantizer.codebooks, -1, -1).numpy()
    return None


def _quantized(counts: np.ndarray, smoothing: int) -> np.ndarray:
    """Counts as shares of 65536, none of them zero; integers throughout."""
    vocab = counts.shape[3]
    alone = 2 * counts.sum(2, keepdims=True) + 1
    # Python's integers: the products of counts of many hours do not fit into 64 bits.
    mixed = counts.astype(object) * alone.sum(3, keepdims=True) + smoothing * alone
    shares = (mixed * (_ROW - vocab) // mixed.sum(3, keepdims=True)).astype(np.int64) + 1
    largest = shares.argmax(3)[..., None]
    filled = np.take_along_axis(shares, largest, 3) + _ROW - shares.sum(3, keepdims=True)
    np.put_along_axis(shares, largest, filled, 3)
    return shares.astype(np.uint16)


def save_tables(tables: EntropyTables, folder: Path, weights: str) -> Path:
    """Writes the tables beside a codec's weights, whose SHA-256 they are for."""
    from safetensors.numpy import save_file

    path = folder / ENTROPY_FILE
    save_file({"frequencies": tables.frequencies, "classes": tables.classes}, path, {"weights_sha256": weights})
    return path


def load_tables(folder: Path, weights: str) -> EntropyTables:
    """The tables of the codec in a folder, whose weights have this SHA-256.

    Raises:
        MissingFile: it has none. ConfigError: they are for other weights. CorruptFile: they are damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / ENTROPY_FILE
    if not path.exists():
        raise MissingFile(
            f"{path} is missing: this codec has no entropy tables; fit them with `quaver codec fit-entropy`, "
            "or leave --entropy out"
        )
    try:
        with safe_open(path, "np") as file:
            made_for = (file.metadata() or {}).get("weights_sha256", "")
            frequencies, classes = file.get_tensor("frequencies"), file.get_tensor("classes")
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{path} is damaged ({error}); fit the tables again") from None
    if made_for != weights:
        raise ConfigError(
            f"{path} was fitted to other weights of this codec; fit it again (`quaver codec fit-entropy`)"
        )
    return EntropyTables(frequencies, classes)
