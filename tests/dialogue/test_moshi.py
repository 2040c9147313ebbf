"""Published Moshi checkpoints: the same logits as `transformers` on the same tiny random weights, in both layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MimiConfig, MoshiConfig, MoshiForConditionalGeneration

from quaver.dialogue.model import DuplexModel
from quaver.dialogue.moshi import MOSHI_7B, load_moshi, moshi_config
from quaver.errors import ConfigError, CorruptFile, MissingFile

from .tiny import random_codes

MIMI = MimiConfig(num_filters=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                  codebook_size=16, codebook_dim=4, vector_quantization_hidden_dimension=4, num_quantizers=3,
                  num_semantic_quantizers=1, head_dim=4, upsampling_ratios=[2, 2], upsample_groups=8)  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "audio_vocab_size": 20,
    "ffn_dim": 48, "num_codebooks": 3, "sliding_window": 32, "max_position_embeddings": 64,
    "depth_decoder_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24,
                             "sliding_window": 3, "max_position_embeddings": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> MoshiForConditionalGeneration:
    torch.manual_seed(0)
    model = MoshiForConditionalGeneration(MoshiConfig(**SIZES, audio_encoder_config=MIMI.to_dict())).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.15 * torch.randn_like(parameter)
            parameter.copy_(noise if parameter.ndim > 1 else 1 + noise)
    return model


@pytest.fixture
def folder(theirs: MoshiForConditionalGeneration, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path)
    return tmp_path


def reference(theirs: MoshiForConditionalGeneration, steps: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Their text and audio logits of given input columns and target columns."""
    with torch.inference_mode():
        out = theirs(
            input_ids=inputs[:, 0], moshi_audio_codes=inputs[:, 1:4], user_audio_codes=inputs[:, 4:], use_cache=False
        )
        hidden = out.last_hidden_state
        depth = theirs.depth_decoder(
            input_ids=steps[:, :3].transpose(1, 2).flatten(0, 1),
            last_hidden_state=hidden.reshape(-1, 1, hidden.shape[-1]),
            use_cache=False,
        )
    return out.logits, depth.logits.view(len(steps), -1, 3, 20)


def check(ours: DuplexModel, theirs: MoshiForConditionalGeneration) -> None:
    codes = random_codes(ours, 2, 14)  # shorter than the window: transformers' mask has none
    steps = ours.delay(codes)[..., :14]
    text, audio = reference(theirs, steps, ours.shifted(steps))
    with torch.inference_mode():
        mine = ours(codes)
    assert (mine.text - text).abs().max() < 1e-4
    assert (mine.audio - audio).abs().max() < 1e-4
    assert text.std() > 0.1
    assert audio.std() > 0.1


def test_the_same_logits_as_transformers(theirs: MoshiForConditionalGeneration, folder: Path) -> None:
    check(load_moshi(folder), theirs)


def kyutai(theirs: MoshiForConditionalGeneration, split: bool) -> dict[str, Tensor]:
    """The same weights in kyutai's layout; `split`: a tensor for each set, as newer versions of the package save."""
    old = {k: v.detach() for k, v in theirs.state_dict().items() if not k.startswith("audio_encoder")}
    new = {
        "text_emb.weight": old["decoder.model.embed_tokens.weight"],
        "text_linear.weight": old["decoder.lm_head.weight"],
        "out_norm.alpha": old["decoder.model.norm.weight"][None, None],
        "depformer_text_emb.weight": old["depth_decoder.text_embed_tokens.weight"],
    }
    for k in range(6):
        new[f"emb.{k}.weight"] = old[f"embed_tokens.{k}.weight"]
    for k in range(3):
        new[f"depformer_in.{k}.weight"] = old["depth_decoder.input_projections.weight"][k]
        new[f"linears.{k}.weight"] = old["depth_decoder.lm_heads.weight"][k]
        if k < 2:
            new[f"depformer_emb.{k}.weight"] = old[f"depth_decoder.embed_tokens.{k}.weight"]
    for a, b in (("transformer", "decoder.model"), ("depformer", "depth_decoder")):
        for i in range(2):
            x, y = f"{a}.layers.{i}.", f"{b}.layers.{i}."
            new[x + "norm1.alpha"] = old[y + "input_layernorm.weight"][None, None]
            new[x + "norm2.alpha"] = old[y + "post_attention_layernorm.weight"][None, None]
            q, k, v, o = (old[f"{y}self_attn.{n}_proj.linear.weight"] for n in "qkvo")
            if a == "transformer":
                q, k = pairs(q), pairs(k)
                new[x + "gating.linear_in.weight"] = old[y + "mlp.fc1.weight"]
                new[x + "gating.linear_out.weight"] = old[y + "mlp.fc2.weight"]
            else:
                for s in range(3):
                    new[f"{x}gating.{s}.linear_in.weight"] = old[y + "mlp.fc1.weight"][s]
                    new[f"{x}gating.{s}.linear_out.weight"] = old[y + "mlp.fc2.weight"][s]
            qkv = torch.cat([q, k, v], -2)
            if split:
                sets = [(qkv, o)] if a == "transformer" else list(zip(qkv, o, strict=True))
                for s, (one, out) in enumerate(sets):
                    new[f"{x}self_attn.in_projs.{s}.weight"] = one
                    new[f"{x}self_attn.out_projs.{s}.weight"] = out
            else:
                new[x + "self_attn.in_proj_weight"] = qkv.flatten(0, -2)
                new[x + "self_attn.out_proj.weight"] = o.flatten(0, -2)
    return {name: tensor.clone().contiguous() for name, tensor in new.items()}


def pairs(weight: Tensor) -> Tensor:
    """Rotary dimensions (0, 4, 1, 5, ...) of each head of 8: kyutai's pairs side by side."""
    order = torch.arange(8).view(2, 4).T.flatten()
    return weight.view(4, 8, -1)[:, order].reshape(weight.shape)


KYUTAI = {"dim": 32, "text_card": 30, "n_q": 6, "dep_q": 3, "card": 20, "num_heads": 4, "num_layers": 2, "context": 32,
          "hidden_scale": 1.125, "norm": "rms_norm_f32", "delays": [0, 0, 1, 1, 0, 1, 1], "depformer_dim": 16,
          "depformer_dim_feedforward": 18, "depformer_num_heads": 2, "depformer_num_layers": 2, "gating": "silu",
          "depformer_pos_emb": "none"}  # fmt: skip


@pytest.mark.parametrize("split", [False, True])
def test_kyutais_layout(theirs: MoshiForConditionalGeneration, tmp_path: Path, split: bool) -> None:
    save_file(kyutai(theirs, split), tmp_path / "model.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "tokenizer-e351c8d8-checkpoint125.safetensors")  # Mimi lies beside it
    (tmp_path / "config.json").write_text(json.dumps(KYUTAI))
    check(load_moshi(tmp_path), theirs)


def test_a_loaded_model_streams(theirs: MoshiForConditionalGeneration, folder: Path) -> None:
    """Its buffers are real, and the ring cache goes round: 60 columns with a window of 32."""
    ours = load_moshi(folder)
    inputs = ours.shifted(random_codes(ours, 1, 60))
    with torch.inference_mode():
        state = ours.init_state(1)
        streamed = torch.cat([ours.hidden(inputs[..., i : i + 1], state) for i in range(60)], 1)
        assert (streamed - ours.hidden(inputs)).abs().max() < 1e-4


def test_the_published_size() -> None:
    """7.69 B, exactly as many as transformers counts without Mimi."""
    with torch.device("meta"):
        ours = DuplexModel(moshi_config(MOSHI_7B))
        depth = {"audio_vocab_size": 2048}
        theirs = MoshiForConditionalGeneration(
            MoshiConfig(audio_encoder_config=MimiConfig().to_dict(), depth_decoder_config=depth)
        )
    count = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("audio_encoder."))
    assert sum(p.numel() for p in ours.parameters()) == count
    assert 7.68e9 < count < 7.70e9


def test_damage_is_told(theirs: MoshiForConditionalGeneration, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="hub id"):
        load_moshi("/nowhere/at/all")
    with pytest.raises(ConfigError, match="low_rank"):
        moshi_config(MOSHI_7B | {"depformer_low_rank_embeddings": 128})
    with pytest.raises(ConfigError, match="KeyError"):
        moshi_config({"dim": 3})
    weights = kyutai(theirs, False)
    (tmp_path / "config.json").write_text(json.dumps(KYUTAI))
    save_file({k: v for k, v in weights.items() if k != "linears.1.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptFile, match=r"linears\.1"):
        load_moshi(tmp_path)
    save_file(weights | {"extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptFile, match="extra"):
        load_moshi(tmp_path)
    save_file(weights | {"emb.0.weight": torch.zeros(21, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptFile, match="does not fit"):
        load_moshi(tmp_path)
    save_file({k: v.to(torch.int8) for k, v in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="quantized"):
        load_moshi(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptFile, match="damaged"):
        load_moshi(tmp_path)
