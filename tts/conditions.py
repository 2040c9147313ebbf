"""Named conditioners of a token language model: how it is to be said, as a label or in words.

Each is one position of the sequence, before the text: a row of a table (`label`: an emotion, a style), or what is in an
instruction's bytes after two convolutions (`text`: their mean and their largest). Training leaves each out with its own
probability, so that a request may leave it out too and guidance can weigh it (`tts/guidance.py`); CosyVoice 2 puts its
instruction at the same place, but through its language model's own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ..errors import BadInput
from ..nn.conv import ConvNeXtBlock

__all__ = ["Condition", "Conditioners"]

LONGEST = 400
"""Bytes of an instruction that are read."""


class Condition(BaseModel):
    """Attributes:
    name: also the field of a pack's index that holds its value. kind: `label` or `text`.
    labels: that can be told apart (the task fills them in from the packs). drop: share of training items without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    kind: Literal["label", "text"] = "label"
    labels: tuple[str, ...] = ()
    drop: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Condition:
        if self.kind == "text" and self.labels:
            raise ValueError("a text condition has no labels")
        return self


class _LabelTable(nn.Module):
    def __init__(self, condition: Condition, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max(1, len(condition.labels)), width)
        nn.init.normal_(self.table.weight, std=0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids[:, 0].clamp(min=0))


class _ByteReader(nn.Module):
    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(256, hidden)
        self.blocks = nn.ModuleList(ConvNeXtBlock(hidden, 2 * hidden, 7, causal=False) for _ in range(2))
        self.out = nn.Linear(2 * hidden, width)

    def forward(self, ids: Tensor) -> Tensor:
        keep = (ids >= 0)[:, None].to(self.out.weight.dtype)
        x = self.table(ids.clamp(min=0)).transpose(1, 2) * keep
        for block in self.blocks:
            x = block(x) * keep  # padding stays zero, so that a batch equals its items alone
        mean = x.sum(2) / keep.sum(2).clamp(min=1)
        most = x.masked_fill(keep == 0, float("-inf")).amax(2)  # a word that decides is not lost among the others
        return self.out(torch.cat([mean, torch.where(most.isfinite(), most, 0.0)], 1))


class Conditioners(nn.Module):
    """The rows of all conditions of a model."""

    def __init__(self, conditions: tuple[Condition, ...], width: int) -> None:
        super().__init__()
        self.conditions, self.width = conditions, width
        self.parts = nn.ModuleList(
            _LabelTable(c, width) if c.kind == "label" else _ByteReader(width) for c in conditions
        )
        self.absent = nn.Parameter(0.5 * torch.randn(len(conditions), width))

    def check(self, values: Mapping[str, str]) -> None:
        """Raises BadInput: a condition that the model does not have, a label that it does not know, or no words."""
        known = {c.name: c for c in self.conditions}
        for name, value in values.items():
            if name not in known:
                have = f"it has {', '.join(known)}" if known else "it was trained without any"
                raise BadInput(f"this model has no condition {name!r}; {have}")
            if known[name].kind == "label" and value not in known[name].labels:
                raise BadInput(f"{name} is {', '.join(known[name].labels)}, not {value!r}")
            if not value.strip():
                raise BadInput(f"{name} is empty; leave it out instead")

    def ids(self, values: Mapping[str, str]) -> Tensor:
        """Values by name -> LongTensor `[condition, n]`: a label's number or an instruction's bytes, then -1."""
        rows = []
        for condition in self.conditions:
            value = values.get(condition.name)
            if value is None:
                rows.append([])
            elif condition.kind == "label":
                rows.append([condition.labels.index(value)])
            else:
                rows.append(list(value.encode()[:LONGEST]))
        longest = max(1, *(len(row) for row in rows))
        return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])

    def forward(self, ids: Tensor) -> Tensor:
        """LongTensor `[batch, condition, n]` from `ids` (-1 = absent, or padding) -> `[batch, condition, width]`."""
        rows = [torch.where(ids[:, i, :1] < 0, self.absent[i], part(ids[:, i])) for i, part in enumerate(self.parts)]
        return torch.stack(rows, 1)

    def guess(self, instruction: str) -> dict[str, str]:
        """The condition that an instruction is meant for: a label that it names, else the first condition that takes
        words.

        Raises:
            BadInput: there is none; the message lists what there is.
        """
        wanted = instruction.strip()
        for condition in self.conditions:
            folded = {label.casefold(): label for label in condition.labels}
            if wanted.casefold() in folded:
                return {condition.name: folded[wanted.casefold()]}
        for condition in self.conditions:
            if condition.kind == "text" and wanted:
                return {condition.name: wanted}
        labels = [f"{c.name}: {', '.join(c.labels)}" for c in self.conditions if c.kind == "label"]
        have = f"it knows {'; '.join(labels)}" if labels else "it was trained without any (docs/models.md)"
        raise BadInput(f"this model does not take the instruction {instruction!r}; {have}")
