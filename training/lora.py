"""Low-rank adaptation (LoRA; Hu et al. 2021): train W + s B A with W frozen, and fold it into W when done.

As a parametrization of torch, so that the model's own code does not know of it: a module reads `linear.weight` and gets
the sum. Merging leaves an ordinary model, which runs as fast as before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import BadInput

__all__ = ["add_lora", "merge_lora"]


class LowRank(nn.Module):
    """weight `[out, in]` -> weight + alpha / rank * B A; B starts at zero, so that the model starts as it was."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def add_lora(
    model: nn.Module, rank: int = 8, *, alpha: float | None = None, train: Sequence[str] = ()
) -> tuple[str, ...]:
    """Freezes a model and gives each of its linear layers a low-rank change to train; returns the layers' names.

    Args:
        alpha: strength; None: 2 * rank. train: beginnings of the names of parameters that stay trainable as a whole.

    Raises:
        BadInput: a rank below 1, or no linear layer.
    """
    if rank < 1:
        raise BadInput(f"the rank of LoRA must be at least 1, not {rank}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(start) for start in train))
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    if not layers:
        raise BadInput("the model has no linear layer that LoRA could change; train it in full")
    for layer in layers.values():
        change = LowRank(layer.weight, min(rank, *layer.weight.shape), 2.0 * rank if alpha is None else alpha)
        parametrize.register_parametrization(layer, "weight", change.to(layer.weight.device))
    return tuple(layers)


def merge_lora(model: nn.Module) -> None:
    """Folds what `add_lora` has trained into the weights; the model is then an ordinary one, all of it trainable."""
    for part in list(model.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
