"""Which of the user's turns a word belongs to: the model writes words down late, and turns are cut by their sound."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Turn", "Written", "Transcripts"]


@dataclass
class Turn:
    """What one item of the user's holds.

    Attributes:
        item: its id. start, end: seconds of what the user sent; the end is unknown while the turn lasts.
    """

    item: str
    start: float = 0.0
    end: float = float("inf")
    text: str = ""


@dataclass(frozen=True)
class Written:
    """A piece of a turn's text, or, when `complete`, the turn with all of it."""

    turn: Turn
    delta: str = ""
    complete: bool = False


class Transcripts:
    """The turns whose text is not complete: those that were committed, and the open one at the end.

    Args:
        item: id of the open turn.
    """

    def __init__(self, item: str) -> None:
        self._turns: deque[Turn] = deque([Turn(item)])

    def commit(self, end: float, item: str) -> None:
        """The open turn ends at so many seconds; the next one is called `item`."""
        self._turns[-1].end = end
        self._turns.append(Turn(item, start=end))

    def forget(self) -> None:
        """What was heard of the open turn does not count."""
        self._turns[-1].text = ""

    def hear(self, text: str, until: float) -> Iterator[Written]:
        """What the model has written down, having heard everything up to `until`. A word that began in a turn stays in
        it: a piece without a leading space goes on with the last one."""
        if not text or text.startswith(" "):
            while len(self._turns) > 1 and self._turns[0].end < until:
                yield Written(self._turns.popleft(), complete=True)
        if text:
            turn = self._turns[0]
            delta = text if turn.text else text.lstrip(" ")
            turn.text += delta
            yield Written(turn, delta)

    def close(self) -> Iterator[Written]:
        """The model hears no more: the committed turns are as complete as they will ever be."""
        while len(self._turns) > 1:
            yield Written(self._turns.popleft(), complete=True)
