"""How edits are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quaver.errors import BadInput
from quaver.evaluation.editing import EditCase, EditResult, judge_edit, read_cases, summary

CASE = EditCase(Path("a.wav"), "Tuck the sheet under the edge of the mat.", "sheet", "two blue blankets")
NEW = "Tuck the two blue blankets under the edge of the mat."


@pytest.mark.parametrize(
    ("heard", "right", "kept"),
    [
        ("Tuck the 2 blue blankets under the edge of the mat", True, True),
        ("Tuck the two new blankets under the edge of the mat", False, True),
        ("Tuck a two blue blankets under the edge of the mat", True, False),
        ("Tuck the two blue blankets under the edge of the", True, False),
        ("", False, False),
    ],
)
def test_words_inside_and_outside_are_judged_apart(heard: str, right: bool, kept: bool) -> None:
    assert judge_edit(NEW, heard, CASE, CASE.transcript) == (right, kept)


def test_a_word_that_was_not_heard_before_need_not_be_heard_now() -> None:
    heard = "Tuck the two blue blankets under the hedge of the mat"
    assert judge_edit(NEW, heard, CASE, "Tuck the sheet under the hedge of the mat") == (True, True)
    assert judge_edit(NEW, heard, CASE, CASE.transcript) == (True, False)


def test_cases_are_read_beside_their_file(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    row = {"audio": "x.wav", "transcript": "a b", "old": "a", "new": "c"}
    path.write_text(json.dumps(row) + "\n\n" + json.dumps(row | {"voice": "hibari"}) + "\n")
    one, two = read_cases(path)
    assert one == EditCase(tmp_path / "x.wav", "a b", "a", "c")
    assert two.voice == "hibari"
    for text in ("", "{}", "no json"):
        path.write_text(text)
        with pytest.raises(BadInput, match="case"):
            read_cases(path)


def test_the_summary_counts() -> None:
    results = [EditResult(NEW, NEW, True, True, 0.8), EditResult(NEW, "no", False, True, 0.7)]
    text = summary(results)
    assert "right in 1 of 2, all others kept in 2 of 2" in text
    assert text.count("\n|") == 3
