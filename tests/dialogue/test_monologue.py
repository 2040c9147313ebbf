"""Words in the text stream."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaver.dialogue.monologue import PieceVocabulary, load_vocabulary, monologue, words_heard
from quaver.errors import BadInput, CorruptFile, MissingFile

from ..laws import many
from .tiny import VOCABULARY as V

WORDS = st.lists(
    st.tuples(st.sampled_from(["hello", "yes", "seven", "zoe", "o'clock", "x"]), st.integers(0, 12)), max_size=8
)


def test_a_word_begins_where_it_is_heard_with_epad_before_it() -> None:
    stream = monologue([("Hello,", 0.2, 0.5), ("Blue!", 0.44, 0.7)], 14, 25, V).tolist()
    hello, blue = V.encode("hello")[0], V.encode("blue")[0]
    expected = [V.pad] * 14
    expected[4], expected[5], expected[10], expected[11] = V.epad, hello, V.epad, blue
    assert stream == expected


def test_a_word_in_the_first_frame_has_no_epad_and_epad_never_overwrites_text() -> None:
    assert monologue([("yes", 0.0, 0.1)], 3, 25, V).tolist() == [V.encode("yes")[0], V.pad, V.pad]
    assert V.epad not in monologue([("yes", 0.0, 0.1), ("no", 0.04, 0.2)], 4, 25, V).tolist()


@given(words=WORDS)
@many
def test_no_word_is_lost(words: list[tuple[str, int]]) -> None:
    """Whatever the times, long spelled words included: all words come back, in order, none before it was said."""
    timed, now = [], 0.0
    for text, gap in words:
        now += gap / 25
        timed.append((text, now, now + 0.04))
    heard = words_heard(monologue(timed, 200, 25, V).tolist(), 25, V)
    assert [w for w, _, _ in heard] == [w for w, _, _ in timed]
    assert all(h[1] >= t[1] - 0.0401 for h, t in zip(heard, timed, strict=True))


def test_text_outside_the_vocabulary() -> None:
    assert len(V.encode("Zoe?")) == 3
    assert "".join(V.decode(t) for t in V.encode("Zoe?")) == " zoe"
    for word in ("née", "?!", "", "日本"):
        with pytest.raises(BadInput, match="cannot be written"):
            V.encode(word)
    with pytest.raises(BadInput, match="no text token"):
        V.decode(V.size)


def test_files(tmp_path: Path) -> None:
    V.save(tmp_path / "vocabulary.json")
    again = load_vocabulary(tmp_path)
    assert isinstance(again, PieceVocabulary)
    assert again.pieces == V.pieces
    (tmp_path / "vocabulary.json").write_text("[]")
    with pytest.raises(CorruptFile):
        load_vocabulary(tmp_path)
    with pytest.raises(MissingFile):
        load_vocabulary(tmp_path / "none")
    assert PieceVocabulary.of_texts(["a b b", "b c"], 2).words == ("b", "a")
