"""Trains the native codec on random crops: reconstruction, commitment, semantic distillation, and F0 for the harmonic
head.

Stage A has no discriminator; `gan` adds the adversarial stage B to it, from where `init` left off. `freeze_encoder`
continues with the decoder alone: the codes stay what they are, so language models trained on them stay valid while the
sound improves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...codecs.loading import TRAINING_ONLY, load_semantic
from ...codecs.native import XCodec, XCodecConfig, XCodecOutput
from ...codecs.quantizers import ResidualVQ
from ...codecs.semantic import SemanticTokenizer
from ...errors import ConfigError
from ..discriminators import Balancer, DiscriminatorConfig, Discriminators
from ..hub_teacher import PREFIX, HubTeacher, load_hub_teacher
from ..losses import SpectralLoss, pitch_losses
from ..recipe import Recipe
from ..sampling import Mixture

__all__ = ["CodecTask"]


class Gan(BaseModel):
    """The adversarial stage. Attributes:
    discriminators: which. weight, feature: of the adversarial and the feature-matching loss.
    warmup: steps in which the discriminators learn alone.
    balance: weigh all losses on the audio by their gradients (EnCodec's balancer), not by their values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    discriminators: DiscriminatorConfig = DiscriminatorConfig()
    weight: float = 1.0
    feature: float = 2.0
    warmup: int = 100
    balance: bool = False


class Options(BaseModel):
    """Attributes:
    teacher: folder or name of the semantic tokenizer whose features are distilled, or `hf:FOLDER` of a HuBERT, WavLM
        or Whisper encoder (`hub_teacher`); None for no semantic loss.
    crop: seconds per item.
    full_share, one_share: share of items that keep all codebooks, and only the first (quantizer dropout).
    bypass: share of items whose latents pass unquantized.
    gan: the adversarial stage, or None.
    predicted_f0: share of steps in which the head must use its own F0, as it does in use.
    energy: train the waveform by the spectral energy distance, with two samples of the head's noise (`SpectralLoss`).
    transplant: `init` has another bottleneck: that and the layers on both sides of it start anew.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str | None = None
    crop: float = 0.96
    full_share: float = 0.6
    one_share: float = 0.1
    bypass: float = 0.1
    predicted_f0: float = 0.1
    stft: float = 1.0
    mel: float = 1.0
    commit: float = 0.25
    semantic: float = 0.5
    student: float = 0.25
    f0: float = 2.0
    voicing: float = 0.5
    kl: float = 1e-3
    freeze_encoder: bool = False
    energy: bool = False
    transplant: bool = False
    gan: Gan | None = None
    gain_db: tuple[float, float] = (-10.0, 2.0)


class CodecTask:
    def __init__(self, recipe: Recipe) -> None:
        self.options = Options.model_validate(recipe.options)
        self.settings = XCodecConfig.model_validate(recipe.model)
        self.model = XCodec(self.settings)
        if recipe.init is not None:
            _start_from(self.model, recipe.init, self.options.transplant)
        self.mixture = Mixture(recipe.data, longest=60.0)
        self.network = _Network(self.model, self.options, self._teacher())
        self.samples = round(self.options.crop * self.settings.sample_rate)
        self.samples -= self.samples % self.settings.frame_size
        self.count = max(1, round(recipe.batch_seconds / self.options.crop))

    def _teacher(self) -> SemanticTokenizer | HubTeacher | None:
        name, settings = self.options.teacher, self.settings
        if name is None:
            return None
        if not name.startswith(PREFIX):
            return load_semantic(name)
        teacher = load_hub_teacher(name, settings.sample_rate, settings.frame_size)
        if teacher.dim != settings.teacher_dim:
            raise ConfigError(f"{name} gives features {teacher.dim} wide; set teacher_dim: {teacher.dim} in the recipe")
        strict = settings.semantic == "teacher_input"
        if strict and bool((self.model.teacher_scale != 1).any()):
            teacher.standardise_as(self.model)  # the run that this one starts from has chosen
            return teacher
        heard, _ = self.mixture.crops(np.random.default_rng(0), 16, 2 * settings.sample_rate, (0.0, 0.0))
        teacher.calibrate(torch.from_numpy(heard[:, None]))
        if strict:
            self.model.teacher_mean.copy_(teacher.mean)
            self.model.teacher_scale.copy_(teacher.scale)
        return teacher

    def config(self) -> dict[str, Any]:
        return {"kind": "codec", **self.settings.model_dump()}

    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        audio, f0 = self.mixture.crops(rng, self.count, self.samples, self.options.gain_db)
        levels = np.where(
            rng.random(self.count) < self.options.full_share,
            self.settings.codebooks,
            rng.integers(1, self.settings.codebooks + 1, self.count),
        )
        levels[rng.random(self.count) < self.options.one_share] = 1
        bypass = rng.random(self.count) < self.options.bypass
        return {
            "audio": torch.from_numpy(audio[:, None]),
            "f0": torch.from_numpy(f0),
            "levels": torch.from_numpy(levels),
            "bypass": torch.from_numpy(bypass),
            "own_f0": torch.tensor(rng.random() < self.options.predicted_f0),
        }


class _Network(nn.Module):
    """Codec and losses. The teacher is kept out of `parameters()` and always in eval mode: X-Codec's trainer leaves its
    teacher's dropout on, which makes the targets noisy."""

    def __init__(self, model: XCodec, options: Options, teacher: SemanticTokenizer | HubTeacher | None) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.spectral = SpectralLoss(model.sample_rate)
        self.discriminators = Discriminators(options.gan.discriminators) if options.gan else None
        self.balancer = Balancer(_audio_weights(options, options.gan)) if options.gan and options.gan.balance else None
        self._teacher = [teacher.eval().requires_grad_(False)] if teacher is not None else []
        for name, parameter in model.named_parameters():
            part = name.split(".")[0]
            # Without a teacher nothing uses the semantic losses' parts, and parameters that get no gradient would stop
            # a run on several processes.
            idle = teacher is None and part in TRAINING_ONLY
            parameter.requires_grad_(not idle and (part in _DECODER or not options.freeze_encoder))

    def train(self, mode: bool = True) -> _Network:
        super().train(mode)
        if self.options.freeze_encoder:
            self.model.quantizer.eval()  # codebooks must not move either
        return self

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        o = self.options
        audio, f0 = batch["audio"], batch["f0"]
        teacher = self._features(audio)
        given = None if bool(batch["own_f0"]) else f0
        out = self.model(
            audio,
            given,
            batch["levels"],
            batch["bypass"],
            teacher if self.model.config.semantic == "teacher_input" else None,
            o.energy,
        )
        total, losses = self._audio_losses(out.head.audio, audio[:, 0], out.other, step)
        for name, value in out.quantized.losses.items():
            losses[name] = value
            total = total + getattr(o, name) * value
        if out.head.log_f0 is not None and out.head.voicing is not None:
            losses |= pitch_losses(out.head, f0)
            total = total + o.f0 * losses["f0"] + o.voicing * losses["voicing"]
        if teacher is not None:
            losses |= _semantic_losses(out, teacher)
            total = total + o.semantic * losses["semantic"] + o.student * losses.get("student", 0.0)
        if isinstance(self.model.quantizer, ResidualVQ):
            usage = self.model.quantizer.usage
            losses["used"] = (usage > 0.1 * usage.mean(1, keepdim=True)).float().mean()
        return {"loss": total, **losses}

    def _audio_losses(
        self, made: Tensor, wanted: Tensor, other: Tensor | None, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is asked of the waveform `[batch, sample]`, and the discriminators' own loss."""
        gan = self.options.gan
        warm = gan is not None and step >= gan.warmup
        # The balancer needs the gradients at the audio: the losses are taken on a copy that has no past.
        balance = self.balancer is not None and warm and made.requires_grad
        copy = made.detach().requires_grad_() if balance else made
        losses = self.spectral(copy, wanted, other)
        if gan is None or self.discriminators is None:
            return self.options.stft * losses["stft"] + self.options.mel * losses["mel"], losses
        real = self.discriminators(wanted)
        asked = self.discriminators.generator(real, copy)
        losses |= {"adversarial": asked.adversarial, "feature": asked.feature}
        if balance and self.balancer is not None:
            total = self.balancer(made, losses, copy)
        else:
            weights = _audio_weights(self.options, gan, warm)
            total = sum((weight * losses[name] for name, weight in weights.items()), made.new_zeros(()))
        losses["discriminator"] = self.discriminators.loss(real, made)
        return total + losses["discriminator"], {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def _features(self, audio: Tensor) -> Tensor | None:
        if not self._teacher:
            return None
        teacher = self._teacher[0].to(audio.device)
        if isinstance(teacher, HubTeacher) and self.model.config.semantic == "teacher_input":
            teacher.standardise_as(self.model)  # a resumed run has them from its checkpoint
        return teacher(audio).features


_AROUND = ("prior", "quantizer", "post", "semantic_post")
_DECODER = ("post", "decoder_slow", "unfold", "decoder_fast", "norm", "head")


def _audio_weights(options: Options, gan: Gan, warm: bool = True) -> dict[str, float]:
    """Weight of each loss on the waveform; before the discriminators are warm theirs count for nothing."""
    adversarial = {"adversarial": gan.weight, "feature": gan.feature} if warm else {}
    return {"stft": options.stft, "mel": options.mel, **adversarial}


def _semantic_losses(out: XCodecOutput, teacher: Tensor) -> dict[str, Tensor]:
    """MSE + (1 - cosine) of the features rebuilt after the bottleneck, and of the student's before it."""

    def distance(x: Tensor) -> Tensor:
        return F.mse_loss(x, teacher) + (1 - F.cosine_similarity(x, teacher, 1)).mean()

    losses = {}
    if out.semantic is not None:
        losses["semantic"] = distance(out.semantic)
    if out.student is not None:
        losses["student"] = distance(out.student)
    return losses


def _start_from(model: XCodec, checkpoint: Path, transplant: bool) -> None:
    from safetensors.torch import load_file

    path = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    weights = load_file(path)
    if transplant:
        weights = {name: x for name, x in weights.items() if name.split(".")[0] not in _AROUND}
    model.load_state_dict(weights, strict=not transplant)
