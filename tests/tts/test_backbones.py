"""Any causal language model of transformers as the backbone of a token language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quaver.errors import ConfigError, MissingFile
from quaver.tts.backbones import HFBackbone, HFConfig, hf_config, load_hf_weights
from quaver.tts.sampling import SamplingConfig
from quaver.tts.token_lm import TokenLM, TokenLMConfig
from quaver.tts.token_plan import TokenRequest

from .tokens import QWEN, TEXT, speak, token_lm

HOT = SamplingConfig(temperature=1.5, top_k=0)


def test_a_checkpoint_of_transformers_is_the_backbone(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    arch = {k: v for k, v in QWEN.items() if k != "model_type"}
    torch.manual_seed(1)
    original = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **arch))
    original.save_pretrained(tmp_path / "tiny")
    config = hf_config(f"hf:{tmp_path / 'tiny'}", context=200)
    lm = token_lm("qwen", backbone=config.model_dump())
    assert isinstance(lm.backbone, HFBackbone)
    load_hf_weights(lm.backbone, str(tmp_path / "tiny"))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        expected = original.model(ids).last_hidden_state
        got = lm.backbone(lm.backbone.text_table(ids))
    assert torch.allclose(got, expected, atol=1e-5)
    again = TokenLM(TokenLMConfig.model_validate_json(lm.config.model_dump_json()))  # no checkpoint needed any more
    again.load_state_dict(lm.state_dict())
    frames, _ = speak(lm, TokenRequest(TEXT, sampling=HOT, least=9))
    same, _ = speak(again.eval(), TokenRequest(TEXT, sampling=HOT, least=9))
    assert [f.codes.tolist() for f in same] == [f.codes.tolist() for f in frames]


def test_a_checkpoint_in_half_precision_trains_in_float32() -> None:
    """SmolLM2's config.json says bfloat16; our embeddings and head are float32."""
    config = HFConfig(arch={**QWEN, "dtype": "bfloat16"}, context=40, chunk=8)
    backbone = HFBackbone(config)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    backbone(torch.zeros(1, 3, backbone.width)).sum().backward()


def test_a_missing_or_broken_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        hf_config(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(MissingFile):
        load_hf_weights(token_lm("qwen").backbone, str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        token_lm("qwen", backbone=HFConfig(arch={"model_type": "no-such-model"}).model_dump())


def test_the_published_size_can_be_built() -> None:
    """CosyVoice 2's language model: Qwen2.5-0.5B, on the meta device."""
    arch = QWEN | {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    }  # fmt: skip
    config = TokenLMConfig(layout="interleave", text="bpe", backbone=HFConfig(arch=arch))
    with torch.device("meta"):
        lm = TokenLM(config)
    count = sum(p.numel() for p in lm.parameters())
    assert 480e6 < count < 520e6
    assert lm.head.size(0) == 6563
