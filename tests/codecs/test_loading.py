"""Law 9: a model folder is what it says, or a clear error of its own type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quaver.codecs.loading import load_codec, load_semantic, model_folder, read_config
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import ConfigError, CorruptFile, MissingFile

SIZES = {"width": 8, "hidden": 8, "encoder_blocks": [1, 0], "decoder_blocks": [0, 1], "dim": 4, "vocab": 8}
CONFIG = {"kind": "codec", "codebooks": 2, "semantic": "none", **SIZES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {k: v for k, v in CONFIG.items() if k != "kind"}
    save_file(XCodec(XCodecConfig.model_validate(config)).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_what_was_saved_comes_back_in_eval_mode(folder: Path) -> None:
    first, second = load_codec(str(folder)), load_codec(str(folder))
    assert not first.training
    codes = torch.randint(8, (1, 2, 3))
    with torch.no_grad():
        assert torch.equal(first.decode(codes), second.decode(codes))


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def truncate(keep: float) -> Callable[[Path], object]:
    def cut(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data))])

    return cut


def config(**changes: object) -> Callable[[Path], object]:
    return write("config.json", json.dumps({**CONFIG, **changes}))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (truncate(0.9), CorruptFile),
        (truncate(0.001), CorruptFile),
        (truncate(0), CorruptFile),
        (write("model.safetensors", b"\x80\x04pickled"), CorruptFile),
        (lambda folder: (folder / "model.safetensors").unlink(), MissingFile),
        (write("config.json", "{"), CorruptFile),
        (write("config.json", b"\xff\xfe{}"), CorruptFile),
        (write("config.json", "[]"), CorruptFile),
        (config(kind="lm"), ConfigError),
        (config(surprise=1), ConfigError),
        (config(width="wide"), ConfigError),
        (config(bottleneck="none"), ConfigError),
        (config(width=16), CorruptFile),
        (lambda folder: (folder / "config.json").unlink(), MissingFile),
    ],
)
def test_a_spoilt_folder_is_a_clear_error(
    folder: Path, spoil: Callable[[Path], object], error: type[Exception]
) -> None:
    spoil(folder)
    with pytest.raises(error, match=r"\w{3,}") as caught:
        load_codec(str(folder))
    assert "\n" not in str(caught.value)


def test_a_codec_is_no_semantic_tokenizer(folder: Path) -> None:
    with pytest.raises(ConfigError, match="semantic"):
        load_semantic(str(folder))


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    for name in ("no-such-model", str(tmp_path / "nowhere"), "", "../.."):
        with pytest.raises(MissingFile, match="no model"):
            model_folder(name)


def test_reading_a_config_changes_nothing(folder: Path) -> None:
    assert read_config(folder) == CONFIG
