"""From a training run to a model folder that is small enough to bundle: int8 matrices, and nothing that only training
needs. `codecs/loading.py` reads it back.

A folder holds `config.json`, `model.safetensors`, `card.json` (the hash of the weights and where they come from; other
keys of an existing card, such as scores, are kept) and what the run has of `settings.json` and `vocabulary.json`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..codecs.loading import SCALE, TRAINING_ONLY, load_codec, load_semantic, read_config
from ..codecs.mel import load_mel
from ..codecs.quantizers import ResidualVQ
from ..errors import BadInput, ConfigError, MissingFile
from .corpus import beside

__all__ = ["POLICIES", "export", "quantize_rows", "shrink"]

LEAST = 4096
"""Elements from which on a matrix is worth int8."""
ROW = 64
"""A last axis of at least this length is a row of its own; shorter ones (kernels) belong to the first axis."""
BESIDE = ("settings.json", "vocabulary.json")
"""Files of a run that a model folder takes over as they are."""
POLICIES = ("int8", "float16", "float32")
Policy = Literal["int8", "float16", "float32"]


def export(
    run: Path,
    folder: Path,
    *,
    weights: Policy = "int8",
    inference_only: bool = False,
    modulation_rank: int | None = None,
) -> dict[str, Any]:
    """Writes the averaged model of a run into a model folder and returns its card.

    Args:
        run: folder with `config.json` and `model.safetensors`.
        weights: how matrices are stored; vectors stay float32, codebooks become float16 (float32 with `float32`).
        inference_only: leave out what only the codec's losses use (`TRAINING_ONLY`); the config then says `trimmed`.
        modulation_rank: of an ARDiT: make its modulation of low rank (`training/narrow.py`).

    Raises:
        BadInput: unknown policy, a rank that makes nothing smaller, or `folder` is the run. ConfigError: not a kind of
            model that can be exported.
        MissingFile, CorruptFile: of the run.
    """
    if weights not in POLICIES:
        raise BadInput(f"weights are stored as {', '.join(POLICIES)}, not {weights!r}")
    if folder.resolve() == run.resolve():
        raise BadInput(f"{folder} is the run itself; export into another folder")
    if not (run / "config.json").exists():
        raise MissingFile(f"no finished run in {run} (no config.json); train it with `quaver train RECIPE --out {run}`")
    config = read_config(run)
    module = _load(run, str(config.get("kind")))
    if modulation_rank is not None:
        module = _narrowed(module, modulation_rank, config)
    tensors = shrink(module, weights)
    if inference_only and any(key.split(".")[0] in TRAINING_ONLY for key in tensors):
        tensors = {key: value for key, value in tensors.items() if key.split(".")[0] not in TRAINING_ONLY}
        config["trimmed"] = True
    folder.mkdir(parents=True, exist_ok=True)
    card = _known_card(folder)
    with beside(folder / "model.safetensors") as part:
        save_file(tensors, part)
        part.chmod(0o644)  # safetensors makes private files; these are to be shared
        card |= _facts(run, part, module, tensors, weights)
    _write_json(folder / "config.json", config)
    _write_json(folder / "card.json", card)
    for name in BESIDE:
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    return card


def _narrowed(module: nn.Module, rank: int, config: dict[str, Any]) -> nn.Module:
    from ..tts.ardit import Ardit
    from .narrow import narrow_modulation

    if not isinstance(module, Ardit):
        raise BadInput("a modulation rank is for models of the kind ardit")
    config["backbone"] = {**config["backbone"], "modulation_rank": rank}
    return narrow_modulation(module, rank)


def _load(run: Path, kind: str) -> nn.Module:
    if kind == "codec":
        return load_codec(str(run))
    if kind == "semantic":
        return load_semantic(str(run))
    if kind in ("lm", "ardit"):
        from ..tts.synthesizer import load_lm

        return load_lm(str(run))[0]
    if kind == "token_lm":
        from ..tts.token_lm import load_token_lm

        return load_token_lm(str(run))[0]
    if kind == "flow":
        from ..tts.flow import load_flow

        return load_flow(str(run))[0]
    if kind == "mel":
        return load_mel(str(run))
    if kind == "duplex":
        from ..dialogue.loading import load_duplex

        return load_duplex(str(run), packed=False).model
    kinds = "codec, semantic, lm, ardit, token_lm, flow, mel and duplex"
    raise ConfigError(f"{run / 'config.json'} names the kind {kind!r}; {kinds} can be exported")


def shrink(module: nn.Module, weights: Policy = "int8") -> dict[str, Tensor]:
    """The tensors of a weight file for a module; see `quaver.codecs.loading.load_weights` for the way back."""
    dropped = _remade(module)
    buffers = {name for name, _ in module.named_buffers()}
    stored: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        value = value.detach().cpu().contiguous()
        if key in dropped:
            continue
        if not value.is_floating_point() or value.ndim < 2 or weights == "float32":
            stored[key] = value.float() if value.is_floating_point() else value
        elif key in buffers or weights == "float16" or value.numel() < LEAST:
            stored[key] = _half(value)
        else:
            stored[key], stored[key + SCALE] = quantize_rows(value)
    return stored


def quantize_rows(value: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and float32 factors (of a shape that broadcasts) of a tensor `[row, ...]`.

    A factor is rounded to what float16 can hold, unless the row is too small for that; a row of zeros has the factor 1.
    """
    value = value.float()
    axes = (-1,) if value.shape[-1] >= ROW else tuple(range(1, value.ndim))
    scale = value.abs().amax(axes, keepdim=True) / 127
    scale = torch.where(scale >= torch.finfo(torch.float16).tiny, _half(scale).float(), scale)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (value / scale).round().clamp(-127, 127).to(torch.int8), scale


def _half(value: Tensor) -> Tensor:
    """float16, or bfloat16 where numbers are too large for that."""
    return value.to(torch.float16 if value.abs().max() < torch.finfo(torch.float16).max else torch.bfloat16)


def _remade(module: nn.Module) -> set[str]:
    """Buffers that the loader makes again from the codebooks."""
    quantizers = [name for name, part in module.named_modules() if isinstance(part, ResidualVQ)]
    return {f"{name}.{buffer}".lstrip(".") for name in quantizers for buffer in ("usage", "sums", "ready")}


def _facts(run: Path, file: Path, module: nn.Module, tensors: dict[str, Tensor], weights: str) -> dict[str, Any]:
    kept = [p.numel() for name, p in module.named_parameters() if name in tensors]
    matrices = {
        "int8": "int8 with one float32 factor per row (codebooks and small ones float16)",
        "float16": "float16",
        "float32": "float32",
    }
    with open(file, "rb") as weights_file:
        digest = hashlib.file_digest(weights_file, "sha256").hexdigest()
    return {
        "sha256": digest,
        "bytes": file.stat().st_size,
        "parameters": sum(kept),
        "run": run.name,
        "steps": _json(run / "last" / "progress.json").get("step"),
        "recipe": _json(run / "recipe.json"),
        "stored": {"matrices": matrices[weights], "vectors": "float32"},
    }


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _known_card(folder: Path) -> dict[str, Any]:
    try:
        return _json(folder / "card.json")
    except ValueError as error:
        raise BadInput(f"{folder / 'card.json'} is no JSON ({error}); mend or delete it") from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with beside(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
