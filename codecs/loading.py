"""Models by name or folder: `config.json` + `model.safetensors`, whose hash the model card states.

A name is looked for among the bundled models (`models/NAME`); anything with a path separator, or that exists, is a folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import ConfigError, CorruptFile, MissingFile
from .base import Codec
from .native import XCodec, XCodecConfig
from .semantic import SemanticConfig, SemanticTokenizer

__all__ = ["DEFAULT_CODEC", "MODELS", "load_codec", "load_semantic", "model_folder", "read_config"]

MODELS = Path(__file__).parent.parent / "models"
DEFAULT_CODEC = "quaver-24k"


def model_folder(name: str) -> Path:
    """The folder of a model.

    Raises:
        MissingFile: neither a bundled model nor a folder with a config.json.
    """
    for folder in (Path(name), MODELS / name):
        if (folder / "config.json").exists():
            return folder
    known = sorted(p.parent.name for p in MODELS.glob("*/config.json"))
    raise MissingFile(f"no model {name!r}: give one of {', '.join(known) or 'none bundled'}, or a folder with config.json")


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder."""
    try:
        return json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise CorruptFile(f"{folder / 'config.json'} is not valid JSON ({error}); fetch the model again") from None


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fills a module from `model.safetensors`; weights stored in bf16 come back as the module's own dtype.

    Raises:
        MissingFile, CorruptFile: no file, or not one of this architecture.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise MissingFile(f"{path} is missing; fetch the model again or train it with `quaver train`")
    try:
        tensors = load_file(path)
        module.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise CorruptFile(f"{path} does not fit its config.json: {str(error).splitlines()[0]}") from None


def load_codec(name: str = DEFAULT_CODEC) -> Codec:
    """A codec in eval mode, by bundled name or folder."""
    folder = model_folder(name)
    config = read_config(folder)
    if config.pop("kind", None) != "codec":
        raise ConfigError(f"{folder} is not a codec")
    codec = XCodec(_validated(XCodecConfig, config, folder))
    load_weights(codec, folder)
    return codec.eval()


def load_semantic(name: str) -> SemanticTokenizer:
    """A semantic tokenizer / phoneme recogniser in eval mode, by bundled name or folder."""
    folder = model_folder(name)
    config = read_config(folder)
    if config.pop("kind", None) != "semantic":
        raise ConfigError(f"{folder} is not a semantic tokenizer")
    model = SemanticTokenizer(_validated(SemanticConfig, config, folder))
    load_weights(model, folder)
    return model.eval()


def _validated(config_class: Any, raw: dict[str, Any], folder: Path) -> Any:
    try:
        return config_class.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
