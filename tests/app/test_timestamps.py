"""Time tables."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from quaver.app.timestamps import CUE_CHARACTERS, CUE_SECONDS, to_json, to_srt


@dataclass
class Word:
    text: str
    start: float
    end: float


def words(count: int, step: float = 0.3) -> list[Word]:
    return [Word(f"word{i}", i * step, i * step + 0.25) for i in range(count)]


def test_json_has_words_phones_and_length() -> None:
    table = json.loads(to_json([Word("naïve", 0.12345, 1.0)], [Word("ˈI", 0.2, 0.3)], 1.5))
    assert table == {
        "seconds": 1.5,
        "words": [{"text": "naïve", "start": 0.123, "end": 1.0}],
        "phones": [{"text": "ˈI", "start": 0.2, "end": 0.3}],
    }


def test_srt_cues_hold_every_word_once_and_stay_short() -> None:
    text = to_srt(words(100), [], 31.0)
    cues = [cue.splitlines() for cue in text.split("\n\n")]
    assert [int(cue[0]) for cue in cues] == list(range(1, len(cues) + 1))
    assert " ".join(cue[2] for cue in cues).split() == [w.text for w in words(100)]
    last = 0.0
    for _, times, line in cues:
        assert len(line) <= CUE_CHARACTERS
        start, end = (_seconds(t) for t in times.split(" --> "))
        assert last <= start < end <= start + CUE_SECONDS
        last = end


def test_srt_breaks_at_a_silence_and_counts_hours() -> None:
    text = to_srt([Word("one", 0.0, 0.5), Word("two", 3661.5, 3662.0)], [], 3662.0)
    assert "00:00:00,000 --> 00:00:00,500\none\n" in text
    assert "01:01:01,500 --> 01:01:02,000\ntwo\n" in text


def _seconds(clock: str) -> float:
    match = re.fullmatch(r"(\d\d):(\d\d):(\d\d),(\d{3})", clock)
    assert match
    hours, minutes, seconds, thousandths = map(int, match.groups())
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000
