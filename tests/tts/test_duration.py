"""Speech of a given length: to the frame, over sentences and breaks, or a clear refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import BadInput
from quaver.tts.generate import Generation, Request
from quaver.tts.lm import phone_features
from quaver.tts.phones import PHONE_IDS, phone_weight
from quaver.tts.synthesizer import Synthesizer, VoiceSettings

from ..laws import few
from .conftest import CODEC, tiny_lm

TEXT = 'Hello there, you. <break time="200ms"/> A word.'
FEATURES = phone_features(("h", "ˈI", ",", "ð", "ˈɛ", "ɹ", "."), frozenset({0, 3}))
LM = tiny_lm()


@pytest.fixture
def synthesizer() -> Synthesizer:
    """25 frames a second, as the bundled voice."""
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig.model_validate({**CODEC, "hop": 240, "n_fft": 960})).eval()
    return Synthesizer(LM, codec, VoiceSettings(names={"Bob": "low"}, default="Bob"))


@few
@given(frames=st.integers(9, 60), seed=st.integers(0, 99))
def test_a_plan_ends_when_it_was_told_to(frames: int, seed: int) -> None:
    generation = Generation(LM)
    plan = generation.join(0, Request(FEATURES, frames=frames, pace=2.0, seed=seed))
    made = []
    while not plan.done:
        made += generation.tick().values()
        assert len(made) < 500
    reached = [frame.phone for frame in made]
    assert reached == sorted(reached)
    assert reached[-1] == len(FEATURES) - 1
    # The pointer never passes a pause and takes a frame for each, so the very shortest targets may not be met.
    assert len(made) == frames or (len(made) > frames and reached.count(len(FEATURES) - 1) == 1)


@pytest.mark.parametrize("share", [0.7, 1.0, 1.6])
def test_an_answer_lasts_as_long_as_asked(synthesizer: Synthesizer, share: float) -> None:
    frame = synthesizer.codec.frame_size / synthesizer.sample_rate
    phone = 1 / 13.0
    expected = 0.2 + phone * sum(
        phone_weight([PHONE_IDS["^"], *(PHONE_IDS[p] for p in u.phones)]) for u in synthesizer.frontend(TEXT)
    )
    wanted = share * expected
    speech = synthesizer.say(TEXT, duration=wanted)
    assert abs(len(speech.samples) / synthesizer.sample_rate - wanted) <= 3 * frame
    assert [w.text for w in speech.words] == ["Hello", "there", "you", "A", "word"]
    assert speech.phones[-1].end == pytest.approx(wanted, abs=3 * frame)
    assert np.array_equal(speech.samples, synthesizer.say(TEXT, duration=wanted).samples)


def test_durations_out_of_reach_and_contradictions_are_refused(synthesizer: Synthesizer) -> None:
    for duration in (0.01, -1.0, 1000.0, float("nan")):
        with pytest.raises(BadInput, match="lasts about"):
            synthesizer.stream(TEXT, duration=duration)
    with pytest.raises(BadInput, match="takes the place of the speed"):
        synthesizer.stream(TEXT, duration=2.0, speed=1.5)
    with pytest.raises(BadInput, match="whole text"):
        synthesizer.stream(iter([TEXT]), duration=2.0)
