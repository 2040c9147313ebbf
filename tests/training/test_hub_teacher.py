"""Semantic teachers from transformers: tiny random encoders in its format, and a codec that reads their features."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    HubertConfig,
    HubertModel,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from quaver.codecs.loading import load_codec
from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile
from quaver.training.hub_teacher import HubTeacher, load_hub_teacher
from quaver.training.tasks import build_task

from ..laws import randn
from .test_run import MakeRecipe, train

SMALL: dict[str, Any] = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
WHISPER: dict[str, Any] = {
    "d_model": 12, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 16, "max_source_positions": 100, "vocab_size": 20,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
}  # fmt: skip
KINDS = ("hubert", "wavlm", "whisper")


def saved(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    if kind == "whisper":
        WhisperModel(WhisperConfig(**WHISPER)).save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    elif kind == "hubert":
        HubertModel(HubertConfig(**SMALL)).save_pretrained(folder)
    else:
        WavLMModel(WavLMConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture(params=KINDS)
def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> HubTeacher:
    return load_hub_teacher(f"hf:{saved(request.param, tmp_path / request.param)}", 24_000, 960)


def test_features_come_in_the_codecs_frames_and_are_standardised(teacher: HubTeacher) -> None:
    """50 hidden states a second become 25 columns, whatever the length; also past the end of Whisper's positions."""
    for frames in (1, 7, 60):
        assert teacher(0.1 * randn(2, 1, frames * 960)).features.shape == (2, 12, frames)
    audio = 0.1 * randn(3, 1, 25 * 960, seed=1) * torch.linspace(0.1, 3, 25 * 960)
    teacher.calibrate(audio)
    rows = teacher(audio).features.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(12), atol=1e-3, rtol=0)
    with pytest.raises(BadInput, match="one frame"):
        teacher(audio[..., :100])


def test_features_are_the_mean_over_all_hidden_states(tmp_path: Path) -> None:
    """X-Codec takes all layers, not the last: against transformers' own call."""
    folder = saved("hubert", tmp_path / "hubert")
    teacher, model = load_hub_teacher(f"hf:{folder}", 16_000, 640), HubertModel.from_pretrained(folder).eval()
    wave = 0.1 * randn(2, 16_000)
    with torch.no_grad():
        states: Any = model(torch.nn.functional.pad(wave, (160, 160)), output_hidden_states=True).hidden_states
    wanted = torch.stack(states).mean(0).transpose(1, 2)
    assert wanted.shape[-1] == 50
    torch.testing.assert_close(teacher(wave[:, None]).features, wanted.unflatten(-1, (25, 2)).mean(-1))


def test_whispers_layers_are_those_of_its_own_encoder(tmp_path: Path) -> None:
    """Where the audio fills Whisper's window exactly, its own forward call must give the same states."""
    folder = saved("whisper", tmp_path / "whisper")
    teacher = load_hub_teacher(f"hf:{folder}", 16_000, 640)
    wave = 0.1 * randn(1, 200 * 160)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    mel = extractor(list(wave.numpy()), sampling_rate=16_000, padding="longest", truncation=False, return_tensors="pt")
    with torch.no_grad():
        encoder: Any = WhisperModel.from_pretrained(folder).eval().get_encoder()
        theirs = encoder(mel.input_features, output_hidden_states=True).hidden_states
        ours = teacher._whisper_states(wave)
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_teacher_has_no_dropout_whoever_calls_train(teacher: HubTeacher) -> None:
    """X-Codec's trainer put its HuBERT into train mode: the targets were noisy."""
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    audio = 0.1 * randn(1, 1, 10 * 960)
    assert torch.equal(teacher(audio).features, teacher(audio).features)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_an_item_of_a_batch_has_the_features_it_has_alone(teacher: HubTeacher) -> None:
    audio = 0.1 * randn(3, 1, 12 * 960)
    together = teacher(audio).features
    torch.testing.assert_close(teacher(audio[1:2]).features, together[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["hubert", "whisper"])
def test_a_codec_learns_with_the_teachers_features_as_input(kind: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    """The paper's strict form: the features go in before the bottleneck and are asked for after it."""
    folder = saved(kind, tmp_path / kind)
    settings = recipe("codec", steps=2, options={"teacher": f"hf:{folder}", "semantic": 1.0})
    settings = settings.model_copy(update={"model": {**settings.model, "semantic": "teacher_input"}})
    trainer = train(settings, tmp_path / "run")
    network: Any = trainer.task.network
    assert not any(module.training for module in network._teacher[0].modules())
    with open(tmp_path / "run" / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(row["semantic"]) < 20 for row in rows)
    codec: Any = load_codec(str(tmp_path / "run"))
    audio = 0.1 * randn(1, 1, 8 * 960)
    features = network._teacher[0](audio).features
    # The standardisation is in the checkpoint: a fresh teacher gives the same features with it, and others without.
    fresh = load_hub_teacher(f"hf:{folder}", 24_000, 960)
    assert not torch.allclose(fresh(audio).features, features, atol=1e-3)
    fresh.standardise_as(codec)
    assert torch.equal(fresh(audio).features, features)
    again: Any = build_task(settings.model_copy(update={"init": tmp_path / "run"}))
    again.model.teacher_mean.add_(1.0)  # as a checkpoint of other data would have it
    assert torch.allclose(again.network._features(audio), features - again.model.teacher_scale[:, None], atol=1e-4)
    codes, _ = codec.encode(audio, teacher=features)
    assert codes.shape == (1, 3, 8)
    gradient = torch.autograd.grad(codec(audio, teacher=features.requires_grad_()).head.audio.square().sum(), features)
    assert gradient[0].abs().sum() > 0
    for refused in (lambda: codec.encode(audio), lambda: codec.init_state(1)):
        with pytest.raises(BadInput, match="teacher"):
            refused()


def test_what_is_no_teacher_is_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = saved("hubert", tmp_path / "hubert")
    with pytest.raises(MissingFile, match="HuBERT"):
        load_hub_teacher("hf:" + str(tmp_path / "none"), 24_000, 960)
    settings = recipe("codec", options={"teacher": f"hf:{folder}"})
    with pytest.raises(ConfigError, match="teacher_dim: 12"):
        build_task(settings.model_copy(update={"model": {**settings.model, "teacher_dim": 5}}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ConfigError, match="bert"):
        load_hub_teacher(f"hf:{folder}", 24_000, 960)
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(CorruptFile):
        load_hub_teacher(f"hf:{folder}", 24_000, 960)
