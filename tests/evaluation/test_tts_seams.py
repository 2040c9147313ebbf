"""Seams are found where they were put, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.errors import BadInput
from quaver.evaluation.tts_seams import find_seams

pytest.importorskip("pyworld")

RATE = 24_000
PAUSE = 0.2
TEXT = ((120, 140, 110), (118, 145, 105), (122, 138, 108))  # the pitches of the stretches of three sentences


def stretch(pitch: float, seconds: float = 0.4, level: float = 0.3) -> np.ndarray:
    """A voiced sound that falls a little and swells and fades over 40 ms."""
    n = round(seconds * RATE)
    f0 = pitch * np.linspace(1.03, 0.97, n)
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    wave = sum(np.sin(k * phase) / k for k in range(1, 20))
    edge = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.04 * RATE))
    return level * edge * np.asarray(wave)


def answer(sentences: tuple[tuple[float, ...], ...]) -> tuple[np.ndarray, list[float]]:
    """Stretches with short pauses, sentences with pauses of 0.2 s; and the times of the joints."""
    parts, joints, short, long = [], [], np.zeros(round(0.08 * RATE)), np.zeros(round(PAUSE * RATE))
    for sentence in sentences:
        for pitch in sentence:
            parts += [stretch(pitch), short]
        joints.append(sum(map(len, parts)) / RATE + PAUSE / 2)
        parts.append(long)
    return np.concatenate(parts).astype(np.float32), joints[:-1]


def test_sentences_that_follow_each_other_smoothly_have_no_seam() -> None:
    samples, joints = answer(TEXT)
    found = find_seams(samples, RATE, joints)
    assert len(found.level) == len(found.reset) == 2
    assert np.isfinite(found.reset).all()
    assert found.heard == 0
    assert found.reset_limit == pytest.approx(12 * np.log2(145 / 105), abs=1.5)


def test_a_click_is_heard() -> None:
    samples, joints = answer(TEXT)
    samples[round(joints[1] * RATE)] = 1.0
    found = find_seams(samples, RATE, joints)
    assert found.heard == 1
    assert found.level[1] > found.level_limit > found.level[0]


def test_a_sentence_in_another_register_is_heard() -> None:
    samples, joints = answer((TEXT[0], (240, 290, 220), TEXT[2]))
    found = find_seams(samples, RATE, joints)
    assert found.heard == 2
    assert (found.reset > found.reset_limit).all()


def test_a_voice_that_jumps_while_it_goes_on_is_heard() -> None:
    low, high = stretch(120, 1.0)[: -round(0.05 * RATE)], stretch(200, 1.0)[round(0.05 * RATE) :]
    samples = np.concatenate([answer(TEXT)[0], low, high]).astype(np.float32)
    joint = (len(samples) - len(high)) / RATE
    found = find_seams(samples, RATE, [joint])
    assert max(np.nan_to_num(found.pitch[0]) - found.pitch_limit, found.reset[0] - found.reset_limit) > 1
    assert found.heard == 1


@pytest.mark.parametrize("joints", [[], [-1.0], [99.0]])
def test_joints_outside_the_audio_are_refused(joints: list[float]) -> None:
    with pytest.raises(BadInput, match="joints"):
        find_seams(answer(TEXT)[0], RATE, joints)
