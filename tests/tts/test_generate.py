"""Laws 3 and 7 over generation: answers do not depend on neighbours, and every plan ends where it should."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quaver.errors import BadInput
from quaver.tts.generate import Frame, Generation, PointerPlan, Request
from quaver.tts.lm import phone_features
from quaver.tts.phones import PAUSES
from quaver.tts.sampling import SamplingConfig

from ..laws import many
from .conftest import tiny_lm

LMS = {pattern: tiny_lm(pattern=pattern) for pattern in ("parallel", "delay:0,1,2")}
SOUNDS = ("h", "ə", "l", "w", "d")
phones_strategy = st.lists(st.sampled_from((*SOUNDS, *PAUSES)), min_size=1, max_size=12).map(tuple)


def drive(plan: PointerPlan, logits_of_step: list[list[float]]) -> list[Frame]:
    """Runs a plan on given advance logits (repeated), without a model."""
    frames, codes = [], torch.zeros(3, dtype=torch.long)
    for step in range(100_000):
        if plan.done:
            return frames
        frame = plan.commit(codes, logits_of_step[step % len(logits_of_step)])
        if frame is not None:
            frames.append(frame)
    raise AssertionError("the plan hangs")


extreme = st.lists(st.floats(-300, 300), min_size=5, max_size=5)


@pytest.mark.parametrize("pattern", LMS)
@many
@given(
    phones=phones_strategy,
    logits=st.lists(extreme, min_size=1, max_size=6),
    speed=st.floats(0.5, 2),
    pause=st.floats(0.1, 5),
    temperature=st.sampled_from([0.0, 0.7, 5.0]),
    seed=st.integers(0, 9),
)
def test_every_plan_ends_and_never_before_the_last_phone(
    pattern: str,
    phones: tuple[str, ...],
    logits: list[list[float]],
    speed: float,
    pause: float,
    temperature: float,
    seed: int,
) -> None:
    lm = LMS[pattern]
    request = Request(
        phone_features(phones, {0}), speed=speed, pause=pause, advance_temperature=temperature, seed=seed
    )  # fmt: skip
    plan = PointerPlan(request, lm)
    frames = drive(plan, logits)
    visited = [f.phone for f in frames]
    assert visited[0] == 0
    assert visited[-1] == len(phones)  # the last one (0 is the silence before the first)
    steps = [b - a for a, b in pairwise(visited)]
    assert all(0 <= s <= lm.config.advance for s in steps)
    pauses = {i + 1 for i, p in enumerate(phones) if p in PAUSES}
    assert pauses <= set(visited)
    longest = math.ceil(plan.longest * max(1.0, pause))  # a pause that was asked to be long may be long
    assert max(visited.count(p) for p in visited) <= longest
    assert all(visited.count(i + 1) <= plan.longest for i, p in enumerate(phones) if p not in PAUSES)
    assert len(frames) <= (len(phones) + 1) * longest


@pytest.mark.parametrize("stuck", [[300.0, -300, -300, -300, -300], [float("-inf")] * 4 + [0.0]])
def test_a_model_that_will_not_move_or_only_jumps_is_held_in_bounds(stuck: list[float]) -> None:
    plan = PointerPlan(Request(phone_features(("h", "ə", ",", "l", "."), {0})), LMS["parallel"])
    visited = [f.phone for f in drive(plan, [stuck])]
    assert {0, 3, 5} <= set(visited)
    assert visited == sorted(visited)


def test_the_pointer_takes_the_most_likely_advance_of_those_allowed() -> None:
    """A likelier advance that is out of reach must not make the rest underflow to a jump."""
    plan = PointerPlan(Request(phone_features((",", "h"), {1}), advance_temperature=0.0), LMS["parallel"])
    assert plan._draw_advance([5.0, -100.0, 6.0, 6.0, 6.0]) == 0


def test_a_higher_speed_is_a_shorter_answer_and_a_longer_pause_a_longer_one() -> None:
    """The counting of frames: at twice the speed the model believes that a phone has lasted longer."""
    lm = LMS["parallel"]

    def progress(phone: str, **settings: float) -> list[int]:
        plan = PointerPlan(Request(phone_features((phone, "."), {0}), **settings), lm)  # type: ignore[arg-type]
        plan.pointer = 1
        counts = []
        for _ in range(5):
            counts.append(plan.progress)
            plan.spent += 1
        return counts

    assert progress("h") == [0, 1, 2, 3, 4]
    assert progress("h", speed=2.0)[4] > 4 > progress("h", speed=0.5)[4]
    assert progress(",", pause=2.0) == [0, 0, 1, 1, 2]
    assert progress("h", pause=2.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("speed", "frames"), [(0.5, 80), (0.8, 50), (1.0, 40), (1.25, 32), (2.0, 20)])
def test_the_pace_follows_the_speed_whatever_the_model_says(speed: float, frames: int) -> None:
    """A model that stays one frame in every phone and then moves on, and heeds no request to be faster or slower."""
    phones = tuple("hɛlhɛlhɛlhɛlhɛlhɛlhɛ")
    plan = PointerPlan(Request(phone_features((*phones, "."), {0}), speed=speed), LMS["parallel"])
    plan.pointer = 1
    while plan.pointer <= len(phones):
        wish = 0 if plan.spent < 1 else 1
        plan.commit(torch.zeros(plan.codebooks, dtype=torch.long), [50.0 * (i == wish) for i in range(5)])
    assert abs(len(plan.pointers) - frames) <= 3


def test_a_pause_that_was_asked_to_be_long_may_be_long() -> None:
    """The guard against a stuck pointer counts as the model does."""
    lm = LMS["parallel"]

    def frames(phone: str) -> int:
        plan = PointerPlan(Request(phone_features((phone, "."), {0}), pause=5.0), lm)
        plan.pointer = 1
        while plan.pointer == 1:
            plan.commit(torch.zeros(lm.config.codebooks, dtype=torch.long), [50.0, 0.0, 0.0, 0.0, 0.0])  # "stay"
        return len(plan.pointers)

    assert frames(",") == 5 * frames("h") >= 5 * lm.config.longest


REQUEST = Request(phone_features(("h", "ə", "l", ",", "w", "d", "."), {0, 4}), seed=5)


def answer(generation: Generation, slot: int, neighbours: dict[int, tuple[int, int, Request]]) -> list[Tensor]:
    """Codes of `REQUEST` in a slot while neighbours join and leave: slot -> (tick of joining, of leaving, request)."""
    plan, out, tick = generation.join(slot, REQUEST), [], 0
    while not plan.done:
        for other, (come, go, request) in neighbours.items():
            if tick == come:
                generation.join(other, request)
            if tick == go:
                generation.leave(other)
        frame = generation.tick().get(slot)
        if frame is not None:
            out.append(torch.cat([frame.codes, torch.tensor([frame.phone])]))
        tick += 1
    return out


@pytest.mark.parametrize("pattern", LMS)
def test_an_answer_does_not_depend_on_its_neighbours(pattern: str) -> None:
    lm = tiny_lm(pattern=pattern)  # one of its own, for the hook below
    long = phone_features(("w",) * 30, {0})
    other = Request(long, voice=1, seed=1)
    hot = Request(long, seed=2, sampling=SamplingConfig(temperature=2.0, ras_window=3, ras_threshold=0.1))
    seen: list[Tensor] = []
    lm.advance.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][1].clone()))

    def run(neighbours: dict[int, tuple[int, int, Request]]) -> tuple[list[Tensor], list[Tensor]]:
        seen.clear()
        return answer(Generation(lm, 3), 1, neighbours), list(seen)

    alone, states = run({})
    assert len(alone) >= 4
    for neighbours in (
        {0: (0, 99, other)},
        {0: (2, 5, other), 2: (3, 99, other)},
        {2: (1, 4, hot)},
        {0: (0, 3, hot), 2: (2, 99, other)},
    ):
        codes, bits = run(neighbours)
        assert len(codes) == len(alone)
        assert all(torch.equal(a, b) for a, b in zip(codes, alone, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(bits, states, strict=True))
    elsewhere = answer(Generation(lm, 3), 2, {0: (1, 99, other)})
    assert all(torch.equal(a, b) for a, b in zip(elsewhere, alone, strict=True))
    used = Generation(lm, 3)
    answer(used, 1, {0: (0, 99, other)})
    used.leave(1)
    again = answer(used, 1, {})
    assert all(torch.equal(a, b) for a, b in zip(again, alone, strict=True))


def test_the_seed_decides() -> None:
    def codes(seed: int) -> list[list[int]]:
        generation = Generation(LMS["parallel"])
        plan = generation.join(0, Request(REQUEST.features, seed=seed))
        while not plan.done:
            generation.tick()
        return [s.tolist() for s in plan.steps]

    assert codes(1) == codes(1)
    assert codes(1) != codes(2)


def test_what_would_break_the_others_is_refused_at_the_door() -> None:
    generation = Generation(LMS["parallel"], 2)
    generation.join(0, REQUEST)
    features = REQUEST.features
    for wrong in (
        Request(phone_features((), set())),
        Request(features, voice=2),
        Request(features, voice=-1),
        Request(features, speed=0.0),
        Request(features, speed=float("nan")),
        Request(features, pause=-1.0),
    ):
        with pytest.raises(BadInput):
            generation.join(1, wrong)
    with pytest.raises(BadInput, match="taken"):
        generation.join(0, REQUEST)
    assert 0 in generation.tick()
    assert Generation(LMS["parallel"]).tick() == {}


def test_one_phone_is_an_answer() -> None:
    generation = Generation(LMS["parallel"])
    plan = generation.join(0, Request(phone_features(("h",), {0})))
    frames = []
    while not plan.done:
        frames += generation.tick().values()
    assert [frames[0].phone, frames[-1].phone] == [0, 1]
