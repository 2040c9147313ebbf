"""The adversarial stage of codecs and vocoders: discriminators, their losses, and the balancer of the generator's.

Discriminators see what a spectral loss does not: the fine structure of phase and the texture of noise. Two kinds, as in
DAC (Kumar et al. 2023): complex STFTs at several resolutions (EnCodec's, Defossez et al. 2022) and the waveform folded
at several periods (HiFi-GAN's, Kong et al. 2020). Losses are LSGAN's (Mao et al. 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["Balancer", "Discriminators", "DiscriminatorConfig", "GeneratorLosses", "Judgement"]

SLOPE = 0.2


class DiscriminatorConfig(BaseModel):
    """Attributes:
    stft: (n_fft, hop) of each complex-STFT discriminator. periods: of each waveform discriminator.
    channels, period_channels: of the first layer. depth: layers before the output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stft: tuple[tuple[int, int], ...] = ((256, 128), (512, 256), (1024, 512))
    periods: tuple[int, ...] = ()
    channels: int = 16
    period_channels: int = 16
    depth: int = 4


@dataclass
class Judgement:
    """What one discriminator says of a batch: logits of any shape, and the features of its layers."""

    logits: Tensor
    features: list[Tensor]


class _STFTDiscriminator(nn.Module):
    """2-D convolutions over real and imaginary part, `[batch, 2, frame, bin]`; the bins are halved at each layer."""

    window: Tensor

    def __init__(self, n_fft: int, hop: int, channels: int, depth: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        layers = [nn.Conv2d(2, channels, (3, 5), padding=(1, 2))]
        layers += [nn.Conv2d(channels, channels, (3, 5), stride=(1, 2), padding=(1, 2)) for _ in range(depth - 1)]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.out = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> Judgement:
        spectra = torch.stft(audio, self.n_fft, self.hop, window=self.window, return_complex=True, normalized=True)
        x = torch.stack([spectra.real, spectra.imag], 1).transpose(2, 3)
        return _through(self.layers, self.out, x)


class _PeriodDiscriminator(nn.Module):
    """2-D convolutions over the waveform folded at a period, `[batch, 1, sample / period, period]`."""

    def __init__(self, period: int, channels: int, depth: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(min(channels * 4**i, 16 * channels) for i in range(depth))]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), padding=(2, 0))) for a, b in pairwise(widths)
        )
        self.out = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> Judgement:
        x = F.pad(audio, (0, -audio.shape[-1] % self.period), mode="reflect")
        return _through(self.layers, self.out, x.view(len(x), 1, -1, self.period))


def _through(layers: nn.ModuleList, out: nn.Module, x: Tensor) -> Judgement:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        features.append(x)
    return Judgement(out(x), features)


class Discriminators(nn.Module):
    """All discriminators of a run: audio `[batch, sample]` -> one judgement each."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        members: list[nn.Module] = [_STFTDiscriminator(*size, config.channels, config.depth) for size in config.stft]
        members += [_PeriodDiscriminator(p, config.period_channels, config.depth) for p in config.periods]
        self.members = nn.ModuleList(members)

    def forward(self, audio: Tensor) -> list[Judgement]:
        # Without its mean and at one level, as in DAC: loudness must not give the copy away.
        audio = audio - audio.mean(-1, keepdim=True)
        audio = 0.8 * audio / audio.abs().amax(-1, keepdim=True).clamp(min=1e-3)
        return [member(audio) for member in self.members]

    def loss(self, real: list[Judgement], copy: Tensor) -> Tensor:
        """What the discriminators minimise: 1 for the original, 0 for the copy `[batch, sample]`."""
        total = copy.new_zeros(())
        for yes, no in zip(real, self(copy.detach()), strict=True):
            total = total + (yes.logits - 1).square().mean() + no.logits.square().mean()
        return total / len(self.members)

    def generator(self, real: list[Judgement], copy: Tensor) -> GeneratorLosses:
        """What the generator minimises. No gradient reaches the discriminators' own weights, so that both losses can be
        summed and stepped by one optimizer."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        judged: list[Judgement] = functional_call(self, weights, (copy,))
        adversarial = torch.stack([(j.logits - 1).square().mean() for j in judged]).mean()
        distances = [
            F.l1_loss(mine, its.detach()) / its.detach().abs().mean().clamp(min=1e-3)
            for j, r in zip(judged, real, strict=True)
            for mine, its in zip(j.features, r.features, strict=True)
        ]
        return GeneratorLosses(adversarial, torch.stack(distances).mean())


@dataclass
class GeneratorLosses:
    """Attributes: adversarial: LSGAN. feature: relative L1 between the features of copy and original, mean over layers
    (feature matching, Larsen et al. 2016)."""

    adversarial: Tensor
    feature: Tensor


class Balancer(nn.Module):
    """EnCodec's loss balancer: each loss on the audio gets its share of the *gradient*, whatever its scale.

    `forward(audio, losses, copy)` with losses computed on `copy` (a detached copy of `audio` that wants gradients)
    returns a scalar whose gradient at `audio` is the sum of the losses' gradients, each divided by the running mean of
    its norm and multiplied by its weight's share.
    """

    def __init__(self, weights: Mapping[str, float], decay: float = 0.99) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.decay = decay
        self.register_buffer("norms", torch.zeros(len(self.weights)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    norms: Tensor
    steps: Tensor

    def forward(self, audio: Tensor, losses: Mapping[str, Tensor], copy: Tensor) -> Tensor:
        gradients = [torch.autograd.grad(losses[name], copy, retain_graph=True)[0].float() for name in self.weights]
        self._observe([g.flatten(1).norm(dim=1).mean() for g in gradients])
        # The running mean starts at zero; what is missing of it is known from the number of steps (Adam's correction).
        norms = self.norms / (1 - self.decay ** float(self.steps))
        total = sum(self.weights.values())
        parts: Sequence[Tensor] = [
            g * (weight / total / norm.clamp(min=1e-12))
            for g, weight, norm in zip(gradients, self.weights.values(), norms, strict=True)
        ]
        return (audio.float() * torch.stack(list(parts)).sum(0)).sum() / len(audio)

    @torch.no_grad()
    def _observe(self, norms: list[Tensor]) -> None:
        self.steps += 1
        self.norms.lerp_(torch.stack(norms), 1 - self.decay)
