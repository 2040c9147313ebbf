"""Words and phones compared: normalisation, error counts, and sentences that were cut, skipped over or looped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import BadInput, MissingExtra

__all__ = ["ErrorCounts", "compare", "normalise"]

RUN = 3  # words: shorter runs are misheard words, not a failure of the model

# Whisper writes American spelling most of the time, and texts may not: both sides are mapped before they are compared.
# (The reference list of Whisper's normaliser has 1,700 entries and is no part of any package; these are the frequent
# words and the regular endings.)
_BRITISH = {
    "grey": "gray", "plough": "plow", "tyre": "tire", "tyres": "tires", "kerb": "curb", "programme": "program",
    "cheque": "check", "cheques": "checks", "jewellery": "jewelry", "storey": "story", "sceptical": "skeptical",
    "defence": "defense", "offence": "offense", "licence": "license", "practise": "practice", "mum": "mom",
    "aluminium": "aluminum", "moustache": "mustache", "pyjamas": "pajamas", "axe": "ax", "okay": "ok", "mould": "mold",
    "smoulder": "smolder", "travelled": "traveled", "travelling": "traveling", "traveller": "traveler",
    "marvellous": "marvelous", "woollen": "woolen", "centre": "center", "centres": "centers", "theatre": "theater",
    "metre": "meter", "metres": "meters", "litre": "liter", "litres": "liters", "fibre": "fiber", "towards": "toward",
    "realise": "realize", "realised": "realized", "recognise": "recognize", "recognised": "recognized",
    "organise": "organize", "organised": "organized", "apologise": "apologize", "analyse": "analyze",
}  # fmt: skip
_OUR = re.compile(
    r"\b(arm|behavi|col|end?eav|fav|flav|glam|harb|hon|hum|lab|neighb|od|parl|rum|sav|spl?end|vap|vig)our(?!s?e\b|ish)"
)


@lru_cache(maxsize=1)
def _normaliser() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(_BRITISH)


def normalise(text: str) -> str:
    """Text as Whisper's authors compare it: lower case, no punctuation, numbers as digits, contractions spelt out.

    Radford et al. 2022, appendix C. "A six, isn't it?" -> "a 6 is not it".
    """
    return " ".join(_OUR.sub(r"\1or", _normaliser()(text)).split())


@dataclass(frozen=True)
class ErrorCounts:
    """How a hypothesis differs from its reference, in words or phones.

    Attributes:
        errors: substitutions + deletions + insertions.
        length: of the reference.
        cut: the end is missing: three or more deletions after the last word that was right, or nothing was heard.
        skipped: a run of three or more is missing before that.
        looped: a run of three or more was said that the reference does not have.
    """

    errors: int
    length: int
    cut: bool = False
    skipped: bool = False
    looped: bool = False

    @property
    def rate(self) -> float:
        """errors / length, above 1 when much was inserted."""
        return self.errors / self.length

    @property
    def failures(self) -> list[str]:
        return [name for name in ("cut", "skipped", "looped") if getattr(self, name)]


def compare(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """Levenshtein alignment of two token sequences (tokens must hold no spaces).

    Raises:
        BadInput: the reference has no tokens.
        MissingExtra: jiwer is not installed.
    """
    if not reference:
        raise BadInput("the reference has no words to compare with; give the text that was spoken")
    if not hypothesis:
        return ErrorCounts(len(reference), len(reference), cut=True)
    try:
        import jiwer
    except ImportError:
        raise MissingExtra("word error rates need jiwer: pip install 'quaver[eval]'") from None
    steps = jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]
    runs = [(s.type, max(s.ref_end_idx - s.ref_start_idx, s.hyp_end_idx - s.hyp_start_idx)) for s in steps]
    last_hit = max((i for i, (tag, _) in enumerate(runs) if tag == "equal"), default=-1)
    tail = sum(n for tag, n in runs[last_hit + 1 :] if tag == "delete")
    return ErrorCounts(
        errors=sum(n for tag, n in runs if tag != "equal"),
        length=len(reference),
        cut=tail >= RUN,
        skipped=any(tag == "delete" and n >= RUN for tag, n in runs[: last_hit + 1]),
        looped=any(tag == "insert" and n >= RUN for tag, n in runs),
    )
