"""Models by name or folder: `config.json` + `model.safetensors`, whose hash the model card states.

A name is looked for among the bundled models (`models/NAME`); anything with a path separator, or that exists, is a
folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ConfigError, CorruptFile, MissingFile
from .base import Codec
from .checkpoints import hub_folder, is_hub_id
from .folders import MODELS, model_folder, read_config, read_json, read_model, weights_sha256
from .native import XCodec, XCodecConfig
from .published import check_known
from .quantizers import ResidualVQ
from .semantic import SemanticConfig, SemanticTokenizer

__all__ = [
    "DEFAULT_CODEC",
    "MODELS",
    "SCALE",
    "TRAINING_ONLY",
    "check_card",
    "codec_folder",
    "load_codec",
    "load_semantic",
    "load_weights",
    "model_folder",
    "read_config",
    "read_json",
    "read_model",
    "validated",
    "weights_sha256",
]

DEFAULT_CODEC = "quaver-24k"
SCALE = ".scale"
"""Ending of the name of an int8 tensor's factors in a weight file."""
TRAINING_ONLY = ("semantic_decoder", "semantic_post", "semantic_head", "student_head")
"""Parts of the codec that only its losses use; a bundled codec may come without them."""


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fills a module from `model.safetensors`; however the weights are stored, they become the module's own dtypes.

    `training/export.py` stores matrices as int8 (`KEY`) with a float32 factor per row (`KEY.scale`), and leaves
    out what only training needs: the running sums of RVQ codebooks are made again here, and a model whose config says
    `trimmed` keeps the initial values of the modules in `TRAINING_ONLY`. Any other missing or extra tensor is an error.

    Raises:
        MissingFile: no weights.
        CorruptFile: damaged weights, not those of the card, or not of this architecture.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise MissingFile(f"{path} is missing; fetch the model again or train it with `quaver train`")
    check_card(folder)
    try:
        tensors = _restored(load_file(path))
        _complete(module, tensors, bool(read_config(folder).get("trimmed")))
        module.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise CorruptFile(f"{path} does not fit its config.json: {str(error).splitlines()[0]}") from None


def check_card(folder: Path) -> None:
    """Raises CorruptFile unless the weights have the SHA-256 that `card.json` states (a run has no card)."""
    card = folder / "card.json"
    if not card.exists():
        return
    try:
        stated = json.loads(card.read_text()).get("sha256")
    except (ValueError, AttributeError):
        raise CorruptFile(f"{card} is not a JSON object; fetch the model again") from None
    found = weights_sha256(folder)
    if stated and stated != found:
        raise CorruptFile(
            f"{folder / 'model.safetensors'} is not the file that card.json describes; fetch the model again, "
            "or write both anew with `quaver export`"
        )


def _restored(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file as floats again: an int8 `KEY` times its `KEY.scale`; all others as they are.

    Raises RuntimeError: a factor that does not fit, or numbers that are not finite.
    """
    tensors = {}
    for key, value in stored.items():
        if key.endswith(SCALE) and key.removesuffix(SCALE) in stored:
            continue
        if value.dtype == torch.int8:
            if key + SCALE not in stored:
                raise RuntimeError(f"{key} is int8 but has no {key + SCALE}")
            value = value.float() * stored[key + SCALE]
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise RuntimeError(f"{key} holds numbers that are not finite")
        tensors[key] = value
    return tensors


def _complete(module: nn.Module, tensors: dict[str, Tensor], trimmed: bool) -> None:
    """Adds what may be missing: the codebooks' state in training, the teacher's standardisation (of runs from before it
    was stored), and of a trimmed model the `TRAINING_ONLY` parts."""
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, ResidualVQ) and prefix + "codebook" in tensors:
            codebook = tensors[prefix + "codebook"]
            tensors.setdefault(prefix + "usage", torch.ones(codebook.shape[:2]))
            tensors.setdefault(prefix + "sums", codebook.clone())
            tensors.setdefault(prefix + "ready", torch.tensor(True))
    for key, value in module.state_dict().items():
        if (trimmed and key.split(".")[0] in TRAINING_ONLY) or key in ("teacher_mean", "teacher_scale"):
            tensors.setdefault(key, value)


def codec_folder(name: str) -> Path:
    """The folder of a codec: bundled name, folder, or hub id of a published codec (`kyutai/mimi`); of kyutai's own
    layout of Mimi, its file.

    Raises:
        MissingFile: it is none of them, or cannot be fetched; the message says which files go where. ConfigError: a
            published codec that cannot be used here.
    """
    if is_hub_id(name) and not (MODELS / name / "config.json").exists():
        check_known(name)
        return hub_folder(name)
    if name.endswith(".safetensors"):  # kyutai's Mimi is a single file
        return Path(name)
    return model_folder(name)


def load_codec(name: str = DEFAULT_CODEC, codebooks: int | None = None) -> Codec:
    """A codec in eval mode, by bundled name, folder, or hub id of a published codec.

    Args:
        codebooks: encode with the first so many only.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it. BadInput: it has not so many codebooks.
    """
    codec = _load_codec(codec_folder(name))
    if codebooks is not None:
        codec.keep(codebooks)
    return codec


def _load_codec(folder: Path) -> Codec:
    if folder.suffix == ".safetensors":
        from .kyutai import load_kyutai

        return load_kyutai(folder)
    config = read_config(folder)
    if "kind" not in config and "model_type" in config:
        from .published import load_published

        check_card(folder)
        return load_published(folder, config)
    kind = config.pop("kind", None)
    if kind == "mel":
        from .mel import load_mel

        return load_mel(str(folder))
    if kind != "codec":
        raise ConfigError(f"{folder} is not a codec")
    config.pop("trimmed", None)
    codec = XCodec(validated(XCodecConfig, config, folder))
    load_weights(codec, folder)
    return codec.eval()


def load_semantic(name: str) -> SemanticTokenizer:
    """A semantic tokenizer / phoneme recogniser in eval mode, by bundled name or folder."""
    folder = model_folder(name)
    config = read_config(folder)
    if config.pop("kind", None) != "semantic":
        raise ConfigError(f"{folder} is not a semantic tokenizer")
    model = SemanticTokenizer(validated(SemanticConfig, config, folder))
    load_weights(model, folder)
    return model.eval()


def validated(config_class: Any, raw: Any, folder: Path, file: str = "config.json") -> Any:
    """`raw` (the content of a JSON file of the folder) as an instance of a pydantic class.

    Raises:
        ConfigError: unknown or ill-typed keys.
    """
    try:
        return config_class.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{folder / file}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
