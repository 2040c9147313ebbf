"""CosyVoice end to end with random weights: text to audio through language model, flow and vocoder, or a codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import BadInput, ConfigError, MissingFile
from quaver.tts.flow_decoder import Prompt
from quaver.tts.token_synthesizer import FlowSound, TokenSynthesizer, TokenVoiceSettings

from ..laws import randn
from .conftest import CODEC
from .test_flow import flow_model, mel_codec
from .tokens import token_lm

TEXT = "Hello there. A word."


def cosyvoice(system: str = "cosyvoice2", **settings: Any) -> TokenSynthesizer:
    return TokenSynthesizer(token_lm(system), FlowSound(flow_model(), mel_codec()), TokenVoiceSettings(**settings))


def folder(path: Path, kind: str, module: nn.Module, **extra: Any) -> None:
    path.mkdir()
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path / "model.safetensors")
    config = module.config.model_dump(mode="json")  # type: ignore[operator,union-attr]
    (path / "config.json").write_text(json.dumps({"kind": kind, **config, **extra}))


def test_text_becomes_audio_the_same_however_it_arrives() -> None:
    voice = cosyvoice()
    chunks = list(voice.stream(TEXT, voice="b", seed=3))
    whole = np.concatenate([c.samples for c in chunks])
    assert len(whole) % (2 * 16) == 0  # patch x hop: whole tokens
    assert np.isfinite(whole).all()
    assert len(chunks) > 2
    assert chunks[-1].progress == 1.0
    pieces = voice.say(["Hel", "lo there. A ", "word", "."], voice="b", seed=3)
    assert np.array_equal(whole, pieces)
    assert not np.array_equal(whole[:500], voice.say(TEXT, voice="b", seed=4)[:500])
    assert not np.array_equal(whole[:500], voice.say(TEXT, voice="a", seed=3)[:500])


def test_a_prompt_changes_the_sound() -> None:
    prompt = Prompt(torch.randint(0, 27, (1, 9), generator=torch.Generator().manual_seed(0)), randn(8, 18))
    voice = cosyvoice()
    plain, imitated = voice.say("Hi."), voice.say("Hi.", prompt=prompt)
    assert len(plain) == len(imitated)
    assert np.abs(plain - imitated).max() > 1e-5


@pytest.mark.parametrize("system", ["qtts-depth", "qtts-delay", "koel", "vat"])
def test_codec_tokens_sound_through_the_codec(system: str) -> None:
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig(**CODEC)).eval()
    voice = TokenSynthesizer(token_lm(system), codec, TokenVoiceSettings())
    audio = voice.say("Hi there.")
    assert len(audio) % codec.frame_size == 0
    assert np.isfinite(audio).all()
    with pytest.raises(BadInput, match="no flow"):
        voice.say("Hi.", prompt=Prompt(torch.zeros(1, 3, dtype=torch.long), randn(8, 6)))


def test_a_schedule_of_the_settings_is_used() -> None:
    assert len(cosyvoice("vita", schedule="1 3").say("Hello there.")) > 0
    with pytest.raises(BadInput, match="schedule"):
        cosyvoice("vita", schedule="nonsense").say("Hello.")


def test_a_folder_is_loaded_with_what_stands_beside_it(tmp_path: Path) -> None:
    made = cosyvoice()
    sound = made.sound
    assert isinstance(sound, FlowSound)
    folder(tmp_path / "lm", "token_lm", made.lm, codec="tokens")
    folder(tmp_path / "flow", "flow", sound.flow, codec="tokens")
    folder(tmp_path / "voc", "mel", sound.vocoder)
    (tmp_path / "lm" / "settings.json").write_text('{"flow": "flow", "vocoder": "voc", "voice": "b"}')
    loaded = TokenSynthesizer.load(str(tmp_path / "lm"))
    assert np.allclose(loaded.say(TEXT), made.say(TEXT, voice="b"), atol=1e-6)
    config = json.loads((tmp_path / "flow" / "config.json").read_text())
    (tmp_path / "flow" / "config.json").write_text(json.dumps(config | {"codec": "other"}))
    with pytest.raises(ConfigError, match="reads those of other"):
        TokenSynthesizer.load(str(tmp_path / "lm"))
    (tmp_path / "lm" / "settings.json").write_text("{}")
    with pytest.raises(MissingFile):
        TokenSynthesizer.load(str(tmp_path / "lm"))  # no codec named "tokens"


def test_what_cannot_be_spoken_is_refused_before_the_first_chunk() -> None:
    voice = cosyvoice()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("Hi.", {"voice": "nobody"}),
        ("Hi.", {"temperature": -1}),
        ("", {}),
        ("Hi.", {"prompt": Prompt(torch.zeros(1, 2, dtype=torch.long), randn(8, 4))}),
    ]
    for text, settings in wrong:
        with pytest.raises(BadInput):
            voice.stream(text, **settings)
    with pytest.raises(BadInput):
        voice.say([" ", "..."])
    with pytest.raises(ConfigError, match="bpe"):
        cosyvoice("qwen")
    with pytest.raises(ConfigError, match="voice"):
        cosyvoice(voice="nobody")
