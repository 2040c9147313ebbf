"""When each phone and word sounds: the pointer of every frame, turned into seconds."""

from __future__ import annotations

from dataclasses import dataclass

from .generate import Frame
from .text import Utterance

__all__ = ["TimedSpan", "Timeline"]


@dataclass(frozen=True)
class TimedSpan:
    """A word or phone and when it sounds, in seconds from the start of the whole audio."""

    text: str
    start: float
    end: float


class Timeline:
    """Turns the pointer of each frame into times of phones and words."""

    def __init__(self, utterance: Utterance, first_frame: int, frame_seconds: float) -> None:
        self.utterance, self.frame_seconds = utterance, frame_seconds
        self.now = first_frame
        self.starts: list[float] = []  # of the phones reached so far
        self.reached = 0  # pointer: 0 is ^
        self.phones_out, self.words_out = 0, 0

    def add(self, frame: Frame) -> None:
        """Takes the next frame. Phones that one frame passes over share its time evenly."""
        passed = frame.phone - self.reached
        for i in range(passed):
            self.starts.append((self.now + i / passed) * self.frame_seconds if i else self.now * self.frame_seconds)
        self.reached = frame.phone
        self.now += 1

    def wait(self, frames: int) -> None:
        """A break of so many frames."""
        self.now += frames

    def take(self) -> tuple[list[TimedSpan], list[TimedSpan]]:
        """Words and phones that are complete and have not been taken."""
        return self._words(len(self.starts) - 1), self._phones(len(self.starts) - 1)

    def close(self) -> tuple[list[TimedSpan], list[TimedSpan]]:
        """All that is left; phones that were passed over at the very end get the last moment."""
        end = self.now * self.frame_seconds
        self.starts += [end] * (len(self.utterance.phones) - len(self.starts))
        count = len(self.utterance.phones)
        return self._words(count), self._phones(count)

    def _end(self, phone: int) -> float:
        return self.starts[phone + 1] if phone + 1 < len(self.starts) else self.now * self.frame_seconds

    def _phones(self, complete: int) -> list[TimedSpan]:
        names = self.utterance.phones
        out = [TimedSpan(names[i], self.starts[i], self._end(i)) for i in range(self.phones_out, complete)]
        self.phones_out = max(self.phones_out, complete)
        return out

    def _words(self, complete: int) -> list[TimedSpan]:
        out = []
        while self.words_out < len(self.utterance.words) and self.utterance.words[self.words_out].end <= complete:
            word = self.utterance.words[self.words_out]
            out.append(TimedSpan(word.text, self.starts[word.start], self._end(word.end - 1)))
            self.words_out += 1
        return out
