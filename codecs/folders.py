"""What a model's folder says of itself, read without torch: `config.json`, the hash of `model.safetensors`.

A name is looked for among the bundled models (`models/NAME`); anything with a path separator, or that exists, is a
folder. Apart from `loading`, which fills modules from such folders, so that a process that only asks stays small.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError, CorruptFile, MissingFile

__all__ = ["MODELS", "model_folder", "read_config", "read_json", "read_model", "weights_sha256"]

MODELS = Path(__file__).parent.parent / "models"


def model_folder(name: str) -> Path:
    """The folder of a model.

    Raises:
        MissingFile: neither a bundled model nor a folder with a config.json.
    """
    for folder in (Path(name), MODELS / name):
        if (folder / "config.json").exists():
            return folder
    known = sorted(p.parent.name for p in MODELS.glob("*/config.json"))
    raise MissingFile(
        f"no model {name!r}: give one of {', '.join(known) or 'none bundled'}, or a folder with config.json"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder."""
    return read_json(folder / "config.json")


def read_model(name: str, kind: str, what: str) -> tuple[Path, dict[str, Any], str]:
    """Folder, configuration and codec (or tokenizer) of a model over codes, by bundled name or folder.

    Args:
        kind: that its configuration must state. what: that kind in words, for the error.

    Raises:
        MissingFile, CorruptFile: of the folder. ConfigError: another kind of model, or one that names no codec.
    """
    folder = model_folder(name)
    config = read_config(folder)
    if config.pop("kind", None) != kind:
        raise ConfigError(f"{folder} is not a {what}")
    codec = config.pop("codec", None)
    if not isinstance(codec, str):
        raise ConfigError(f"{folder / 'config.json'} does not name the codec that the model speaks")
    return folder, config, codec


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder.

    Raises:
        CorruptFile: not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CorruptFile(f"{path} is not valid JSON ({error}); fetch the model again") from None
    if not isinstance(content, dict):
        raise CorruptFile(f"{path} is not a JSON object; fetch the model again")
    return content


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a model folder's weights, or "" where there are none."""
    path = folder if folder.suffix == ".safetensors" else folder / "model.safetensors"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
