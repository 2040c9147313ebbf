"""Token models speak a text that is still arriving, keep silences and lengths to the frame, and run nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import BadInput
from quaver.tts.flow_sound import FlowSound
from quaver.tts.script import Script
from quaver.tts.text import Frontend
from quaver.tts.token_speaking import Carry, Pace, Silencer, parts_of
from quaver.tts.token_synthesizer import TokenSynthesizer, TokenVoiceSettings

from ..laws import few
from .conftest import CODEC
from .test_flow import flow_model, mel_codec
from .tokens import token_lm

TEXT = "The cat sat on it. He was warm. "
FRAME = 32  # samples: patch 2 x hop 16
RATE = 24000
SOUND = FlowSound(flow_model(first=1, steps=1, guidance=0.0), mel_codec())


def voice(system: str = "cosyvoice2", **settings: Any) -> TokenSynthesizer:
    room = {"cross": {"stages": 2, "heads": 2, "capacity": 500}} if system == "vat" else {}
    lm = token_lm(system, shortest=1.0, longest=2.0, **room)
    if lm.config.codebooks > 1:
        torch.manual_seed(0)
        return TokenSynthesizer(lm, XCodec(XCodecConfig(**CODEC)).eval(), TokenVoiceSettings(**settings))
    return TokenSynthesizer(lm, SOUND, TokenVoiceSettings(**settings))


VOICES = {system: voice(system) for system in ("cosyvoice2", "vita", "vat", "delay-interleave", "cosyvoice")}


# -- text that arrives ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", ["cosyvoice2", "vita", "vat", "delay-interleave"])
@settings(few, max_examples=3)
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_words_as_they_arrive_sound_as_the_whole_text_does(system: str, cuts: list[int]) -> None:
    speaker = VOICES[system]
    edges = [0, *(min(e, len(TEXT)) for e in accumulate(cuts)), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in pairwise(edges)]
    whole = speaker.say(TEXT, seed=2)
    streamed = speaker.say(iter(pieces), seed=2, split="word")
    assert len(streamed) == len(whole)
    assert np.abs(streamed - whole).max() < 1e-4


@pytest.mark.parametrize("system", ["cosyvoice2", "vat"])
def test_audio_comes_before_the_sentence_has_arrived(system: str) -> None:
    """`yes word | head -200`: what has been said follows what has been read, from the third word on."""
    read: list[int] = []

    def words() -> Iterator[str]:
        for i in range(60):
            read.append(i)
            yield "word\n"

    heard = []
    for chunk in VOICES[system].stream(words(), split="word"):
        heard.append((len(read), len(chunk.samples)))
    first = heard[0][0]
    assert first <= (3 if system == "cosyvoice2" else 8)  # the cross layout waits for what attention may look at
    assert all(b - a <= 90 for (a, _), (b, _) in pairwise(heard))
    assert len(heard) > 15


def test_a_prefix_model_takes_clauses_instead_of_words() -> None:
    speaker, read = VOICES["cosyvoice"], []

    def pieces() -> Iterator[str]:
        text = "When the rain had stopped, they walked along the river and said nothing."
        for word in text.split():
            read.append(word)
            yield word + " "

    first = next(chunk for chunk in speaker.stream(pieces(), split="word") if len(chunk.samples))
    assert len(first.samples) > 0
    assert len(read) < 10


def test_no_position_is_run_twice_and_none_costs_more_than_the_others() -> None:
    speaker, ran = VOICES["cosyvoice2"], []
    hook = speaker.lm.backbone.register_forward_pre_hook(lambda module, inputs: ran.append(inputs[0].shape[1]))
    speaker.say(iter(w + " " for w in (TEXT * 3).split()), split="word", seed=1)
    streamed = list(ran)
    ran.clear()
    speaker.say(TEXT * 3, seed=1)
    hook.remove()
    assert sum(streamed) == sum(ran)
    assert max(streamed) <= speaker.lm.config.ratio[0] + 3


def test_marks_in_a_text_that_arrives() -> None:
    speaker = VOICES["cosyvoice2"]
    text = 'One fine day <break time="0.02s"/> we went. <prosody rate="80%">Then it rained.</prosody> Home.'
    whole = speaker.say(text)
    streamed = speaker.say(iter(text[i : i + 5] for i in range(0, len(text), 5)), split="word")
    assert np.abs(whole - streamed[: len(whole)]).max() < 1e-4 or len(whole) != len(streamed)
    assert np.isfinite(streamed).all()


# -- silence ----------------------------------------------------------------------------------------------------------
def quiet_runs(samples: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Runs of exact zeros of at least so many samples."""
    zero = np.concatenate([[False], samples == 0, [False]])
    edges = np.flatnonzero(np.diff(zero.astype(int)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a >= least]


@pytest.mark.parametrize("system", ["cosyvoice2", "cosyvoice", "vat"])
def test_a_break_is_silence_of_its_length_and_nothing_else_changes(system: str) -> None:
    speaker = VOICES[system]
    frame = speaker.frame
    seconds = 40 * frame / speaker.sample_rate
    said = speaker.say(f'Hello there. <break time="{seconds:.4f}s"/> A word.')
    plain = speaker.say("Hello there. A word.")
    assert len(said) == len(plain) + 40 * frame
    edge = round(0.005 * speaker.sample_rate)
    runs = quiet_runs(said, 10)
    assert len(runs) == 1
    a, b = runs[0]
    assert b - a == 40 * frame - 2 * edge
    assert (a - edge) % frame == 0
    same = a - edge - 5 * frame  # the flow hears a chunk and its look-ahead ahead
    assert np.abs(said[:same] - plain[:same]).max() < 1e-5
    inside = speaker.say(f'Hello <break time="{seconds:.4f}s"/> there.')
    assert len(quiet_runs(inside, 10)) == 1
    before = speaker.say(f'<break time="{seconds:.4f}s"/> Hello.')
    assert quiet_runs(before, 10)[0][0] == edge


@few
@given(cuts=st.lists(st.integers(1, 400), max_size=9), start=st.integers(0, 500), length=st.integers(1, 1500))
def test_silence_does_not_depend_on_chunks(cuts: list[int], start: int, length: int) -> None:
    samples = np.random.default_rng(0).standard_normal(2500).astype(np.float32)

    def silenced(edges: list[int]) -> np.ndarray:
        hush = Silencer(RATE)
        hush.hush(start, start + length)
        return np.concatenate([hush(samples[a:b].copy()) for a, b in pairwise(edges)])

    whole = silenced([0, 2500])
    assert np.array_equal(silenced([0, *(min(e, 2500) for e in accumulate(cuts)), 2500]), whole)
    assert np.array_equal(whole[:start], samples[:start])
    assert np.array_equal(whole[start + length :], samples[start + length :])
    assert not whole[start + 120 : max(start, start + length - 120)].any()


def test_parts_of_a_sentence_hold_all_its_words_and_silences() -> None:
    text = '<break time="1s"/> One two <break time="2s"/> three, <break time="3s"/><break time="1s"/> four. <break/>'
    (utterance,) = Frontend()(text)
    parts = parts_of(utterance)
    assert [[w.text for w in p.utterance.words] for p in parts] == [["One", "two"], ["three"], ["four"]]
    assert [(p.before, p.after) for p in parts] == [(1.0, 0.0), (2.0, 0.0), (4.0, 0.5)]
    for part in parts:
        assert part.utterance.phones[-1] == "."
        for word in part.utterance.words:
            assert part.utterance.phones[word.start : word.end]
    assert len(parts_of(Frontend()("Nothing here.")[0])) == 1


# -- pace and length --------------------------------------------------------------------------------------------------
@few
@given(speed=st.floats(0.5, 2.0), count=st.integers(1, 300))
def test_pace_keeps_time_at_every_frame(speed: float, count: int) -> None:
    pace, heard = Pace(speed), 0
    for i in range(1, count + 1):
        heard += pace.take()
        assert abs(heard - i / speed) <= 0.5 + 1e-6


@pytest.mark.parametrize("system", ["cosyvoice2", "cosyvoice", "delay-interleave"])
def test_speed_changes_the_length_and_streams(system: str) -> None:
    speaker = VOICES[system]
    usual = len(speaker.say(TEXT)) // speaker.frame
    for speed in (0.8, 2.0):
        got = len(speaker.say(TEXT, speed=speed)) // speaker.frame
        assert abs(got - usual / speed) <= 2
        streamed = speaker.say(iter([TEXT[:20], TEXT[20:]]), speed=speed, split="word")
        assert len(streamed) // speaker.frame == got
    marked = speaker.say(f'<prosody rate="50%">{TEXT}</prosody>')
    assert abs(len(marked) // speaker.frame - 2 * usual) <= 2
    assert np.array_equal(speaker.say(TEXT, speed=1.0), speaker.say(TEXT))


@pytest.mark.parametrize("system", ["cosyvoice2", "cosyvoice", "vat"])
def test_a_length_is_met_to_the_frame(system: str) -> None:
    speaker = VOICES[system]
    frame, rate = speaker.frame, speaker.sample_rate
    usual = len(speaker.say(TEXT)) // frame
    for factor in (0.7, 1.6):
        frames = round(usual * factor)
        assert len(speaker.say(TEXT, tokens=frames)) == frames * frame
        assert len(speaker.say(TEXT, duration=frames * frame / rate)) == frames * frame
    long = speaker.say(TEXT, tokens=usual * 4)  # slower than half: the rest is silence
    assert len(long) == usual * 4 * frame
    assert len(quiet_runs(long, usual * frame)) == 1
    seconds = 30 * frame / rate
    marked = f'Hello there. <break time="{seconds:.4f}s"/> A word.'
    assert len(speaker.say(marked, tokens=30 + usual // 2)) == (30 + usual // 2) * frame


def test_lengths_that_cannot_be_are_refused() -> None:
    speaker = VOICES["cosyvoice2"]
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (TEXT, {"duration": 0.0}),
        (TEXT, {"duration": float("nan")}),
        (TEXT, {"duration": float("inf")}),
        (TEXT, {"tokens": 0}),
        (TEXT, {"tokens": -3}),
        (TEXT, {"tokens": 10, "duration": 1.0}),
        (TEXT, {"tokens": 10, "speed": 1.5}),
        (iter([TEXT]), {"tokens": 10}),
        (TEXT, {"speed": 0.4}),
        (TEXT, {"speed": float("nan")}),
        (TEXT, {"pause": 2.0}),
        (TEXT, {"codebooks": 1}),
        ('<break strength="none" time="1s"/> Hi.', {}),
        ('<phoneme ph="ab"><sub alias="x">y</sub></phoneme>', {}),
        ("日本語", {}),
    ]
    for text, options in wrong:
        with pytest.raises(BadInput):
            speaker.stream(text, **options)


# -- long form --------------------------------------------------------------------------------------------------------
def test_carried_speech_changes_the_next_sentence_and_streams() -> None:
    alone, carried = voice(), voice(carry=2.0)
    a, b = (v.say(TEXT, seed=1) for v in (alone, carried))
    first = len(alone.say(TEXT[:19], seed=1))
    assert np.array_equal(a[: first - 200], b[: first - 200])
    assert len(a) != len(b) or not np.array_equal(a, b)
    streamed = carried.say(iter([TEXT[:7], TEXT[7:22], TEXT[22:]]), seed=1, split="word")
    assert np.abs(streamed - b).max() < 1e-4


def test_what_is_carried_is_the_last_sentence_where_there_is_room() -> None:
    frames = [torch.tensor([i]) for i in range(5)]
    carry = Carry((1, 2), torch.tensor([[7, 8]]), frames=5, room=100)
    assert carry.begin(3)[0] == (1, 2)
    carry.spoken((3, 4, 5), frames)
    before, prompt = carry.begin(3)
    assert before == (1, 2, 3, 4, 5)
    assert prompt is not None
    assert prompt.tolist() == [[7, 8, 0, 1, 2, 3, 4]]
    assert carry.begin(80)[0] == (1, 2)  # no room for so long a sentence
    carry.spoken((3,), [*frames, frames[0]])
    assert carry.begin(3)[0] == (1, 2)  # longer than may be carried
    carry.spoken((3,), [])
    assert carry.begin(3)[0] == (1, 2)


@pytest.mark.parametrize("carry", [0.0, 0.5])
def test_ten_minutes_of_text_take_no_more_memory_than_one(carry: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 s of speech at this tiny model's 750 frames a second would be slow; the bytes held are looked at on the way
    through 24 sentences, and must stop to grow after the first few."""
    speaker = voice(carry=carry)
    made: list[Any] = []
    original = speaker.loop

    def loop(model: Any) -> Any:
        made.append(original(model))
        return made[-1]

    monkeypatch.setattr(speaker, "loop", loop)
    script = Script(speaker.frontend, by="word")
    monkeypatch.setattr(speaker, "_script", lambda text, split: script)
    sizes, held = [], []
    for _ in speaker.stream(iter([f"Go {'abc'[i % 3]} now. " for i in range(24)]), split="word"):
        plan = made[0].plans[0]
        if plan is not None:
            sizes.append(made[0].state.nbytes())
            held.append(len(plan.history) + len(plan.ids) + len(script._sentences) + len(script._stream.pending))
    assert len(made) == 1
    assert len(set(sizes)) == 1
    assert max(held) < 150
    assert max(held[len(held) // 2 :]) <= max(held[: len(held) // 2]) + 20
