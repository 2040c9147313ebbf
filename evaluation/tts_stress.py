"""Sentences that make a speech model lose its place: words said twice and more, series of numbers, tongue twisters, and
sentences three times as long as those of the corpora (4 to 5 s). Own sentences; `quaver eval words` counts on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MissingExtra
from .words import normalise

__all__ = ["STRESS", "WordCount", "count_words", "written_out"]

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = frozenset((*_UNITS, *_TENS, "hundred", "thousand", "oh"))

STRESS: tuple[str, ...] = (
    "The the the word was typed three times.",
    "No no no no, that is not what I meant.",
    "It was very, very, very, very cold.",
    "He said that that that you wrote was wrong.",
    "Go on, go on, go on, go on, and do not stop.",
    "She had had enough, and he had had none.",
    "Knock knock, knock knock, who is there?",
    "Round and round and round and round the garden we went.",
    "More and more and more people came and came and came.",
    "Yes yes, no no, yes yes, no no, make up your mind.",
    "One, two, three, four, five, six, seven, eight, nine, ten.",
    "Ten, nine, eight, seven, six, five, four, three, two, one, go.",
    "Two, two, two, four, four, four, six, six, six.",
    "Seven eleven, eleven seven, seventy seven, one hundred and seven.",
    "My number is five five five, oh one two, five five five, oh one three.",
    "Add one and one and one and one, and you have four.",
    "Ten times ten times ten is one thousand.",
    "Red lorry, yellow lorry, red lorry, yellow lorry.",
    "Six thick thistle sticks, six thick thistle sticks.",
    "A big black bug bit a big black bear, and the big black bear bit back.",
    "Which witch wished which wicked wish, and which witch did not wish?",
    "Fresh fried fish, fish fresh fried, fried fish fresh.",
    "Unique New York, you know you need unique New York.",
    "Toy boat, toy boat, toy boat, toy boat.",
    "Buffalo herds and buffalo herds and buffalo herds crossed the same wide river.",
    "Left, right, left, right, left, right, left, right, and halt.",
    "The old man walked to the old mill by the old road with his old dog, and at the old mill the old man sat "
    "down on the old bench, and the old dog lay down by the old man, and so the old day came to its end as all "
    "the old days had done before it, slowly, slowly, and without a sound.",
    "First the apples, then the pears, then the plums, then the apples again, then the pears again, then the "
    "plums again, then all the apples and all the pears and all the plums together, until the whole of the cart "
    "was full and the whole of the orchard was empty and we could all go home.",
    "And the rain fell, and the wind blew, and the rain fell, and the wind blew, and the river rose and rose and "
    "rose until the bridge was gone and the road was gone and the fields were gone, and still the rain fell, and "
    "still the wind blew, and nobody slept.",
    "One man went to mow, one man and his dog, two men went to mow, two men, one man and his dog, three men went "
    "to mow, three men, two men, one man and his dog, four men went to mow, four men, three men, two men, one man "
    "and his dog.",
)


@dataclass(frozen=True)
class WordCount:
    """Attributes: words: of the text. skipped: were not heard. repeated: heard once more, beside themselves. wrong:
    heard as others, or heard without having been said (one word taken for two)."""

    words: int
    skipped: int
    repeated: int
    wrong: int

    @staticmethod
    def total(counts: Sequence[WordCount]) -> WordCount:
        return WordCount(*(sum(values) for values in zip(*((c.words, c.skipped, c.repeated, c.wrong) for c in counts))))


def count_words(text: str, heard: str) -> WordCount:
    """Aligns a text with what was heard. Numbers are compared as the words that they are said with ("555" is "five five
    five"): as digits, Whisper's normaliser makes one number of "one, two, three" and three of "1, 2, 3".

    Raises:
        MissingExtra: jiwer is not installed.
    """
    wanted = _words(text)
    got = written_out(_words(heard), wanted)
    if not got:
        return WordCount(len(wanted), len(wanted), 0, 0)
    try:
        import jiwer
    except ImportError:
        raise MissingExtra("counting words needs jiwer: pip install 'quaver[eval]'") from None
    steps = jiwer.process_words(" ".join(wanted), " ".join(got)).alignments[0]
    skipped = sum(s.ref_end_idx - s.ref_start_idx for s in steps if s.type == "delete")
    wrong = sum(s.ref_end_idx - s.ref_start_idx for s in steps if s.type == "substitute")
    repeated = 0
    for step in steps:
        if step.type == "insert":
            count = step.hyp_end_idx - step.hyp_start_idx
            again = _echoes(got, step.hyp_start_idx, count)
            repeated, wrong = repeated + count * again, wrong + count * (not again)
    return WordCount(len(wanted), skipped, repeated, wrong)


def _echoes(words: Sequence[str], start: int, count: int) -> bool:
    """Whether the words at `start` stand once more right before or right after themselves."""
    run = words[start : start + count]
    return run in (words[max(0, start - count) : start], words[start + count : start + 2 * count])


def _words(text: str) -> list[str]:
    """Letters and digits; spellings are made equal word by word, so that numbers stay as they were written."""
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower())  # 1,000
    found = re.findall(r"\d+|[^\W\d_]+(?:'[^\W\d_]+)*", plain)
    return [w for word in found for w in ([word] if word.isdigit() or word in _NUMBERS else normalise(word).split())]


def written_out(words: Sequence[str], like: Sequence[str]) -> list[str]:
    """Numbers in digits as words: of the ways to say one, the first that stands in `like`, else as a number."""
    sentence, out = f" {' '.join(like)} ", []
    for word in words:
        ways = _ways(word) if word.isdigit() else [word]
        out += next((way for way in ways if f" {way} " in sentence), ways[0]).split()
    return out


def _ways(digits: str) -> list[str]:
    """How a number may be said: as one, digit by digit, its last two apart (711, 1984)."""
    ways = [_cardinal(int(digits), joint) for joint in (" ", " and ")] if len(digits) < 7 and digits[0] != "0" else []
    for zero in ("zero", "oh"):
        ways.append(" ".join(zero if d == "0" else _UNITS[int(d)] for d in digits))
    if len(digits) in (3, 4):
        ways.append(" ".join(_cardinal(int(part), " ") for part in (digits[:-2], digits[-2:])))
    return ways


def _cardinal(number: int, joint: str) -> str:
    """0 to 999,999 in words; `joint` after the hundreds: "one hundred and seven", "one hundred seven"."""
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            return f"{_cardinal(number // size, joint)} {name}" + (joint + _cardinal(rest, joint) if rest else "")
    if number < len(_UNITS):
        return _UNITS[number]
    return _TENS[number // 10 - 2] + (f" {_UNITS[number % 10]}" if number % 10 else "")
