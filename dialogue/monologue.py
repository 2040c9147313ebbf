"""The inner monologue: words of the text stream, and where they stand in it (Moshi, section 3.4.4).

A word's tokens begin at the frame in which it is heard and follow one another; EPAD stands in the frame before it, PAD
everywhere else. A word that begins before the tokens of the last one are through waits for them (nothing is dropped).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import BadInput, CorruptFile, MissingExtra, MissingFile

__all__ = [
    "PieceVocabulary",
    "SentencePieces",
    "TimedWord",
    "Vocabulary",
    "load_vocabulary",
    "monologue",
    "words_heard",
]

TimedWord = tuple[str, float, float]
"""A word with its start and end in seconds."""


class Vocabulary(Protocol):
    """Text tokens of a duplex model."""

    size: int
    pad: int
    epad: int

    def encode(self, word: str) -> list[int]:
        """Tokens of one word; at least one."""
        ...

    def decode(self, token: int) -> str:
        """What a token adds to the text, a leading space included where a word begins; "" for PAD and EPAD."""
        ...


class PieceVocabulary:
    """Whole words where they are known, else their letters. Words are compared in lower case, without marks at their
    ends.

    Args:
        words: known words. Ids: EPAD 0, PAD 1, then letters (beginning a word, then within one), then words.
    """

    epad, pad = 0, 1
    _LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789'-"

    def __init__(self, words: Sequence[str]) -> None:
        letters = [" " + c for c in self._LETTERS] + list(self._LETTERS)
        whole = list(dict.fromkeys(" " + clean_word(w) for w in words if clean_word(w)))
        self.pieces = ["", "", *letters, *(w for w in whole if w not in letters)]
        self._ids = {piece: i for i, piece in enumerate(self.pieces) if piece}
        self.size = len(self.pieces)
        self.words = tuple(w[1:] for w in whole)

    @classmethod
    def of_texts(cls, texts: Iterable[str], most: int) -> PieceVocabulary:
        """The `most` frequent words of texts."""
        counts = Counter(clean_word(w) for text in texts for w in text.split())
        return cls([w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most] if w])

    def encode(self, word: str) -> list[int]:
        """Raises BadInput: a letter that the vocabulary lacks, or no letter at all."""
        plain = clean_word(word)
        if known := self._ids.get(" " + plain):
            return [known]
        odd = sorted(set(plain) - set(self._LETTERS))
        if odd or not plain:
            raise BadInput(f"the word {word!r} cannot be written in this model's text; use letters, digits, ' and -")
        return [self._ids[(" " if i == 0 else "") + c] for i, c in enumerate(plain)]

    def decode(self, token: int) -> str:
        """Raises BadInput: no such token."""
        if not 0 <= token < self.size:
            raise BadInput(f"{token} is no text token; there are {self.size}")
        return self.pieces[token]

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps({"words": self.words}, ensure_ascii=False, indent=1))


class SentencePieces:
    """A SentencePiece model, as Moshi's checkpoints bring along (`tokenizer_spm_32k_3.model`)."""

    def __init__(self, path: Path, pad: int = 3, epad: int = 0) -> None:
        try:
            from sentencepiece import SentencePieceProcessor  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtra("Moshi's text needs sentencepiece; run: pip install 'quaver[moshi]'") from error
        if not path.is_file():
            raise MissingFile(f"there is no SentencePiece model {path}")
        try:
            self._model = SentencePieceProcessor(str(path))
        except (RuntimeError, OSError) as error:
            raise CorruptFile(
                f"{path} is no SentencePiece model ({str(error).splitlines()[0]}); fetch it again"
            ) from None
        self.size, self.pad, self.epad = self._model.get_piece_size(), pad, epad

    def encode(self, word: str) -> list[int]:
        tokens = self._model.encode(word)
        if not tokens:
            raise BadInput(f"the word {word!r} has no tokens")
        return list(tokens)

    def decode(self, token: int) -> str:
        if not 0 <= token < self.size:
            raise BadInput(f"{token} is no text token; there are {self.size}")
        return "" if token in (self.pad, self.epad) else self._model.id_to_piece(token).replace("▁", " ")


def load_vocabulary(folder: Path) -> Vocabulary:
    """`vocabulary.json` of a model folder, else its SentencePiece model.

    Raises:
        MissingFile, CorruptFile: neither is there, or not what it should be.
    """
    path = folder / "vocabulary.json"
    if path.exists():
        try:
            return PieceVocabulary([str(word) for word in json.loads(path.read_text())["words"]])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{path} is no vocabulary ({error}); fetch the model again") from None
    for model in sorted(folder.glob("tokenizer*.model")):
        return SentencePieces(model)
    raise MissingFile(f"{folder} has no vocabulary.json; fetch the model again")


def clean_word(word: str) -> str:
    """Lower case, with the marks at its ends taken off and curly apostrophes made straight."""
    return word.lower().replace("’", "'").strip(" \t\n.,;:!?…—–-\"'“”‘()[]{}")


def monologue(words: Sequence[TimedWord], frames: int, rate: Fraction | float, vocabulary: Vocabulary) -> Tensor:
    """The text stream LongTensor `[frames]` for words in order of time; what comes after the last frame is cut off."""
    stream = torch.full((frames,), vocabulary.pad)
    free = 0
    for text, start, _ in words:
        tokens = vocabulary.encode(text)
        first = max(int(start * rate), free)
        if first >= 1 and first - 1 >= free and first - 1 < frames:
            stream[first - 1] = vocabulary.epad
        free = first + len(tokens)
        for i, token in enumerate(tokens[: max(0, frames - first)]):
            stream[first + i] = token
    return stream


def words_heard(stream: Sequence[int], rate: Fraction | float, vocabulary: Vocabulary) -> list[TimedWord]:
    """The words of a text stream with the times of their tokens: what `monologue` wrote, on the grid of frames."""
    words: list[TimedWord] = []
    for frame, token in enumerate(stream):
        piece = vocabulary.decode(int(token))
        if not piece:
            continue
        end = float((frame + 1) / rate)
        if piece.startswith(" ") or not words:
            words.append((piece.strip(), float(frame / rate), end))
        else:
            text, start, _ = words[-1]
            words[-1] = (text + piece, start, end)
    return words
