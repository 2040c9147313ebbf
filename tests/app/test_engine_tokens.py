"""A token language model in the engine: the same answers, admission and failures as of any other."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quaver.app.engine import Audio, Engine, Event, Outcome, SpeechRequest, Started
from quaver.app.engine_session import SpeechSession
from quaver.app.engine_tokens import can_clone, can_speculate, default_voice
from quaver.app.server.metrics import Metrics
from quaver.errors import BadInput, Overloaded
from quaver.tts.speculative_voice import offer_speculation
from quaver.tts.token_speaking import reads_growing_text
from quaver.tts.token_synthesizer import TokenSynthesizer, TokenVoiceSettings

from ..tts.test_token_synthesizer import cosyvoice
from ..tts.test_voices import SOUND, VOICE
from ..tts.tokens import token_lm
from .engine_help import drafting, read, running, sound, tiny_synthesizer, wait_until

TEXT = "Hello there. A word."


def cloner() -> TokenSynthesizer:
    return TokenSynthesizer(token_lm("cosyvoice2"), SOUND, TokenVoiceSettings())


def brisk(system: str) -> TokenSynthesizer:
    """Says little for much text."""
    return TokenSynthesizer(token_lm(system, longest=1.2), cosyvoice().sound, TokenVoiceSettings())


def serve(synthesizer: TokenSynthesizer, **settings: Any) -> Any:
    return running(synthesizer, **settings)  # type: ignore[arg-type]


def test_many_at_once_say_what_each_would_say_alone() -> None:
    voice = cosyvoice()
    with serve(voice) as engine:
        sessions = [engine.submit(SpeechRequest(TEXT, voice="b", seed=seed)) for seed in range(3)]
        for seed, session in enumerate(sessions):
            events = read(session)
            assert np.array_equal(sound(events), voice.say(TEXT, voice="b", seed=seed))
            assert sum(isinstance(e, Audio) for e in events) > 2
            assert session.outcome is not None
            assert session.outcome.kind == "done"


def test_a_text_that_is_being_written_sounds_before_its_sentence_is_whole() -> None:
    """And what is spoken is what the same words give at once, word by word."""
    voice = brisk("cosyvoice2")
    words = "One or two of them came. A word."
    at_once = voice.say([words], split="word", seed=2)
    with serve(voice, slots=1) as engine:
        session = engine.submit(SpeechRequest(None, seed=2))
        events: list[Event] = []
        for letter in words[:18]:
            session.push_text(letter)
        while not any(isinstance(e, Audio) for e in events):
            events.append(session.get(60))
        wait_until(lambda: engine.stats().slots["tiny"]["waiting"] == 1)  # it has said what it can
        with pytest.raises(Overloaded):
            engine.submit(SpeechRequest(TEXT, deadline=0))
        session.push_text(words[18:])
        session.finish_text()
        assert np.array_equal(sound(events + read_on(session)), at_once)
        session = engine.submit(SpeechRequest(None, seed=2, split="sentence"))
        session.push_text(words)
        session.finish_text()
        assert np.array_equal(sound(read(session)), voice.say(words, seed=2))


def read_on(session: SpeechSession) -> list[Event]:
    return list(session)


def test_a_model_that_must_read_its_sentence_first_speaks_clauses() -> None:
    voice = brisk("cosyvoice")
    assert not reads_growing_text(voice.lm)
    with serve(voice, slots=1) as engine:
        session = engine.submit(SpeechRequest(None, seed=2))
        session.push_text("Hello to you, a few of my friends ")
        assert isinstance(session.get(60), Started)
        assert isinstance(session.get(60), Audio)
        session.push_text("came.")
        session.finish_text()
        assert isinstance(list(session)[-1], Outcome)


@given(cuts=st.lists(st.integers(1, 45), max_size=5), gaps=st.lists(st.booleans(), min_size=8, max_size=8))
@settings(max_examples=3, deadline=None)
def test_no_text_yet_is_an_empty_chunk_and_changes_nothing(cuts: list[int], gaps: list[bool]) -> None:
    voice, words = brisk("cosyvoice2"), "One comes late. <break time='0.2s'/> Then all."
    places = sorted({0, *cuts, len(words)})
    pieces: list[str | None] = []
    for i, (start, end) in enumerate(itertools.pairwise(places)):
        pieces += [None, words[start:end]] if gaps[i] else [words[start:end]]
    chunks = list(voice.stream(pieces, split="word", seed=1))
    empty = sum(not len(c.samples) for c in chunks)
    assert empty <= pieces.count(None)
    assert np.array_equal(np.concatenate([c.samples for c in chunks]), voice.say([words], split="word", seed=1))


def test_nothing_to_say_fails_a_text_in_pieces() -> None:
    with serve(cosyvoice(), slots=1) as engine:
        session = engine.submit(SpeechRequest(None))
        session.push_text(" ... ")
        session.finish_text()
        outcome = read(session)[-1]
        assert isinstance(outcome, Outcome)
        assert isinstance(outcome.error, BadInput)


def test_a_slot_is_held_and_cancelled_like_any_other() -> None:
    with serve(cosyvoice(), slots=1) as engine:
        session = engine.submit(SpeechRequest(TEXT * 20, ahead=0.001))
        wait_until(lambda: engine.stats().slots["tiny"]["held"] == 1)
        session.cancel()
        wait_until(lambda: engine.stats().slots["tiny"]["free"] == 1)
        assert isinstance(read(session)[-1], Outcome)


def test_speculation_is_for_requests_that_ask_and_models_that_can(tmp_path: Path) -> None:
    voice = drafting(tmp_path)
    assert not can_speculate(voice)
    figures = offer_speculation(voice, str(tmp_path))
    assert figures is not None
    assert can_speculate(voice)
    plain = voice.say(TEXT, seed=1)
    with serve(voice) as engine:
        fast, slow = (engine.submit(SpeechRequest(TEXT, seed=1, speculate=s)) for s in (True, False))
        assert np.array_equal(sound(read(slow)), plain)
        assert np.array_equal(sound(read(fast)), voice.say(TEXT, seed=1, speculate=True))
        assert figures.calls > 0
        assert 0 < figures.acceptance < 1
    dull = cosyvoice()
    with serve(dull) as engine, pytest.raises(BadInput, match="drafter"):
        engine.submit(SpeechRequest(TEXT, speculate=True))
    with pytest.raises(BadInput, match="drafter"):
        dull.stream(TEXT, speculate=True)
    metrics = Metrics()
    metrics.speculating("vita", figures)
    assert 'quaver_speculation_accepted_share{model="vita"}' in metrics.page().decode()


@pytest.mark.parametrize(("enough", "hurries"), [(0.0, False), (1000.0, True)])
def test_a_paced_stream_speculates_only_while_its_listener_has_little_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: float, hurries: bool
) -> None:
    monkeypatch.setattr("quaver.app.engine_tokens.ENOUGH", enough)
    voice = drafting(tmp_path)
    figures = offer_speculation(voice, str(tmp_path))
    assert figures is not None
    with serve(voice) as engine:
        assert len(sound(read(engine.submit(SpeechRequest(TEXT, seed=1, speculate=True, ahead=60.0)))))
    assert figures.tokens > 0
    assert (figures.drafted > 0) is hurries


def test_what_a_model_cannot_do_fails_that_session_alone() -> None:
    voice = cosyvoice()
    with serve(voice) as engine:
        good, bad = engine.submit(SpeechRequest(TEXT, seed=1)), engine.submit(SpeechRequest(TEXT, pause=2.0))
        outcome = read(bad)[-1]
        assert isinstance(outcome, Outcome)
        assert isinstance(outcome.error, BadInput)
        assert np.array_equal(sound(read(good)), voice.say(TEXT, seed=1))
        with pytest.raises(BadInput, match="voice"):
            engine.submit(SpeechRequest(TEXT, voice="nobody"))


def test_a_voice_file_speaks_where_a_model_can_imitate_and_is_refused_elsewhere() -> None:
    voice, fixed = cloner(), tiny_synthesizer()
    assert can_clone(voice)
    assert not can_clone(fixed)
    assert (default_voice(voice), default_voice(fixed)) == (voice.voices[0], "Alice")
    engine = Engine({"clone": voice, "fixed": fixed}, slots=2, warm_up=False)
    engine.start()
    try:
        heard = sound(read(engine.submit(SpeechRequest(TEXT, model="clone", voice=VOICE, seed=1))))
        assert np.array_equal(heard, voice.say(TEXT, voice=VOICE, seed=1))
        assert not np.array_equal(heard[:2000], voice.say(TEXT, seed=1)[:2000])
        with pytest.raises(BadInput, match="voice file"):
            engine.submit(SpeechRequest(TEXT, model="fixed", voice=VOICE))
        assert len(sound(read(engine.submit(SpeechRequest(TEXT, model="fixed")))))
    finally:
        engine.stop()
