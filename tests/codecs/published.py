"""What the tests of the published codecs share: tiny random models of the reference packages, saved and loaded, and
streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    HubertConfig,
    MimiConfig,
    MimiModel,
    Wav2Vec2BertConfig,
    XcodecConfig,
    XcodecModel,
)

from quaver.codecs.base import Codec
from quaver.codecs.loading import load_codec

from ..laws import randn, split

MIMI: dict[str, Any] = {
    "hidden_size": 16,
    "num_filters": 2,
    "upsampling_ratios": [4, 3],
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "upsample_groups": 16,
    "sliding_window": 6,
    "sampling_rate": 24_000,
}
ENCODEC: dict[str, Any] = {
    "hidden_size": 8,
    "num_filters": 2,
    "upsampling_ratios": [4, 3],
    "codebook_size": 16,
    "sampling_rate": 12_000,
    "target_bandwidths": [4.0, 16.0],
}
DAC: dict[str, Any] = {
    "encoder_hidden_size": 4,
    "downsampling_ratios": [2, 5],
    "decoder_hidden_size": 16,
    "n_codebooks": 3,
    "codebook_size": 16,
    "codebook_dim": 4,
}
XCODEC2: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "encoder_hidden_size": 2,
    "quantization_dim": 48,
    "quantization_levels": [4, 4, 3],
}


def _randomise_mimi(model: torch.nn.Module) -> None:
    """Weights that make every part matter: a published model's random start has codebooks of zeros."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("embed_sum", "embed")):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("cluster_usage"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith("_layer_scale.scale"):
            tensor.fill_(0.5)


@cache
def mimi() -> MimiModel:
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**MIMI)).eval()
    _randomise_mimi(model)
    return model


def randomise_encodec(model: torch.nn.Module) -> None:
    """Codebooks that lie where the latents do, so that the codes change from frame to frame."""
    generator = torch.Generator().manual_seed(1)
    latents = model.encoder(0.5 * randn(1, 1, 2400, seed=3))[0]  # type: ignore[operator]
    books = [tensor for name, tensor in model.state_dict().items() if name.endswith(".embed")]
    for k, book in enumerate(books):
        book.copy_(torch.randn(book.shape, generator=generator) * latents.std(1) / 2**k)
    books[0].add_(latents.mean(1))


@cache
def encodec() -> EncodecModel:
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(**ENCODEC)).eval()
    randomise_encodec(model)
    return model


@cache
def dac() -> DacModel:
    torch.manual_seed(0)
    return DacModel(DacConfig(**DAC)).eval()


@cache
def xcodec() -> XcodecModel:
    torch.manual_seed(0)
    acoustic = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[8, 5, 4, 2], decoder_hidden_size=32, codebook_dim=4
    )
    semantic = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    acoustic.hidden_size = 16
    config = XcodecConfig(
        acoustic_model_config=acoustic, semantic_model_config=semantic, codebook_size=16, codebook_dim=32
    )
    model = XcodecModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(".embed"):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


@cache
def xcodec2() -> Any:
    from transformers import Xcodec2Config, Xcodec2FeatureExtractor, Xcodec2Model

    torch.manual_seed(0)
    semantic = Wav2Vec2BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = Xcodec2Model(Xcodec2Config(**XCODEC2, semantic_model_config=semantic)).eval()
    seen: list[Tensor] = []
    hook = model.fc_encoder.register_forward_hook(lambda *call: seen.append(call[-1]))
    audio = list(0.5 * randn(1, 40 * 320, seed=3))
    with torch.no_grad():  # else every frame falls into the same cell
        model.encode(**Xcodec2FeatureExtractor()(audio, sampling_rate=16_000, return_tensors="pt"))
        rows = seen[0][0]
        model.fc_encoder.weight.div_(rows.std(0)[:, None] / 8)
        model.fc_encoder.bias.sub_(rows.mean(0)).div_(rows.std(0) / 8)
    hook.remove()
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "mimi": mimi,
    "encodec": encodec,
    "dac": dac,
    "xcodec": xcodec,
    "xcodec2": xcodec2,
}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def saved(kind: str, folder: Path) -> Codec:
    """Our codec, loaded from the checkpoint that the reference package writes."""
    MODELS[kind]().save_pretrained(folder)
    return load_codec(str(folder))


def encode_stream(codec: Codec, audio: Tensor, lengths: list[int]) -> Tensor:
    """Codes of `audio`, which comes in chunks of so many samples."""
    state = codec.init_state(audio.shape[0])
    parts = [codec.encode(part, state=state)[0] for part in audio.split(lengths, -1)]
    return torch.cat([*parts, codec.finish(state)], -1)


def decode_stream(codec: Codec, codes: Tensor, lengths: list[int]) -> Tensor:
    """Audio of `codes`, which come in chunks of so many frames; each chunk gives as much audio as it stands for."""
    state, parts = codec.init_state(codes.shape[0]), []
    for part in split(codes, lengths):
        parts.append(codec.decode(part, state))
        assert parts[-1].shape[-1] == part.shape[-1] * codec.frame_size
    return torch.cat([*parts, codec.flush(state)], -1)[..., codec.latency :]
