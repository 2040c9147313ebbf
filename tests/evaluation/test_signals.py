"""Distances: the same signal scores best, and more noise never scores better."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from quaver.errors import BadInput
from quaver.evaluation import signals

from .conftest import speechlike

LEVELS = (0.001, 0.01, 0.1)


@pytest.mark.parametrize(
    ("measure", "best"),
    [(signals.pesq_wb, 4.64), (signals.stoi, 1.0), (lambda a, b: -signals.mel_distance(a, b, 16_000), 0.0)],
)  # fmt: skip
def test_identity_is_best_and_noise_only_makes_it_worse(
    measure: Callable[[np.ndarray, np.ndarray], float], best: float, speech: np.ndarray, noise: np.ndarray
) -> None:
    scores = [measure(speech, speech), *(measure(speech, speech + level * noise) for level in LEVELS)]
    assert scores[0] == pytest.approx(best, abs=0.01)
    assert all(better > worse for better, worse in pairwise(scores))


def test_the_pitch_error_is_what_the_pitch_was_moved_by(speech: np.ndarray) -> None:

    pytest.importorskip("pyworld")
    assert signals.f0_error(speech, speech) == pytest.approx(0.0, abs=1e-6)
    semitone = speechlike(pitch=120 * 2 ** (1 / 12))
    assert signals.f0_error(speech, semitone) == pytest.approx(100, abs=20)
    assert signals.f0_error(speech, np.zeros_like(speech)) is None


def test_a_padded_end_is_not_compared(speech: np.ndarray) -> None:
    longer = np.concatenate([speech, np.zeros(900, np.float32)])
    assert signals.stoi(speech, longer) == pytest.approx(1.0)


def test_lost_speech_gets_the_worst_pesq_instead_of_an_exception(speech: np.ndarray) -> None:
    assert signals.pesq_wb(speech, np.zeros_like(speech)) == pytest.approx(1.04)


@pytest.mark.parametrize("measure", [signals.pesq_wb, signals.stoi])
def test_too_short_or_silent_references_are_refused(measure: Callable[[np.ndarray, np.ndarray], float]) -> None:
    tiny = np.full(1000, 0.1, np.float32)
    with pytest.raises(BadInput, match="too short"):
        measure(tiny, tiny)
    silence = np.zeros(16_000, np.float32)
    with pytest.raises(BadInput, match="silent"):
        measure(silence, silence)


def test_resampling_keeps_the_length_in_seconds_and_the_range(speech: np.ndarray) -> None:
    loud = np.sign(speech) * 1.5
    out = signals.resample(loud.astype(np.float32), 16_000, 24_000)
    assert abs(len(out) - 1.5 * len(speech)) <= 1
    assert np.abs(out).max() <= 1.0
