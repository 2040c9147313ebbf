"""Word comparison: what counts as an error, and what counts as a sentence that the model lost."""

from __future__ import annotations

import pytest

from quaver.errors import BadInput
from quaver.evaluation.words import compare, normalise

REFERENCE = ["we", "dress", "to", "suit", "the", "weather", "of", "most", "days"]


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("A six comes up more often than a ten.", "a 6 comes up more often than a 10"),
        ("It's twenty-one dollars!", "It is $21"),
        ("Mr. Smith can't come", "mister smith can not come"),
        ("The grey colour of the harbour", "the gray color of the harbor"),
        ("eight thousand and five", "8,005"),
        ("uh, the  STALE\tsmell", "the stale smell"),
    ],
)
def test_writings_of_one_sentence_are_equal(written: str, heard: str) -> None:
    assert normalise(written) == normalise(heard)


def test_the_spelling_rule_leaves_other_words_alone() -> None:
    assert normalise("four hours of our tour, pour flour") == "4 hours of our tour pour flour"
    assert normalise("armour, honourable, colourful") == "armor honorable colorful"


def test_different_words_stay_different() -> None:
    assert normalise("the slab was hewn") != normalise("the slab was honed")


def test_equal_sentences_have_no_error() -> None:
    counts = compare(REFERENCE, REFERENCE)
    assert (counts.errors, counts.length, counts.failures) == (0, 9, [])


def test_substitution_deletion_and_insertion_count_one_each() -> None:
    heard = ["we", "dressed", "to", "suit", "weather", "of", "the", "most", "days"]
    counts = compare(REFERENCE, heard)
    assert counts.errors == 3
    assert counts.rate == pytest.approx(3 / 9)
    assert counts.failures == []


def test_a_missing_end_is_cut_even_if_its_last_word_was_misheard() -> None:
    assert compare(REFERENCE, REFERENCE[:-3]).failures == ["cut"]
    assert compare(REFERENCE, [*REFERENCE[:4], "x"]).failures == ["cut"]
    assert compare(REFERENCE, REFERENCE[:-2]).failures == []


def test_a_missing_middle_is_skipped_and_a_repetition_is_looped() -> None:
    assert compare(REFERENCE, [*REFERENCE[:3], *REFERENCE[6:]]).failures == ["skipped"]
    assert compare(REFERENCE, [*REFERENCE[:5], *REFERENCE[2:]]).failures == ["looped"]
    assert compare(REFERENCE, [*REFERENCE, *REFERENCE]).failures == ["looped"]


def test_silence_is_cut_however_short_the_text() -> None:
    counts = compare(["stop"], [])
    assert (counts.errors, counts.failures) == (1, ["cut"])


def test_a_reference_without_words_is_refused() -> None:
    with pytest.raises(BadInput, match="no words"):
        compare([], ["something"])
