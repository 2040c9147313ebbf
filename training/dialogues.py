"""Scripted conversations by grammar: a closed domain in which a right answer depends on what the user said.

Greetings and names, spoken arithmetic, days and months, repeat-after-me, colours and simple facts, stop, louder, slower
and goodbye.
Thousands of distinct dialogues; *fillers* (names, sums, sentences to repeat, ...) are split, so that the test set asks
what training never did.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import BadInput

__all__ = ["NAMES", "SPLITS", "Exchange", "held_out", "number_word", "script", "texts"]

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
HELD_OUT = 6
"""One filler in so many belongs to the test set."""

_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_NAMES = """
    Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Nora Oscar Paul Rose Sam Tina Victor Wendy
    Adam Bella Carl Diana Eric Fiona George Hannah Ivan Julia Kevin Lucy Mark Nina Oliver Peter Rachel Simon Tom
    Alan Albert Alex Alfred Alice Alison Amanda Amber Amy Andrea Andrew Angela Anita Ann Anthony Archie Arnold
    Arthur Audrey Barbara Barry Becky Bernard Beth Betty Bill Bob Bonnie Brenda Brian Bridget Bruce Caleb Calvin
    Cameron Carla Carmen Caroline Casey Cecil Charles Charlotte Chloe Chris Cindy Claire Claude Colin Connor Craig
    Crystal Cynthia Daisy Dan Daniel Daphne Darren Dave Dawn Debbie Denise Dennis Derek Dominic Donald Donna Doris
    Dorothy Douglas Duncan Dylan Edgar Edith Edward Eileen Elaine Eleanor Elena Eli Ella Ellen Elliot Elsa Emily
    Erica Ernest Esther Ethan Eva Evan Faith Felix Flora Florence Fred Gabriel Gary Gavin Gemma Gerald Gina Gloria
    Gordon Graham Greg Harold Harriet Harry Harvey Hazel Heather Helen Holly Hope Howard Hugo Ian Iris Irene Isaac
    Isabel Jacob James Jamie Jane Janet Jason Jean Jeff Jenny Jeremy Jessica Jill Jim Joan Joe John Jordan Joseph
    Josh Joy Joyce Judy Justin Karen Karl Kathy Keith Kelly Ken Kim Kirsty Laura Lauren Lee Lena Leonard Leslie
    Lewis Liam Lily Linda Lisa Logan Louis Louise Luke Lydia Mabel Maggie Marcus Margaret Maria Marie Martha
    Martin Mason Matthew Maud Max Megan Melissa Michael Mike Molly Monica Morgan Nancy Natalie Nathan Neil Nicole
    Nigel Noah Norman Olga Olive Olivia Owen Pamela Patrick Paula Pauline Penny Phil Philip Phoebe Ralph Ray
    Rebecca Rita Robert Robin Roger Ronald Rosie Roy Ruby Russell Ruth Ryan Sally Samuel Sandra Sara Scott Sean
    Sharon Sheila Shirley Silvia Sophie Stanley Stella Stephen Steve Stuart Susan Sylvia Tanya Teresa Terry Thomas
    Tim Timothy Toby Todd Tony Tracy Trevor Valerie Vanessa Vera Veronica Vincent Violet Walter Warren Wayne
    William Zoe
"""
NAMES = tuple(_NAMES.split())
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwyz", "aeiou"
_COLOURS = {"grass": "green", "snow": "white", "coal": "black", "a lemon": "yellow", "blood": "red", "the sky": "blue",
            "a carrot": "orange", "milk": "white", "a tomato": "red", "the sea": "blue", "a banana": "yellow",
            "chocolate": "brown"}  # fmt: skip
_FACTS = {"the capital of France": "Paris", "the capital of Italy": "Rome", "the capital of Spain": "Madrid",
          "the capital of Japan": "Tokyo", "the capital of England": "London", "the capital of Germany": "Berlin",
          "the largest planet": "Jupiter", "the tallest animal": "the giraffe", "the fastest animal": "the cheetah",
          "the largest animal": "the blue whale", "the opposite of hot": "cold", "the opposite of big": "small"
          }  # fmt: skip
_SUBJECTS = ["the dog", "the cat", "my brother", "a small bird", "the old man", "our teacher"]
_ACTIONS = ["sleeps", "runs", "sings", "is hungry", "likes music", "goes home"]
_PLACES = ["in the garden", "at night", "by the river", "every day", "in the rain", "on the hill"]
_STORIES = (
    "Once there was a little boat on a wide river, and every morning it carried the children to school.",
    "The sun is a star, and it is so far away that its light needs eight minutes to reach us.",
    "Bees fly from flower to flower, and in the evening they bring home what they have found.",
    "In winter the lake is frozen, and people from all the villages come together to skate on it.",
)


@dataclass(frozen=True)
class Exchange:
    """What the user says, what the assistant says, and words that make an answer right ("seven|7 ...", in order).

    `long`: the answer is long enough to be interrupted or accompanied. `parts`: the user's sentence, cut where somebody
    who thinks would pause. `gain` in dB and `speed` (1 is as fast as ever): how the answer is to be said.
    """

    parts: tuple[str, ...]
    reply: str
    answer: str
    topic: str
    long: bool = False
    gain: float = 0.0
    speed: float = 1.0

    @property
    def user(self) -> str:
        return " ".join(self.parts)


def number_word(number: int) -> str:
    """0..99 in words.

    Raises:
        BadInput: another number.
    """
    if not 0 <= number < 100:
        raise BadInput(f"{number} is not among the numbers that the dialogues use (0 to 99)")
    if number < 20:
        return _UNITS[number]
    tens, units = divmod(number, 10)
    return _TENS[tens] + (f" {_UNITS[units]}" if units else "")


def held_out(filler: str) -> bool:
    """Whether a filler belongs to the test set; fixed for ever, whatever the seed."""
    return zlib.crc32(filler.encode()) % HELD_OUT == 0


def _pick(rng: np.random.Generator, fillers: Sequence[str], split: Split) -> str:
    allowed = [f for f in fillers if held_out(f) == (split == "test")]
    return str(rng.choice(allowed or list(fillers)))


def _say(rng: np.random.Generator, *ways: str) -> str:
    return ways[int(rng.integers(len(ways)))]


def _invented(rng: np.random.Generator) -> str:
    """A name that nobody has: to copy it, its letters must be read."""
    syllables = (f"{rng.choice(list(_CONSONANTS))}{rng.choice(list(_VOWELS))}" for _ in range(int(rng.integers(1, 4))))
    last = rng.choice(["", *_CONSONANTS]) if rng.random() < 0.6 else ""
    return ("".join(syllables) + str(last)).capitalize()


def _greeting(rng: np.random.Generator, split: Split, exercise: bool = False) -> Exchange:
    name = _invented(rng) if exercise and rng.random() < 0.5 else _pick(rng, NAMES, split)
    hello = _say(rng, "Hello,", "Hi,", "Good morning,", "Good evening,")
    user = (hello, _say(rng, f"my name is {name}.", f"I am {name}.", f"this is {name}."))
    return Exchange(user, f"Hello {name}, nice to meet you.", f"{name.lower()}", "greeting")


def _sum(rng: np.random.Generator, split: Split, exercise: bool = False) -> Exchange:
    most = 30 if exercise and rng.random() < 0.25 else 20
    while True:
        a, b = (int(n) for n in rng.integers(1, most + 1, 2))
        if held_out(f"{a}+{b}") == (split == "test"):
            break
    minus = a >= b and rng.random() < 0.4
    total = a - b if minus else a + b
    asked = (f"{number_word(a)}", f"{'minus' if minus else 'plus'} {number_word(b)}?")
    user = (f"{_say(rng, 'What is', 'How much is')} {asked[0]}", asked[1])
    reply = f"{number_word(a)} {'minus' if minus else 'plus'} {number_word(b)} is {number_word(total)}."
    answer = " ".join(number_word(total).split()[:1]) + f"|{total}"
    return Exchange(user, reply[0].upper() + reply[1:], answer, "arithmetic")


def _calendar(rng: np.random.Generator, split: Split, exercise: bool = False) -> Exchange:
    circle = _DAYS if rng.random() < 0.5 else _MONTHS
    kind = "day" if circle is _DAYS else "month"
    pairs = [f"{kind} {way} {name}" for way in ("after", "before") for name in circle]
    asked = _pick(rng, pairs, split)
    _, way, name = asked.split()
    right = circle[(circle.index(name) + (1 if way == "after" else -1)) % len(circle)]
    user = (f"Which {kind} comes", f"{way} {name}?")
    return Exchange(user, f"The {kind} {way} {name} is {right}.", f"{name.lower()} {right.lower()}", "calendar")


def _repeat(rng: np.random.Generator, split: Split, exercise: bool = False) -> Exchange:
    while True:
        said = " ".join(str(rng.choice(words)) for words in (_SUBJECTS, _ACTIONS, _PLACES))
        if held_out(said) == (split == "test"):
            break
    return Exchange(("Repeat after me,", f"{said}."), f"{said[0].upper()}{said[1:]}.", said, "repeat")


def _colour(rng: np.random.Generator, split: Split, exercise: bool = False) -> Exchange:
    thing = str(rng.choice(list(_COLOURS)))
    user = (_say(rng, "What colour is", "Tell me, what colour is"), f"{thing}?")
    return Exchange(user, f"{thing[0].upper()}{thing[1:]} is {_COLOURS[thing]}.", _COLOURS[thing], "colour")


def _fact(rng: np.random.Generator, split: Split, exercise: bool = False) -> Exchange:
    thing = str(rng.choice(list(_FACTS)))
    right = _FACTS[thing]
    user = (_say(rng, "What is", "Do you know what is"), f"{thing}?")
    return Exchange(user, f"{thing[0].upper()}{thing[1:]} is {right}.", right.split()[-1].lower(), "fact")


def _story(rng: np.random.Generator, split: Split, exercise: bool = False) -> Exchange:
    story = _STORIES[int(rng.integers(len(_STORIES)))]
    any_of_them = "|".join(each.lower().split()[1] for each in _STORIES)  # the question does not say which
    return Exchange(
        ("Please", _say(rng, "tell me a story.", "tell me something.")), story, any_of_them, "story", long=True
    )


def _recite(rng: np.random.Generator, split: Split, exercise: bool = False) -> Exchange:
    """What follows what: days, months, numbers."""
    kind, circle = [("days", _DAYS), ("months", _MONTHS), ("numbers", [number_word(n) for n in range(61)])][
        int(rng.choice(3, p=[0.3, 0.3, 0.4]))
    ]
    first = int(rng.integers(len(circle) - (3 if kind == "numbers" else 0)))
    series = [circle[(first + i) % len(circle)] for i in range(int(rng.integers(2, 5)))]
    user = ("Say the", f"{kind} from {series[0]} to {series[-1]}.")
    said = ", ".join(series)
    return Exchange(user, f"{said[0].upper()}{said[1:]}.", said.replace(",", "").lower(), "recite")


def _again(rng: np.random.Generator, last: Exchange) -> Exchange:
    """The last answer once more, as it is asked for: what is right depends on what was said before."""
    if rng.random() < 0.5:
        return replace(last, parts=("Louder, please.",), topic="louder", gain=LOUDER)
    return replace(last, parts=("Slower, please.",), topic="slower", speed=SLOWER)


_TOPICS: tuple[tuple[Callable[[np.random.Generator, Split, bool], Exchange], float], ...] = (
    (_sum, 0.28),
    (_calendar, 0.16),
    (_repeat, 0.16),
    (_colour, 0.12),
    (_fact, 0.12),
    (_story, 0.16),
)
_EXERCISES = ((_sum, 0.6), (_calendar, 0.1), (_recite, 0.1), (_repeat, 0.08), (_colour, 0.06), (_fact, 0.06))
"""On paper: most of what takes most practice."""
BYE = Exchange(("Goodbye.",), "Goodbye.", "goodbye|bye", "goodbye")
STOP = Exchange(("Stop, please.",), "Okay.", "okay|ok", "stop")
LOUDER, SLOWER = 6.0, 0.75
"""dB and speed of an answer that is said again."""
AGAIN = 0.15
"""Share of the short answers that the user wants to hear again, louder or slower."""
BACKCHANNELS = ("Right.", "Yes.", "Okay.", "I see.")


def script(seed: int, split: Split, turns: int = 4, exercise: bool = False) -> list[Exchange]:
    """A conversation: a greeting, `turns` questions (some answers are asked for again), a goodbye. The same
    seed gives the same.

    Args:
        exercise: for reading and writing only: some names are made up, some sums are larger, and series of days and
            numbers are said in the place of stories, so that to copy and to count is learnt, where a table could be
            learnt by heart.
    """
    if split not in SPLITS:
        raise BadInput(f"no split {split!r}: {' or '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    topics = _EXERCISES if exercise else _TOPICS
    chosen = rng.choice(len(topics), size=turns, p=[weight for _, weight in topics])
    said: list[Exchange] = []
    for ask in (_greeting, *[topics[int(i)][0] for i in chosen]):
        exchange = ask(rng, split, exercise)
        said.append(exchange)
        if not exchange.long and rng.random() < AGAIN:
            said.append(_again(rng, exchange))
    return [*said, BYE]


def texts(count: int = 2000, split: Split = "train") -> list[str]:
    """What is said in so many dialogues, without the names: a vocabulary of these words spells names, so that a name
    which it never met can be heard and said as well."""
    said = [text for seed in range(count) for e in script(seed, split) for text in (e.user, e.reply)]
    said += [STOP.user, STOP.reply, *BACKCHANNELS]
    return [" ".join(w for w in text.split() if w.strip(".,?") not in NAMES) for text in said]
