"""Text front end: English text -> utterances of phones with word spans.

Numbers, dates, currency, abbreviations, part-of-speech dependent readings and unknown words are read by `hibari.g2p`
(PyPI hibari-tts, Apache-2.0: misaki's lexicon and rules plus a small net, no espeak, no spaCy), the same G2P that the
teachers of the bundled voices read from, so labels fit the sound. docs/corpus.md compares it with gruut and espeak-ng.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from ..errors import BadInput, MissingExtra
from .marks import marked_sentences
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
    parse_misaki,
    phone_id,
    phones_from_misaki,
    strip_stress,
    unknown_symbols,
)
from .sentences import BREAK_TAG, TextStream, split_sentences

__all__ = [
    "BASE_IDS",
    "BASE_PHONES",
    "LANGUAGES",
    "MAX_PHONES",
    "PAD",
    "PAUSES",
    "PHONES",
    "PHONE_IDS",
    "SENTENCE_ENDS",
    "START",
    "Frontend",
    "TextStream",
    "Utterance",
    "WordSpan",
    "base_id",
    "is_pause",
    "is_vowel",
    "phone_id",
    "phones_from_misaki",
    "split_sentences",
    "strip_stress",
    "word_spans",
]

LANGUAGES = ("en-us", "en-gb")
MAX_PHONES = 300
MAX_CHUNK = 60  # characters without a space that the G2P reads as one word; its tables of words end long before
DEFAULT_BREAK, LONGEST_BREAK = 0.5, 10.0
_MARK = "\ue000"  # stands for a <break/> on the way through the G2P, which gives it no sound

_LINK = re.compile(r"\[([^\[\]]{1,200})\]\(([^()]{0,200})\)")
_WORD_BREAKS = re.compile(r"\s+|—|–|--+|…|\.\.+")
_EMAIL = re.compile(r"(?<![\w.+-])([\w.+-]{1,64})@([\w-]{1,60}(?:\.[\w-]{1,60}){1,4})")
_URL = re.compile(
    r"(?:\bhttps?://(?P<host>[^\s/\"<>]{1,100})|\b(?P<www>www\.[\w.-]{1,100}))(?P<path>/[^\s\"<>]{0,200})?"
)
_EDGES = " .,;:!?…—–-\"'“”‘’()[]{}<>*_~|/\\" + _MARK
_LONG_NUMBER = re.compile(r"\d[\d,]{15,}")  # past a quadrillion nobody reads a number as one
_TIME = re.compile(r"time\s*=\s*[\"']?\s*(\d+(?:\.\d+)?)\s*(ms|s)\b")
_SPOKEN_SYMBOLS = frozenset("°©™®§¶†‡•¢£€¥₩₹$+<=>|~^`×÷±¬→←²³½¼¾")
_ASCII_PUNCTUATION = str.maketrans("。！？，、；：（）“”„‘’′", ".!?,,;:()\"\"\"'''")


@dataclass(frozen=True)
class WordSpan:
    """A word as the text has it (no punctuation around it) and its half-open range of phones.

    What is read as several words ("1,250", "Dr.", "3 km") may be one span; a range can then hold a pause.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Utterance:
    """One sentence: phones of `PHONES`, words that cover every phone but the pauses, in order, without overlap.

    `breaks` are the extra silences that `<break time="500ms"/>` asked for: (index of the phone after which it comes,
    seconds); the index is that of a pause symbol, or -1 for silence before the first phone. `rate` is the pace that
    marks asked for.
    """

    text: str
    phones: tuple[str, ...]
    words: tuple[WordSpan, ...]
    breaks: tuple[tuple[int, float], ...] = ()
    rate: float = 1.0


class Frontend:
    """Text to utterances for one variety of English ("en-us" or "en-gb").

    The G2P behind it loads at the first sentence (0.4 s) and is shared by all front ends of that language.
    """

    def __init__(self, language: str = "en-us") -> None:
        if language.lower() not in LANGUAGES:
            raise BadInput(f"language {language!r} is not supported; choose one of {', '.join(LANGUAGES)}")
        self.language = language.lower()

    def __call__(self, text: str) -> list[Utterance]:
        """All sentences of a text, at least one; each at most `MAX_PHONES` phones.

        Characters that English does not read (emoji, other scripts, control characters) are left out. `[word](/wˈɜɹd/)`
        sets the phones of a word. Raises BadInput when there is no text, or nothing in it can be read aloud.
        """
        if not text.strip():
            raise BadInput("there is no text to speak; give at least one word")
        utterances = [
            replace(utterance, rate=rate)
            for sentence, rate in marked_sentences(text)
            for utterance in self.sentence(sentence)
        ]
        if not utterances:
            raise BadInput(_nothing_to_read(text))
        return utterances

    def sentence(self, text: str) -> list[Utterance]:
        """The utterances of one sentence (more than one if it is very long), or [] if nothing in it can be read.

        Raises BadInput for a phoneme override with symbols outside the alphabet.
        """
        text = _markdown(text)
        breaks = [_seconds(match.group(1)) for match in BREAK_TAG.finditer(text)]
        pieces = [clean(piece) for piece in BREAK_TAG.split(text)[::2]]
        plain = " ".join(" ".join(pieces).split())
        marked = f" {_MARK} ".join(_addresses(piece) for piece in pieces)
        utterance = _utterance(plain, _tokens(marked, self.language), breaks)
        return _pieces(utterance) if utterance.phones else []


def clean(text: str) -> str:
    """The text without what the G2P cannot read; over-long words are cut, white space is made plain."""
    text = unicodedata.normalize("NFC", text).translate(_ASCII_PUNCTUATION)
    text = "".join(_readable(character) for character in text)
    text = _LONG_NUMBER.sub(lambda match: " ".join(match.group().replace(",", "")), text)
    return " ".join(_cut_chunk(chunk) if len(chunk) > MAX_CHUNK else chunk for chunk in text.split())


@lru_cache(maxsize=4096)
def _readable(character: str) -> str:
    """The character itself, its plain form, a space in its place, or nothing (joiners, marks, direction signs)."""
    if " " <= character <= "~":
        return character
    kind = unicodedata.category(character)
    if character.isspace():
        return " "
    if kind in ("Cf", "Cc", "Mn", "Me", "Cs"):
        return " " if kind == "Cc" else ""
    if kind == "Nd":
        return str(unicodedata.digit(character))
    if character in _SPOKEN_SYMBOLS or not unknown_symbols(character):
        return character
    if kind[0] == "P" or (kind[0] == "L" and unicodedata.name(character, "").startswith(("LATIN", "GREEK"))):
        return character
    return " "


def _cut_chunk(chunk: str) -> str:
    if "](/" in chunk and len(chunk) < 5 * MAX_CHUNK:
        return chunk
    return " ".join(chunk[at : at + MAX_CHUNK] for at in range(0, len(chunk), MAX_CHUNK))


def _markdown(text: str) -> str:
    """Links keep their words only; phoneme overrides are checked and kept."""

    def replace(match: re.Match[str]) -> str:
        target = match.group(2)
        if len(target) < 2 or target[0] != "/" or target[-1] != "/" or "/" in target[1:-1]:
            return match.group(1)
        if unknown := unknown_symbols(target[1:-1]):
            raise BadInput(f"the phonemes {target} use {' '.join(unknown)}, which quaver's alphabet does not have")
        return match.group()

    return _LINK.sub(replace, text)


def _addresses(text: str) -> str:
    """URLs and e-mail addresses as they are said: "www.site.com/faq." -> "W W W dot site dot com slash faq."."""

    def url(match: re.Match[str]) -> str:
        address = (match.group("host") or match.group("www")) + (match.group("path") or "")
        told = address.rstrip(".,;:!?)")
        return _spell(told.rstrip("/")) + address[len(told) :]

    text = _EMAIL.sub(lambda match: f"{_spell(match.group(1))} at {_spell(match.group(2))}", text)
    return _URL.sub(url, text)


def _spell(address: str) -> str:
    said = {".": " dot ", "/": " slash ", "-": " dash ", "_": " underscore ", "+": " plus "}
    address = re.sub(r"^www(?=\.)", "W W W", address)
    return " ".join("".join(said.get(c, c if c.isalnum() else " ") for c in address).split())


def _seconds(attributes: str) -> float:
    match = _TIME.search(attributes)
    if not match:
        return DEFAULT_BREAK
    return min(LONGEST_BREAK, float(match.group(1)) / (1000.0 if match.group(2) == "ms" else 1.0))


_lock = threading.Lock()


@lru_cache(maxsize=len(LANGUAGES))
def _load_g2p(language: str) -> Any:
    try:
        from hibari.g2p import G2P
    except ImportError as error:
        raise MissingExtra("the G2P is not installed; run: pip install hibari-tts onnxruntime") from error
    return G2P(british=language == "en-gb")


def _g2p(language: str) -> Any:
    with _lock:  # two threads must not load the lexicon twice
        return _load_g2p(language)


def _tokens(text: str, language: str) -> list[tuple[str, str, bool]]:
    """(text, phonemes, a space follows) of each token the G2P makes of a clean sentence."""
    if not text:
        return []
    g2p = _g2p(language)
    try:
        return _phonemize(g2p, text)
    except Exception:  # it has no error type of its own; one odd word must not silence the sentence
        return [token for word in text.split() for token in _try_word(g2p, word)]


def _try_word(g2p: Any, word: str) -> list[tuple[str, str, bool]]:
    try:
        tokens = _phonemize(g2p, word)
    except Exception:
        return []
    return [*tokens[:-1], (*tokens[-1][:2], True)] if tokens else []


def _phonemize(g2p: Any, text: str) -> list[tuple[str, str, bool]]:
    from hibari.g2p import normalize

    tokens = g2p.phonemize_tokens(g2p.tokenize(normalize(text)))
    return [(token.text, token.phonemes or "", bool(token.whitespace)) for token in tokens]


def _utterance(text: str, tokens: list[tuple[str, str, bool]], seconds: list[float]) -> Utterance:
    """Tokens -> utterance; the phoneme string is joined as the G2P joins it for the teachers."""
    string, chunks, marks = "", [], []
    name, begin = "", 0
    for token, phonemes, space in tokens:
        if _MARK in token:
            marks.append(len(string))
            phonemes, space = ",", True
        pause = bool(phonemes.strip()) and not parse_misaki(phonemes)
        if pause:
            chunks.append((name, begin, len(string)))
            name, begin = "", len(string)
        else:
            name += token
        string += phonemes + (" " if space else "")
        if space or pause:
            chunks.append(("" if pause else name, begin, len(string)))
            name, begin = "", len(string)
    chunks.append((name, begin, len(string)))
    placed = parse_misaki(string)
    spoken = _spoken_chunks(chunks, placed)
    breaks = [(sum(at <= mark for _, at in placed) - 1, s) for mark, s in zip(marks, seconds, strict=False)]
    return Utterance(text, tuple(symbol for symbol, _ in placed), word_spans(text, spoken), tuple(breaks))


def _spoken_chunks(chunks: list[tuple[str, int, int]], placed: list[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Chunks (text, range of characters) that have phones, as (text, range of phones without pauses around it)."""
    spoken, index = [], 0
    for name, begin, end in chunks:
        inside = []
        while index < len(placed) and placed[index][1] < end:
            if placed[index][1] >= begin and not is_pause(placed[index][0]):
                inside.append(index)
            index += 1
        if inside:
            spoken.append((name.strip(_EDGES) or name, inside[0], inside[-1] + 1))
    return spoken


def word_spans(text: str, spoken: list[tuple[str, int, int]]) -> tuple[WordSpan, ...]:
    """Names what was spoken by the words of the text: (normalised word, start, end) -> spans of the text's own words.

    Words that normalisation left alone match one to one; where it made other words ("3:30 pm" -> "three thirty P.M.")
    the stretch between two matches becomes one span, or one a word if their number is the same.
    """
    text = _LINK.sub(r"\1", text)
    own = [word for word in (w.strip(_EDGES) for w in _WORD_BREAKS.split(text)) if word]
    names = [name for name, _, _ in spoken]
    matcher = SequenceMatcher(None, [w.lower() for w in own], [n.lower() for n in names], autojunk=False)
    spans: list[WordSpan] = []
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if j1 == j2:
            continue
        if kind == "insert" or i2 - i1 == j2 - j1:
            words = own[i1:i2] if i2 > i1 else names[j1:j2]
            spans += [WordSpan(word, start, end) for word, (_, start, end) in zip(words, spoken[j1:j2], strict=True)]
        else:
            spans.append(WordSpan(" ".join(own[i1:i2]), spoken[j1][1], spoken[j2 - 1][2]))
    return tuple(spans)


def _pieces(utterance: Utterance) -> list[Utterance]:
    """The utterance, or pieces of at most `MAX_PHONES` phones: cut at the last pause that fits, else between words."""
    pieces = []
    while len(utterance.phones) > MAX_PHONES:
        head, utterance = _cut(utterance)
        pieces.append(head)
    return [*pieces, utterance]


def _cut(utterance: Utterance) -> tuple[Utterance, Utterance]:
    phones, room = utterance.phones, MAX_PHONES - 1
    pauses = [index for index in range(MAX_PHONES // 3, room) if is_pause(phones[index])]
    edges = [word.end for word in utterance.words if word.end <= room]
    at = pauses[-1] if pauses else (edges[-1] if edges else room)
    skip = at + is_pause(phones[at])
    end = phones[at] if phones[at] in SENTENCE_ENDS else "."
    head = [WordSpan(w.text, w.start, min(w.end, at)) for w in utterance.words if w.start < at]
    tail = [WordSpan(w.text, max(w.start, skip) - skip, w.end - skip) for w in utterance.words if w.end > skip]
    before = tuple((i, s) for i, s in utterance.breaks if i <= at)
    after = tuple((i - skip, s) for i, s in utterance.breaks if i > at)
    return (
        Utterance(" ".join(w.text for w in head), (*phones[:at], end), tuple(head), before),
        Utterance(" ".join(w.text for w in tail), phones[skip:], tuple(tail), after),
    )


def _nothing_to_read(text: str) -> str:
    odd = dict.fromkeys(c for c in text if not c.isspace() and (not c.isprintable() or not _readable(c).strip()))
    if not odd:
        return f"there is nothing to pronounce in {text.strip()[:20]!r}; give at least one word"
    names = ", ".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in list(odd)[:10])
    return f"no English can be read from this text: {names} cannot be pronounced; give at least one English word"
