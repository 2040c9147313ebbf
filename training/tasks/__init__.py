"""Training tasks: each builds a model from a recipe, draws batches and computes losses for the one loop."""

from __future__ import annotations

from importlib import import_module

from ...errors import ConfigError
from ..loop import Task
from ..recipe import Recipe

__all__ = ["TASKS", "build_task"]

TASKS = {
    "ctc": "CTCTask",
    "codec": "CodecTask",
    "lm": "LMTask",
    "latent_lm": "LatentLMTask",
    "ardit": "ArditTask",
    "ardit_distill": "ArditDistillTask",
    "token_lm": "TokenLMTask",
    "flow": "FlowTask",
    "vocoder": "VocoderTask",
    "duplex": "DuplexTask",
    "draft": "DraftTask",
}
"""Task name -> class; the class lives in the module of the same name."""


def build_task(recipe: Recipe) -> Task:
    """The task of a recipe.

    Raises:
        ConfigError: the recipe names no known task.
    """
    if recipe.task not in TASKS:
        raise ConfigError(f"unknown task {recipe.task!r}; known: {', '.join(TASKS)}")
    module = import_module(f".{recipe.task}", __package__)
    return getattr(module, TASKS[recipe.task])(recipe)
