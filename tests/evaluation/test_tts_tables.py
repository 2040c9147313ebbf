"""Tables of several models: what they are made of, lost words, and who sounds like whom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quaver.errors import BadInput
from quaver.evaluation.judges import Judges
from quaver.evaluation.metrics import METRICS
from quaver.evaluation.report import Report, System
from quaver.evaluation.tts_speakers import SpeakerTable, voice_matrix, zero_shot
from quaver.evaluation.tts_stress import STRESS, WordCount, count_words
from quaver.evaluation.tts_table import table_of
from quaver.tts.text import Frontend

from .conftest import speechlike
from .test_run_tts import Chunk


def test_the_stress_list_is_readable_and_long_enough() -> None:
    assert len(STRESS) == 30
    assert len(set(STRESS)) == 30
    lengths = [sum(len(u.words) for u in Frontend()(text)) for text in STRESS]
    assert min(lengths) >= 7
    assert sorted(lengths)[-3] >= 45  # three times the fifteen words of a usual sentence


@pytest.mark.parametrize(
    ("heard", "skipped", "repeated", "wrong"),
    [
        ("the the the word", 0, 0, 0),
        ("The, the word.", 1, 0, 0),
        ("the the the the the word", 0, 2, 0),
        ("the the a word", 0, 0, 1),
        ("", 4, 0, 0),
    ],
)
def test_words_that_are_lost_are_counted(heard: str, skipped: int, repeated: int, wrong: int) -> None:
    pytest.importorskip("jiwer")
    assert count_words("The the the word.", heard) == WordCount(4, skipped, repeated, wrong)


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("One, two, three, four, five, six, seven, eight, nine, ten.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
        ("Two, two, two, four, four, four.", "2, 2, 2, 4, 4, 4"),
        ("Seven eleven, seventy seven, one hundred and seven.", "7-11, 77, 107."),
        ("Seven eleven, seventy seven, one hundred seven.", "711, 77, 107."),
        ("My number is five five five, oh one two.", "My number is 555-012."),
        ("Ten times ten is one thousand.", "10 times 10 is 1,000"),
        ("It was nineteen eighty four.", "It was 1984."),
        ("The grey theatre.", "The gray theater."),
    ],
)
def test_numbers_are_compared_as_they_are_said(text: str, heard: str) -> None:
    """Whisper's normaliser made one word of "one, two, three" and three of "1, 2, 3": nine words repeated."""
    pytest.importorskip("jiwer")
    counts = count_words(text, heard)
    assert (counts.skipped, counts.repeated, counts.wrong) == (0, 0, 0)


def test_a_word_taken_for_two_is_misheard_and_not_repeated() -> None:
    pytest.importorskip("jiwer")
    assert count_words("Six thick thistle sticks.", "Six thick the sole sticks.") == WordCount(4, 0, 0, 2)
    assert count_words("Red lorry, yellow lorry.", "Red lorry, red lorry, yellow lorry.") == WordCount(4, 0, 2, 0)
    assert count_words("Red lorry, yellow lorry.", "Red lorry.") == WordCount(4, 2, 0, 0)


def test_one_row_a_model_and_only_columns_that_some_model_has() -> None:
    rows = [{"rtf": 0.5, "audio_seconds": 2.0, "wall": 1.0, "cpu": 0.5, "first_audio": 80.0}]
    named = {name: METRICS[name] for name in ("first_audio",)}
    reports = [Report("tts", [System(name, rows=rows).summarised(named)]) for name in ("a", "b")]
    about = [{"model": m, "layout": "prefix", "head": "depth", "parameters": "1.0 M"} for m in ("a", "b")]
    table = table_of(about, [reports[0], Report("tts", [System("b")])])
    lines = table.markdown().splitlines()
    assert lines[0] == "| model | layout | head | parameters | first audio (ms) |"
    assert lines[2] == "| a | prefix | depth | 1.0 M | 80 |"
    assert lines[3] == "| b | prefix | depth | 1.0 M |  |"


class Two:
    """Two voices, an octave and more apart."""

    sample_rate = 16_000
    voices = ("deep", "bright")

    def stream(self, text: str, *, voice: str | None = None, seed: int = 0) -> Iterator[Chunk]:
        yield Chunk(speechlike(2.0, pitch=90.0 if voice == "deep" else 230.0, seed=seed))


def test_each_voice_is_nearest_to_its_own_speaker() -> None:
    pytest.importorskip("resemblyzer")
    speakers = {"low": [speechlike(2.0, pitch=90.0, seed=7)], "high": [speechlike(2.0, pitch=230.0, seed=8)]}
    own = {"deep": "low", "bright": "high"}
    found = voice_matrix(Two(), ["Hello."], speakers, Judges(), names=own)
    assert found.right == 2
    assert found.similarity > found.cosines.mean()
    wrong = voice_matrix(Two(), ["Hello."], speakers, Judges(), names={"deep": "high", "bright": "low"})
    assert wrong.right == 0
    with pytest.raises(BadInput):
        voice_matrix(Two(), [], speakers, Judges())


def test_a_table_of_speakers_marks_the_own_one() -> None:
    table = SpeakerTable(["a", "b"], ["a", "b"], np.array([[0.9, 0.2], [0.8, 0.7]]), ["a", "b"])
    text = table.table().markdown()
    assert "| a | **0.90** | 0.20 |" in text
    assert "1 of 2 nearest" in text
    assert table.similarity == pytest.approx(0.8)


def test_zero_shot_needs_a_flow_and_two_recordings(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="flow"):
        zero_shot(Two(), tmp_path, ["Hello."], Judges())


def test_the_commands_refuse_what_cannot_be_in_one_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from quaver.app.cli import app
    from quaver.errors import QuaverError

    (tmp_path / "t.txt").write_text("Hello.\n")
    texts = str(tmp_path / "t.txt")
    wrong: list[list[Any]] = [
        ["table", "no-such-model", "--texts", texts],
        ["table", "quaver-en", "--texts", "none.txt"],
        ["table", "quaver-en", "--texts", texts, "-o", "x.txt"],
        ["speakers", "quaver-en", "--pack", str(tmp_path), "--texts", texts, "--own", "a"],
        ["words", "no-such-model", "--asr", str(tmp_path)],
    ]
    for arguments in wrong:
        result = CliRunner().invoke(app, ["eval", *arguments])
        assert result.exit_code != 0
        assert isinstance(result.exception, QuaverError | SystemExit)
