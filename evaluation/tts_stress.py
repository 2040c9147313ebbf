"""Sentences that make a speech model lose its place: words said twice and more, series of numbers, tongue twisters, and
sentences three times as long as those of the corpora (4 to 5 s). Own sentences; `quaver eval words` counts on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MissingExtra
from .words import normalise

__all__ = ["STRESS", "WordCount", "count_words"]

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
    """Attributes: words: of the text. skipped: were not heard. repeated: heard too often. wrong: heard as others."""

    words: int
    skipped: int
    repeated: int
    wrong: int

    @staticmethod
    def total(counts: Sequence[WordCount]) -> WordCount:
        return WordCount(*(sum(values) for values in zip(*((c.words, c.skipped, c.repeated, c.wrong) for c in counts))))


def count_words(text: str, heard: str) -> WordCount:
    """Aligns a text with what was heard.

    Raises:
        MissingExtra: jiwer is not installed.
    """
    wanted, got = normalise(text).split(), normalise(heard).split()
    if not got:
        return WordCount(len(wanted), len(wanted), 0, 0)
    try:
        import jiwer
    except ImportError:
        raise MissingExtra("counting words needs jiwer: pip install 'quaver[eval]'") from None
    out = jiwer.process_words(" ".join(wanted), " ".join(got))
    return WordCount(len(wanted), out.deletions, out.insertions, out.substitutions)
