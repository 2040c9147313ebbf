"""Once at published size, with random weights: the codes of the reference package, and its audio within 1e-4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from quaver.codecs.loading import load_codec

from ..laws import randn
from .published import no_gradients, randomise_encodec  # noqa: F401 (an autouse fixture)

pytestmark = pytest.mark.long


def mimi() -> tuple[Any, int]:
    model = MimiModel(MimiConfig()).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("embed_sum"):
            tensor.copy_(0.05 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("cluster_usage"):
            tensor.fill_(1.0)
        elif name.endswith("_layer_scale.scale"):
            tensor.fill_(0.3)
    return model, 1920


def encodec() -> tuple[Any, int]:
    model = EncodecModel(EncodecConfig()).eval()
    randomise_encodec(model)
    books = [tensor for name, tensor in model.state_dict().items() if name.endswith(".embed")]
    for k, book in enumerate(books[4:], 1):  # codes too close together would be told apart by rounding alone
        book.mul_(2.0**k)
    return model, 320


def dac() -> tuple[Any, int]:
    return DacModel(DacConfig(downsampling_ratios=[2, 4, 5, 8], n_codebooks=32, sampling_rate=24_000)).eval(), 320


@pytest.mark.parametrize("make", [mimi, encodec, dac])
def test_codes_and_audio_are_those_of_the_published_code(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, size = make()
    model.save_pretrained(tmp_path)
    codec = load_codec(str(tmp_path))
    audio = 0.3 * randn(1, 1, 10 * size)
    if make is encodec:
        theirs = model.encode(audio, bandwidth=24.0).audio_codes[0]
        sound = model.decode(theirs[None], [None]).audio_values
    else:
        theirs = model.encode(audio).audio_codes
        sound = model.decode(audio_codes=theirs).audio_values
    codes, counts = codec.encode(audio)
    assert counts.tolist() == [10]
    assert torch.equal(codes, theirs)
    assert codes.unique(dim=-1).shape[-1] > 4, "frames that never change would prove nothing"
    ours = codec.decode(codes)[0, 0]
    torch.testing.assert_close(ours[: sound.shape[-1]], sound.flatten()[: len(ours)], atol=1e-4, rtol=0)
