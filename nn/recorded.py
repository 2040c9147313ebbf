"""A step of a model as a recorded list of operations: the same operations, without Python between them.

A step of a small model is some thousand small operations; in Python each costs more to call than to run. `record` runs
a step once, keeps its operations (`torch.jit.trace`) and gives them back as one call. The state tree's tensors go in as
arguments and are written in place, as ever. Nothing is compiled, and every sum is made by the same kernel as before, so
results are equal to the last bit; that is tried on a copy of the state before the recording is used.

What a recording cannot hold is a step that looks at numbers and then does something else. Trials over several steps,
with other inputs and other slots moving, find such a step, which is then run as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .state import State

__all__ = ["Step", "record"]

Step = Callable[..., tuple[Tensor, ...]]
"""`step(*inputs)`; it may read and write a state tree."""


class _Whole(nn.Module):
    """The step as a module whose arguments are its inputs and all tensors of the state. `parts` own the weights."""

    def __init__(self, step: Step, state: State, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.step, self.state = step, state

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        own = len(arguments) - sum(1 for _ in self.state.tensors())
        with self.state.holding(arguments[own:]):
            return self.step(*arguments[:own])


@torch.inference_mode()
def record(step: Step, state: State, parts: Sequence[nn.Module], trials: Sequence[tuple[Tensor, ...]]) -> Step | None:
    """A recording of `step`, to be called like it; None where it would not do the same.

    Args:
        state: the tree that the step works on; it is left as it was. parts: the modules that the step runs.
        trials: inputs of several steps in a row; the shapes of the first are those of every later call.
    """
    whole = _Whole(step, state, parts)
    tensors = [tensor for _, tensor in state.tensors()]
    try:
        whole(*trials[0], *_copies(tensors))  # what a module works out once must not become part of every step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python numbers in the step; the trials say whether they matter
            recording: Any = torch.jit.trace(whole, (*trials[0], *_copies(tensors)), check_trace=False)
        recorded, plain = _copies(tensors), _copies(tensors)
        for inputs in trials:
            if not _equal((*recording(*inputs, *recorded), *recorded), (*whole(*inputs, *plain), *plain)):
                return None
    except RuntimeError:  # an operation that cannot be recorded
        return None
    return lambda *inputs: recording(*inputs, *tensors)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _equal(mine: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))
