"""A step of a model as a recorded list of operations: the same operations, without Python between them.

A step of a small model is some thousand small operations; in Python each costs more to call than to run. `record` runs
a step once, keeps its operations (`torch.jit.trace`) and gives them back as one call. The state tree's tensors go in as
arguments and are written in place, as ever. Nothing is compiled, and every sum is made by the same kernel as before, so
results are equal to the last bit; that is tried on a copy of the state before the recording is used.

What a recording cannot hold is a step that looks at numbers and then does something else. Trials over several steps,
with other inputs and other slots moving, find such a step, which is then run as it is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .state import State, StreamingModule

__all__ = ["AFTER", "SWITCH", "Step", "record", "record_steps", "stepped"]

Step = Callable[..., tuple[Tensor, ...]]
"""`step(*inputs)`; it may read and write a state tree."""

SWITCH = "QUAVER_RECORD"
"""Environment variable: while it is `0`, `stepped` runs every step as it is."""
AFTER = 160
"""Steps of a module before it is recorded. A recording costs what it saves in some hundred steps: a command that says
one sentence is done before."""


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


def record(step: Step, state: State, parts: Sequence[nn.Module], trials: Sequence[tuple[Tensor, ...]]) -> Step | None:
    """A recording of `step`, to be called like it; None where it would not do the same.

    Args:
        state: the tree that the step works on; it is left as it was. parts: the modules that the step runs.
        trials: inputs of several steps in a row; the shapes of the first are those of every later call.
    """
    recording = _recording(step, state, parts, trials)
    return None if recording is None else _bound(recording, state)


def _bound(recording: Any, state: State) -> Step:
    tensors = [tensor for _, tensor in state.tensors()]
    return lambda *inputs: recording(*inputs, *tensors)


@torch.inference_mode()
def _recording(step: Step, state: State, parts: Sequence[nn.Module], trials: Sequence[tuple[Tensor, ...]]) -> Any:
    """What takes a step's inputs and then the tensors of any state of this shape, or None."""
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
    return recording


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _equal(mine: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))


class _Recorder:
    """Of a module and a number of slots: how many steps of one position it made, and then the recording of one."""

    def __init__(self, parts: tuple[int, ...]) -> None:
        self.parts = parts
        self.steps, self.tried = 0, False
        self.recording: Any = None


_RECORDERS: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _Recorder]] = WeakKeyDictionary()


def stepped(module: StreamingModule, x: Tensor, state: State) -> Tensor:
    """`module(x, state)`, to the bit. Steps of one position (`x[slot, 1, width]`) of a module in eval mode on a CPU
    come from a recording, once it has made `AFTER` of them over so many slots, or `record_steps` was called."""
    if x.shape[1] != 1 or not _recordable(module, x):
        return module(x, state)
    if state.recorded is None:
        held = _recorder(module, x)
        held.steps += 1
        if held.recording is None and (held.steps <= AFTER or not record_steps(module, x, state)):
            return module(x, state)
        state.recorded = _bound(held.recording, state)
    moving = state.active
    if moving is None:
        moving = torch.ones(state.batch, dtype=torch.bool)
    return state.recorded(x, moving)[0]


def record_steps(module: StreamingModule, x: Tensor, state: State) -> bool:
    """Records the module's step now, if it was not tried before; whether there is a recording. `x`: an input of a step,
    of which only shape and kind matter; `state`: one of that many slots, which is left as it is."""
    if not _recordable(module, x):
        return False
    held = _recorder(module, x)
    if held.tried:
        return held.recording is not None
    held.tried = True

    def step(x: Tensor, moving: Tensor) -> tuple[Tensor]:
        with state.only(moving):
            return (module(x, state),)

    dice = torch.Generator().manual_seed(0)
    some = torch.arange(state.batch) % 2 == 0
    masks = (some | True, some, ~some | (state.batch == 1))
    trials = [(torch.randn(x.shape, generator=dice, dtype=x.dtype), mask) for mask in masks]
    held.recording = _recording(step, state, [module], trials)
    return held.recording is not None


def _recorder(module: nn.Module, x: Tensor) -> _Recorder:
    """Begun anew where layers were exchanged (packed) since."""
    parts = tuple(id(part) for part in module.modules())
    mine = _RECORDERS.setdefault(module, {})
    key = (tuple(x.shape), x.dtype)
    if key not in mine or mine[key].parts != parts:
        mine[key] = _Recorder(parts)
    return mine[key]


def _recordable(module: nn.Module, x: Tensor) -> bool:
    plain = x.device.type == "cpu" and not module.training and os.environ.get(SWITCH, "1") != "0"
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
