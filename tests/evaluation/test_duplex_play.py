"""Dialogues played to random models: many at once are the same as one by one, and a session that is never reset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from quaver.dialogue.loading import DuplexParts
from quaver.dialogue.session import DuplexSettings
from quaver.errors import BadInput
from quaver.evaluation import duplex_session
from quaver.evaluation.duplex_play import LongSession, converse, play
from quaver.evaluation.duplex_run import run_duplex
from quaver.evaluation.duplex_session import run_session

from ..dialogue.tiny import VOCABULARY, noise_frames, talking_model, tiny_codec
from ..laws import TOLERANCE, few

SIZE = 64


@pytest.fixture(scope="module")
def parts() -> DuplexParts:
    return DuplexParts(talking_model(heard=2), tiny_codec(), VOCABULARY, DuplexSettings(temperature=0.7))


@pytest.fixture(scope="module")
def slow() -> DuplexParts:
    """With frames of 40 ms, for real seconds."""
    return DuplexParts(talking_model(heard=2), tiny_codec(hop=240, n_fft=960), VOCABULARY, DuplexSettings())


def recordings(lengths: list[int], seed: int = 0) -> list[tuple[np.ndarray, DuplexSettings]]:
    """Noise of so many samples each, a seed for each."""
    return [
        (noise_frames(1, max(n, 1), seed + i)[0, :n], DuplexSettings(seed=i, top_k=4)) for i, n in enumerate(lengths)
    ]


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=5), slots=st.integers(2, 3))
@few
def test_many_at_once_say_what_each_says_alone(parts: DuplexParts, lengths: list[int], slots: int) -> None:
    given = recordings(lengths)
    found = dict(play(parts, given, slots))
    assert found.keys() == set(range(len(lengths)))
    for number, (user, settings) in enumerate(given):
        alone = converse(parts, user, settings)
        assert found[number].said == alone.said
        assert found[number].heard == alone.heard
        assert len(found[number].audio) == len(user)
        assert np.abs(found[number].audio - alone.audio).max(initial=0) < TOLERANCE


def test_neighbours_and_slots_change_no_bit(parts: DuplexParts) -> None:
    """The same recordings with others before them: other slots, other neighbours."""
    ours = recordings([320, 150, 260])
    plain = dict(play(parts, ours, 3))
    after = dict(play(parts, [*recordings([100, 64, 200, 30], seed=50), *ours], 3))
    for number in range(3):
        assert np.array_equal(plain[number].audio, after[number + 4].audio)
        assert plain[number].said == after[number + 4].said


def test_a_recorded_batch_plays_the_same(parts: DuplexParts) -> None:
    ours = recordings([120, 80, 100])
    plain, recorded = (dict(play(parts, ours, 2, recorded=r)) for r in (False, True))
    assert all(np.array_equal(plain[n].audio, recorded[n].audio) and plain[n].said == recorded[n].said for n in plain)


def test_a_long_session_is_one_conversation(parts: DuplexParts) -> None:
    """Recordings of whole frames, one after the other, against all of them as one."""
    pieces = [noise_frames(1, n * SIZE, n)[0] for n in (3, 5, 2)]
    session = LongSession(parts)
    found = [session.converse(piece) for piece in pieces]
    whole = converse(parts, np.concatenate(pieces), parts.settings)
    assert np.array_equal(np.concatenate([f.audio for f in found]), whole.audio)
    assert np.abs(whole.audio).max() > 0.01
    words = "".join(text for f in found for _, text in f.said)
    assert words == "".join(text for _, text in whole.said)
    assert len(session.converse(np.zeros(0, np.float32)).audio) == 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dialogues of noise, a second each: a question about something, and one that says not what it is about."""
    folder = tmp_path_factory.mktemp("dialogues")
    rows = []
    for number in range(3):
        audio = np.stack([noise_frames(1, 12_000, n)[0] for n in (number, number + 9)], 1)
        audio[:, 1] *= np.arange(12_000) > 7_500  # the assistant answers
        soundfile.write(folder / f"{number}.flac", audio, 24_000)
        turn = {"kind": "turn", "start": 0.0, "end": 0.1, "text": "what", "answer": "hello", "topic": "greeting"}
        other = {"kind": "turn", "start": 0.2, "end": 0.3, "text": "no", "answer": "yes"}
        end = {"kind": "end", "start": 0.5, "end": 0.5}
        rows.append({"id": str(number), "path": f"{number}.flac", "seconds": 0.5, "words": [["hello", 0.32, 0.5]],
                     "events": [turn, other, end], "split": "test", "voice": "nobody"})  # fmt: skip
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_corpus_is_judged_the_same_with_slots(slow: DuplexParts, corpus: Path, tmp_path: Path) -> None:
    ticks: list[float] = []
    one = run_duplex(corpus, slow, seed=4, recognise=lambda samples, rate: "hello")
    many = run_duplex(
        corpus,
        slow,
        seed=4,
        slots=2,
        out=tmp_path,
        recognise=lambda samples, rate: "hello",
        tick=lambda _, done, __: ticks.append(done),
    )
    assert many == one
    assert list(many.each) == ["0", "1", "2"]
    assert ticks == [1, 2, 3]
    assert one.total.right == (3, 6)
    assert one.total.right_by_topic == {"greeting": (3, 3)}  # a question without a topic is in no topic's share
    assert one.total.written_by_topic.keys() == {"greeting"}
    assert "| greeting | 1.000 |" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["topics"]["right"] == {"greeting": [3, 3]}


def test_a_session_of_dialogues(
    slow: DuplexParts, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplex_session, "WINDOW", 1.0)
    report = run_session(corpus, slow, 2 / 60, out=tmp_path)
    assert report.total.turns == 8  # 2 seconds of dialogues of half a second
    assert [w.turns for w in report.windows] == [4, 4]
    assert report.state_bytes[0] == report.state_bytes[1] > 0
    text = (tmp_path / "table.md").read_text()
    assert "| 0.0 to 0.0 | 4 |" in text
    assert "silence collapses" in text
    with pytest.raises(BadInput, match="more than 0"):
        run_session(corpus, slow, 0)


def test_a_session_tells_a_model_that_falls_silent(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded assistant answers for ever; one who says nothing collapses, once, whatever the dialogues."""
    talking = run_session(corpus, None, 15 / 60)
    assert talking.total.collapses == 0
    assert talking.windows[0].response_rate == 0.5  # it answers the second question of two
    assert talking.windows[0].longest_silence < 0.5
    read = duplex_session.read_channels
    monkeypatch.setattr(duplex_session, "read_channels", lambda row: read(row) * np.array([[1], [0]], np.float32))
    silent = run_session(corpus, None, 15 / 60)
    assert silent.total.collapses == 1
    assert silent.windows[0].response_rate == 0
    assert silent.windows[0].longest_silence == pytest.approx(15)
