"""The phone alphabet that every quaver voice shares, and the one road from a G2P string into it.

The alphabet follows misaki's (hexgrad, Apache-2.0): one character a phone, diphthongs and affricates included
(`A` as in day, `I` as in my, `O`/`Q` as in go, US/GB, `W` as in now, `Y` as in boy, `ʤ`, `ʧ`, `T` = the flapped t of
"water"). Two things differ, because a model wants one index per sound: the stress mark is folded into its vowel
("ˈæ", "ˌæ", "æ" are three symbols), and so is British length ("iː" is one symbol).

The order of `PHONES` and `BASE_PHONES` is frozen: models store indices. New symbols go to the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import MappingProxyType

from ..errors import BadInput

__all__ = [
    "BASE_IDS",
    "BASE_PHONES",
    "CONSONANTS",
    "PAD",
    "PAUSES",
    "PHONES",
    "PHONE_IDS",
    "SENTENCE_ENDS",
    "START",
    "VOWELS",
    "base_id",
    "is_pause",
    "is_vowel",
    "misaki_from_espeak",
    "parse_misaki",
    "phone_weight",
    "phone_id",
    "phones_from_misaki",
    "strip_stress",
    "unknown_symbols",
]

PAD, START = "_", "^"
SENTENCE_ENDS = (".", "?", "!")
PAUSES = (",", *SENTENCE_ENDS)
CONSONANTS = tuple("bdfhjklmnpstvwzðŋɡɹTʃʒʤʧθ")
VOWELS = (*"AIOQWYaiuæɑɒɔəɛɜɪʊʌɐᵊᵻ", "iː", "uː", "ɑː", "ɔː", "ɜː", "ɛː", "əː")
PRIMARY, SECONDARY, LONG = "ˈ", "ˌ", "ː"

PHONES: tuple[str, ...] = (
    PAD,
    START,
    *PAUSES,
    *CONSONANTS,
    *(mark + vowel for vowel in VOWELS for mark in ("", PRIMARY, SECONDARY)),
)
"""Every symbol that a model can meet; the index is the id. 0 is padding, 1 the silence before an utterance."""

BASE_PHONES: tuple[str, ...] = (PAD, START, *PAUSES, *CONSONANTS, *VOWELS)
"""`PHONES` without the stressed variants: what the CTC recogniser tells apart."""

PHONE_IDS = MappingProxyType({symbol: index for index, symbol in enumerate(PHONES)})
BASE_IDS = MappingProxyType({symbol: index for index, symbol in enumerate(BASE_PHONES)})

_VOWELS, _CONSONANTS, _PAUSES = frozenset(VOWELS), frozenset(CONSONANTS), frozenset(PAUSES)
_PAUSE_IDS = frozenset(PHONE_IDS[symbol] for symbol in (START, *PAUSES))
PAUSE_WEIGHT = 4.0
"""A pause lasts about as long as so many phones."""
_RANK = {",": 0, ".": 1, "!": 2, "?": 3}
_PAUSE_OF = {
    ",": ",",
    ";": ",",
    ":": ",",
    "—": ",",
    "–": ",",
    "…": ",",
    "(": ",",
    ")": ",",
    "[": ",",
    "]": ",",
    "¿": ",",
    "¡": ",",
    ".": ".",
    "?": "?",
    "!": "!",
}
# Symbols of other IPA conventions (overrides typed by a user, the G2P's net for unknown words) and their nearest here.
# The G2P itself writes a glottal stop as t, so a separate ʔ would be a symbol that no teacher ever speaks.
_FOLD = {
    "ɾ": "T",
    "ʔ": "t",
    "g": "ɡ",
    "r": "ɹ",
    "ʀ": "ɹ",
    "ʁ": "ɹ",
    "ɻ": "ɹ",
    "ɫ": "l",
    "ʍ": "w",
    "x": "k",
    "χ": "k",
    "c": "k",
    "q": "k",
    "ç": "h",
    "ɕ": "ʃ",
    "ʂ": "ʃ",
    "ʑ": "ʒ",
    "ʐ": "ʒ",
    "ɲ": "nj",
    "ʎ": "lj",
    "ʦ": "ts",
    "ʣ": "dz",
    "ʨ": "ʧ",
    "ʥ": "ʤ",
    "β": "v",
    "ɸ": "f",
    "ʋ": "v",
    "e": "ɛ",
    "o": "ɔ",
    "y": "i",
    "ø": "ɜ",
    "œ": "ɜ",
    "ɨ": "ɪ",
    "ʏ": "ɪ",
    "ɯ": "u",
    "ɤ": "ʌ",
    "ɚ": "əɹ",
    "ɝ": "ɜɹ",
    "1": "",
    "-": "",
    "‿": "",
    ".": ".",
}
_IGNORED = frozenset(" \"“”„‘’'«»\u0303ʰʲ" + PRIMARY + SECONDARY + LONG)


def phone_id(symbol: str) -> int:
    """Index of a symbol in `PHONES`. Raises BadInput for a symbol outside the alphabet."""
    return _index(PHONE_IDS, symbol)


def base_id(symbol: str) -> int:
    """Index in `BASE_PHONES` of a symbol with or without its stress. Raises BadInput for an unknown one."""
    return _index(BASE_IDS, strip_stress(symbol))


def _index(ids: MappingProxyType[str, int], symbol: str) -> int:
    try:
        return ids[symbol]
    except KeyError:
        raise BadInput(f"{symbol!r} is no phone of quaver's alphabet; see quaver.tts.text.PHONES") from None


def strip_stress(symbol: str) -> str:
    """The symbol without its stress mark: "ˈæ" -> "æ"; everything else is unchanged."""
    return symbol.lstrip(PRIMARY + SECONDARY)


def is_pause(symbol: str) -> bool:
    """True for , . ? and ! (padding "_" and utterance start "^" are not pauses)."""
    return symbol in _PAUSES


def is_vowel(symbol: str) -> bool:
    """True for a vowel or diphthong, stressed or not."""
    return strip_stress(symbol) in _VOWELS


def phone_weight(ids: Iterable[int]) -> float:
    """How long phones (by id, `START` included) are expected to last together, counted in phones that are no pauses."""
    return sum(PAUSE_WEIGHT if i in _PAUSE_IDS else 1.0 for i in ids)


def unknown_symbols(string: str) -> str:
    """The characters of a phoneme string that mean nothing here, each once, in order of appearance."""
    known = _VOWELS | _CONSONANTS | _IGNORED | _FOLD.keys() | _PAUSE_OF.keys()
    return "".join(dict.fromkeys(c for c in string if c not in known))


def phones_from_misaki(string: str) -> tuple[list[str], list[tuple[int, int]]]:
    """One G2P string -> (symbols of `PHONES`, half-open ranges of its words).

    Words are what spaces and pauses separate; every phone that is not a pause lies in exactly one of them, in order.
    The symbols never start with a pause, never hold two in a row (the strongest of ? ! . , stays) and end in one of
    . ? !; a string without any phone gives ([], []). Characters outside the alphabet are dropped.
    """
    placed = parse_misaki(string)
    words: list[tuple[int, int]] = []
    open_at = -1
    previous = -1
    for index, (symbol, at) in enumerate(placed):
        gap = previous >= 0 and " " in string[previous:at]
        if open_at >= 0 and (gap or symbol in _PAUSES):
            words.append((open_at, index))
            open_at = -1
        if open_at < 0 and symbol not in _PAUSES:
            open_at = index
        previous = at
    return [symbol for symbol, _ in placed], words


def parse_misaki(string: str) -> list[tuple[str, int]]:
    """(symbol, index of its character in `string`) for each symbol; pauses as `phones_from_misaki` says.

    A pause that was added at the end has the index `len(string)`.
    """
    placed: list[tuple[str, int]] = []
    stress = ""
    for at, character in enumerate(string):
        if character in (PRIMARY, SECONDARY):
            stress = character
        elif character == " ":
            stress = ""
        elif character == LONG:
            _lengthen(placed, at)
        elif character in _PAUSE_OF:
            _pause(placed, _PAUSE_OF[character], at)
        else:
            for symbol in _FOLD.get(character, character):
                if symbol in _VOWELS:
                    placed.append((stress + symbol, at))
                    stress = ""
                elif symbol in _CONSONANTS:
                    placed.append((symbol, at))
    if not placed:
        return []
    last, at = placed[-1]
    if last == ",":
        placed[-1] = (".", at)
    elif last not in _PAUSES:
        placed.append((".", len(string)))
    return placed


def _lengthen(placed: list[tuple[str, int]], at: int) -> None:
    if placed and placed[-1][1] == at - 1 and strip_stress(placed[-1][0]) + LONG in _VOWELS:
        placed[-1] = (placed[-1][0] + LONG, at - 1)


def _pause(placed: list[tuple[str, int]], symbol: str, at: int) -> None:
    if not placed:
        return
    last, place = placed[-1]
    if last not in _PAUSES:
        placed.append((symbol, at))
    elif _RANK[symbol] > _RANK[last]:
        placed[-1] = (symbol, place)


# espeak-ng's IPA for English, longest first, in misaki's letters (`espeak-ng -q --ipa`, en-us and en-gb).
_ESPEAK = (
    ("aɪə", "Iə"),
    ("aɪɚ", "Iəɹ"),
    ("eɪ", "A"),
    ("aɪ", "I"),
    ("oʊ", "O"),
    ("əʊ", "Q"),
    ("aʊ", "W"),
    ("ɔɪ", "Y"),
    ("dʒ", "ʤ"),
    ("tʃ", "ʧ"),
    ("ɜːɹ", "ɜɹ"),
    ("ɜː", "ɜɹ"),
    ("ɚ", "əɹ"),
    ("oːɹ", "ɔɹ"),
    ("ɔːɹ", "ɔɹ"),
    ("oː", "ɔ"),
    ("ɑːɹ", "ɑɹ"),
    ("n̩", "ᵊn"),
    ("l̩", "ᵊl"),
    ("ɬ", "l"),
    ("a", "æ"),
)
_ESPEAK_RE = re.compile("|".join(re.escape(ipa) for ipa, _ in _ESPEAK))
_ESPEAK_MAP = dict(_ESPEAK)


def misaki_from_espeak(ipa: str, british: bool = False) -> str:
    """espeak-ng's English IPA in misaki's letters, for teachers that read espeak's phonemes.

    American length marks carry no information there and are dropped; British ones are kept.
    """
    ipa = ipa.replace("\u0361", "").replace("\u200d", "").replace("_", "")
    if british:
        table = {**_ESPEAK_MAP, "ɜː": "ɜː", "oː": "ɔː", "a": "a"}
        return _ESPEAK_RE.sub(lambda match: table[match.group()], ipa)
    return _ESPEAK_RE.sub(lambda match: _ESPEAK_MAP[match.group()], ipa).replace(LONG, "")
