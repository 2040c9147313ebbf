"""Heads for continuous tokens: what is drawn at a step is a vector of latents, not a set of codes.

- `MelleHead` (MELLE, Meng et al. 2024): latent sampling around a predicted mean, a residual MLP, a post-net.
- `GaussianHead` (KALL-E, Xia et al. 2024): the next *distribution*, fitted to the codec's posterior by the closed-form
  KL divergence. One matrix product a step, and an exact density.
- `MlpFlowHead` (MAR, Li et al. 2024; CAM, Pasini et al. 2024; CALM, Rouard et al. 2025): flow matching in an MLP that
  reads the hidden state; with `distill` it also learns its own flow map, so that one evaluation draws (Lagrangian
  self-distillation, Boffi et al. 2025, as in CALM and pocket-tts).

A vector is `dim` numbers: one latent frame of the codec, or `group` of them (`codecs/grouped.py`). All heads share the
normalisation of latents and the network that reads the step before. A vector of NaN stands for "none", as the codes'
empty id does: before the first step, and where training blanks the past.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..errors import ConfigError
from ..nn.noise import frame_noise
from ..nn.norm import RMSNorm
from .sampling import SamplingConfig

__all__ = ["GaussianHead", "LatentConfig", "LatentHead", "MelleHead", "MlpFlowHead", "make_latent_head"]

Where = tuple[Tensor, Tensor]
"""Of each row of a batch: the seed of its request, and the index of its first step (LongTensors[batch])."""

LOG_STD = (-8.0, 4.0)
END_MEAN, END_LOG_STD = 1.0, 0.5
"""KALL-E's end of speech, N(1, e): as wide as no frame of speech ever is."""
POSITIVE = 100.0
"""Weight of the one step that ends an utterance in the stop's cross-entropy (MELLE)."""


class LatentConfig(BaseModel):
    """Sizes and settings of continuous tokens.

    Attributes:
        dim: numbers per step. group: codec frames per step (the reduction factor r), so the codec has `dim / group`.
        hidden: width of the heads' MLPs. prenet: width of the network that reads the step before. dropout: in it; MELLE
            keeps it on in use, so in a `melle` model it is drawn from the request's own numbers.
        spread: standard deviation that counts for exact where the codec tells none (a mel): MELLE's prior and KALL-E's
            posterior.
        blocks: residual blocks of the flow head. steps: its evaluations a draw in use (1 with `distill`).
        distill: train the flow map as well. multiplier: draws of noise per hidden state in training.
        postnet: channels of MELLE's post-net (0 = none).
        stop: what ends the speech in its last phone: the `pointer`, which leaves it; a `logit` (MELLE, CALM); or the
            `distance` of the predicted distribution from one that stands for the end (KALL-E; `gaussian` heads only).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = 400
    group: int = Field(default=4, ge=1)
    hidden: int = 512
    prenet: int = 256
    dropout: float = Field(default=0.5, ge=0, lt=1)
    spread: float = Field(default=0.2, gt=0)
    blocks: int = 3
    steps: int = Field(default=6, ge=1)
    distill: bool = False
    multiplier: int = Field(default=2, ge=1)
    postnet: int = 128
    stop: Literal["pointer", "logit", "distance"] = "pointer"


class LatentHead(nn.Module):
    """What the heads share. `embed` makes inputs of a backbone of the steps before, `loss` and `sample` read its hidden
    states; latents are those of the codec, the normalised ones stay inside.

    Attributes:
        noise: standard normal numbers that one draw takes.
    """

    continuous = True
    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, config: LatentConfig) -> None:
        super().__init__()
        self.config, self.noise = config, config.dim
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("scale", torch.ones(config.dim))
        self.first = nn.Linear(config.dim, config.prenet)
        self.second = nn.Linear(config.prenet, config.prenet)
        self.into = nn.Linear(config.prenet, width)
        self.none = nn.Parameter(0.1 * torch.randn(width))
        self.norm = RMSNorm(width, eps=1e-6)
        if config.stop == "distance" and not isinstance(self, GaussianHead):
            raise ConfigError("only a gaussian head predicts a distribution whose distance can end the speech")
        self.ends = nn.Linear(width, 1) if config.stop == "logit" else None

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Takes mean and scale of each dimension from examples `[n, dim]`."""
        self.mean.copy_(latents.mean(0))
        self.scale.copy_(latents.std(0).clamp(min=1e-3))

    def embed(self, previous: Tensor, where: Where | None = None) -> Tensor:
        """Latents `[batch, dim, step]` (NaN = none) -> `[batch, step, width]`.

        Args:
            where: in use, whose steps these are: the dropout is then a function of them. Without it, dropout is that of
                the module's mode.
        """
        x = previous.transpose(1, 2)
        empty = x.isnan().any(-1, keepdim=True)
        x = ((x - self.mean) / self.scale).masked_fill(empty, 0.0)
        for place, layer in enumerate((self.first, self.second)):
            x = self._dropped(F.gelu(layer(x)), place, where)
        return torch.where(empty, self.none, self.into(x))

    def _dropped(self, x: Tensor, place: int, where: Where | None) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)

    def normalised(self, latents: Tensor) -> Tensor:
        return (latents - self.mean) / self.scale

    def loss(self, hidden: Tensor, target: Tensor, log_std: Tensor, previous: Tensor) -> dict[str, Tensor]:
        """Losses, averaged over n steps and all dimensions; `total` is the one to minimise.

        Args:
            hidden: `[n, width]`. target: latents `[n, dim]`. log_std: of the codec's posterior around them `[n, dim]`.
            previous: the true latents of the step before `[n, dim]` (NaN = none).
        """
        raise NotImplementedError

    def stop_loss(self, hidden: Tensor, last: Tensor) -> Tensor:
        """Of hidden states `[n, width]`, and whether speech ends with them (BoolTensor[n]). With `stop: distance`, the
        states that are marked lie after the end: they must foretell it."""
        if self.ends is not None:
            logits = self.ends(self.norm(hidden))[:, 0].float()
            return F.binary_cross_entropy_with_logits(logits, last.float(), pos_weight=logits.new_tensor(POSITIVE))
        return self._end_distance(hidden[last]).mean()

    def ended(self, hidden: Tensor) -> Tensor:
        """How sure it is that speech ends here (`logit`) or has ended before (`distance`), 0..1, of `[slot, width]`."""
        if self.ends is not None:
            return self.ends(self.norm(hidden))[:, 0].float().sigmoid()
        return (-self._end_distance(hidden)).exp()

    def _end_distance(self, hidden: Tensor) -> Tensor:
        """KL(end of speech || prediction), nats per dimension."""
        raise NotImplementedError

    def sample(self, hidden: Tensor, noise: Tensor, config: SamplingConfig, previous: Tensor) -> Tensor:
        """Draws latents `[slot, dim]`; `hidden[slot, width]`, `noise[slot, noise]` from each request's own generator,
        `previous[slot, dim]` the step before. The temperature is a factor on the noise."""
        raise NotImplementedError


class MelleHead(LatentHead):
    """`mean + std * noise`, a residual MLP, and a causal post-net over the frames of this step and the one before (the
    paper's sees the whole utterance, and cannot stream)."""

    def __init__(self, width: int, config: LatentConfig) -> None:
        super().__init__(width, config)
        dim, hidden = config.dim, config.hidden
        self.law = nn.Linear(width, 2 * dim)
        last = nn.Linear(hidden, dim)
        self.refine = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), last)
        self.postnet = _PostNet(dim // config.group, config.postnet) if config.postnet else None
        nn.init.zeros_(last.weight)
        nn.init.constant_(self.law.bias[dim:], math.log(config.spread))

    def _dropped(self, x: Tensor, place: int, where: Where | None) -> Tensor:
        rate = self.config.dropout
        if where is None or self.training:
            return F.dropout(x, rate, self.training)
        seed, start = where
        # The same numbers however the steps are cut. A normal number lies below `edge` with probability `rate`.
        drawn = frame_noise(seed * 2 + place, start, x.shape[1], x.shape[2]).transpose(1, 2)
        edge = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * rate - 1.0)))
        return x * (drawn > edge) / (1 - rate)

    def _law(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.law(self.norm(hidden)).float().chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def _outputs(self, drawn: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """The paper's y' and y'' from z: after the residual MLP, and after the post-net. All normalised."""
        rough = drawn + self.refine(drawn)
        if self.postnet is None:
            return rough, rough
        return rough, rough + self.postnet(rough, previous, self.config.group)

    def loss(self, hidden: Tensor, target: Tensor, log_std: Tensor, previous: Tensor) -> dict[str, Tensor]:
        """Regression, KL to N(target, spread^2), and the spectrogram flux (larger is better, so it counts as minus;
        clamped at 1 per dimension, or it outgrows the rest). The task weighs them."""
        y, before = self.normalised(target), self.normalised(previous).nan_to_num(0.0)
        mean, spread = self._law(hidden)
        rough, fine = self._outputs(mean + spread.exp() * torch.randn_like(mean), before)
        regression = sum(((out - y).abs() + (out - y).square()).mean() for out in (rough, fine))
        prior = math.log(self.config.spread)
        kl = _gaussian_kl(mean, spread, y, torch.full_like(y, prior)).mean()
        flux = -(mean - before).abs().clamp(max=1.0).mean()
        assert isinstance(regression, Tensor)
        return {"regression": regression, "kl": kl, "flux": flux}

    def sample(self, hidden: Tensor, noise: Tensor, config: SamplingConfig, previous: Tensor) -> Tensor:
        mean, log_std = self._law(hidden)
        drawn = mean + config.temperature * log_std.exp() * noise
        return self._outputs(drawn, self.normalised(previous).nan_to_num(0.0))[1] * self.scale + self.mean


class _PostNet(nn.Module):
    """Five convolutions over the frames of a step, each of which sees frames before it only."""

    def __init__(self, dim: int, channels: int, kernel: int = 5) -> None:
        super().__init__()
        widths = [dim, *[channels] * 4, dim]
        layers = [nn.Conv1d(a, b, kernel) for a, b in pairwise(widths)]
        nn.init.zeros_(layers[-1].weight)
        self.layers, self.kernel = nn.ModuleList(layers), kernel

    def forward(self, step: Tensor, previous: Tensor, group: int) -> Tensor:
        """Corrections `[n, group * dim]` of a step, given it and the one before, both normalised."""
        x = torch.cat([previous, step], -1).reshape(len(step), 2 * group, -1).transpose(1, 2)
        for i, layer in enumerate(self.layers):
            x = layer(F.pad(x, (self.kernel - 1, 0)))
            if i + 1 < len(self.layers):
                x = x.tanh()
        return x[:, :, group:].transpose(1, 2).reshape(len(step), -1)


class GaussianHead(LatentHead):
    """A diagonal Gaussian over the next latents, fitted to the posterior (distribution to distribution)."""

    def __init__(self, width: int, config: LatentConfig) -> None:
        super().__init__(width, config)
        self.law = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, 2 * config.dim))

    def _law(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.law(self.norm(hidden)).float().chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def loss(self, hidden: Tensor, target: Tensor, log_std: Tensor, previous: Tensor) -> dict[str, Tensor]:
        mean, spread = self._law(hidden)
        return {"kl": _gaussian_kl(self.normalised(target), log_std - self.scale.log(), mean, spread).mean()}

    def _end_distance(self, hidden: Tensor) -> Tensor:
        mean, log_std = self._law(hidden)
        end = torch.full_like(mean, END_MEAN)
        return _gaussian_kl(end, torch.full_like(mean, END_LOG_STD), mean, log_std).mean(-1)

    def log_prob(self, hidden: Tensor, latents: Tensor) -> Tensor:
        """Log-density of latents `[n, dim]`, in nats, `[n]`."""
        mean, log_std = self._law(hidden)
        z = (self.normalised(latents) - mean) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, hidden: Tensor, noise: Tensor, config: SamplingConfig, previous: Tensor) -> Tensor:
        mean, log_std = self._law(hidden)
        return (mean + config.temperature * log_std.exp() * noise) * self.scale + self.mean


class MlpFlowHead(LatentHead):
    """Flow matching from noise (time 0) to latents (time 1), per step, in an MLP with adaLN.

    The network tells the clean latents, from which the flow map follows: X(s, t, x) = x + (t - s) / (1 - s) (clean -
    x). So one evaluation to t = 1 gives `clean` itself, and a vector as wide as the MLP need not be carried through.
    """

    def __init__(self, width: int, config: LatentConfig) -> None:
        super().__init__(width, config)
        hidden = config.hidden
        self.enter = nn.Linear(config.dim, hidden)
        self.context = nn.Linear(width, hidden)
        self.times = nn.Sequential(nn.Linear(64, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.blocks = nn.ModuleList(_FlowBlock(hidden) for _ in range(config.blocks))
        self.leave = nn.Linear(hidden, config.dim)

    def clean(self, context: Tensor, start: Tensor, end: Tensor, x: Tensor) -> Tensor:
        """The clean latents that the flow map from `start` to `end` (`[n, 1]`) points at, for noisy `x[n, dim]`."""
        how = F.silu(context + self.times(torch.cat([_waves(start), _waves(end)], -1)))
        y = self.enter(x)
        for block in self.blocks:
            y = block(y, how)
        return self.leave(y)

    def loss(self, hidden: Tensor, target: Tensor, log_std: Tensor, previous: Tensor) -> dict[str, Tensor]:
        """Flow matching, weighted as in `tts/flow.py`; with `distill` also the flow map against the flow itself."""
        many = self.config.multiplier
        context = self.context(self.norm(hidden)).repeat(many, 1)
        goal = self.normalised(target).repeat(many, 1)
        noise = torch.randn_like(goal)
        time = 1 - (torch.rand(len(goal), 1, device=goal.device) * math.pi / 2).cos()
        time = time * (torch.rand_like(time) > 0.2)
        x = noise.lerp(goal, time)
        weight = 1 / (1 - time).clamp(min=0.5).square()
        losses = {"flow": (weight * (self.clean(context, time, time, x) - goal).square()).mean()}
        if self.config.distill:
            losses["map"] = self._map_loss(context, noise, goal)
        return losses

    def _map_loss(self, context: Tensor, noise: Tensor, goal: Tensor) -> Tensor:
        """The Lagrangian residual: where the flow map from s moves as t grows, against the flow at where it is."""
        part = slice(0, max(1, len(goal) // self.config.multiplier))
        context, noise, goal = context[part], noise[part], goal[part]
        start, end = torch.rand(2, len(goal), 1, device=goal.device).sort(0).values * 0.95
        start = start * (torch.rand_like(start) > 0.3)
        x = noise.lerp(goal, start)

        def reached(t: Tensor) -> Tensor:
            return x + (t - start) / (1 - start) * (self.clean(context, start, t, x) - x)

        place, speed, *_ = torch.func.jvp(reached, (end,), (torch.ones_like(end),))
        with torch.no_grad():
            wanted = (self.clean(context, end, end, place) - place) / (1 - end)
        return ((1 - end).square() * (speed - wanted).square()).mean()

    def sample(self, hidden: Tensor, noise: Tensor, config: SamplingConfig, previous: Tensor) -> Tensor:
        context = self.context(self.norm(hidden))
        x = config.temperature * noise
        count = self.config.steps if config.steps is None else config.steps
        times = [1 - math.cos(math.pi / 2 * i / count) for i in range(count)] + [1.0]
        for now, after in pairwise(times):
            start, end = x.new_full((len(x), 1), now), x.new_full((len(x), 1), after)
            clean = self.clean(context, start, end if self.config.distill else start, x)
            x = x + (after - now) / (1 - now) * (clean - x)
        return x * self.scale + self.mean


class _FlowBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, how: Tensor) -> Tensor:
        shift, scale, gate = self.modulate(how).chunk(3, -1)
        return x + (1 + gate) * self.mlp(self.norm(x) * (1 + scale) + shift)


def _waves(time: Tensor) -> Tensor:
    """Sines and cosines `[n, 32]` of times `[n, 1]`."""
    rates = (torch.arange(16, device=time.device) * (math.log(1000) / 15)).exp()
    return torch.cat([(time * rates).sin(), (time * rates).cos()], -1)


def _gaussian_kl(mean: Tensor, log_std: Tensor, other: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(other, other_std^2)) per dimension, in nats."""
    ratio = (2 * (log_std - other_log_std)).exp()
    return other_log_std - log_std + 0.5 * (ratio + (mean - other).square() * (-2 * other_log_std).exp() - 1)


HEADS: dict[str, type[LatentHead]] = {"melle": MelleHead, "gaussian": GaussianHead, "flow": MlpFlowHead}


def make_latent_head(kind: Literal["melle", "gaussian", "flow"], width: int, config: LatentConfig) -> LatentHead:
    return HEADS[kind](width, config)
