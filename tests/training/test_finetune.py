"""Fine-tuning: which recordings are taken, that LoRA is a change that can be folded in, and the whole way with tiny
models, from a folder of recordings to a voice that speaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.codecs.semantic import SemanticConfig, SemanticTokenizer
from quaver.errors import BadInput, ConfigError, MissingFile
from quaver.nn.transformer import Transformer, TransformerConfig
from quaver.training.finetune import FineTuning, finetune
from quaver.training.lora import add_lora, merge_lora
from quaver.training.tasks.ctc import ctc_symbols
from quaver.training.user_data import read_folder, write_split
from quaver.tts.lm import SpeechLM, SpeechLMConfig
from quaver.tts.synthesizer import Synthesizer

from ..laws import few, randn
from .conftest import MODELS

TEXTS = (
    "Hello there, how are you?",
    "A second sentence.",
    "This is the third one.",
    "And a fourth, at last.",
    "Bye now.",
)


def record(
    folder: Path, name: str, text: str | None, seconds: float = 2.2, level: float = 0.2, rate: int = 16_000
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    wave = level * np.sin(2 * np.pi * (140 + 20 * len(name)) * time) * (1 + np.sin(9 * time)) / 2
    soundfile.write(folder / f"{name}.wav", np.stack([wave, 0.5 * wave], 1), rate)  # stereo
    if text is not None:
        (folder / f"{name}.txt").write_text(text)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "me"
    for i, text in enumerate(TEXTS):
        record(folder / ("a" if i % 2 else "b"), f"u{i}", text)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A voice model of two voices with its codec and aligner beside it."""
    torch.manual_seed(0)
    codec = {**MODELS["codec"], "semantic": "none", "hop": 240}
    lm = {**MODELS["lm"], "voices": ["old", "other"], "rates": [12.0, 13.0]}
    ctc = {**MODELS["ctc"], "symbols": ctc_symbols()}
    modules: dict[str, tuple[nn.Module, dict[str, Any]]] = {
        "codec": (XCodec(XCodecConfig.model_validate(codec)), {"kind": "codec", **codec}),
        "base": (SpeechLM(SpeechLMConfig.model_validate(lm)), {"kind": "lm", "codec": "codec", **lm}),
        "aligner": (SemanticTokenizer(SemanticConfig.model_validate(ctc)), {"kind": "semantic", **ctc}),
    }
    for name, (module, config) in modules.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        save_file(module.state_dict(), tmp_path / "models" / name / "model.safetensors")
        (tmp_path / "models" / name / "config.json").write_text(json.dumps(config))
    settings = {"names": {"Olga": "old"}, "default": "Olga"}
    (tmp_path / "models" / "base" / "settings.json").write_text(json.dumps(settings))
    return tmp_path / "models" / "base"


# -- recordings -------------------------------------------------------------------------------------------------------
def test_what_does_not_fit_is_left_out_with_a_reason(recordings: Path) -> None:
    record(recordings, "short", "Hi.", seconds=0.2)
    record(recordings, "long", "Hi. " * 30, seconds=17)
    record(recordings, "quiet", "Hello there.", level=0.0)
    record(recordings, "textless", None)
    record(recordings, "blank", " \n")
    record(recordings, "wrong", "This text is much too long for what the audio holds. " * 6)
    (recordings / "broken.wav").write_bytes(b"RIFF nothing")
    (recordings / "broken.txt").write_text("Hello.")
    record(recordings, "latin", "x")
    (recordings / "latin.txt").write_bytes(b"caf\xe9")
    found = read_folder(recordings, "me")
    assert sorted(row["id"] for row in found.rows) == ["a/u1", "a/u3", "b/u0", "b/u2", "b/u4"]
    names = {name for group in found.left_out.values() for name in group}
    assert names == {f"{n}.wav" for n in ("short", "long", "quiet", "textless", "blank", "wrong", "broken", "latin")}
    assert len(found.left_out) == 7  # short and long share one
    assert "silent (quiet.wav)" in found.reasons()
    assert found.seconds == pytest.approx(11.0)


def test_too_little_is_refused_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no folder"):
        read_folder(tmp_path / "none", "me")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no audio"):
        read_folder(tmp_path / "empty", "me")
    record(tmp_path / "few", "one", "Hello there.")
    record(tmp_path / "few", "two", None)
    with pytest.raises(BadInput, match=r"1 usable.*without a text file \(two.wav\)"):
        read_folder(tmp_path / "few", "me")


@few
@given(count=st.integers(2, 40), share=st.floats(0.01, 0.5))
def test_a_split_loses_nothing_and_shares_nothing(
    tmp_path_factory: pytest.TempPathFactory, count: int, share: float
) -> None:
    rows = [{"id": str(i)} for i in range(count)]
    paths = write_split(rows, tmp_path_factory.mktemp("split"), share)
    train, held = ([json.loads(line)["id"] for line in path.read_text().splitlines()] for path in paths)
    assert sorted(train + held, key=int) == [str(i) for i in range(count)]
    assert len(held) == max(1, round(share * count))


# -- LoRA -------------------------------------------------------------------------------------------------------------
@few
@given(rank=st.integers(1, 6), seed=st.integers(0, 100))
def test_merged_lora_equals_unmerged(rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(width=16, layers=2, heads=2, hidden=24, window=9, slack=2)).eval()
    x = randn(2, 5, 16, seed=seed)
    with torch.no_grad():
        plain, names = model(x), list(model.state_dict())
        layers = add_lora(model, rank)
        assert torch.allclose(model(x), plain, atol=1e-6)  # it starts as what it was
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (".weight.0." in name)
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        unmerged = model(x)
        merge_lora(model)
        assert torch.allclose(model(x), unmerged, atol=1e-5)
        assert not torch.allclose(unmerged, plain, atol=1e-3)
    assert len(layers) == 8  # qkv, out, gate_up, down of two blocks
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


def test_lora_needs_a_rank_and_a_linear_layer() -> None:
    with pytest.raises(BadInput, match="rank"):
        add_lora(nn.Linear(3, 3), 0)
    with pytest.raises(BadInput, match="no linear"):
        add_lora(nn.LayerNorm(3))


# -- the whole way ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lora", [None, 2])
def test_recordings_become_a_voice(recordings: Path, base: Path, tmp_path: Path, lora: int | None) -> None:
    aligner = str(base.parent / "aligner")
    settings = FineTuning("Me", lora=lora, steps=12, every=4, held=0.2, aligner=aligner, batch_seconds=5, lr=0.01)
    out = tmp_path / "tuned"
    tuned = finetune(str(base), recordings, out, settings)
    assert (tuned.trained_on, tuned.held_out) == (4, 1)
    assert tuned.after <= tuned.before
    assert tuned.steps == 12 or tuned.steps >= tuned.best_step + 4
    made = Synthesizer.load(str(out), packed=False)
    assert made.voices == ("Olga", "Me")
    assert made.settings.default == "Me"
    assert made.lm.config.voices == ("old", "other", "Me")
    assert made.lm.config.rates[:2] == (12.0, 13.0)
    assert np.isfinite(made.say("Hello.", voice="Me").samples).all()
    old, new = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert old.keys() == new.keys()  # an ordinary model: LoRA is merged
    changed = {k for k in old if old[k].shape == new[k].shape and not torch.equal(old[k], new[k])}
    if tuned.best_step:
        assert any("qkv" in k for k in changed)
    if lora is not None:  # frozen: tables of codes and phones
        assert not any(k.startswith(("head.table", "phones.phone")) for k in changed)
    with pytest.raises(BadInput, match="holds a model already"):
        finetune(str(base), recordings, out, settings)


def test_it_stops_when_the_held_out_loss_rises(recordings: Path, base: Path, tmp_path: Path) -> None:
    settings = FineTuning(
        "Me", steps=60, every=1, patience=2, lr=3.0, aligner=str(base.parent / "aligner"), batch_seconds=5
    )
    tuned = finetune(str(base), recordings, tmp_path / "tuned", settings)
    assert tuned.steps < 60
    assert tuned.steps >= tuned.best_step + 2
    assert tuned.after <= tuned.before


def test_what_cannot_be_tuned_is_refused(recordings: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pointer voice"):
        finetune(str(base.parent / "codec"), recordings, tmp_path / "x", FineTuning("me"))
    for wrong in (FineTuning("a b"), FineTuning("me", steps=0), FineTuning("me", held=1.0)):
        with pytest.raises(BadInput):
            finetune(str(base), recordings, tmp_path / "x", wrong)
    with pytest.raises(MissingFile):
        finetune("nothing", recordings, tmp_path / "x", FineTuning("me"))
