"""The state tree: everything that a stream remembers, owned by the caller.

A streaming module has `init_state(batch) -> State` and `forward(x, state)`. The state is a tree of named tensors whose
first axis is the *slot* (one slot = one stream of a batch). Modules write into it in place and keep nothing themselves,
so resetting, freezing, saving, resuming and rolling back are written once, here, and hold for every model.

Conventions that make this short:

- a fresh stream is all zeros, so `reset` is zeroing;
- `update` respects the tree's `active` mask: a frozen slot keeps its rows, as if the step never happened;
- `write_only` tensors (key-value caches) hold nothing of value past the slot's position, so rolling back needs only the
  position: they are neither guarded by the mask nor copied into a `mark`.

The per-slot reset and freeze semantics follow Moshi's `reset_streaming(reset_mask)` and `set_exec_mask`
(github.com/kyutai-labs/moshi); passing the state in and out follows pocket-tts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput

__all__ = ["Mark", "State", "StreamingModule"]

Mark = dict[str, Tensor]
"""What `State.mark` returns: copies of the small tensors, by path."""


class _Slots:
    """What all nodes of one tree share: the number of slots and which of them move."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.active: Tensor | None = None


class State:
    """One node of the tree: tensors `[slot, ...]` and child nodes, by name."""

    def __init__(self, batch: int, _slots: _Slots | None = None) -> None:
        if batch < 1:
            raise BadInput(f"a state needs at least one slot, not {batch}")
        self._slots = _slots or _Slots(batch)
        self._tensors: dict[str, Tensor] = {}
        self._write_only: set[str] = set()
        self._children: dict[str, State] = {}
        self.recorded: Any = None
        """The recorded step of this node's module, bound to its tensors (`nn/recorded.py`, `stepped`)."""

    # -- building -----------------------------------------------------------------------------------------------------
    @property
    def batch(self) -> int:
        return self._slots.batch

    @property
    def active(self) -> Tensor | None:
        """BoolTensor[slot] of the slots that move, or None when all do."""
        return self._slots.active

    def add(
        self,
        name: str,
        *shape: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        write_only: bool = False,
    ) -> None:
        """Adds a zero tensor `[slot, *shape]`."""
        self._tensors[name] = torch.zeros(self.batch, *shape, dtype=dtype, device=device)
        if write_only:
            self._write_only.add(name)

    def child(self, name: str, module: StreamingModule | None = None) -> State:
        """The child node `name`; with `module`, creates it as that module's initial state."""
        if module is not None:
            node = module.init_state(self.batch)
            node._share(self._slots)
            self._children[name] = node
        return self._children[name]

    def _share(self, slots: _Slots) -> None:
        self._slots = slots
        for node in self._children.values():
            node._share(slots)

    # -- what modules use ---------------------------------------------------------------------------------------------
    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def update(self, name: str, value: Tensor) -> None:
        """Writes `value` into the tensor `name`; rows of frozen slots keep what they hold."""
        old = self._tensors[name]
        if self.active is not None:
            value = torch.where(self.active.view(-1, *[1] * (old.ndim - 1)), value, old)
        old.copy_(value)

    # -- what callers use ---------------------------------------------------------------------------------------------
    @contextmanager
    def only(self, active: Tensor) -> Iterator[State]:
        """Within the block only the slots of `active` (BoolTensor[slot]) move; the others are frozen."""
        if active.shape != (self.batch,) or active.dtype != torch.bool:
            raise BadInput(f"active must be a BoolTensor[{self.batch}], not {active.dtype}{list(active.shape)}")
        before, self._slots.active = self._slots.active, active
        try:
            yield self
        finally:
            self._slots.active = before

    @contextmanager
    def holding(self, tensors: Sequence[Tensor]) -> Iterator[State]:
        """Within the block the tree holds these tensors in place of its own, in the order of `tensors()`."""
        own = [tensor for _, tensor in self.tensors()]
        self._hold(iter(tensors))
        try:
            yield self
        finally:
            self._hold(iter(own))

    def _hold(self, tensors: Iterator[Tensor]) -> None:
        for name in self._tensors:
            self._tensors[name] = next(tensors)
        for node in self._children.values():
            node._hold(tensors)

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """All tensors of the tree with their paths, e.g. `layers.0.keys`."""
        for name, tensor in self._tensors.items():
            yield prefix + name, tensor
        for name, node in self._children.items():
            yield from node.tensors(f"{prefix}{name}.")

    def _guarded(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._tensors.items():
            if name not in self._write_only:
                yield prefix + name, tensor
        for name, node in self._children.items():
            yield from node._guarded(f"{prefix}{name}.")

    def reset(self, slots: Tensor | None = None) -> None:
        """Starts the given slots (BoolTensor[slot]; all by default) afresh. The neighbours are not touched."""
        for _, tensor in self.tensors():
            if slots is None:
                tensor.zero_()
            else:
                tensor[slots] = 0

    def mark(self) -> Mark:
        """A point to return to. Costs a copy of the small tensors; key-value caches are not copied."""
        return {path: tensor.clone() for path, tensor in self._guarded()}

    def rollback(self, mark: Mark, slots: Tensor | None = None) -> None:
        """Returns the given slots (all by default) to `mark`, as if nothing had been stepped since.

        Ring caches hold this promise for as many steps as their `slack`.
        """
        for path, tensor in self._guarded():
            if slots is None:
                tensor.copy_(mark[path])
            else:
                tensor[slots] = mark[path][slots]

    def rewind(self, steps: Tensor) -> None:
        """Takes the last positions of each slot back, `steps` (LongTensor[slot]) of them: what lies there in the ring
        caches is overwritten by what comes next. Unlike `rollback` it needs no mark, and slots go back by numbers of
        their own. At most `slack` positions.

        Raises:
            BadInput: a state that holds more than positions and caches (a convolution's past cannot be taken back).
        """
        for path, tensor in self._guarded():
            if path.rsplit(".", 1)[-1] != "position":
                raise BadInput(
                    f"the state entry {path} cannot be rewound, only positions and caches can; mark and roll back"
                )
            tensor -= steps.to(tensor.device)

    def save(self) -> dict[str, Tensor]:
        """A flat copy of the whole tree, ready for `safetensors.torch.save_file`."""
        return {path: tensor.detach().clone().contiguous() for path, tensor in self.tensors()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Writes what `save` gave back into a tree of the same shape.

        Raises:
            BadInput: the names or shapes differ (the state of another model or another number of slots).
        """
        mine = dict(self.tensors())
        if mine.keys() != saved.keys():
            odd = sorted(mine.keys() ^ saved.keys())
            raise BadInput(f"this state belongs to another model: entries differ, e.g. {odd[:3]}")
        for path, tensor in mine.items():
            if tensor.shape != saved[path].shape:
                raise BadInput(f"state entry {path} has shape {list(saved[path].shape)}, expected {list(tensor.shape)}")
        for path, tensor in mine.items():
            tensor.copy_(saved[path])

    def nbytes(self) -> int:
        """Bytes held by the whole tree."""
        return sum(t.numel() * t.element_size() for _, t in self.tensors())


class StreamingModule(nn.Module):
    """A module that can run over a stream in chunks: `forward(x, state)` with a `State` that the caller owns."""

    def init_state(self, batch: int) -> State:
        """A fresh state for `batch` slots, on the module's device."""
        raise NotImplementedError(f"{type(self).__name__} does not stream")

    def _state_of(self, batch: int, **children: nn.Module) -> State:
        """A node whose children are the initial states of the given modules (lists become numbered nodes)."""
        state = State(batch)
        for name, module in children.items():
            if isinstance(module, nn.ModuleList):
                for i, item in enumerate(module):
                    state.child(f"{name}.{i}", _streaming(item))
            else:
                state.child(name, _streaming(module))
        return state


def _streaming(module: nn.Module) -> StreamingModule:
    if not isinstance(module, StreamingModule):
        raise TypeError(f"{type(module).__name__} is not a StreamingModule")
    return module
