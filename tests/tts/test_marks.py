"""Inline marks: what each does to the text, that pieces equal the whole, and that what makes no sense is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaver.errors import BadInput
from quaver.tts.marks import Marks, Piece, marked_sentences
from quaver.tts.script import Script
from quaver.tts.speaking import SpeechSettings
from quaver.tts.synthesizer import Synthesizer
from quaver.tts.text import Frontend

from ..laws import many

FRONTEND = Frontend()
ALL = (
    'One <sub alias="two three">2-3</sub> four. <prosody rate="slow">Slow it is. <prosody rate="110%">Less so.'
    '</prosody></prosody> <say-as interpret-as="digits">1066</say-as><break strength="strong"/>and 1 < 2, <b>bold</b>. '
    '<phoneme ph="təmˈɑːtoʊ">tomato</phoneme> <p>New.</p> a <3 b'
)


def plain(text: str) -> str:
    marks = Marks()
    return "".join(piece.text for piece in [*marks.push(text), *marks.close()])


def joined(pieces: list[Piece]) -> list[tuple[str, float]]:
    out: list[tuple[str, float]] = []
    for piece in pieces:
        if out and out[-1][1] == piece.rate:
            out[-1] = (out[-1][0] + piece.text, piece.rate)
        else:
            out.append((piece.text, piece.rate))
    return out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no marks, 1 < 2 & <b>html</b> <3", "no marks, 1 < 2 & <b>html</b> <3"),
        ('a <sub alias="bee">B</sub> c', "a bee c"),
        ("<sub alias='Tom &amp; Co'>T</sub>", "Tom & Co"),
        ('<say-as interpret-as="characters">ab1</say-as>', "[A](/ˈA/) B 1"),
        ('<say-as interpret-as="digits">10-66</say-as>', "1 0 6 6"),
        ('<say-as interpret-as="telephone">555 12</say-as>', "5 5 5, 1 2"),
        ('<say-as interpret-as="cardinal">12,345</say-as>', "12345"),
        ('<say-as interpret-as="ordinal">3</say-as>', "3rd"),
        ('<say-as interpret-as="ordinal">112</say-as>', "112th"),
        ('<phoneme ph="deɪ">x</phoneme>', "[x](/dA/)"),
        ('<phoneme alphabet="misaki" ph="dA">x</phoneme>', "[x](/dA/)"),
        ('<PHONEME ph="dʒoʊ"/>', "[sound](/ʤO/)"),
        ("<speak><s>Hi.</s></speak>", "Hi.\n\n"),
        ("<break time=1s/>", "<break time=1s/>"),
        ('<break strength="weak"/>', '<break time="0.25s"/>'),
        ('a<break strength="none"/>b', "ab"),
        ('<break time="2s" strength="strong"/>', '<break time="2s"/>'),
    ],
)
def test_what_marks_become(text: str, said: str) -> None:
    assert plain(text) == said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<emphasis>no</emphasis>", "not supported"),
        ('<break strength="none" time="2s"/>', "contradicts"),
        ('<break strength="huge"/>', "strength"),
        ('<break size="3"/>', "no attribute 'size'"),
        ('<prosody pitch="high">x</prosody>', "no attribute 'pitch'"),
        ('<prosody rate="warp">x</prosody>', "80%"),
        ('<prosody rate="300%">x</prosody>', "out of reach"),
        ('<prosody rate="60%"><prosody rate="60%">x</prosody></prosody>', "0.36"),
        ("<prosody>x</prosody>", "80%"),
        ('<prosody rate="slow">x', "never closed"),
        ("x</prosody>", "not the last one opened"),
        ('<p><prosody rate="slow">x</p></prosody>', "not the last one opened"),
        ('<sub alias="x">never closed', "never closed"),
        ("<sub>x</sub>", "alias"),
        ('<sub alias="y"><say-as interpret-as="digits">1</say-as></sub>', "contradicts"),
        ('<say-as interpret-as="date">1</say-as>', "characters"),
        ('<say-as interpret-as="digits">one</say-as>', "no digit"),
        ('<say-as interpret-as="cardinal">many</say-as>', "no number"),
        ("<phoneme>x</phoneme>", 'ph="'),
        ('<phoneme ph="щ">x</phoneme>', "alphabet does not have"),
        ('<phoneme ph="d" alphabet="x-sampa">x</phoneme>', "x-sampa"),
        ("<sub alias=x>y</sub>", "well-formed"),
    ],
)
def test_unknown_and_contradictory_marks_are_refused(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        plain(text)


@many
@given(cuts=st.lists(st.integers(0, len(ALL)), max_size=12))
def test_marks_in_pieces_equal_the_whole(cuts: list[int]) -> None:
    whole = Marks()
    wanted = joined([*whole.push(ALL), *whole.close()])
    edges = [0, *sorted(cuts), len(ALL)]
    marks, got = Marks(), []
    for a, b in pairwise(edges):
        got += marks.push(ALL[a:b])
    assert joined([*got, *marks.close()]) == wanted
    assert [rate for _, rate in wanted] == pytest.approx([1.0, 0.8, 0.88, 1.0])


@many
@given(text=st.text("<>/ab \"'=prosodyubk", max_size=60))
def test_any_text_is_pieces_or_a_clear_error(text: str) -> None:
    try:
        whole = plain(text)
    except BadInput:
        return
    assert whole == text or "<" in text


def test_a_change_of_pace_ends_a_sentence() -> None:
    found = marked_sentences('One <prosody rate="fast">two. Three</prosody> four.')
    assert found == [("One", 1.0), ("two.", 1.25), ("Three", 1.25), ("four.", 1.0)]
    assert [u.rate for u in FRONTEND('Hi. <prosody rate="slow">There.</prosody>')] == [1.0, 0.8]


@pytest.mark.parametrize("by", ["sentence", "clause", "word"])
def test_what_comes_before_a_wrong_mark_is_spoken_first(by: str) -> None:
    script = Script(FRONTEND, by=by)  # type: ignore[arg-type]
    script.push("A good sentence. <emphasis>A bad one.</emphasis> And more.")
    given, seen = script.next(), []
    assert given is not None
    seen.append(given)
    while script.growing:
        grown = script.grow()
        assert grown is not None
        seen.append(grown)
    assert not script.over
    assert not script.waits
    with pytest.raises(BadInput, match="emphasis"):
        script.next()
    with pytest.raises(BadInput, match="emphasis"):
        Script(FRONTEND, "Good. <emphasis>Bad.").read_all()


@pytest.mark.parametrize("by", ["sentence", "word"])
def test_streamed_marks_keep_their_pace(by: str) -> None:
    script = Script(FRONTEND, by=by)  # type: ignore[arg-type]
    for piece in ("One two three. <pros", 'ody rate="slow">Four five six', " seven.</prosody> Eight."):
        script.push(piece)
    script.close()
    rates = []
    while not script.over:
        utterance = script.next()
        assert utterance is not None
        rates.append(utterance.rate)
        while script.growing:
            grown = script.grow()
            assert grown is None or grown.rate == utterance.rate
    assert rates == [1.0, 0.8, 1.0]


def test_the_pace_reaches_the_model(synthesizer: Synthesizer) -> None:
    slow, fast = FRONTEND('<prosody rate="slow">Hi.</prosody> <prosody rate="x-fast">Ho.</prosody>')
    settings: SpeechSettings = synthesizer.settings_of(speed=1.5)
    assert settings.request(slow, 0).speed == pytest.approx(1.2)
    assert settings.request(fast, 0).speed == 2.0  # the fastest there is
    for text in ("<emphasis>Hi.</emphasis>", "Hi <sub>x</sub>"):
        with pytest.raises(BadInput):
            synthesizer.stream(text)
