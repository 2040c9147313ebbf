"""A published Moshi with its Mimi in one folder: it hears, speaks, and is the two of them run by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MimiConfig, MimiModel, MoshiConfig, MoshiForConditionalGeneration

from quaver.codecs import kyutai as kyutai_codec
from quaver.codecs.mimi import MimiConfig as OurMimiConfig
from quaver.dialogue import moshi_folder
from quaver.dialogue.loading import DuplexParts, load_duplex
from quaver.dialogue.session import DuplexSettings
from quaver.errors import ConfigError, CorruptFile, MissingExtra, MissingFile

from ..codecs.test_kyutai import as_kyutai
from ..laws import TOLERANCE
from .test_moshi import KYUTAI, SIZES, kyutai
from .tiny import VOCABULARY, noise_frames

FRAME = 1920
MIMI: dict[str, Any] = {
    "num_filters": 2, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "codebook_size": 32, "codebook_dim": 4, "vector_quantization_hidden_dimension": 4, "num_quantizers": 5,
    "num_semantic_quantizers": 1, "head_dim": 4, "upsample_groups": 8, "sliding_window": 20, "num_key_value_heads": 2,
}  # fmt: skip
"""Published ratios, so frames of 80 ms; few channels. It has two codebooks more than the model uses."""
GREEDY = DuplexSettings(temperature=0, text_temperature=0)


@pytest.fixture(scope="module")
def theirs() -> MoshiForConditionalGeneration:
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 90, "audio_vocab_size": 32, "audio_encoder_config": MimiConfig(**MIMI).to_dict()}
    model = MoshiForConditionalGeneration(MoshiConfig(**sizes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            if name.endswith("embed_sum"):
                parameter.copy_(noise * 3)
            elif parameter.is_floating_point() and "cluster_usage" not in name and "inv_freq" not in name:
                parameter.copy_(noise if parameter.ndim > 1 else 1 + noise)
    return model


@pytest.fixture
def folder(theirs: MoshiForConditionalGeneration, tmp_path: Path) -> Path:
    """kyutai's layout of the model, Mimi as published for `transformers` beside it."""
    save_file(kyutai(theirs, False), tmp_path / "model.safetensors")
    raw = KYUTAI | {"text_card": 90, "card": 32, "existing_text_padding_id": VOCABULARY.pad}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    mimi = theirs.audio_encoder
    assert isinstance(mimi, MimiModel)
    mimi.save_pretrained(tmp_path / "mimi")
    VOCABULARY.save(tmp_path / "vocabulary.json")
    return tmp_path


def by_hand(parts: DuplexParts, heard: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Mimi, both transformers and Mimi again, in a stream of frames with delays of our own; greedy."""
    model, codec, own, user = parts.model, parts.codec, 3, 3
    late = model.config.stream_delays
    ears, mouth, state = codec.init_state(1), codec.init_state(1), model.init_state(1)
    steps: list[list[int]] = []  # columns
    codes: list[list[int]] = []  # of the user, by frame
    tokens, audio = [], []
    with torch.inference_mode():
        for number in range(len(heard) + 1):
            if number:
                frame, _ = codec.encode(torch.from_numpy(heard[number - 1])[None, None], state=ears)
                codes.append(frame[0, :user, 0].tolist())
                for k in range(user):
                    source = number - 1 - late[1 + own + k]
                    steps[-1][1 + own + k] = codes[source][k] if source >= 0 else model.audio_initial
            column = steps[-1] if steps else model.initial.tolist()
            hidden = model.hidden(torch.tensor(column)[None, :, None], state)[:, 0]
            drawn, cache = [model.text_head(hidden).argmax(-1)], []
            for level in range(own):
                y = model.depth.step(model.depth_input(hidden, level, drawn[-1]), level, cache)
                code = model.depth_heads[level](y).argmax(-1)
                drawn.append(code if number >= late[1 + level] else torch.tensor([model.audio_initial]))
            steps.append([int(t) for t in drawn] + [model.audio_initial] * user)
            tokens.append(int(drawn[0]))
            if (first := number - max(late[1 : 1 + own])) >= 0:
                whole = torch.tensor([[[steps[first + late[1 + k]][1 + k]] for k in range(own)]])
                audio.append(codec.decode(whole, mouth)[0, 0].numpy())
    return tokens, np.concatenate(audio)


def check(parts: DuplexParts) -> None:
    session = parts.session(GREEDY)
    assert (session.sample_rate, session.frame_size) == (24_000, FRAME)
    assert session.batch.rate == 12.5
    heard = noise_frames(9, FRAME, 3)
    said = [session.step(frame) for frame in heard]
    tokens, audio = by_hand(parts, heard)
    assert [f.token for f in said] == tokens[1:]
    assert [f.frame for f in said] == list(range(9))
    streamed = np.concatenate([f.audio for f in said])
    assert np.abs(streamed - audio).max() < TOLERANCE
    assert np.abs(audio).max() > 0.01
    assert np.abs(np.diff(audio.reshape(9, -1).std(1))).max() > 0  # it says something else in every frame


def test_a_moshi_and_its_mimi_converse(folder: Path) -> None:
    parts = load_duplex(str(folder))
    assert parts.codec.frame_spec.codebooks == 3  # of the five that this Mimi has
    check(parts)
    assert any(f.text for f in [parts.session().step(frame) for frame in noise_frames(4, FRAME)])


def test_kyutais_file_of_mimi(
    theirs: MoshiForConditionalGeneration, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tokenizer-*.safetensors` beside the model; it has no configuration, so the published size is made small here."""
    expected = load_duplex(str(folder)).codec
    save_file(as_kyutai(load_file(folder / "mimi" / "model.safetensors"), 2), folder / moshi_folder.MIMI)
    for file in (folder / "mimi").iterdir():
        file.unlink()
    monkeypatch.setattr(kyutai_codec, "MimiConfig", lambda: OurMimiConfig.model_validate(MIMI))
    parts = load_duplex(str(folder))
    check(parts)
    audio = torch.from_numpy(noise_frames(5, FRAME).reshape(1, 1, -1))
    with torch.inference_mode():
        assert torch.equal(parts.codec.encode(audio)[0], expected.encode(audio)[0])


def test_the_layout_of_transformers_has_mimi_inside(theirs: MoshiForConditionalGeneration, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the text of a published Moshi needs sentencepiece")
    theirs.save_pretrained(tmp_path)
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"hello {w} how are you today {w}" for w in ("anna", "ben", "clara", "leo")))
    sentencepiece.SentencePieceTrainer.train(
        input=str(words),
        model_prefix=str(tmp_path / "tokenizer_spm_32k_3"),
        vocab_size=24,
        num_threads=1,
        pad_id=3,
        unk_id=0,
    )
    check(load_duplex(str(tmp_path)))


def test_half_precision_weights_converse(folder: Path) -> None:
    weights = {k: v.to(torch.bfloat16) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    parts = load_duplex(str(folder))
    assert parts.model.text_head.weight.dtype == torch.bfloat16
    said = [parts.session(GREEDY).step(frame) for frame in noise_frames(3, FRAME)]
    assert all(np.isfinite(f.audio).all() and f.audio.dtype == np.float32 for f in said)


def test_what_is_missing_is_told(theirs: MoshiForConditionalGeneration, folder: Path, tmp_path: Path) -> None:
    (folder / "vocabulary.json").unlink()
    with pytest.raises(MissingFile, match=r"tokenizer_spm_32k_3\.model is missing"):
        load_duplex(str(folder))
    (folder / "tokenizer_spm_32k_3.model").write_text("nothing")
    with pytest.raises((CorruptFile, MissingExtra), match=r"tokenizer_spm|sentencepiece"):
        load_duplex(str(folder))
    (folder / "mimi" / "model.safetensors").unlink()
    with pytest.raises(MissingFile, match=r"mimi/model\.safetensors is missing"):
        load_duplex(str(folder))
    (folder / "mimi" / "config.json").unlink()
    with pytest.raises(MissingFile, match=r"tokenizer-e351c8d8-checkpoint125\.safetensors"):
        load_duplex(str(folder))
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(MissingFile, match="no model"):
        load_duplex(str(folder))
    with pytest.raises(MissingFile, match="no model"):
        load_duplex("runs/nobody")  # not looked for on the hub


def test_a_mimi_of_another_size_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"card": 31}))
    with pytest.raises((ConfigError, CorruptFile), match=r"fit|codec"):
        load_duplex(str(folder)).session()
