"""The codes of one frame, one after the other, from the hidden state of the frame.

Ours is `DepthHead` (`tts/token_heads.py`), one set of transformer weights for all levels as in CSM; the peer is
`CsmDepthDecoderForCausalLM.generate` of `transformers`, which `CsmForConditionalGeneration` calls for every frame.
"""

from __future__ import annotations

from typing import Any

import torch

LEVELS, VOCAB, BACKBONE = 8, 1024, 512
DEPTH: dict[str, Any] = {"width": 256, "layers": 4, "heads": 4, "hidden": 688}


@torch.inference_mode()
def ours(frames: int = 10, half: bool = False) -> tuple[Any, dict[str, Any]]:
    from quaver.nn.packed import lay_out_linears, pack_linears
    from quaver.nn.transformer import TransformerConfig
    from quaver.tts.sampling import SamplingConfig
    from quaver.tts.token_heads import DepthHead

    torch.manual_seed(0)
    config = TransformerConfig(**DEPTH, qk_norm=False)
    head = DepthHead(BACKBONE, LEVELS, VOCAB, depth=config, own=False).eval()
    parameters = sum(p.numel() for p in head.parameters())
    (pack_linears if half else lay_out_linears)(head)
    sampling = SamplingConfig(temperature=0.8, top_k=50)
    hidden = torch.randn(frames, 1, BACKBONE)

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        for row in hidden:
            assert head.sample(row, torch.rand(1, 2, LEVELS), sampling).shape == (1, LEVELS)
        return {"units": frames}

    return call, {"parameters": parameters}


@torch.inference_mode()
def csm(frames: int = 10, cache: str = "dynamic") -> tuple[Any, dict[str, Any]]:
    from transformers.models.csm.configuration_csm import CsmDepthDecoderConfig
    from transformers.models.csm.modeling_csm import CsmDepthDecoderForCausalLM

    torch.manual_seed(0)
    config = CsmDepthDecoderConfig(
        num_codebooks=LEVELS,
        backbone_hidden_size=BACKBONE,
        vocab_size=VOCAB,
        hidden_size=DEPTH["width"],
        intermediate_size=DEPTH["hidden"],
        num_hidden_layers=DEPTH["layers"],
        num_attention_heads=DEPTH["heads"],
        num_key_value_heads=DEPTH["heads"],
        head_dim=DEPTH["width"] // DEPTH["heads"],
        max_position_embeddings=LEVELS + 1,
    )
    model: Any = CsmDepthDecoderForCausalLM(config).eval()
    hidden = torch.randn(frames, 1, BACKBONE)
    # The first code of a frame is the backbone's; the place before it is filled by the hidden state.
    first = torch.tensor([[0, 5]])
    more: dict[str, Any] = {"cache_implementation": "static"} if cache == "static" else {}

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        for row in hidden:
            made = model.generate(
                input_ids=first,
                backbone_last_hidden_state=row,
                do_sample=True,
                temperature=0.8,
                top_k=50,
                min_new_tokens=LEVELS - 1,
                max_new_tokens=LEVELS - 1,
                **more,
            )
            assert made.shape[1] == LEVELS + 1
        return {"units": frames}

    return call, {"parameters": sum(p.numel() for p in model.parameters())}
