"""Mimi in kyutai's file layout: the same codec as in the layout of transformers, and as in the package moshi."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quaver.codecs.kyutai import load_kyutai, renamed
from quaver.codecs.loading import load_codec, weights_sha256
from quaver.codecs.mimi import MimiConfig
from quaver.errors import CorruptFile, MissingFile

from ..laws import TOLERANCE, randn
from .published import MIMI, decode_stream, encode_stream, no_gradients, saved  # noqa: F401 (an autouse fixture)

FRAME = 24


def as_kyutai(tensors: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Tensors of transformers under kyutai's names, written out the other way round than `renamed`."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "initialized")):
            continue
        for half in ("encoder", "decoder"):
            name = name.replace(f"{half}.layers.", f"{half}.model.")
            name = name.replace(f"{half}_transformer.layers.", f"{half}_transformer.transformer.layers.")
        if name.endswith("v_proj.weight"):
            width = len(tensor)
            parts = [tensors[_plain(name).replace("v_proj", f"{letter}_proj")] for letter in "qk"]
            pairs = [p.view(heads, 2, width // heads // 2, width).transpose(1, 2).reshape(width, width) for p in parts]
            made[name.replace("v_proj.weight", "in_proj_weight")] = torch.cat([*pairs, tensor])
            continue
        for theirs, ours in (
            ("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2"), ("mlp.fc1", "linear1"),
            ("mlp.fc2", "linear2"), ("self_attn_layer_scale", "layer_scale_1"), ("mlp_layer_scale", "layer_scale_2"),
            ("o_proj", "out_proj"), ("semantic_residual_vector_quantizer", "rvq_first"),
            ("acoustic_residual_vector_quantizer", "rvq_rest"), ("codebook.embed_sum", "_codebook.embedding_sum"),
            ("codebook.cluster_usage", "_codebook.cluster_usage"),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        name = name.replace("quantizer.rvq_first.layers", "quantizer.rvq_first.vq.layers")
        name = name.replace("quantizer.rvq_rest.layers", "quantizer.rvq_rest.vq.layers")
        for end in (".weight", ".bias"):
            if name.endswith(".conv" + end):
                up = (
                    "decoder.model" in name
                    and ".block." not in name
                    and tensor.ndim == 3
                    and tensor.shape[0] > tensor.shape[1]
                )
                name = name.replace(".conv" + end, (".convtr.convtr" if up else ".conv.conv") + end)
        made[name] = tensor.contiguous()
    return made


def _plain(name: str) -> str:
    return name.replace("_transformer.transformer.layers", "_transformer.layers")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kyutai") / "tokenizer-tiny.safetensors"
    saved("mimi", path.parent)  # transformers' names in memory are not those of its files
    tensors = as_kyutai(load_file(path.parent / "model.safetensors"), 2)
    tensors["quantizer.rvq_first.vq.layers.0._codebook._initialized"] = torch.ones(1)
    save_file(tensors, path)
    return path


def test_it_is_the_codec_of_the_other_layout(file: Path, tmp_path: Path) -> None:
    ours = load_kyutai(file, MimiConfig.model_validate(MIMI))
    other: Any = saved("mimi", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), other.state_dict().values(), strict=True))
    audio = 0.5 * randn(2, 1, 12 * FRAME)
    codes = ours.encode(audio)[0]
    assert torch.equal(codes, other.encode(audio)[0])
    assert torch.equal(encode_stream(ours, audio, [50, 7, 12 * FRAME - 57]), codes)
    torch.testing.assert_close(decode_stream(ours, codes, [5, 1, 6]), other.decode(codes), atol=TOLERANCE, rtol=0)


def test_newer_names_of_the_projections_are_read_too(file: Path) -> None:
    from safetensors.torch import load_file

    old = load_file(file)
    new = {
        k.replace("in_proj_weight", "in_projs.0.weight").replace("out_proj.", "out_projs.0."): v for k, v in old.items()
    }
    a, b = renamed(old, 2), renamed(new, 2)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_file_is_named_like_a_folder_and_refused_with_a_reason(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"fit|lacks"):  # this file is of another size than the published one
        load_codec(str(file))
    assert len(weights_sha256(file)) == 64
    with pytest.raises(MissingFile, match="tokenizer"):
        load_codec(str(tmp_path / "tokenizer-none.safetensors"))
    (tmp_path / "tokenizer-x.safetensors").write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CorruptFile, match="damaged"):
        load_codec(str(tmp_path / "tokenizer-x.safetensors"))


@pytest.mark.long
def test_codes_and_audio_are_those_of_the_package_moshi(tmp_path: Path) -> None:
    """At published size with random weights; QUAVER_MOSHI names the folder that the package was installed to."""
    folder = os.environ.get("QUAVER_MOSHI", "")
    if not folder:
        pytest.skip("QUAVER_MOSHI does not name a folder with the package moshi")
    sys.path.append(folder)
    try:
        from moshi.models import loaders  # type: ignore[import-not-found]
    finally:
        sys.path.remove(folder)
    torch.manual_seed(0)
    theirs = loaders.get_mimi(None, device="cpu")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in theirs.state_dict().items():
        if name.endswith("embedding_sum"):
            tensor.copy_(0.05 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("cluster_usage"):
            tensor.fill_(1.0)
        elif "layer_scale" in name:
            tensor.fill_(0.3)
    path = tmp_path / "tokenizer-random.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, path)
    ours = load_codec(str(path), codebooks=8)
    theirs.set_num_codebooks(8)
    audio = 0.3 * randn(1, 1, 15 * 1920)
    wanted = theirs.encode(audio)
    codes = ours.encode(audio)[0]
    assert torch.equal(codes, wanted)
    assert codes.unique(dim=-1).shape[-1] > 7, "frames that never change would prove nothing"
    torch.testing.assert_close(ours.decode(codes), theirs.decode(wanted), atol=1e-4, rtol=0)
