"""A signal that behaves like speech where PESQ, STOI and WORLD look: voiced syllables, pitch movement, pauses."""

from __future__ import annotations

import numpy as np
import pytest

RATE = 16_000


def speechlike(seconds: float = 3.0, rate: int = RATE, pitch: float = 120.0, seed: int = 0) -> np.ndarray:
    """float32 [sample]: harmonics under three moving formants, four syllables a second, a pause in between."""
    t = np.arange(int(seconds * rate)) / rate
    f0 = pitch * (1 + 0.15 * np.sin(2 * np.pi * 0.7 * t + seed))
    phase = 2 * np.pi * np.cumsum(f0) / rate
    formants = [(500 + 250 * np.sin(2 * np.pi * 1.1 * t), 1.0), (1500 + 500 * np.sin(2 * np.pi * 0.9 * t), 0.5),
                (2600 + 200 * np.sin(2 * np.pi * 1.7 * t), 0.3)]  # fmt: skip
    signal = np.zeros_like(t)
    for k in range(1, int(0.45 * rate / (1.2 * pitch))):
        gain = sum(a * np.exp(-(((k * f0 - centre) / 180) ** 2)) for centre, a in formants) + 0.01 / k
        signal += gain * np.sin(k * phase)
    signal *= np.clip(np.sin(2 * np.pi * 2 * t), 0, 1) ** 0.5
    return (0.5 * signal / np.abs(signal).max()).astype(np.float32)


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    return speechlike()


@pytest.fixture(scope="session")
def noise(speech: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
