"""EnCodec in our modules: the same as the published code with the same weights, and a stream that it does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encodec.model import EncodecModel as Package
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import EncodecConfig as Reference
from transformers import EncodecModel

from quaver.codecs.encodec_causal import EncodecCodec, EncodecConfig, encodec_config
from quaver.codecs.loading import load_codec
from quaver.errors import BadInput, ConfigError

from ..laws import TOLERANCE, chunkings, few, randn
from .published import (
    ENCODEC,
    decode_stream,
    encode_stream,
    encodec,
    no_gradients,  # noqa: F401 (an autouse fixture)
    randomise_encodec,
    saved,
)

FRAME, LEVELS = 12, 4


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> EncodecCodec:
    loaded = saved("encodec", tmp_path_factory.mktemp("encodec"))
    assert isinstance(loaded, EncodecCodec)
    return loaded


@pytest.mark.parametrize("frames", [1, 3, 20])
def test_codes_and_audio_are_those_of_the_published_code(codec: EncodecCodec, frames: int) -> None:
    """One and three frames are shorter than the reflection they start with."""
    audio = 0.5 * randn(2, 1, frames * FRAME)
    published: Any = encodec()
    theirs = published.encode(audio, bandwidth=16.0).audio_codes[0]
    ours, _ = codec.encode(audio)
    assert torch.equal(ours, theirs)
    assert ours.unique(dim=-1).shape[-1] > frames / 2, "frames that never change would prove nothing"
    sound = published.decode(theirs[None], [None]).audio_values
    torch.testing.assert_close(codec.decode(ours), sound, atol=1e-4, rtol=0)


def test_weights_of_the_package_give_what_the_package_gives(tmp_path: Path) -> None:
    """The layout of `facebookresearch/encodec`, saved as safetensors."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dimension": 8, "n_filters": 2, "ratios": [4, 3], "norm": "weight_norm", "causal": True}
    quantizer = ResidualVectorQuantizer(dimension=8, n_q=LEVELS, bins=16)
    model = Package(SEANetEncoder(**sizes), SEANetDecoder(**sizes), quantizer, [4.0, 16.0], 12_000, 1).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("inited"):
            tensor.fill_(1)
    randomise_encodec(model)
    model.set_target_bandwidth(16.0)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(ENCODEC | {"model_type": "encodec"}))
    codec, audio = load_codec(str(tmp_path)), 0.5 * randn(2, 1, 15 * FRAME)
    frames = model.encode(audio)
    assert torch.equal(codec.encode(audio)[0], frames[0][0])
    torch.testing.assert_close(codec.decode(frames[0][0]), model.decode(frames), atol=1e-4, rtol=0)


@few
@given(lengths=st.lists(st.integers(0, 6 * FRAME), min_size=1, max_size=8).filter(lambda n: sum(n) >= FRAME))
def test_encoding_a_stream_equals_encoding_the_whole(codec: EncodecCodec, lengths: list[int]) -> None:
    """Also of a stream that ends before the first frames are together."""
    audio = 0.5 * randn(2, 1, sum(lengths))
    ours = encode_stream(codec, audio, lengths)
    whole = codec.encode(audio[..., : sum(lengths) // FRAME * FRAME])[0]
    assert torch.equal(ours[..., : whole.shape[-1]], whole) or sum(lengths) < 7 * FRAME
    if sum(lengths) < 7 * FRAME:
        assert torch.equal(ours, codec.encode(audio)[0])


@few
@given(lengths=chunkings())
def test_decoding_a_stream_equals_decoding_the_whole(codec: EncodecCodec, lengths: list[int]) -> None:
    codes = torch.randint(16, (2, LEVELS, sum(lengths)), generator=torch.Generator().manual_seed(0))
    sound = decode_stream(codec, codes, lengths)
    torch.testing.assert_close(sound, codec.decode(codes), atol=TOLERANCE, rtol=0)


def test_slots_that_started_at_different_times_are_refused_with_a_reason(codec: EncodecCodec) -> None:
    state, audio = codec.init_state(2), 0.5 * randn(2, 1, 9 * FRAME)
    with state.only(torch.tensor([True, False])):
        codec.encode(audio, state=state)
    with pytest.raises(BadInput, match="out of step"):
        codec.encode(audio, state=state)


def test_the_published_size_is_the_published_size() -> None:
    """On the meta device: 24 kHz, 75 Hz, 32 codebooks, six frames of latency."""
    with torch.device("meta"):
        ours, theirs = EncodecCodec(EncodecConfig()), EncodecModel(Reference())
    assert (ours.frame_size, ours.frame_spec.rate, ours.frame_spec.codebooks) == (320, 75, 32)
    assert (ours.first_frames, ours.late_frames) == (7, 6)
    gains = sum(p.numel() for n, p in theirs.named_parameters() if n.endswith("original0"))  # folded into the weights
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - gains


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"audio_channels": 2, "normalize": True, "chunk_length_s": 1.0}, "gain beside the codes"),
        ({"use_causal_conv": False}, "look ahead"),
        ({"norm_type": "time_group_norm"}, "norm_type"),
        ({"target_bandwidths": [0.01]}, "no codebook"),
        ({"codebook_dim": 3}, "wide"),
    ],
)
def test_an_encodec_of_another_make_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        encodec_config(Reference(**ENCODEC).to_dict() | change, Path("folder"))
