"""Tiny models with random weights: they babble, but by the same laws as trained ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.tts.lm import SpeechLM, SpeechLMConfig
from quaver.tts.synthesizer import Synthesizer, VoiceSettings

from ..laws import randomised

LM: dict[str, Any] = {
    "codebooks": 3,
    "vocab": 12,
    "head_hidden": 8,
    "backbone": {"width": 8, "layers": 1, "heads": 2, "hidden": 12, "window": 40, "slack": 4},
    "phone_blocks": 2,
    "phone_hidden": 8,
    "voices": ["high", "low"],
}
CODEC: dict[str, Any] = {
    "hop": 16,
    "n_fft": 64,
    "mels": 8,
    "width": 8,
    "hidden": 8,
    "encoder_blocks": (1, 1),
    "decoder_blocks": (1, 1),
    "dim": 4,
    "codebooks": 3,
    "vocab": 12,
    "semantic": "none",
}


def tiny_lm(**changes: Any) -> SpeechLM:
    torch.manual_seed(0)
    lm = SpeechLM(SpeechLMConfig.model_validate({**LM, **changes}))
    randomised(lm, scale=0.2)
    return lm


@pytest.fixture
def synthesizer() -> Synthesizer:
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig(**CODEC)).eval()
    settings = VoiceSettings(names={"Alice": "high", "Bob": "low"}, default="Alice")
    return Synthesizer(tiny_lm(), codec, settings)
