"""The bundled models on the inputs that other systems stumble over: the least there can be, and nothing at all."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from quaver.codecs.loading import MODELS, load_codec
from quaver.errors import BadInput
from quaver.tts.editing import TRUSTED, Change, Editor
from quaver.tts.synthesizer import Synthesizer

pytestmark = pytest.mark.skipif(
    not (MODELS / "quaver-en" / "config.json").exists(), reason="the bundled models are not here"
)


@cache
def voice() -> Synthesizer:
    return Synthesizer.load("quaver-en")


@pytest.mark.parametrize("text", ["a", "Oh!", "5", "m", '<phoneme ph="ɑ">x</phoneme>'])
def test_one_phone_is_heard_and_ends(text: str) -> None:
    """F5 issue 460, chatterbox issue 97: a single short word came out silent, as noise, or without an end."""
    speech = voice().say(text)
    assert np.isfinite(speech.samples).all()
    assert 0.1 < len(speech.samples) / speech.sample_rate < 3
    assert np.abs(speech.samples).max() > 0.03
    assert speech.words


@pytest.mark.parametrize("text", ["", " \n", "...", "🎉", "你好"])
def test_nothing_to_say_is_said_so(text: str) -> None:
    with pytest.raises(BadInput):
        voice().say(text)


def test_silence_stays_silent() -> None:
    """Vocos issue 55: a hum where there was nothing."""
    codec = load_codec("quaver-24k")
    with torch.inference_mode():
        out = codec.decode(codec.encode(torch.zeros(1, 1, 24_000))[0])[0, 0, 4800:]
    assert 20 * float(torch.log10(out.square().mean().sqrt() + 1e-9)) < -50


def test_the_bundled_editor_speaks_and_edits_what_it_said() -> None:
    """In its own sound: the aligner must know the sentence again, before and after the change."""
    editor = Editor.load()
    speech = Synthesizer.load("ardit-1step").say("Tuck the sheet under the edge of the mat.", seed=1)
    assert 1.5 < len(speech.samples) / speech.sample_rate < 5
    edited = editor.edit(
        speech.samples, "Tuck the sheet under the edge of the mat.", [Change("sheet", "thick blanket")]
    )
    assert edited.score > TRUSTED
    assert edited.transcript == "Tuck the thick blanket under the edge of the mat."
    assert len(edited.samples) > len(speech.samples)
    again = editor.edit(edited.samples, edited.transcript, [Change("mat", "bed")])
    assert again.score > TRUSTED  # the new words are found where they should be
    with pytest.raises(BadInput, match="does not match the recording"):
        editor.edit(speech.samples, "Live wires should be kept covered.", [Change("wires", "cables")])
