"""Inline marks, the part of SSML 1.1 (https://www.w3.org/TR/speech-synthesis11/) that a voice here can follow:

    <break time="500ms"/>  <break strength="strong"/>
    <phoneme ph="təˈmɑːtəʊ">tomato</phoneme>           IPA, or the G2P's own symbols
    <say-as interpret-as="characters">QTTS</say-as>     characters, digits, telephone, cardinal, ordinal
    <sub alias="World Wide Web Consortium">W3C</sub>
    <prosody rate="slow">slowly</prosody>               x-slow ... x-fast, "80%", "1.2"; spoken by itself

`<speak>`, `<p>` and `<s>` are allowed around text. Tags of other names (HTML, "<3") are text, as before marks. Tags and
their attributes are read by `xml.etree`. Text may arrive in pieces: only an open mark is held back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from xml.etree import ElementTree

from ..errors import BadInput
from .phones import misaki_from_espeak, unknown_symbols
from .sentences import TextStream

__all__ = ["Marks", "Piece", "marked_sentences"]

LONGEST = 400
"""Characters that a mark may hold, tags included; more than that is a tag that was never closed."""
RATES = {"x-slow": 0.6, "slow": 0.8, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.6}
SLOWEST, FASTEST = 0.5, 2.0
BREAKS = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 0.8, "x-strong": 1.2}
ATTRIBUTES = {
    "break": {"time", "strength"},
    "phoneme": {"ph", "alphabet"},
    "say-as": {"interpret-as", "format", "detail"},
    "sub": {"alias"},
    "prosody": {"rate"},
    "speak": {"version", "lang"},
    "p": set(),
    "s": set(),
}
REFUSED = frozenset("emphasis voice audio mark lang lexicon lookup token w desc meta metadata".split())  # noqa: SIM905
HOLDING = frozenset({"phoneme", "say-as", "sub"})
"""Marks that replace the text inside them; nothing else may stand there."""

_TAG = re.compile(r"<(/?)([A-Za-z][\w-]{0,20})((?:\s(?:[^<>\"']|\"[^\"<>]*\"|'[^'<>]*')*)?)(/?)>")
_OPEN = re.compile(r"<(?:/?[A-Za-z][^<>]*)?\Z")
_UNTIED = re.compile(r"time\s*=\s*[^\"'\s]")  # <break time=1s/> was always allowed
_IPA = {"r": "ɹ", "g": "ɡ", ".": "", "'": "ˈ"}
"""How IPA is often typed -> as espeak-ng writes it."""


@dataclass(frozen=True)
class Piece:
    """Text to speak at `rate` times the usual pace."""

    text: str
    rate: float = 1.0


class Marks:
    """Takes the marks out of a text that may arrive in pieces; joined pieces do not depend on how it was cut."""

    def __init__(self) -> None:
        self._text = ""
        self._rates: list[float] = [1.0]
        self._open: list[str] = []  # names of open marks

    def push(self, text: str) -> Iterator[Piece]:
        """The pieces that are certain by now; those before a mistake come before its error.

        Raises:
            BadInput: unknown or contradictory marks; the message says which.
        """
        self._text += text
        return self._take(final=False)

    def close(self) -> Iterator[Piece]:
        """The rest.

        Raises:
            BadInput: also when a mark is still open.
        """
        yield from self._take(final=True)
        if self._open:
            raise BadInput(f"<{self._open[-1]}> is never closed; write </{self._open[-1]}> where it ends")

    def _take(self, final: bool) -> Iterator[Piece]:
        while self._text:
            tag = self._next_tag()
            end = len(self._text) if tag is None else tag.start()
            if tag is None and not final and (partial := _OPEN.search(self._text)):
                end = partial.start() if end - partial.start() < LONGEST else end
            if end:
                text, self._text = self._text[:end], self._text[end:]
                yield Piece(text, self._rates[-1])
                continue
            if tag is None:
                return
            said, after = self._mark(tag, final)
            if after is None:
                return
            self._text = self._text[after:]
            if said:
                yield Piece(said, self._rates[-1])

    def _next_tag(self) -> re.Match[str] | None:
        for found in _TAG.finditer(self._text):
            if found.group(2).lower() in ATTRIBUTES or found.group(2).lower() in REFUSED:
                return found
        return None

    def _mark(self, tag: re.Match[str], final: bool) -> tuple[str, int | None]:
        """Follows a tag; what to say for it, and where the text goes on (None: the rest of the mark has not
        arrived)."""
        closing, name = bool(tag.group(1)), tag.group(2).lower()
        if name in REFUSED:
            raise BadInput(f"<{name}> is not supported; quaver reads {', '.join(sorted(ATTRIBUTES))}")
        if name == "break":
            return "" if closing else _break(tag), tag.end()
        if closing:
            self._close(name)
            return "\n\n" if name in ("p", "s") else "", tag.end()
        attributes, lone = _attributes(tag, name), tag.group().endswith("/>")
        if name in HOLDING:
            return self._hold(tag, name, attributes, lone, final)
        if not lone:
            if name == "prosody":
                self._rates.append(_rate(attributes, self._rates[-1]))
            self._open.append(name)
        return "", tag.end()

    def _close(self, name: str) -> None:
        if not self._open or self._open[-1] != name:
            inner = f"<{self._open[-1]}> is still open" if self._open else "nothing is open"
            raise BadInput(f"</{name}> closes a mark that is not the last one opened ({inner})")
        self._open.pop()
        if name == "prosody":
            self._rates.pop()

    def _hold(
        self, tag: re.Match[str], name: str, attributes: dict[str, str], lone: bool, final: bool
    ) -> tuple[str, int | None]:
        end = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(self._text, tag.end())
        if not lone and end is None:
            if final or len(self._text) - tag.start() > LONGEST:
                raise BadInput(f"<{name}> is never closed; write </{name}> within {LONGEST} characters")
            return "", None
        inside = self._text[tag.end() : end.start()] if end and not lone else ""
        if nested := next((m for m in _TAG.finditer(inside) if m.group(2).lower() in ATTRIBUTES), None):
            raise BadInput(f"<{nested.group(2)}> inside <{name}> contradicts it; close the one before the other")
        return _HELD[name](" ".join(inside.split()), attributes), end.end() if end and not lone else tag.end()


def marked_sentences(text: str) -> list[tuple[str, float]]:
    """The sentences of a text with marks, and the pace of each; a change of pace ends a sentence."""
    marks, stream = Marks(), TextStream()
    found: list[tuple[str, float]] = []
    rate = 1.0
    for piece in chain(marks.push(text), marks.close()):
        if piece.rate != rate:
            found += [(sentence, rate) for sentence in stream.close()]
            rate = piece.rate
        found += [(sentence, rate) for sentence in stream.push(piece.text)]
    return found + [(sentence, rate) for sentence in stream.close()]


def _attributes(tag: re.Match[str], name: str) -> dict[str, str]:
    try:
        found = ElementTree.fromstring(f"<x {tag.group(3).rstrip('/')}/>").attrib
    except ElementTree.ParseError:
        raise BadInput(f'{tag.group()} is not a well-formed tag; write attributes as name="value"') from None
    plain = {key.rsplit("}", 1)[-1]: value.strip() for key, value in found.items()}
    if odd := sorted(set(plain) - ATTRIBUTES[name]):
        allowed = ", ".join(sorted(ATTRIBUTES[name])) or "none"
        raise BadInput(f"<{name}> has no attribute {odd[0]!r} here; it takes {allowed}")
    return plain


def _break(tag: re.Match[str]) -> str:
    if _UNTIED.search(tag.group(3)):
        return tag.group()
    attributes = _attributes(tag, "break")
    strength = attributes.get("strength")
    if strength is None:
        return tag.group()
    if strength not in BREAKS:
        raise BadInput(f"the strength of a break is {', '.join(BREAKS)}, not {strength!r}")
    if "time" in attributes:
        if strength == "none" and not re.fullmatch(r"0+(\.0*)?m?s", attributes["time"]):
            raise BadInput(f"{tag.group()} contradicts itself: no break, for {attributes['time']}")
        return f'<break time="{attributes["time"]}"/>'
    return f'<break time="{BREAKS[strength]}s"/>' if BREAKS[strength] else ""


def _rate(attributes: dict[str, str], outer: float) -> float:
    wanted = attributes.get("rate", "")
    if wanted in RATES:
        rate = RATES[wanted]
    elif re.fullmatch(r"\d{1,3}(\.\d+)?%", wanted):
        rate = float(wanted[:-1]) / 100
    elif re.fullmatch(r"\d(\.\d+)?", wanted):
        rate = float(wanted)
    else:
        raise BadInput(f'<prosody> needs rate="80%" or one of {", ".join(RATES)}, not {wanted!r}')
    if not SLOWEST <= rate * outer <= FASTEST:
        raise BadInput(f"a rate of {rate * outer:g} is out of reach; it must lie between {SLOWEST} and {FASTEST}")
    return rate * outer


def _phoneme(text: str, attributes: dict[str, str]) -> str:
    phones = attributes.get("ph", "")
    if not phones:
        raise BadInput('<phoneme> needs ph="...", the phonemes to say')
    if attributes.get("alphabet", "ipa") not in ("ipa", "misaki"):
        raise BadInput(f"<phoneme> reads the alphabets ipa and misaki, not {attributes['alphabet']!r}")
    if attributes.get("alphabet") != "misaki":
        phones = misaki_from_espeak("".join(_IPA.get(symbol, symbol) for symbol in phones))
    if unknown := unknown_symbols(phones):
        raise BadInput(f"ph={attributes['ph']!r} uses {' '.join(unknown)}, which quaver's alphabet does not have")
    if "/" in phones or any(c in phones for c in "()[]"):
        raise BadInput(f"ph={attributes['ph']!r} holds brackets or slashes; give the phonemes alone")
    shown = re.sub(r"[^\w .-]", "", text) or "sound"
    return f"[{shown}](/{phones}/)"


def _sub(text: str, attributes: dict[str, str]) -> str:
    if not attributes.get("alias"):
        raise BadInput('<sub> needs alias="...", what to say instead')
    return attributes["alias"]


def _say_as(text: str, attributes: dict[str, str]) -> str:
    kind = attributes.get("interpret-as", "")
    if kind not in _SPELLED:
        raise BadInput(f"<say-as> needs interpret-as to be one of {', '.join(_SPELLED)}, not {kind!r}")
    return _SPELLED[kind](text)


def _characters(text: str) -> str:
    """Every letter and digit by its name; "A" would be read as the article."""
    return " ".join("[A](/ˈA/)" if c in "Aa" else c.upper() for c in text if c.isalnum())


def _digits(text: str) -> str:
    if not any(c.isdigit() for c in text):
        raise BadInput(f"there is no digit in {text!r} to say")
    return " ".join(c for c in text if c.isdigit())


def _telephone(text: str) -> str:
    """Digits with a pause between the groups."""
    groups = re.findall(r"\d+", text)
    return ", ".join(_digits(group) for group in groups) if groups else _digits(text)


def _cardinal(text: str) -> str:
    return re.sub(r"[,\s](?=\d{3})", "", _number(text))


def _ordinal(text: str) -> str:
    number = _cardinal(text)
    ending = "th" if number[-2:] in ("11", "12", "13") else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")
    return number + ending


def _number(text: str) -> str:
    if not re.fullmatch(r"-?\d[\d,. ]*", text):
        raise BadInput(f"{text!r} is no number")
    return text


_SPELLED: dict[str, Callable[[str], str]] = {
    "characters": _characters,
    "spell-out": _characters,
    "verbatim": _characters,
    "digits": _digits,
    "telephone": _telephone,
    "cardinal": _cardinal,
    "number": _cardinal,
    "ordinal": _ordinal,
}
_HELD: dict[str, Callable[[str, dict[str, str]], str]] = {"phoneme": _phoneme, "sub": _sub, "say-as": _say_as}
