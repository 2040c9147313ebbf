"""Turn-taking metrics on timelines whose figures are known."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaver.errors import BadInput
from quaver.evaluation.duplex import (
    DuplexScores,
    Event,
    Span,
    activity,
    answers,
    by_topic,
    collapses,
    draw_timeline,
    longest_silence,
    score,
    table,
    talkspurts,
    topic_table,
)

from ..laws import many

RATE = 8000


def channel(spans: list[Span], seconds: float) -> np.ndarray:
    """A tone where somebody speaks, a whisper of noise elsewhere."""
    time = np.arange(round(seconds * RATE)) / RATE
    samples = 1e-3 * np.random.default_rng(0).standard_normal(len(time))
    for start, end in spans:
        inside = (time >= start) & (time < end)
        samples[inside] += 0.3 * np.sin(2 * np.pi * 220 * time[inside])
    return samples.astype(np.float32)


def test_activity_finds_speech_where_it_is() -> None:
    spans = [(0.5, 1.0), (1.1, 1.6), (2.5, 3.0)]
    found = activity(channel(spans, 4), RATE)
    assert np.allclose(found, [(0.5, 1.6), (2.5, 3.0)], atol=0.011)
    assert activity(np.zeros(0, np.float32), RATE) == []
    with pytest.raises(BadInput, match="channel"):
        activity(np.zeros((2, 100), np.float32), RATE)


@given(starts=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), max_size=8))
@many
def test_talkspurts_are_apart_in_order_and_cover_what_is_long(starts: list[tuple[int, int]]) -> None:
    spans = [(a / 100, (a + b) / 100) for a, b in starts]
    found = talkspurts(spans)
    assert all(b[0] - a[1] >= 0.2 - 1e-6 for a, b in itertools.pairwise(found))
    assert all(any(f[0] <= a and b <= f[1] for f in found) for a, b in spans if b - a >= 0.06)


def test_an_answered_turn_an_early_answer_and_none() -> None:
    events = [Event("turn", 0, 2), Event("turn", 6, 8), Event("turn", 12, 14), Event("end", 30, 30)]
    made = score([(0, 2), (6, 8), (12, 14)], [(2.3, 4), (7.6, 9)], events, 30)
    assert made.offsets == pytest.approx((0.3, -0.4))
    assert (made.turns, made.answered, made.collapses) == (3, 2, 1)
    figures = made.figures()
    assert figures["response rate"] == pytest.approx(2 / 3)
    assert figures["response latency p50"] == pytest.approx(0.15)  # of 0.3 and, for -0.4, 0
    assert figures["floor-transfer offset p50"] == pytest.approx(-0.05)
    assert figures["talk share"] == pytest.approx(3.1 / 9.1)
    assert figures["overlap"] == pytest.approx(0.4 / 30)


def test_an_answer_that_comes_too_late_is_none() -> None:
    assert score([(0, 1)], [(6.5, 8)], [Event("turn", 0, 1)], 10).answered == 0
    # What follows the next turn answers that one.
    two = [Event("turn", 0, 1), Event("turn", 2, 3)]
    assert score([(0, 1), (2, 3)], [(3.2, 4)], two, 10).answered == 1


@pytest.mark.parametrize(
    ("spoken", "taken"), [([], 0), ([(1.2, 1.5)], 0), ([(1.2, 2.4)], 1), ([(1.8, 3.5)], 1), ([(2.2, 4)], 0)]
)
def test_takeover_on_a_pause(spoken: list[Span], taken: int) -> None:
    """A word in the pause is a backchannel; a second of speech that begins in it is a takeover."""
    made = score([(0, 1), (2, 3)], spoken, [Event("pause", 1, 2)], 5)
    assert (made.pauses, made.takeovers) == (1, taken)


@pytest.mark.parametrize(("stops", "latency"), [(2.4, 0.4), (2.7, 0.7), (5.0, None)])
def test_stop_latency_after_an_interruption(stops: float, latency: float | None) -> None:
    made = score([(2, 3.5)], [(0, stops)], [Event("interrupt", 2, 3.5)], 8)
    assert made.interruptions == 1
    assert made.stops == (pytest.approx(latency) if latency else None,)
    assert made.figures()["yields within 0.6 s"] == float(latency == 0.4)
    assert made.answered == 0  # what it was saying is no answer


def test_an_interruption_is_answered_by_new_speech_and_counts_only_while_it_speaks() -> None:
    made = score([(2, 3)], [(0, 2.3), (3.4, 5)], [Event("interrupt", 2, 3)], 8)
    assert made.offsets == pytest.approx((0.4,))
    assert score([(2, 3)], [(3.4, 5)], [Event("interrupt", 2, 3)], 8).interruptions == 0


@pytest.mark.parametrize("kind", ["backchannel", "noise"])
@pytest.mark.parametrize(("until", "false"), [(6.0, 0), (2.6, 1)])
def test_false_yields(kind: str, until: float, false: int) -> None:
    made = score([(2, 2.4)], [(0, until)], [Event(kind, 2, 2.4)], 8)  # type: ignore[arg-type]
    assert (made.disturbances, made.false_yields) == (1, false)


def test_a_stop_for_a_turn_is_no_false_yield() -> None:
    events = [Event("noise", 2, 2.2), Event("interrupt", 2.4, 3.5)]
    assert score([(2.4, 3.5)], [(0, 2.8)], events, 8).false_yields == 0


def test_the_assistants_backchannels() -> None:
    made = score([(0, 6)], [(2, 2.4), (4, 5.5), (7, 7.3)], [], 60)
    assert made.figures()["backchannels per minute"] == pytest.approx(1)


def test_answers_are_compared_word_by_word() -> None:
    assert answers([("It is seven.", "seven|7"), ("that makes 7", "seven|7"), ("eight", "seven")]) == (2, 3)
    assert answers([("hello Zoe, nice to meet you", "zoe nice"), ("nice, Zoe", "zoe nice")]) == (1, 2)


def test_scores_add_up_and_nothing_measured_is_none() -> None:
    a = score([(0, 1)], [(1.2, 2)], [Event("turn", 0, 1)], 5)
    both = a + a
    assert both.offsets == a.offsets * 2
    assert both.seconds == 10
    assert DuplexScores().figures()["response rate"] is None
    assert "| response rate | 1.000 | 2 |" in table(both)
    assert "–" in table(DuplexScores())


@pytest.mark.parametrize(
    ("spoken", "found"),
    [
        ([(2.2, 3), (8.2, 9), (14.2, 15)], 0),
        ([(2.2, 3), (8.2, 9)], 1),  # nothing after the third turn
        ([(2.2, 3), (20, 21)], 1),  # two turns within one silence
        ([], 1),
        ([(7.9, 24)], 0),  # begins before the second turn is over, and speaks on
    ],
)
def test_a_silence_in_which_turns_go_unanswered_is_one_collapse(spoken: list[Span], found: int) -> None:
    turns = [Event("turn", 0, 2), Event("turn", 6, 8), Event("turn", 12, 14), Event("end", 15, 15)]
    assert collapses(spoken, turns, 30) == found
    assert collapses(spoken, [Event("noise", 3, 4)], 30) == 0


def test_the_longest_silence() -> None:
    assert longest_silence([(1, 2), (6, 7)], 0, 10) == 4
    assert longest_silence([(1, 2), (6, 7)], 1.5, 20) == 13
    assert longest_silence([], 2, 10) == 8
    assert longest_silence([(0, 9)], 2, 5) == 0


def test_answers_by_topic() -> None:
    judged = [("sum", "it is 7", "seven|7"), ("sum", "", "seven|7"), ("", "no", "yes"), ("name", "Zoe", "zoe")]
    found = by_topic(judged)
    assert found == {"sum": (1, 2), "name": (1, 1)}
    both = DuplexScores(right_by_topic=found) + DuplexScores(
        right_by_topic={"sum": (1, 1)}, written_by_topic={"day": (0, 3)}
    )
    assert both.right_by_topic == {"name": (1, 1), "sum": (2, 3)}
    assert "| sum | 0.667 | – | 3 |" in topic_table(both)
    assert "| day | – | 0.000 | 3 |" in topic_table(both)
    assert topic_table(DuplexScores()) == ""


def test_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "timeline.png"
    events = [Event("turn", 0.2, 1, "what is two plus two"), Event("end", 3, 3)]
    draw_timeline(path, channel([(0.2, 1)], 3), channel([(1.3, 2)], 3), RATE, events)
    data = path.read_bytes()
    assert data[:4] == b"\x89PNG"
    assert len(data) > 5000
