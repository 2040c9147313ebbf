"""The text front end: one alphabet, words that cover it, sentences that do not depend on how the text arrived."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quaver.errors import BadInput
from quaver.tts.phones import misaki_from_espeak
from quaver.tts.text import (
    BASE_PHONES,
    MAX_PHONES,
    PHONE_IDS,
    PHONES,
    SENTENCE_ENDS,
    Frontend,
    TextStream,
    Utterance,
    base_id,
    is_pause,
    is_vowel,
    phone_id,
    phones_from_misaki,
    split_sentences,
    strip_stress,
)

FRONTEND = Frontend()
WORDS = st.sampled_from(
    [
        "Hello",
        "the",
        "Dr.",
        "e.g.",
        "U.S.A.",
        "$1,234.56",
        "3rd",
        "-",
        "—",
        "…",
        "...",
        "?!",
        "world,",
        "(yes)",
        "\n",
        "\n\n",
        "“Quoted.”",
        "I.",
        "J.",
        "<break/>",
        '<break time="500ms"/>',
        "<bre",
        "naïve",
        "你好",
        "😀",
        "\0",
        "1.",
        "5%",
        "www.a.org/b",
        "x@y.com",
        "[Bo](/bˈO/)",
        "[a](http://b)",
        "Fig.",
        "3",
        "no.",
        "a.m.",
        "שלום",
        "²",
        "½",
        "#5",
        "'tis",
    ]
)
MESSY = st.lists(st.tuples(WORDS, st.sampled_from([" ", "", "  "])), max_size=25).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)
ANY_TEXT = st.one_of(st.text(max_size=200), MESSY)


def spoken(utterance: Utterance) -> str:
    return "".join(p for p in utterance.phones if not is_pause(p))


def check(utterance: Utterance) -> None:
    phones = utterance.phones
    assert 2 <= len(phones) <= MAX_PHONES
    assert all(p in PHONE_IDS and p not in ("_", "^") for p in phones)
    assert phones[-1] in SENTENCE_ENDS
    assert not is_pause(phones[0])
    assert not any(is_pause(a) and is_pause(b) for a, b in itertools.pairwise(phones))
    covered = [i for word in utterance.words for i in range(word.start, word.end) if not is_pause(phones[i])]
    assert covered == [i for i, p in enumerate(phones) if not is_pause(p)]
    assert all(word.text and word.start < word.end for word in utterance.words)
    assert all(a.end <= b.start for a, b in zip(utterance.words, utterance.words[1:], strict=False))
    assert all(i == -1 or is_pause(phones[i]) for i, _ in utterance.breaks)


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
@example("1" * 5000)
@example("Supercali" * 600)
@example("a, " * 3000)
@example("²")
@example("[a](/ə, ə/) b")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        utterances = FRONTEND(text)
    except BadInput:
        return
    assert utterances
    for utterance in utterances:
        check(utterance)
    assert FRONTEND(text) == utterances


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT, st.randoms(use_true_random=False))
@example("Hello. <break time='1s'/>World. " * 20, random.Random(1))
@example("no stop at all " * 60, random.Random(2))
def test_a_text_in_pieces_has_the_sentences_of_the_whole(text: str, dice: random.Random) -> None:
    stream, got, at = TextStream(), [], 0
    while at < len(text):
        size = dice.choice([1, 1, 2, 3, 7, 50])
        got += stream.push(text[at : at + size])
        at += size
    got += stream.close()
    assert got == split_sentences(text)
    assert "".join("".join(got).split()) == "".join(text.split())


def test_a_stream_gives_a_sentence_as_soon_as_the_next_one_begins() -> None:
    stream = TextStream()
    assert stream.push("Hello there. How a") == ["Hello there."]
    assert stream.push("re you?") == []
    assert stream.close() == ["How are you?"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith vs. Mr. J. R. R. Tolkien. Next.", 2),
        ("It cost 3.14 dollars, e.g. here. Fig. 3 shows it.", 2),
        ("Wait... what? No!", 2),
        ('"Stop!" he said. "Why?" She left.', 3),
        ("He left at 5 p.m. Then he slept.", 2),
        ("Heading\n\nThe text goes on", 2),
        ("A line that was wrapped by an editor at seventy-two characters, say,\nand goes on here. Two.", 2),
        ("1. Bread\n2. Butter\n- jam", 3),
        ("It was I. Then you came.", 2),
        ("One.<break/>Two.", 2),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, sentences: int) -> None:
    assert len(split_sentences(text)) == sentences


def test_every_sentence_fits_the_model() -> None:
    text = "word " * 2000
    assert max(len(sentence) for sentence in split_sentences(text)) <= 360
    number = FRONTEND("9" * 400)
    assert len(number) > 1
    for utterance in number:
        check(utterance)


@pytest.mark.parametrize(
    ("text", "phones"),
    [
        ("$1,234.56", "wˈʌnθˈWzᵊndtˈuhˈʌndɹədθˈɜɹTifˈɔɹdˈɑləɹzændfˈɪftisˈɪkssˈɛnts"),
        ("the 3rd", "ðəθˈɜɹd"),
        ("the U.S.A.", "ðəjˌuˌɛsˈA"),
        ("nul\0byte 😀 你好", "nˈʌlbˈIt"),
        ("see www.a.org", "sˈidˈʌbᵊljudˈʌbᵊljudˈʌbᵊljudˈɑtɐdˈɑtˈɔɹɡ"),
        ("[Bo](/bˈO/) [there](http://x.org)", "bˈOðˈɛɹ"),
    ],
)
def test_what_is_not_plain_words_is_read_as_people_say_it(text: str, phones: str) -> None:
    (utterance,) = FRONTEND(text)
    assert spoken(utterance) == phones


def test_words_are_those_of_the_text() -> None:
    (utterance,) = FRONTEND("“Well,” Dr. Brown paid $5 at 3:30 pm — twenty-one (21) times!")
    assert [word.text for word in utterance.words] == [
        "Well",
        "Dr",
        "Brown",
        "paid",
        "$5",
        "at",
        "3:30 pm",
        "twenty-one",
        "21",
        "times",
    ]
    assert utterance.phones[-1] == "!"


def test_british_english_is_another_reading() -> None:
    us, gb = FRONTEND("Go ask after the car."), Frontend("en-gb")("Go ask after the car.")
    assert us != gb
    assert "ˌQ" in gb[0].phones
    assert "ˈɑː" in gb[0].phones
    check(gb[0])
    with pytest.raises(BadInput, match="en-us, en-gb"):
        Frontend("fr")


def test_breaks_are_silences_at_a_pause() -> None:
    first, second = FRONTEND('<break/>Hi, all<break time="2s"/>of you. <break time="250ms"/> Good.')
    assert [seconds for _, seconds in first.breaks] == [0.5, 2.0, 0.25]
    assert [i for i, _ in first.breaks][::2] == [-1, len(first.phones) - 1]
    assert first.phones[first.breaks[1][0]] == ","
    assert second.breaks == ()


@pytest.mark.parametrize("text", ["", " \n", "...", "?!", "—", "<break/>"])
def test_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="at least one word"):
        FRONTEND(text)


@pytest.mark.parametrize(("text", "named"), [("你好", "你, 好"), ("😀", "😀"), ("\0", r"U\+0000"), ("Привет", "П")])
def test_unreadable_characters_are_named(text: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        FRONTEND(text)


def test_an_override_outside_the_alphabet_is_refused() -> None:
    with pytest.raises(BadInput, match="ы"):
        FRONTEND("[a](/ы/)")


def test_ten_thousand_characters_are_fast() -> None:
    FRONTEND("warm up, zxqv")
    began = time.process_time()
    assert len(FRONTEND("The boy was there when the sun rose, and so was I. " * 200)) == 200
    FRONTEND("zxqv" * 1250)
    assert time.process_time() - began < 5


def test_the_alphabet_is_frozen() -> None:
    """Bundled models store these indices."""
    assert (len(PHONES), len(BASE_PHONES)) == (118, 60)
    assert PHONES[:8] == ("_", "^", ",", ".", "?", "!", "b", "d")
    assert [phone_id(p) for p in ("θ", "A", "ˈA", "ˌA", "ˈæ", "ˌəː")] == [30, 31, 32, 33, 59, 117]
    assert len(set(PHONES)) == len(PHONES)
    assert {strip_stress(p) for p in PHONES} == set(BASE_PHONES)
    assert base_id("ˈæ") == base_id("æ") == BASE_PHONES.index("æ")
    assert is_vowel("ˌiː")
    assert not is_vowel("k")
    assert not is_pause("_")
    with pytest.raises(BadInput):
        phone_id("X")


def test_a_g2p_string_becomes_symbols_and_words() -> None:
    symbols, words = phones_from_misaki("ˌIl kˈaɹi, — “sˈiː”… (nˈO)")
    assert symbols == ["ˌI", "l", "k", "ˈa", "ɹ", "i", ",", "s", "ˈiː", ",", "n", "ˈO", "."]
    assert words == [(0, 2), (2, 6), (7, 9), (10, 12)]
    assert phones_from_misaki(", ;") == ([], [])
    assert phones_from_misaki("a?! ... bɾˈkr")[0] == ["a", "?", "b", "T", "k", "ɹ", "."]


def test_espeak_phonemes_reach_the_same_alphabet() -> None:
    assert misaki_from_espeak("həlˈoʊ wˈɜːld") == "həlˈO wˈɜɹld"
    assert misaki_from_espeak("tʃˈeɪndʒ", british=True) == "ʧˈAnʤ"
