"""Trains the mel vocoder on random crops: spectral losses, and F0 for the harmonic head (as the codec's stage A)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...codecs.loading import load_codec
from ...codecs.mel import MelCodec, MelConfig
from ...codecs.native import XCodec
from ...errors import ConfigError
from ..losses import SpectralLoss, pitch_losses
from ..recipe import Recipe, start_from
from ..sampling import Mixture

__all__ = ["VocoderTask"]


class Options(BaseModel):
    """Attributes:
    crop: seconds per item. warm: a native codec whose decoder the vocoder starts from (its last blocks and head).
    predicted_f0: share of steps in which the head must use its own F0. blur: largest standard deviation of noise on the
        mel, so that the vocoder forgives a predicted one. energy: train by the spectral energy distance, with two
        samples of the noise (`SpectralLoss`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop: float = 0.96
    warm: str | None = None
    predicted_f0: float = 0.3
    blur: float = 0.1
    energy: bool = True
    stft: float = 1.0
    mel: float = 1.0
    f0: float = 2.0
    voicing: float = 0.5
    gain_db: tuple[float, float] = (-10.0, 2.0)


class VocoderTask:
    def __init__(self, recipe: Recipe) -> None:
        self.options = Options.model_validate(recipe.options)
        self.settings = MelConfig.model_validate(recipe.model)
        self.model = MelCodec(self.settings)
        if self.options.warm:
            _warm(self.model, self.options.warm)
        start_from(self.model, recipe)
        self.network = _Network(self.model, self.options)
        self.mixture = Mixture(recipe.data, longest=60.0)
        self.samples = round(self.options.crop * self.settings.sample_rate)
        self.samples -= self.samples % self.settings.hop
        self.count = max(1, round(recipe.batch_seconds / self.options.crop))

    def config(self) -> dict[str, Any]:
        return {"kind": "mel", **self.settings.model_dump()}

    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        audio, f0 = self.mixture.crops(rng, self.count, self.samples, self.options.gain_db)
        return {
            "audio": torch.from_numpy(audio[:, None]),
            "f0": torch.from_numpy(f0),
            "own_f0": torch.tensor(rng.random() < self.options.predicted_f0),
        }


class _Network(nn.Module):
    def __init__(self, model: MelCodec, options: Options) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.spectral = SpectralLoss(model.sample_rate)

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        o, audio, f0 = self.options, batch["audio"], batch["f0"]
        with torch.no_grad():
            mel, _ = self.model.encode(audio)
            blur = o.blur * torch.rand(len(mel), 1, 1, device=mel.device)
            mel = mel + blur * torch.randn_like(mel)
        given, hidden = None if bool(batch["own_f0"]) else f0, self.model.hidden(mel)
        head = self.model.head(hidden, None, given)
        other = self.model.head(hidden, None, given).audio if o.energy else None
        losses = self.spectral(head.audio, audio[:, 0], other)
        total = o.stft * losses["stft"] + o.mel * losses["mel"]
        if head.log_f0 is not None:
            losses |= pitch_losses(head, f0)
            total = total + o.f0 * losses["f0"] + o.voicing * losses["voicing"]
        return {"loss": total, **losses}


def _warm(model: MelCodec, name: str) -> None:
    """Copies the last blocks, the norm and the head of a native codec's decoder: they already make speech of hidden
    states at the same rate.

    Raises:
        ConfigError: of another shape.
    """
    codec = load_codec(name)
    if not isinstance(codec, XCodec):
        raise ConfigError(f"{name} is no native codec, whose decoder a vocoder could start from")
    try:
        for mine, theirs in (("blocks", "decoder_fast"), ("norm", "norm"), ("head", "head")):
            getattr(model, mine).load_state_dict(getattr(codec, theirs).state_dict())
    except RuntimeError as error:
        raise ConfigError(f"the decoder of {name} has another shape: {str(error).splitlines()[-1].strip()}") from None
