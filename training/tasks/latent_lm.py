"""Trains the pointer-layout language model on continuous tokens (MELLE, KALL-E, flow heads).

As `training/tasks/lm.py`, with latents: those that the packs store (`quaver corpus codes PACK --codec ...`), or else
made of the audio on the way, which a mel is cheap enough for. The model's own past is corrupted here too: noised by a
random amount per utterance (CAM, Pasini et al. 2024, in the variance-preserving form of CALM), and blanked at some
steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...codecs.base import Codec
from ...codecs.grouped import grouped
from ...codecs.loading import load_codec, model_folder
from ...errors import ConfigError
from ...tts.latent_heads import LatentHead
from ...tts.lm import SpeechLM
from ..align import check_latents, latents_track
from ..pack import ALIGN_RATE, SAMPLE_RATE
from ..sampling import Pick
from .lm import LMTask
from .lm import Options as LMOptions

__all__ = ["LatentLMTask"]

FITTED = 24
"""Utterances of each pack from which the latents' mean and scale are taken."""


class Options(LMOptions):
    """Attributes:
    codes: name or folder of the codec of latents. noise: largest share of the past's variance that is noise.
    losses: weights of the head's losses. warm: steps before MELLE's KL counts. normalise: whether the latents are
        normalised by their own mean and scale (a mel is as it is).
    """

    noise: float = Field(default=0.3, ge=0, lt=1)
    losses: dict[str, float] = Field(
        default={"regression": 1.0, "kl": 0.1, "flux": 0.1, "flow": 1.0, "map": 0.3, "stop": 0.1}
    )
    warm: int = 100
    normalise: bool = False
    share: float = 1.0


class LatentLMTask(LMTask):
    track = "audio"
    options: Options

    @staticmethod
    def read(options: dict[str, Any]) -> Options:
        return Options.model_validate(options)

    def _prepare(self) -> None:
        self.codec = load_codec(self.options.codes).requires_grad_(False)

    def _network(self) -> nn.Module:
        folder = model_folder(self.options.codes)
        self.stored = latents_track(folder.resolve().name)
        if all((pack.folder / self.stored).exists() for pack in self.mixture.packs):
            self.track = "latents"
            self.mixture.keep(self.stored, np.float16)
            for pack in self.mixture.packs:
                check_latents(pack, folder.resolve().name, folder)
        latent = self.settings.latent
        if latent is None:
            raise ConfigError("the task latent_lm needs model.latent and a continuous head")
        self.steps_of = grouped(self.codec, latent.group)
        if self.steps_of.frame_spec.dim != latent.dim:
            raise ConfigError(
                f"{latent.group} frames of {self.options.codes} have {self.steps_of.frame_spec.dim} numbers; "
                f"model.latent.dim says {latent.dim}"
            )
        if self.options.normalise and not bool((self._head.mean != 0).any()):
            self._head.fit(self._examples())
        return _Network(self.model, self.options, self.steps_of)

    @property
    def _head(self) -> LatentHead:
        assert isinstance(self.model.head, LatentHead)
        return self.model.head

    @torch.no_grad()
    def _examples(self) -> Tensor:
        """Latents `[n, dim]` of some utterances of every pack."""
        picks = [
            Pick(pack, int(i)) for pack, use in zip(self.mixture.packs, self.mixture.usable) for i in use[-FITTED:]
        ]
        if self.track == "latents":
            return torch.cat([self._stored(pick)[:, : self._head.config.dim] for pick in picks])
        waves = [torch.from_numpy(pick.pack.wave(pick.index))[None, None] for pick in picks]
        return torch.cat([self.steps_of.encode(wave)[0][0].T for wave in waves])

    def _stored(self, pick: Pick) -> Tensor:
        """Means and log standard deviations `[step, 2 * dim]` of an utterance; its last frames fill the last step."""
        group, width = self._head.config.group, self.codec.frame_spec.dim
        track, offsets = pick.pack.track(self.stored, np.float16, 2 * width)
        rows = torch.from_numpy(np.array(track[offsets[pick.index] : offsets[pick.index + 1]], np.float32))
        rows = torch.cat([rows, rows[-1:].expand(-len(rows) % group, -1)])
        mean, log_std = (half.reshape(len(rows) // group, -1) for half in rows.split(width, 1))
        return torch.cat([mean, log_std], 1)

    def _row(self, pick: Pick, rng: np.random.Generator) -> dict[str, Any]:
        size = self.steps_of.frame_size
        if self.track == "latents":
            latents = self._stored(pick)
            return {"latents": latents, **self._text(pick, len(latents), ALIGN_RATE * size / SAMPLE_RATE, rng)}
        wave = torch.from_numpy(pick.pack.wave(pick.index))
        wave = F.pad(wave, (0, -len(wave) % size))
        steps = len(wave) // size
        return {"audio": wave, **self._text(pick, steps, ALIGN_RATE * size / SAMPLE_RATE, rng)}


class _Network(nn.Module):
    """The codec is kept out of `parameters()`, in eval mode."""

    def __init__(self, model: SpeechLM, options: Options, codec: Codec) -> None:
        super().__init__()
        self.model, self.options = model, options
        self._codec = [codec]

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        model, options, head = self.model, self.options, self.model.head
        assert isinstance(head, LatentHead)
        steps, spread = self._steps(batch, head)
        holds = batch["advance"] != -100
        pointer, progress = batch["pointer"], batch["progress"]
        after = head.config.stop == "distance"
        if after:  # one step more, after the end
            steps, spread = F.pad(steps, (0, 1)), F.pad(spread, (0, 1))
            pointer, progress = _one_more(pointer, holds, 0), _one_more(progress, holds, 1)
        before = model.shift(steps)
        encoded = model.phones(batch["phones"], batch["word_start"], batch["upcoming"])
        hidden = model.hidden(self._corrupt(before), encoded, pointer, progress, batch["voice"], batch["rate"])
        frames = hidden[:, :-1] if after else hidden
        advance = F.cross_entropy(model.advance(frames).float().transpose(1, 2), batch["advance"], ignore_index=-100)
        chosen = F.pad(holds & (torch.rand(holds.shape, device=holds.device) < options.share), (0, int(after)))
        rows = (x.transpose(1, 2)[chosen] for x in (steps, spread, before))
        losses = head.loss(hidden[chosen], *rows)
        if head.config.stop != "pointer":
            count = holds.sum(1, keepdim=True)
            place = torch.arange(hidden.shape[1], device=holds.device)
            counted = place < count + int(after)
            losses["stop"] = head.stop_loss(hidden[counted], (place == count - 1 + int(after))[counted])
        total = options.advance * advance
        for name, value in losses.items():
            weight = options.losses.get(name, 1.0)
            if name == "kl" and "regression" in losses and step < options.warm:
                weight = 0.0  # MELLE: the regression first
            total = total + weight * value
        return {"loss": total, "advance": advance, **losses}

    @torch.no_grad()
    def _steps(self, batch: dict[str, Tensor], head: LatentHead) -> tuple[Tensor, Tensor]:
        """Latents and their log standard deviation `[batch, dim, step]`."""
        if "latents" in batch:
            mean, log_std = batch["latents"].transpose(1, 2).chunk(2, 1)
            return mean, log_std
        steps, spread = self._codec[0].to(batch["audio"].device).posterior(batch["audio"][:, None])
        if spread is None:
            log_spread = float(np.log(head.config.spread)) + head.scale.log()
            spread = log_spread[:, None].expand_as(steps)
        return steps.float(), spread

    def _corrupt(self, previous: Tensor) -> Tensor:
        """The past `[batch, dim, step]` with noise, some steps blanked."""
        head, options = self.model.head, self.options
        assert isinstance(head, LatentHead)
        batch, _, time = previous.shape
        share = options.noise * torch.rand(batch, 1, 1, device=previous.device)
        middle, scale = head.mean[:, None], head.scale[:, None]
        noisy = (1 - share).sqrt() * (previous - middle) + share.sqrt() * scale * torch.randn_like(previous) + middle
        blank = torch.rand(batch, 1, time, device=previous.device) < options.blank
        return noisy.masked_fill(blank, float("nan"))


def _one_more(values: Tensor, holds: Tensor, step: int) -> Tensor:
    """`[batch, step]` with a step after the end of each row: its last value, plus `step`."""
    end = holds.sum(1, keepdim=True)
    return F.pad(values, (0, 1)).scatter(1, end, values.gather(1, end - 1) + step)
