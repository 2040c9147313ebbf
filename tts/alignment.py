"""Forced alignment: when each phone of a known text sounds, by the project's own phoneme recogniser, and how surely.

`align` finds the best path of the phones through the recogniser's 50 Hz output (`torchaudio.functional.forced_align`).
Training uses it for the exact times that the pointer layout needs, editing to find the words to replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import forced_align

from ..codecs.semantic import SemanticTokenizer
from .text import is_pause, strip_stress

__all__ = ["BLANK", "PAUSE", "Alignment", "align", "ctc_targets"]

BLANK, PAUSE = "-", "|"
"""The recogniser's symbols that are no phonemes."""


@dataclass(frozen=True)
class Alignment:
    """Attributes:
    starts: first 50 Hz frame of `^` and of each phone, int16 `[1 + phone]`.
    score: how well the phones explain the audio, 0..1: the geometric mean of the probabilities that they are given
        where they sound, pauses left out.
    sureness: of `^` and of each phone, float64 `[1 + phone]`: its own mean log probability where it sounds.
    """

    starts: np.ndarray
    score: float
    sureness: np.ndarray


def ctc_targets(phones: Sequence[str]) -> list[str]:
    """Phones of an utterance as recogniser symbols: a pause first, then one symbol a phone."""
    return [PAUSE, *(PAUSE if is_pause(p) else strip_stress(p) for p in phones)]


@torch.inference_mode()
def align(model: SemanticTokenizer, audio: Tensor, phones: Sequence[str]) -> Alignment | None:
    """None if the phones cannot fit into the audio.

    Args:
        audio: `[1, 1, sample]` at the model's rate.
    """
    ids = {s: i for i, s in enumerate(model.config.symbols)}
    targets = torch.tensor([[ids[s] for s in ctc_targets(phones)]], dtype=torch.int32)
    log_probs = model(audio).log_probs.cpu()
    repeats = int((targets[0, 1:] == targets[0, :-1]).sum())
    if targets.shape[1] + repeats > log_probs.shape[1]:
        return None
    path, scores = forced_align(log_probs.contiguous(), targets, blank=0)
    spoken = (path[0] != 0) & (path[0] != ids[PAUSE])
    score = float(scores[0][spoken].mean().exp()) if bool(spoken.any()) else 0.0
    starts = starts_of(path[0].numpy(), targets.shape[1])
    return Alignment(starts, score, _sureness(path[0].numpy(), scores[0].numpy(), targets.shape[1]))


def _sureness(path: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Mean log probability of each target over its own frames, blanks left out."""
    previous = np.concatenate([[0], path[:-1]])
    own = path != 0
    which = np.cumsum(own & (path != previous))[own] - 1
    return np.bincount(which, scores[own], count) / np.maximum(np.bincount(which, minlength=count), 1)


def starts_of(path: np.ndarray, count: int) -> np.ndarray:
    """Start of each target in a best path; blanks belong to the target before them."""
    previous = np.concatenate([[0], path[:-1]])
    begins = np.flatnonzero((path != 0) & (path != previous))
    starts = begins[:count].astype(np.int16)
    starts[0] = 0
    return starts
