"""Law 6: unpack(pack(frames)) == frames for every K, T and delay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quaver.errors import BadInput, ConfigError
from quaver.tts.patterns import DelayPattern, make_pattern

from ..laws import many

delays_strategy = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(lambda d: min(d) == 0)


@many
@given(delays=delays_strategy, frames=st.integers(0, 7))
def test_round_trip(delays: list[int], frames: int) -> None:
    pattern = DelayPattern(delays, empty=99)
    codes = torch.randint(99, (2, len(delays), frames))
    steps = pattern.pack(codes)
    assert steps.shape == (2, len(delays), frames + max(delays))
    assert torch.equal(pattern.unpack(steps), codes)
    valid = pattern.valid(frames)
    assert torch.equal(valid.expand_as(steps), steps != 99)
    assert valid.sum() == len(delays) * frames


@many
@given(delays=delays_strategy)
def test_codebook_k_of_frame_t_lies_at_step_t_plus_its_delay(delays: list[int]) -> None:
    codes = torch.arange(len(delays) * 4).view(1, len(delays), 4)
    steps = DelayPattern(delays, empty=-1).pack(codes)
    for k, delay in enumerate(delays):
        for t in range(4):
            assert steps[0, k, t + delay] == codes[0, k, t]


def test_patterns_by_name() -> None:
    assert make_pattern("parallel", 3, 9).delays == (0, 0, 0)
    assert make_pattern("delay", 3, 9).delays == (0, 1, 2)
    assert make_pattern("delay:0,1,1", 3, 9).delays == (0, 1, 1)
    for name in ("delay:0,1", "delay:1,2,3", "delay:0,-1,1", "delay:a,b,c", "spiral"):
        with pytest.raises(ConfigError):
            make_pattern(name, 3, 9)


def test_wrong_shapes_are_refused() -> None:
    pattern = make_pattern("delay", 3, 9)
    for call in (pattern.pack, pattern.unpack):
        with pytest.raises(BadInput):
            call(torch.zeros(1, 2, 5).long())
    with pytest.raises(BadInput, match="fewer"):
        pattern.unpack(torch.zeros(1, 3, 1).long())
