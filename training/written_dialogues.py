"""Dialogues that are only written: both speakers' words with times, and no sound.

A small model that hears the words right may still answer wrong: a rendered corpus holds each sum and each name a few
times only. On paper the same grammar is as large as one likes, so that what follows from what was heard is learnt there
(text-only batches, as Moshi takes for half of its steps: Défossez et al. 2024, section 4.2).
"""

from __future__ import annotations

import numpy as np

from ..dialogue.monologue import TimedWord
from .dialogues import Split, script

__all__ = ["written_dialogue"]

LETTER = (0.01, 0.075)
"""Seconds that a letter takes: from hurried, so that an exercise holds more questions, to as slow as the voices."""


def written_dialogue(
    rng: np.random.Generator, seconds: float, split: Split = "train"
) -> tuple[list[TimedWord], list[TimedWord]]:
    """The user's and the assistant's words with times in seconds, for at least so many seconds (the pause
    after the last answer is one of them)."""
    user: list[TimedWord] = []
    own: list[TimedWord] = []
    letter, now = float(np.exp(rng.uniform(*np.log(LETTER)))), rng.uniform(0, 0.5)
    slow = letter / LETTER[1]
    while now < seconds:
        exchanges = script(int(rng.integers(2**31)), split, turns=8, exercise=True)
        for exchange in exchanges:
            now = _said(user, exchange.user, now, letter)
            # A model's record of the user is late by some frames: the faster the words, the more of them.
            pause = rng.uniform(0.24, 0.4) + 0.15 * (1 - slow)
            now = _said(own, exchange.reply, now + pause, letter)
            now += rng.uniform(0.3, 1.4) * slow
    return user, own


def _said(words: list[TimedWord], text: str, now: float, letter: float) -> float:
    """Adds the words of a text from a time on; when it is said."""
    for word in text.split():
        end = now + (len(word) + 1) * letter
        words.append((word, now, end))
        now = end
    return now
