"""Mimi in kyutai's own file layout: one `tokenizer-*.safetensors`, as the models of `moshi` bring it along.

The file has no configuration: it is the published size (`MimiConfig`). Its tensors are renamed to those of the layout
of `transformers`, where queries and keys are stored for rotary embeddings of halves; kyutai's turn neighbouring pairs.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CorruptFile, MissingFile
from .checkpoints import check_finite, put
from .mimi import MimiCodec, MimiConfig, mimi_state

__all__ = ["load_kyutai", "renamed"]

_NAMES = (
    (r"_transformer\.transformer\.layers\.", "_transformer.layers."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear1\.", ".mlp.fc1."),
    (r"\.linear2\.", ".mlp.fc2."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.self_attn\.out_proj(s\.0)?\.", ".self_attn.o_proj."),
    (r"^quantizer\.rvq_first\.", "quantizer.semantic_residual_vector_quantizer."),
    (r"^quantizer\.rvq_rest\.", "quantizer.acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.(\d+)\._codebook\.embedding_sum$", r".layers.\1.codebook.embed_sum"),
    (r"\.vq\.layers\.(\d+)\._codebook\.cluster_usage$", r".layers.\1.codebook.cluster_usage"),
)
_QKV = re.compile(r"\.self_attn\.in_proj(s\.0\.|_|\.)weight$")


def renamed(tensors: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """kyutai's tensors under the names of `transformers`.

    Raises:
        CorruptFile: queries, keys and values that do not divide into so many heads.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("._codebook._initialized"):
            continue
        for pattern, name_there in _NAMES:
            name = re.sub(pattern, name_there, name)
        if not _QKV.search(name):
            made[name] = tensor
            continue
        width = tensor.shape[1]
        if tensor.shape[0] != 3 * width or width % (2 * heads):
            raise CorruptFile(f"{name} is {list(tensor.shape)}, which are no {heads} heads; fetch the file again")
        for letter, part in zip("qkv", tensor.split(width), strict=True):
            if letter != "v":  # from pairs (0 1)(2 3)... of a head to halves (0 2 ...)(1 3 ...)
                part = part.view(heads, width // heads // 2, 2, width).transpose(1, 2).reshape(width, width)
            made[_QKV.sub(f".self_attn.{letter}_proj.weight", name)] = part
    return made


def load_kyutai(path: Path, config: MimiConfig | None = None) -> MimiCodec:
    """The codec of a `tokenizer-*.safetensors` in eval mode.

    Raises:
        MissingFile: no such file. CorruptFile: damaged, or not of this configuration.
    """
    if not path.is_file():
        raise MissingFile(f"{path} is missing; it is the tokenizer file of one of kyutai's models of moshi")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{path} is damaged ({error}); fetch it again") from None
    check_finite(tensors, path)
    codec = MimiCodec(config or MimiConfig())
    put(codec, mimi_state(renamed(tensors, codec.config.num_attention_heads), codec), path)
    return codec.eval()
