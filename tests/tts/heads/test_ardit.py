"""ARDiT: what its mask lets through, and the laws on block diffusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.errors import BadInput
from quaver.nn.noise import frame_noise
from quaver.tts.ardit import Ardit, ArditConfig, Course, segment_mask
from quaver.tts.ardit_plan import planned_lengths
from quaver.tts.generate import Frame, Generation, Request
from quaver.tts.lm import phone_features
from quaver.tts.sampling import SamplingConfig
from quaver.tts.synthesizer import Synthesizer, VoiceSettings

from ...laws import TOLERANCE, few, randn, randomised
from .asking import answer

CONFIG: dict[str, Any] = {
    "dim": 6,
    "block": 3,
    "steps": 2,
    "backbone": {"width": 8, "layers": 2, "heads": 2, "hidden": 12, "window": 40, "slack": 24, "condition": 6},
    "phone_blocks": 1,
    "phone_hidden": 8,
    "voices": ["high", "low"],
}
PHONES = ("h", "ə", "l", "w", ".")


def tiny(**changes: Any) -> Ardit:
    torch.manual_seed(0)
    model = Ardit(ArditConfig.model_validate({**CONFIG, **changes}))
    randomised(model, scale=0.3)
    model.fit(randn(50, 6, seed=9) * 2 + 1)
    return model


def request(seed: int = 3, temperature: float = 1.0, phones: tuple[str, ...] = PHONES, **more: Any) -> Request:
    sampling = SamplingConfig(temperature=temperature)
    return Request(phone_features(phones, {0}), voice=1, seed=seed, sampling=sampling, **more)


def latents(frames: list[Frame]) -> Tensor:
    return torch.stack([f.codes for f in frames])


# -- the mask ---------------------------------------------------------------------------------------------------------
def estimates(model: Ardit, rank: Tensor, past: Tensor, noisy: Tensor) -> Tensor:
    frames = rank.shape[1]
    features = phone_features(PHONES, {0})
    encoded = model.phones(*(x[None] for x in (features.phones, features.word_start, features.upcoming)))
    course = Course.of([0.0, 2.0, 3.5, 5.0, 6.0, 8.0], frames, frames, model.config.align)
    course = Course(*(x[None] for x in (course.pointer, course.progress, course.left, course.place)))
    text, time = torch.ones(1, len(features), dtype=torch.bool), torch.full((1, frames), 0.4)
    return model.clean(encoded, text, past, noisy, time, rank, course, torch.tensor([0]))


@given(st.sampled_from(["start", "gap"]), st.integers(0, 11), st.sampled_from(["exact", "uniform"]))
@few
def test_a_clean_latent_of_the_future_changes_nothing(kind: str, frame: int, align: str) -> None:
    model = tiny(align=align)
    index = torch.arange(12)
    rank = 1 + index // 3 if kind == "start" else torch.where((index >= 4) & (index < 10), 1 + (index - 4) // 3, 0)
    rank = rank[None]
    past, noisy = randn(1, 12, 6, seed=1), randn(1, 12, 6, seed=2)
    other = past.clone()
    other[0, frame] += 5.0
    with torch.no_grad():
        before, after = estimates(model, rank, past, noisy), estimates(model, rank, other, noisy)
    moved = (before - after).abs().amax(-1)[0] > 1e-6
    # Exactly the frames of later blocks see it: a block does not see its own clean latents either.
    assert torch.equal(moved, rank[0] > rank[0, frame])


def test_blocks_do_not_see_each_others_noise() -> None:
    model, rank = tiny(), (1 + torch.arange(12) // 3)[None]
    past, noisy = randn(1, 12, 6, seed=1), randn(1, 12, 6, seed=2)
    other = noisy.clone()
    other[0, 4] += 5.0
    with torch.no_grad():
        moved = (estimates(model, rank, past, noisy) - estimates(model, rank, past, other)).abs().amax(-1)[0] > 1e-6
    assert torch.equal(moved, rank[0] == 2)


def test_padding_is_seen_by_nobody() -> None:
    text, rank = torch.tensor([[True, True, False]]), torch.tensor([[1, 2, -1]])
    mask = segment_mask(text, rank)[0, 0]
    seen = mask & ~torch.eye(9, dtype=torch.bool)
    assert not seen[:, [2, 5, 8]].any()
    assert mask.any(1).all()  # a row of nothing would be NaN


# -- courses and lengths ----------------------------------------------------------------------------------------------
def test_a_course_says_where_in_the_phones_each_frame_is() -> None:
    course = Course.of([0.0, 1.5, 2.0, 5.0], 7.0, 7, "exact")
    assert course.pointer.tolist() == [0, 1, 2, 2, 2, 3, 3]
    assert course.progress.tolist() == [0, 0, 0, 1, 2, 0, 1]
    assert course.left.tolist() == [1, 0, 2, 1, 0, 1, 0]
    assert (course.place.diff() > 0).all()
    assert torch.equal(course.place.floor().long(), course.pointer)
    assert torch.allclose(
        Course.of([0.0, 1.5], 4.0, 4, "uniform").place, torch.tensor([0.25, 0.75, 1.25, 1.75]).double()
    )


def test_lengths_keep_to_speed_pause_and_duration() -> None:
    features = phone_features(PHONES, {0})
    expected = [3.0, 2.0, 2.0, 2.0, 2.0, 5.0]
    assert planned_lengths(Request(features, speed=2.0), expected) == [3.0, 1.0, 1.0, 1.0, 1.0, 5.0]
    assert planned_lengths(Request(features, pause=2.0), expected) == [6.0, 2.0, 2.0, 2.0, 2.0, 10.0]
    assert sum(planned_lengths(Request(features, frames=24), expected)) == pytest.approx(24)
    assert sum(planned_lengths(Request(features, frames=90), expected)) == pytest.approx(90)


# -- the laws ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("align", ["exact", "uniform"])
def test_streaming_equals_offline(align: str) -> None:
    """With one Euler step, the block that the cache gives is the estimate of the whole sequence at time 0."""
    model = tiny(align=align, steps=1)
    last = model.lengths[2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.fill_(0.9)  # about 2.5 frames a phone
    wanted = request()
    generation = Generation(model)
    plan = generation.join(0, wanted)
    assert plan.course is not None
    course, total, frames = plan.course, plan.frames, []
    while not plan.done:
        frames += list(generation.tick().values())
    assert len(frames) == total
    assert total > 6
    made = (latents(frames) - model.mean) / model.scale
    whole = total
    assert total % 3  # the last block is not full
    noise = frame_noise(torch.tensor([3]), torch.tensor([0]), whole, 6).transpose(1, 2)
    f = wanted.features
    with torch.no_grad():
        encoded = model.phones(f.phones[None], f.word_start[None], f.upcoming[None])
        part = course[:whole]
        part = Course(*(x[None] for x in (part.pointer, part.progress, part.left, part.place)))
        rank, text = (1 + torch.arange(whole) // 3)[None], torch.ones(1, len(f), dtype=torch.bool)
        past, time = made[None, :whole], torch.zeros(1, whole)
        offline = model.clean(encoded, text, past, noise, time, rank, part, torch.tensor([1]))
    assert torch.allclose(made[:whole], offline[0], atol=TOLERANCE)


def test_neighbours_change_nothing() -> None:
    model, wanted = tiny(), request()
    alone = latents(answer(Generation(model, 3), 1, wanted, {}))
    beside = latents(
        answer(Generation(model, 3), 1, wanted, {0: request(seed=5), 2: request(seed=6, phones=("ə", "."))})
    )
    assert torch.equal(alone, beside)


def test_a_block_and_a_text_of_the_same_length_do_not_meet() -> None:
    """Chunks of one length run together; a text of three phones and a block of three frames are not of a kind."""
    model, generation = tiny(), Generation(tiny(), 2)
    short = request(phones=("ə", "."))
    alone = latents(answer(Generation(model, 2), 1, short, {}))
    first = generation.join(0, request())
    for _ in range(2):
        generation.tick()
    plan, frames = generation.join(1, short), []
    while not plan.done:
        frames += [f for slot, f in generation.tick().items() if slot == 1]
        if first.done:
            generation.leave(0)
    assert torch.equal(latents(frames), alone)


def test_a_long_sentence_wraps_the_ring_and_keeps_its_text() -> None:
    model = tiny(backbone={**CONFIG["backbone"], "window": 12, "slack": 8})
    frames = answer(Generation(model), 0, request(frames=60), {})
    assert len(frames) == 60
    assert torch.isfinite(latents(frames)).all()
    # The text is still there at the end: another text gives another end.
    other = answer(Generation(model), 0, request(frames=60, phones=("h", "ə", "l", "m", ".")), {})
    assert not torch.allclose(latents(frames)[-3:], latents(other)[-3:])


def test_nothing_is_not_a_number_in_bf16() -> None:
    model, rank = tiny(), (1 + torch.arange(12) // 3)[None]
    rank[0, -2:] = -1  # padding
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = estimates(model, rank, randn(1, 12, 6, seed=1), 100 * randn(1, 12, 6, seed=2))
    assert torch.isfinite(made).all()


def test_a_failed_tick_leaves_the_slot_as_it_was() -> None:
    model = tiny()
    whole = latents(answer(Generation(model), 0, request(), {}))
    generation = Generation(model)
    plan, frames, broken = generation.join(0, request()), [], True
    draw = model._draw

    def failing(*arguments: Any) -> Tensor:
        nonlocal broken
        out = draw(*arguments)
        if broken and len(frames) > 3:
            broken = False
            raise RuntimeError("out of memory")
        return out

    model._draw = failing  # type: ignore[method-assign]
    while not plan.done:
        try:
            frames += list(generation.tick().values())
        except RuntimeError:
            continue
    assert not broken
    assert torch.equal(latents(frames), whole)


def test_bad_requests_are_refused() -> None:
    generation = Generation(tiny())
    with pytest.raises(BadInput, match="no phones"):
        generation.join(0, request(phones=()))
    with pytest.raises(BadInput, match="too long"):
        generation.join(0, request(phones=("ə",) * 40))
    with pytest.raises(BadInput, match="voice 7"):
        generation.join(0, Request(phone_features(PHONES, {0}), voice=7))


# -- as a voice -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def voice() -> Synthesizer:
    """Random weights that expect two and a half frames a phone."""
    lm = tiny(backbone={**CONFIG["backbone"], "window": 40, "slack": 40})
    last = lm.lengths[2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(0.9)
    small: dict[str, Any] = {"width": 8, "hidden": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
    config = XCodecConfig.model_validate({**small, "bottleneck": "vae", "dim": 6, "semantic": "none"})
    codec = randomised(XCodec(config), scale=0.1)
    return Synthesizer(lm, codec, VoiceSettings(names={"Alice": "high", "Bob": "low"}, default="Bob"))


def test_a_voice_streams_what_it_says(voice: Synthesizer) -> None:
    whole = voice.say("Hello there. Again!")
    chunks = list(voice.stream("Hello there. Again!"))
    assert len(chunks) > 3
    assert np.array_equal(np.concatenate([c.samples for c in chunks]), whole.samples)
    assert [w.text for w in whole.words] == ["Hello", "there", "Again"]
    starts = [w.start for w in whole.words]
    assert starts == sorted(starts)
    assert whole.words[-1].end <= len(whole.samples) / whole.sample_rate
    assert not np.array_equal(whole.samples, voice.say("Hello there. Again!", voice="Alice").samples)
    pieces = voice.say(iter(["Hel", "lo there. A", "gain!"]))
    assert np.array_equal(pieces.samples, whole.samples)  # a sentence is read as a whole


def test_a_voice_keeps_to_time(voice: Synthesizer) -> None:
    usual = len(voice.say("Hello there.").samples)
    assert len(voice.say("Hello there.", speed=2.0).samples) < 0.75 * usual
    lasting = voice.say("Hello there.", duration=0.8)
    assert len(lasting.samples) / lasting.sample_rate == pytest.approx(0.8, abs=0.02)
    with pytest.raises(BadInput, match="no codebooks"):
        voice.say("Hello.", codebooks=2)
    with pytest.raises(BadInput, match="Alice, Bob"):
        voice.say("Hello.", voice="Carol")


def test_fewer_evaluations_are_a_setting_and_slots_may_differ() -> None:
    model = tiny()

    def wanted(steps: int) -> Request:
        return Request(
            phone_features(PHONES, {0}), voice=1, seed=3, sampling=SamplingConfig(temperature=1.0, steps=steps)
        )

    alone = {steps: latents(answer(Generation(model, 2), 0, wanted(steps), {})) for steps in (1, 4)}
    assert not torch.allclose(alone[1], alone[4])
    beside = latents(answer(Generation(model, 2), 0, wanted(4), {1: wanted(1)}))
    assert torch.equal(beside, alone[4])
