"""The adversarial stage: who learns from which loss, and that the balancer gives each loss its share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quaver.training.discriminators import Balancer, DiscriminatorConfig, Discriminators

SMALL = DiscriminatorConfig(stft=((64, 32),), periods=(2, 3), channels=4, period_channels=4, depth=2)


def speech(seed: int, batch: int = 2, samples: int = 960) -> Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def test_discriminators_learn_to_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    judges = Discriminators(SMALL)
    optimizer = torch.optim.Adam(judges.parameters(), 1e-2)
    tone = (0.3 * torch.arange(960)).sin().expand(4, 960)
    losses = []
    for step in range(40):
        loss = judges.loss(judges(tone), speech(step, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_the_generators_loss_reaches_the_audio_and_no_judge() -> None:
    judges = Discriminators(SMALL)
    copy = speech(1).requires_grad_()
    asked = judges.generator(judges(speech(2)), copy)
    gradient = torch.autograd.grad(asked.adversarial + asked.feature, copy, retain_graph=True)[0]
    assert gradient.abs().max() > 0
    (asked.adversarial + asked.feature).backward()
    assert all(p.grad is None for p in judges.parameters())


def test_a_perfect_copy_matches_all_features() -> None:
    judges = Discriminators(SMALL)
    audio = speech(3)
    assert float(judges.generator(judges(audio), audio).feature) < 1e-6
    assert float(judges.generator(judges(audio), speech(4)).feature) > 0.1


def test_loudness_does_not_give_a_copy_away() -> None:
    judges = Discriminators(SMALL)
    audio = speech(5)
    for loud, quiet in zip(judges(audio), judges(0.25 * audio + 0.01), strict=True):
        assert torch.allclose(loud.logits, quiet.logits, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_balancer_shares_the_gradient_by_weight_whatever_the_scale(scale: float) -> None:
    audio = speech(6).requires_grad_()
    copy = audio.detach().requires_grad_()
    a, b = speech(7), speech(8)
    losses = {"a": scale * (copy * a).sum(), "b": (copy * b).sum()}
    balancer = Balancer({"a": 3.0, "b": 1.0, "unused": 0.0})
    gradient = torch.autograd.grad(balancer(audio, losses, copy), audio)[0]
    expected = (0.75 * a / a.norm(dim=1).mean() + 0.25 * b / b.norm(dim=1).mean()) / 2
    assert torch.allclose(gradient, expected, atol=1e-6)
