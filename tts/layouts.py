"""Layouts of the token language models: how text and speech share one sequence.

`prefix` (CosyVoice 1, VALL-E): start, voice, conditions, text, task, speech. `interleave` n:m (CosyVoice 2's bistream):
the same beginning, then n text ids and m speech steps in turn; after each m-th step the model is due to say `fill` and
the next n ids follow; when fewer than n are left, they and the task mark go in and the speech runs to its end.

Both the training path (`sequence`) and the plan in use (`Layout` as a cursor) come from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import BadInput

__all__ = [
    "CONDITION",
    "FILL",
    "NONE",
    "NOTHING",
    "PAD",
    "SPEECH",
    "START",
    "TASK",
    "TEXT",
    "VOICE",
    "Item",
    "Layout",
    "Sequence",
    "sequence",
]

PAD, START, TASK, VOICE, TEXT, SPEECH, NOTHING, CONDITION = range(8)
"""Kinds of positions; `NOTHING` stands where guidance hides a text or a voice."""
NONE, FILL = -1, -2
"""Targets that are no step: nothing is predicted; the model is due to ask for text."""


class Item(NamedTuple):
    """One position: its kind, and the text index, voice, condition or step that it holds."""

    kind: int
    value: int = 0


@dataclass
class Layout:
    """A cursor over the layout of one utterance: which items come before the next step.

    Attributes:
        ratio: (n, m) of the interleave, or None for `prefix`.
        voice: voice id, or None when the language model is not told.
        conditions: how many the model has; each has a position.
        sent: text ids given so far. left: steps until text is due (None: the last part, which has no end).
    """

    ratio: tuple[int, int] | None
    voice: int | None = None
    conditions: int = 0
    sent: int = 0
    left: int | None = 0
    started: bool = field(default=False)

    @property
    def last(self) -> bool:
        """All text is in: the speech may end."""
        return self.left is None

    @property
    def due(self) -> bool:
        """Text must come before the next step."""
        return self.left == 0

    def text(self, known: int, final: bool) -> list[Item] | None:
        """The items that are due, given that `known` text ids are there; None when more text must arrive first."""
        if not self.due:
            return []
        rest = known - self.sent
        if self.ratio is not None and rest >= self.ratio[0]:
            count, self.left = self.ratio
        elif final:
            count, self.left = rest, None
        else:
            return None
        items = [] if self.started else [Item(START)]
        if not self.started and self.voice is not None:
            items.append(Item(VOICE, self.voice))
        items += [] if self.started else [Item(CONDITION, i) for i in range(self.conditions)]
        self.started = True
        items += [Item(TEXT, self.sent + i) for i in range(count)]
        self.sent += count
        return [*items, Item(TASK)] if self.last else items

    def step(self) -> None:
        """A step was drawn (or given)."""
        if self.left is not None:
            self.left -= 1


class Sequence(NamedTuple):
    """A whole utterance: items, and the target of each (a step index, `NONE` or `FILL`)."""

    items: list[Item]
    targets: list[int]


def sequence(
    ratio: tuple[int, int] | None, text: int, steps: int, frames: int, voice: int | None, conditions: int = 0
) -> Sequence:
    """The sequence that training sees.

    Args:
        text: text ids. steps: steps to predict, the end included. frames: steps that hold a code of level 0: the
            interleave needs m of them for every full n of text. conditions: how many the model has.

    Raises:
        BadInput: too little speech for the interleave (use `prefix` for such an utterance).
    """
    if ratio is not None and text // ratio[0] * ratio[1] > frames:
        raise BadInput(f"{frames} frames are too few for {text} text ids at {ratio[0]}:{ratio[1]}")
    layout = Layout(ratio, voice, conditions)
    items: list[Item] = []
    targets: list[int] = []
    for step in range(steps):
        before = layout.text(text, final=True)
        assert before is not None
        if before and targets:
            targets[-1] = FILL
        items += before
        targets += [NONE] * len(before)
        targets[-1] = step
        layout.step()
        if step < steps - 1:
            items.append(Item(SPEECH, step))
            targets.append(NONE)
    return Sequence(items, targets)
