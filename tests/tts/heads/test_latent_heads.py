"""Continuous tokens: the heads' maths, and the laws on a pointer model that speaks in latents."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from quaver.codecs.grouped import grouped
from quaver.codecs.mel import MelCodec, MelConfig
from quaver.errors import BadInput, ConfigError
from quaver.tts.generate import Generation, Request
from quaver.tts.latent_heads import GaussianHead, LatentConfig, MelleHead, MlpFlowHead, make_latent_head
from quaver.tts.lm import SpeechLM, phone_features
from quaver.tts.sampling import SamplingConfig
from quaver.tts.synthesizer import Synthesizer, VoiceSettings

from ...laws import TOLERANCE, randn, randomised
from ..conftest import tiny_lm
from . import asking

Kind = Literal["melle", "gaussian", "flow"]
KINDS: tuple[Kind, ...] = ("melle", "gaussian", "flow")
MEL: dict[str, Any] = {"hop": 16, "n_fft": 64, "mels": 8, "width": 8, "hidden": 8, "blocks": 1}
LATENT: dict[str, Any] = {"dim": 16, "group": 2, "hidden": 12, "prenet": 10, "postnet": 6, "blocks": 2, "steps": 3}
PHONES = ("h", "ə", "l", "w", ".")


def latent_lm(kind: Kind, **changes: Any) -> SpeechLM:
    return tiny_lm(head=kind, latent={**LATENT, **changes})


def request(seed: int = 3, temperature: float = 1.0, phones: tuple[str, ...] = PHONES) -> Request:
    sampling = SamplingConfig(temperature=temperature)
    return Request(phone_features(phones, {0}), voice=1, seed=seed, sampling=sampling)


def answer(generation: Generation, slot: int, wanted: Request, neighbours: dict[int, Request]) -> list[Tensor]:
    return [frame.codes for frame in asking.answer(generation, slot, wanted, neighbours)]


# -- maths ------------------------------------------------------------------------------------------------------------
def test_the_closed_form_kl_is_what_sampling_says() -> None:
    head = randomised(GaussianHead(6, LatentConfig(dim=4, group=1, hidden=8)), scale=0.5)
    head.mean.copy_(randn(4, seed=1))
    head.scale.copy_(randn(4, seed=2).abs() + 0.5)
    hidden, target, log_std = randn(1, 6, seed=3), randn(1, 4, seed=4), randn(1, 4, seed=5) * 0.3 - 0.5
    with torch.no_grad():
        stated = float(head.loss(hidden, target, log_std, target)["kl"]) * 4
        noise = randn(200_000, 4, seed=6)
        drawn = target + log_std.exp() * noise
        own = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        sampled = own - head.log_prob(hidden.expand(len(drawn), -1), drawn)
    assert float(sampled.mean()) == pytest.approx(stated, abs=5 * float(sampled.std()) / math.sqrt(len(drawn)))


def test_a_gaussian_head_draws_from_its_own_law() -> None:
    head = randomised(GaussianHead(6, LatentConfig(dim=2, group=1, hidden=8)), scale=0.5)
    hidden = randn(1, 6).expand(50_000, -1)
    with torch.no_grad():
        drawn = head.sample(hidden, randn(50_000, 2, seed=1), SamplingConfig(temperature=1.0), hidden)
        mean, log_std = head._law(hidden[:1])
    assert torch.allclose(drawn.mean(0), mean[0], atol=5 * float(log_std.exp().max()) / math.sqrt(50_000))
    assert torch.allclose(drawn.std(0), log_std[0].exp(), rtol=0.05)


def test_flux_rewards_movement_but_only_so_much() -> None:
    """Its sign decides whether MELLE moves on or stalls, and unclamped it would outgrow the regression."""
    head = MelleHead(6, LatentConfig(dim=4, group=1, hidden=8, postnet=0))
    torch.nn.init.zeros_(head.law.weight)
    torch.nn.init.zeros_(head.law.bias)
    hidden, target = randn(3, 6), torch.zeros(3, 4)
    with torch.no_grad():
        near, far, farther = (
            float(head.loss(hidden, target, target, torch.full((3, 4), v))["flux"]) for v in (0.1, 0.9, 50.0)
        )
    assert near == pytest.approx(-0.1)
    assert far == pytest.approx(-0.9)
    assert farther == pytest.approx(-1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_fall_and_stay_finite_in_bfloat16(kind: Kind) -> None:
    torch.manual_seed(0)
    head = make_latent_head(kind, 8, LatentConfig.model_validate({**LATENT, "distill": True}))
    hidden, target = randn(64, 8), randn(64, 16, seed=1)
    target[:, :8] = hidden  # something to learn
    previous = randn(64, 16, seed=2)
    previous[:5] = math.nan
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    totals = []
    for step in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            losses = head.loss(hidden, target, torch.full_like(target, -1.0), previous)
            total = torch.stack([v for k, v in losses.items() if k != "flux"]).sum()
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in head.parameters()), step
        optimizer.step()
        totals.append(float(total.detach()))
    assert np.isfinite(totals).all()
    assert np.mean(totals[-5:]) < 0.8 * np.mean(totals[:5])


def test_one_distilled_step_draws_what_many_steps_draw() -> None:
    """On a mixture of two points, whose flow is far from straight at the start."""
    torch.manual_seed(0)
    config = LatentConfig(dim=2, group=1, hidden=48, blocks=2, steps=16, distill=True, multiplier=4)
    head = MlpFlowHead(4, config)
    hidden = torch.zeros(128, 4)
    optimizer = torch.optim.Adam(head.parameters(), 0.003)
    for _ in range(500):
        side = torch.where(torch.rand(128, 1) < 0.5, -1.0, 1.0)
        target = side * torch.tensor([[1.0, 0.5]]) + 0.05 * torch.randn(128, 2)
        losses = head.loss(hidden, target, target, target)
        optimizer.zero_grad()
        (losses["flow"] + losses["map"]).backward()
        optimizer.step()
    noise, empty = randn(1000, 2, seed=9), torch.zeros(1000, 2)
    with torch.no_grad():
        many, one = (
            head.sample(torch.zeros(1000, 4), noise, SamplingConfig(temperature=1.0, steps=n), empty) for n in (16, 1)
        )
        plain = head.clean(head.context(head.norm(hidden[:1])), torch.zeros(1, 1), torch.zeros(1, 1), noise[:1])
    assert (many.norm(dim=-1) > 0.8).float().mean() > 0.9  # the teacher is at the points
    assert ((many[:, 0] > 0) == (one[:, 0] > 0)).float().mean() > 0.9  # the same point for the same noise
    assert (many - one).norm(dim=-1).mean() < 0.35
    assert float(plain.norm()) < 0.6  # one undistilled step gives the mean of both, which is neither


# -- the model --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_its_neighbours(kind: Kind) -> None:
    lm = latent_lm(kind)
    alone = answer(Generation(lm, 3), 1, request(), {})
    assert len(alone) >= 4
    assert alone[0].shape == (16,)
    other = request(seed=8, temperature=0.3, phones=("w",) * 9)
    crowd = answer(Generation(lm, 3), 1, request(), {0: other, 2: other})
    assert all(torch.equal(a, b) for a, b in zip(alone, crowd, strict=True))
    assert not torch.equal(alone[1], answer(Generation(lm, 3), 1, request(seed=4), {})[1])


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forced_equals_step_by_step(kind: Kind) -> None:
    """With the same dropout, which in use is a function of request and step."""
    lm, wanted = latent_lm(kind), request()
    seen: list[Tensor] = []
    lm.advance.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    generation = Generation(lm)
    plan = generation.join(0, wanted)
    while not plan.done:
        generation.tick()
    f, pointer = wanted.features, torch.tensor([plan.pointers])
    progress = [0]
    for a, b in zip(plan.pointers, plan.pointers[1:], strict=False):
        progress.append(progress[-1] + 1 if a == b else 0)
    with torch.no_grad():
        encoded = lm.phones(f.phones[None], f.word_start[None], f.upcoming[None])
        where = (torch.tensor([wanted.seed]), torch.tensor([0]))
        steps = torch.stack(plan.steps, -1)[None]
        forced = lm.hidden(
            lm.shift(steps), encoded, pointer, torch.tensor([progress]), torch.tensor([1]), torch.zeros(1), where=where
        )
    assert torch.allclose(forced, torch.stack(seen, 1), atol=TOLERANCE)


def test_melles_dropout_is_on_in_use_and_is_the_requests_own() -> None:
    head = latent_lm("melle").head
    assert isinstance(head, MelleHead)
    previous, start = randn(2, 16, 6), torch.tensor([4, 4])
    same, other = torch.tensor([7, 7]), torch.tensor([7, 8])
    with torch.no_grad():
        a, b = (head.embed(previous, (seed, start)) for seed in (same, other))
        later = head.embed(previous[..., 2:], (same, start + 2))
    assert torch.equal(a[0], b[0])
    assert not torch.allclose(a[1], b[1])
    assert torch.allclose(later, a[:, 2:], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_voice_of_latents_streams_what_it_says(kind: Kind) -> None:
    torch.manual_seed(0)
    codec = grouped(randomised(MelCodec(MelConfig(**MEL)), scale=0.05), 2)
    settings = VoiceSettings(names={"Bob": "low"}, default="Bob")
    synthesizer = Synthesizer(latent_lm(kind), codec, settings)
    whole = synthesizer.say("Hello there. Again!")
    chunks = list(synthesizer.stream("Hello there. Again!"))
    assert len(chunks) > 3
    assert np.array_equal(np.concatenate([c.samples for c in chunks]), whole.samples)
    assert np.isfinite(whole.samples).all()
    assert len(whole.samples) % codec.frame_size == 0
    assert [w.text for w in whole.words] == ["Hello", "there", "Again"]
    with pytest.raises(BadInput, match="no codebooks"):
        synthesizer.say("Hello.", codebooks=2)


def test_sizes_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        tiny_lm(head="melle")
    with pytest.raises(ValueError, match="parallel"):
        tiny_lm(head="flow", latent=LATENT, pattern="delay")
    with pytest.raises(ConfigError, match="at least one"):
        grouped(MelCodec(MelConfig(**MEL)), 0)


@pytest.mark.parametrize("group", [2, 3])
def test_grouped_frames_stream_as_the_frames_do(group: int) -> None:
    codec = randomised(MelCodec(MelConfig(**MEL)), scale=0.05)
    wide = grouped(codec, group)
    assert wide.frame_spec.dim == 8 * group
    audio = randn(2, 1, 16 * group * 5) * 0.1
    with torch.no_grad():
        frames, counts = wide.encode(audio, torch.tensor([16 * group * 5, 17]))
        assert counts.tolist() == [5, 1]
        narrow = codec.encode(audio)[0]
        assert torch.equal(frames[:, :8, 1], narrow[..., group])
        whole = wide.decode(frames)
        assert torch.allclose(whole, codec.decode(narrow), atol=1e-6)
        state = wide.init_state(2)
        parts = [wide.decode(frames[..., a:b], state) for a, b in ((0, 1), (1, 4), (4, 5))]
        streamed = torch.cat([*parts, wide.flush(state)], -1)[..., wide.latency :]
    assert torch.allclose(streamed, whole, atol=TOLERANCE)
    with pytest.raises(BadInput, match="must be"):
        wide.decode(frames[:, :-1])


# -- stop rules of the papers -----------------------------------------------------------------------------------------
def spoken(lm: SpeechLM, wanted: Request | None = None) -> tuple[list[int], list[Tensor]]:
    """Phones that the frames were in, and the frames."""
    generation, frames = Generation(lm), []
    plan = generation.join(0, wanted or request())
    while not plan.done:
        frames += list(generation.tick().values())
    return [f.phone for f in frames], [f.codes for f in frames]


def test_a_stop_logit_ends_the_speech_in_its_last_phone_and_nowhere_else() -> None:
    lm = latent_lm("melle", stop="logit")
    last = len(PHONES)
    assert isinstance(lm.head, MelleHead)
    assert lm.head.ends is not None
    with torch.no_grad():
        lm.head.ends.weight.zero_()
        lm.head.ends.bias.fill_(9.0)
        phones, _ = spoken(lm)
        assert phones.count(last) == 1  # it ends with the first frame that may
        assert phones == sorted(phones)
        lm.head.ends.bias.fill_(-9.0)
        longest, _ = spoken(lm)
    assert longest.count(last) >= lm.config.longest  # never sure: the guard ends it
    lasting, _ = spoken(lm, Request(request().features, voice=1, frames=30))
    assert len(lasting) == 30  # a length that is asked for comes first


def test_the_distance_to_the_end_stops_before_another_frame_is_said() -> None:
    lm = latent_lm("gaussian", stop="distance")
    assert isinstance(lm.head, GaussianHead)
    law = lm.head.law[2]
    assert isinstance(law, torch.nn.Linear)
    with torch.no_grad():
        law.weight.zero_()
        law.bias[:16].fill_(1.0)
        law.bias[16:].fill_(0.5)
        assert float(lm.head.ended(randn(1, 8))) == pytest.approx(1.0)
        at_the_end, _ = spoken(lm)
        assert len(PHONES) not in at_the_end  # every frame foretells the end: none is left for the last phone
        law.bias[16:].fill_(-1.0)
        assert float(lm.head.ended(randn(1, 8))) < 0.1
        far, frames = spoken(lm)
    assert far.count(len(PHONES)) >= lm.config.longest
    assert all(torch.isfinite(f).all() for f in frames)


def test_a_stop_rule_must_fit_its_head() -> None:
    with pytest.raises(ConfigError, match="only a gaussian head"):
        latent_lm("flow", stop="distance")
