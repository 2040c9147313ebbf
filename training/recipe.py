"""A recipe: everything that a training run depends on, as one YAML file (see `recipes/`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from ..codecs.loading import load_weights, model_folder
from ..errors import ConfigError, MissingFile

__all__ = ["Optimizer", "Recipe", "Source", "load_recipe", "start_from"]


class Source(BaseModel):
    """One corpus of the mixture.

    Attributes:
        pack: folder made by `quaver corpus pack`.
        weight: share of the batches drawn from it (relative to the other sources).
        hours: use only about this much of it (the first items), or None for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack: Path
    weight: float = Field(default=1.0, gt=0)
    hours: float | None = None


class Optimizer(BaseModel):
    """AdamW with linear warm-up, then a cosine down to `final * lr`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup: int = 200
    final: float = 0.02
    clip: float = 1.0
    ema: float = 0.999


class Recipe(BaseModel):
    """Attributes:
    task: which training task runs: a key of `training.tasks.TASKS`.
    steps: optimizer steps; batch_seconds: audio seconds per step *and process*.
    model: configuration of the model, as the model's own config class reads it.
    options: settings of the task (loss weights, augmentation, teacher, ...).
    init: checkpoint folder or file to start from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    task: str
    seed: int = 0
    steps: int
    batch_seconds: float
    data: tuple[Source, ...]
    model: dict[str, Any] = {}
    options: dict[str, Any] = {}
    optimizer: Optimizer = Optimizer()
    init: Path | None = None
    precision: str = "no"
    log_every: int = 50
    save_every: int = 500


def load_recipe(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """Reads a recipe; `overrides` are `dotted.key=value` strings with YAML values.

    Raises:
        MissingFile: no such file.
        ConfigError: unknown or ill-typed keys.
    """
    if not path.exists():
        raise MissingFile(f"no recipe {path}; `ls recipes/` shows what there is")
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    for item in overrides:
        key, _, value = item.partition("=")
        if not value:
            raise ConfigError(f"override {item!r} must look like steps=100 or optimizer.lr=0.0005")
        node = raw
        *parents, last = key.split(".")
        for name in parents:
            node = node.setdefault(name, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"override {item!r}: {'.'.join(parents) or path} is not a group of settings")
        node[last] = yaml.safe_load(value)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise ConfigError(f"{path}: {place}: {first['msg']}") from None


def start_from(module: nn.Module, recipe: Recipe) -> None:
    """Fills a module that was just built with the weights of the recipe's `init`, where there is one.

    Raises:
        MissingFile, CorruptFile: as `codecs.loading.load_weights`.
    """
    if recipe.init is not None:
        load_weights(module, model_folder(str(recipe.init)))
