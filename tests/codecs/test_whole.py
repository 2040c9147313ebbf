"""DAC and X-Codec: the published code with the published weights, in batches, and a refusal to stream with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Xcodec2FeatureExtractor

from quaver.codecs.base import Codec
from quaver.codecs.loading import load_codec
from quaver.codecs.whole import DacCodec, XCodec2Hub, XCodecHub
from quaver.errors import BadInput, CorruptFile, MissingFile

from ..laws import randn
from .published import MODELS, dac, no_gradients, saved, xcodec  # noqa: F401 (an autouse fixture)


@pytest.fixture(scope="module", params=["dac", "xcodec", "xcodec2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Codec, Any]:
    """Our codec, and the published model whose checkpoint it was loaded from."""
    return saved(request.param, tmp_path_factory.mktemp(request.param)), MODELS[request.param]()


def test_codes_and_audio_are_those_of_the_published_code(pair: tuple[Codec, Any]) -> None:
    codec, model = pair
    audio = 0.5 * randn(2, 1, 12 * codec.frame_size)
    if isinstance(codec, DacCodec):
        theirs = model.encode(audio).audio_codes
        sound = model.decode(audio_codes=theirs).audio_values[:, None]
    elif isinstance(codec, XCodec2Hub):
        extractor = Xcodec2FeatureExtractor(hop_length=codec.frame_size)
        given = extractor(list(audio[:, 0]), sampling_rate=16_000, return_tensors="pt")
        made = model.encode(**given)
        assert made.audio_codes_mask.sum(-1).tolist() == [12, 12], (
            "the frame after the last is not one of the recording"
        )
        theirs = made.audio_codes[..., :12]
        sound = model.decode(audio_codes=theirs).audio_values
    else:
        theirs = model.encode(audio).audio_codes
        sound = model.decode(theirs).audio_values
    assert theirs.unique().numel() > 3, "codes that never change would prove nothing"
    codes, counts = codec.encode(audio)
    assert torch.equal(codes, theirs.long())
    assert counts.tolist() == [12, 12]
    ours = codec.decode(codes)
    assert ours.shape == audio.shape
    torch.testing.assert_close(ours[..., : sound.shape[-1]], sound[..., : ours.shape[-1]], atol=1e-4, rtol=0)


def test_a_stream_is_refused_with_the_reason(pair: tuple[Codec, Any]) -> None:
    with pytest.raises(
        BadInput, match=r"cannot stream: .*(look ahead|see the whole recording); give it whole recordings"
    ):
        pair[0].init_state(1)


def test_an_item_of_a_batch_has_the_codes_it_has_alone(pair: tuple[Codec, Any]) -> None:
    codec = pair[0]
    size = codec.frame_size
    audio = 0.5 * randn(3, 1, 9 * size)
    lengths = torch.tensor([9 * size, 5 * size - 3, 9 * size])
    codes, counts = codec.encode(audio, lengths)
    assert counts.tolist() == [9, 5, 9]
    assert torch.equal(codes[1:2, :, :5], codec.encode(audio[1:2, :, : 5 * size - 3])[0])


def test_fewer_codebooks_are_the_first_ones(pair: tuple[Codec, Any]) -> None:
    codec = pair[0]
    audio = 0.5 * randn(1, 1, 6 * codec.frame_size)
    codes, _ = codec.encode(audio)
    fewer = min(2, codec.frame_spec.codebooks)
    assert torch.equal(codec.encode(audio, codebooks=fewer)[0], codes[:, :fewer])  # type: ignore[call-arg]
    assert codec.decode(codes[:, :1]).shape == audio.shape


def test_codes_out_of_range_are_refused(pair: tuple[Codec, Any]) -> None:
    codec = pair[0]
    codes = torch.zeros(1, codec.frame_spec.codebooks, 4, dtype=torch.long)
    for wrong in (codes + codec.frame_spec.vocab, codes - 1, codes.repeat(1, 2, 1), codes[0]):
        with pytest.raises(BadInput):
            codec.decode(wrong)


def test_the_teacher_of_x_codec_stays_in_eval_mode() -> None:
    """The published trainer put the frozen HuBERT into train mode, and its dropout into the targets."""
    codec = XCodecHub(xcodec(), 16_000, 320, 8, 16).train()
    assert codec.training
    assert not codec.model.semantic_model.training  # type: ignore[union-attr]
    codec.eval()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    dac().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    for change in (('"n_codebooks": 3', '"n_codebooks": 4'), ('"codebook_size": 16', '"codebook_size": 32')):
        config.write_text(text.replace(*change))
        with pytest.raises(CorruptFile, match="fit"):
            load_codec(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingFile):
        load_codec(str(tmp_path))


def test_a_recording_of_whole_frames_gains_no_frame(pair: tuple[Codec, Any]) -> None:
    """VieNeu-TTS issue 198; X-Codec 2's feature extractor adds a frame of silence to such recordings."""
    codec = pair[0]
    audio = 0.5 * randn(1, 1, 9 * codec.frame_size)
    assert codec.encode(audio)[0].shape[-1] == 9
    assert codec.encode(audio[..., : 8 * codec.frame_size + 1])[0].shape[-1] == 9
    assert codec.decode(codec.encode(audio)[0]).shape == audio.shape
