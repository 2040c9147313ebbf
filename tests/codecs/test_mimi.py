"""Mimi in our modules: the same as the published code with the same weights, and the laws of a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MimiConfig as Reference
from transformers import MimiModel

from quaver.codecs.loading import load_codec
from quaver.codecs.mimi import MimiCodec, MimiConfig, mimi_config
from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile

from ..laws import TOLERANCE, chunkings, few, randn
from .published import MIMI, decode_stream, encode_stream, mimi, no_gradients  # noqa: F401 (an autouse fixture)

FRAME = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mimi")
    mimi().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def codec(folder: Path) -> MimiCodec:
    loaded = load_codec(str(folder))
    assert isinstance(loaded, MimiCodec)
    return loaded


def test_codes_are_those_of_the_published_code(codec: MimiCodec) -> None:
    """Longer than the attention window, so that its edge is tried too."""
    audio = 0.5 * randn(3, 1, 12 * FRAME)
    theirs: Any = mimi().encode(audio).audio_codes
    ours, counts = codec.encode(audio)
    assert torch.equal(ours, theirs)
    assert counts.tolist() == [12, 12, 12]
    assert ours.unique(dim=-1).shape[-1] > 6, "frames that never change would prove nothing"


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_audio_is_that_of_the_published_code(codec: MimiCodec, levels: int) -> None:
    codes = torch.randint(16, (2, levels, 12), generator=torch.Generator().manual_seed(levels))
    theirs: Any = mimi().decode(codes).audio_values
    ours = codec.decode(codes)
    assert theirs.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@few
@given(lengths=st.lists(st.integers(0, 3 * FRAME), min_size=1, max_size=8).filter(lambda n: sum(n) >= FRAME))
def test_encoding_a_stream_equals_encoding_the_whole(codec: MimiCodec, lengths: list[int]) -> None:
    audio = 0.5 * randn(2, 1, sum(lengths))
    whole, _ = codec.encode(audio[..., : sum(lengths) // FRAME * FRAME])
    assert torch.equal(encode_stream(codec, audio, lengths), whole)


@few
@given(lengths=chunkings())
def test_decoding_a_stream_equals_decoding_the_whole(codec: MimiCodec, lengths: list[int]) -> None:
    codes = torch.randint(16, (2, 4, sum(lengths)), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decode_stream(codec, codes, lengths), codec.decode(codes), atol=TOLERANCE, rtol=0)


def test_a_chunk_longer_than_the_cache_is_taken_in_pieces(codec: MimiCodec) -> None:
    audio = 0.5 * randn(1, 1, 50 * FRAME)
    codes, _ = codec.encode(audio)
    state = codec.init_state(1)
    assert torch.equal(codec.encode(audio, state=state)[0], codes)
    torch.testing.assert_close(codec.decode(codes, state), codec.decode(codes), atol=TOLERANCE, rtol=0)


def test_reset_and_freezing_of_one_slot_leave_neighbours_alone(codec: MimiCodec) -> None:
    audio, state = 0.5 * randn(2, 1, 9 * FRAME), codec.init_state(2)
    first, second, third = audio.split(3 * FRAME, -1)
    codec.encode(first, state=state)
    before = {name: tensor[1].clone() for name, tensor in state._guarded()}
    with state.only(torch.tensor([True, False])):
        codec.encode(second, state=state)
    assert all(torch.equal(before[name], tensor[1]) for name, tensor in state._guarded())
    state.reset(torch.tensor([False, True]))
    codes, _ = codec.encode(third, state=state)
    assert torch.equal(codes[:1], codec.encode(audio[:1])[0][..., 6:])
    assert torch.equal(codes[1:], codec.encode(third[1:])[0])


def test_an_item_of_a_padded_batch_has_the_codes_it_has_alone(codec: MimiCodec) -> None:
    """transformers issue 43377: batched codes differed from single ones."""
    audio = torch.zeros(2, 1, 8 * FRAME)
    audio[0, :, : 3 * FRAME], audio[1] = 0.5 * randn(1, 3 * FRAME, seed=1), 0.5 * randn(1, 8 * FRAME, seed=2)
    codes, counts = codec.encode(audio, torch.tensor([3 * FRAME - 5, 8 * FRAME]))
    assert counts.tolist() == [3, 8]
    assert torch.equal(codes[:1, :, :3], codec.encode(audio[:1, :, : 3 * FRAME])[0])


def test_a_partial_frame_is_filled_with_silence_and_no_frame_is_added(codec: MimiCodec) -> None:
    """VieNeu-TTS issue 198: a codec that adds a frame teaches the language model to end in noise."""
    audio = 0.5 * randn(1, 1, 2 * FRAME + 1)
    assert codec.encode(audio)[0].shape[-1] == 3
    assert codec.encode(audio[..., : 2 * FRAME])[0].shape[-1] == 2
    assert codec.encode(audio[..., :0])[0].shape == (1, 4, 0)


def test_fewer_codebooks_are_the_first_ones(folder: Path, codec: MimiCodec) -> None:
    audio = 0.5 * randn(1, 1, 4 * FRAME)
    kept = load_codec(str(folder), codebooks=2)
    assert kept.frame_spec.codebooks == 2
    assert torch.equal(kept.encode(audio)[0], codec.encode(audio)[0][:, :2])
    for wrong in (0, 5):
        with pytest.raises(BadInput, match="between 1 and 4"):
            load_codec(str(folder), codebooks=wrong)


def test_the_published_size_is_the_published_size() -> None:
    """On the meta device, both the reference and ours: 24 kHz, 12.5 Hz, 32 codebooks, the same number of weights."""
    with torch.device("meta"):
        ours, theirs = MimiCodec(MimiConfig()), MimiModel(Reference())
    assert (ours.frame_size, ours.frame_spec.rate, ours.frame_spec.codebooks) == (1920, 12.5, 32)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    "change",
    [{"use_causal_conv": False}, {"pad_mode": "reflect"}, {"num_key_value_heads": 1}, {"attention_bias": True},
     {"rope_parameters": {"rope_type": "yarn"}}, {"frame_rate": 77.0}, {"hidden_size": "wide"}],
)  # fmt: skip
def test_a_mimi_of_another_make_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        mimi_config(Reference(**MIMI).to_dict() | change, Path("folder"))


def test_a_checkpoint_that_is_not_what_it_says_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MissingFile, match="safetensors"):
        load_codec(str(tmp_path))
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(CorruptFile):
        load_codec(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text(text.replace('"codebook_size": 16', '"codebook_size": 32'))
    with pytest.raises(CorruptFile, match="fit"):
        load_codec(str(tmp_path))
    (tmp_path / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(CorruptFile, match="lacks"):
        load_codec(str(tmp_path))
    (tmp_path / "config.json").write_text(text.replace('"model_type": "mimi"', '"model_type": "hubert"'))
    with pytest.raises(ConfigError, match="hubert"):
        load_codec(str(tmp_path))


def test_without_network_the_message_says_which_files_go_where(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(MissingFile, match=r"config\.json and model.safetensors"):
        load_codec("kyutai/mimi")
