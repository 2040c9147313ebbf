"""Text front end: English text -> sentences -> phones with word spans."""

from __future__ import annotations

from dataclasses import dataclass

from .phones import (
    BASE_IDS,
    BASE_PHONES,
    PAD,
    PAUSES,
    PHONE_IDS,
    PHONES,
    SENTENCE_ENDS,
    START,
    base_id,
    is_pause,
    is_vowel,
    phone_id,
    phones_from_misaki,
    strip_stress,
)

__all__ = [
    "BASE_IDS", "BASE_PHONES", "PAD", "PAUSES", "PHONES", "PHONE_IDS", "SENTENCE_ENDS", "START", "WordSpan",
    "base_id", "is_pause", "is_vowel", "phone_id", "phones_from_misaki", "strip_stress",
]


@dataclass(frozen=True)
class WordSpan:
    """A word as the text has it (no punctuation) and its half-open range of phones."""

    text: str
    start: int
    end: int
