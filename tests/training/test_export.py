"""Export keeps a model usable: small rounding errors, a small file, nothing missing that matters, damage noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quaver.codecs.loading import load_codec, load_semantic
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.codecs.semantic import SemanticConfig, SemanticTokenizer
from quaver.dialogue.loading import load_duplex
from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile
from quaver.training.export import export, quantize_rows

from ..dialogue.tiny import VOCABULARY, talking_model, tiny_codec

SIZES: dict[str, Any] = {
    "width": 64,
    "hidden": 96,
    "encoder_blocks": (1, 1),
    "decoder_blocks": (1, 1),
    "dim": 16,
    "codebooks": 4,
    "vocab": 64,
    "semantic_dim": 32,
    "teacher_dim": 64,
    "head": "istft",
}
KEPT_OUT = {"semantic_decoder", "semantic_post", "semantic_head", "student_head"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny codec."""
    folder = tmp_path_factory.mktemp("runs") / "tiny-24k"
    (folder / "last").mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = XCodec(XCodecConfig(**SIZES))
        codec.train()(torch.randn(2, 1, 9600) * 0.1)  # moves the codebooks, so that `sums` and `usage` are not fresh
    save_file(codec.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"kind": "codec", **SIZES}))
    (folder / "recipe.json").write_text(json.dumps({"name": "tiny"}))
    (folder / "last" / "progress.json").write_text(json.dumps({"step": 7}))
    return folder


def test_rows_come_back_with_less_than_a_percent_of_error() -> None:
    rows = (
        torch.randn(50, 300, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
        * torch.logspace(-9, 3, 50)[:, None]
    )
    rows[7] = 0
    codes, scale = quantize_rows(rows)
    back = codes.float() * scale
    assert codes.dtype == torch.int8
    assert scale.shape == (50, 1)
    error = (back - rows).norm(dim=1) / rows.norm(dim=1).clamp(min=1e-20)
    assert float(error.max()) < 0.01
    assert not back[7].any()
    large = scale[scale > 1e-4]
    assert torch.equal(large.half().float(), large)


def test_kernels_have_one_factor_for_each_output_channel_and_tables_one_for_each_row() -> None:
    assert quantize_rows(torch.randn(8, 64, 7))[1].shape == (8, 1, 1)
    assert quantize_rows(torch.randn(4, 10, 64))[1].shape == (4, 10, 1)


def test_an_exported_codec_is_small_and_sounds_the_same(run: Path, tmp_path: Path) -> None:
    card = export(run, tmp_path / "tiny")
    before, after = load_codec(str(run)), load_codec(str(tmp_path / "tiny"))
    size = (tmp_path / "tiny" / "model.safetensors").stat().st_size
    assert size < 0.45 * (run / "model.safetensors").stat().st_size
    assert card["bytes"] == size
    assert card["parameters"] == sum(p.numel() for p in before.parameters())
    for name, value in before.named_parameters():
        other = after.get_parameter(name)
        assert other.dtype == value.dtype
        assert float((other - value).detach().norm()) <= 0.01 * float(value.detach().norm()) + 1e-6, name
    codes = torch.randint(64, (1, 4, 10), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = before.decode(codes), after.decode(codes)
    assert float((first - second).norm() / first.norm()) < 0.05
    assert not torch.equal(first, second)  # else nothing was stored as int8


def test_the_training_state_of_codebooks_is_made_again(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert not {key.split(".")[-1] for key in stored} & {"usage", "sums", "ready"}
    assert stored["quantizer.codebook"].dtype == torch.float16
    codec = load_codec(str(tmp_path / "m"))
    assert isinstance(codec, XCodec)
    state = codec.quantizer.state_dict()
    assert bool(state["ready"])
    assert torch.equal(state["sums"], state["codebook"])
    assert torch.equal(state["usage"], torch.ones(4, 64))


def test_inference_only_leaves_out_what_only_losses_use(run: Path, tmp_path: Path) -> None:
    whole, trimmed = export(run, tmp_path / "whole"), export(run, tmp_path / "small", inference_only=True)
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert not {key.split(".")[0] for key in stored} & KEPT_OUT
    assert trimmed["parameters"] < whole["parameters"]
    assert json.loads((tmp_path / "small" / "config.json").read_text())["trimmed"] is True
    audio = torch.randn(1, 1, 9600, generator=torch.Generator().manual_seed(0)) * 0.1
    first, second = load_codec(str(tmp_path / "whole")), load_codec(str(tmp_path / "small"))
    with torch.inference_mode():
        codes, _ = first.encode(audio)
        assert torch.equal(codes, second.encode(audio)[0])
        assert torch.equal(first.decode(codes), second.decode(codes))


@pytest.mark.parametrize("weights", ["float16", "float32"])
def test_other_ways_to_store_matrices(run: Path, tmp_path: Path, weights: Any) -> None:
    export(run, tmp_path / "m", weights=weights)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert torch.int8 not in {value.dtype for value in stored.values()}
    assert stored["stem.weight"].dtype == getattr(torch, weights)
    before, after = load_codec(str(run)), load_codec(str(tmp_path / "m"))
    for name, value in before.named_parameters():
        torch.testing.assert_close(after.get_parameter(name), value, rtol=1e-3, atol=1e-4)


def test_a_semantic_tokenizer_is_exported_and_never_trimmed(tmp_path: Path) -> None:
    config = {"width": 32, "hidden": 48, "low_blocks": 1, "middle_blocks": 1, "upper_blocks": 1, "symbols": ["-", "|"]}
    (tmp_path / "run").mkdir()
    save_file(SemanticTokenizer(SemanticConfig.model_validate(config)).state_dict(), tmp_path / "run/model.safetensors")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"kind": "semantic", **config}))
    card = export(tmp_path / "run", tmp_path / "m", inference_only=True)
    assert card["steps"] is None
    assert "trimmed" not in json.loads((tmp_path / "m" / "config.json").read_text())
    assert load_semantic(str(tmp_path / "m")).config.symbols == ("-", "|")


def test_the_card_tells_where_the_weights_come_from_and_keeps_what_people_wrote(run: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "card.json").write_text(json.dumps({"scores": {"wer": 3.2}, "sha256": "old"}))
    card = export(run, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "card.json").read_text()) == card
    assert card["scores"] == {"wer": 3.2}
    assert (card["run"], card["steps"], card["recipe"]) == ("tiny-24k", 7, {"name": "tiny"})
    load_codec(str(tmp_path / "m"))


@pytest.mark.parametrize("with_card", [True, False])
def test_damage_is_noticed(run: Path, tmp_path: Path, with_card: bool) -> None:
    export(run, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    whole = path.read_bytes()
    if not with_card:
        (tmp_path / "m" / "card.json").unlink()
    for broken in (whole[:-9], whole[:5], b"", *([whole[:-9] + b"\x55" + whole[-8:]] if with_card else [])):
        path.write_bytes(broken)
        with pytest.raises(CorruptFile):
            load_codec(str(tmp_path / "m"))
    path.write_bytes(whole)
    load_codec(str(tmp_path / "m"))
    (tmp_path / "m" / "card.json").write_text("[")
    with pytest.raises(CorruptFile, match="card"):
        load_codec(str(tmp_path / "m"))
    path.unlink()
    with pytest.raises(MissingFile):
        load_codec(str(tmp_path / "m"))


def test_only_what_can_be_made_again_may_be_missing(run: Path, tmp_path: Path) -> None:
    def loads(change: Any) -> None:
        export(run, tmp_path / "m")
        (tmp_path / "m" / "card.json").unlink()
        tensors = load_file(tmp_path / "m" / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "m" / "model.safetensors")
        load_codec(str(tmp_path / "m"))

    loads(lambda tensors: None)
    for change in (
        lambda t: t.pop("stem.weight"),
        lambda t: t.pop("semantic_head.weight"),  # this config is not trimmed
        lambda t: t.pop("quantizer.codebook"),
        lambda t: t.pop("stem.weight.scale"),
        lambda t: t.update({"stem.weight.scale": torch.ones(3, 1)}),
        lambda t: t.update({"post.bias": torch.full_like(t["post.bias"], torch.nan)}),
        lambda t: t.update({"extra": torch.ones(1)}),
    ):
        with pytest.raises(CorruptFile):
            loads(change)


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="another folder"):
        export(run, run)
    with pytest.raises(BadInput, match="int4"):
        export(run, tmp_path / "m", weights="int4")  # type: ignore[arg-type]
    with pytest.raises(MissingFile, match="quaver train"):
        export(tmp_path / "none", tmp_path / "m")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"kind": "opera"}')
    with pytest.raises(ConfigError, match="opera"):
        export(tmp_path / "x", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_duplex_model_takes_its_vocabulary_along(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "folder"
    run.mkdir()
    model, codec = talking_model(), tiny_codec()
    for path, kind, module in ((run, "duplex", model), (tmp_path / "codec", "codec", codec)):
        path.mkdir(exist_ok=True)
        config = {"kind": kind, "codec": "codec", **module.config.model_dump()}
        if kind == "codec":
            del config["codec"]
        (path / "config.json").write_text(json.dumps(config))
        save_file(module.state_dict(), path / "model.safetensors")
    VOCABULARY.save(run / "vocabulary.json")
    export(run, folder)
    parts = load_duplex(str(folder))
    assert parts.vocabulary.size == VOCABULARY.size
    assert parts.model.config == model.config
