"""Trains the pointer-layout language model on packed codes and alignments.

Whole utterances, teacher forcing, and *history corruption*: some of the codes that the model sees as its own past are
replaced or blanked. Without it the model learns to continue the sound and to neglect the text, and drifts when its own
past is imperfect (research/tts.md 6.4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...codecs.loading import load_weights, model_folder, read_config, validated
from ...errors import ConfigError
from ...tts.latent_heads import LatentHead
from ...tts.lm import SpeechLM, SpeechLMConfig, phone_features
from ...tts.synthesizer import load_lm
from ...tts.text import is_pause
from ..align import pointers, progress_of, speaking_rate
from ..pack import ALIGN_RATE, Pack
from ..recipe import Recipe
from ..sampling import Mixture, Pick

__all__ = ["LMTask", "Options"]


class Options(BaseModel):
    """Attributes:
    codes: name of the code track (the codec).
    replace, blank: share of past frames whose codes are drawn at random, and that are blanked.
    weights: of the codebooks in the loss. advance: weight of the pointer's loss.
    share: share of the frames on which the (wide) code heads are trained in a step.
    rate_drop: share of utterances trained without knowing their speaking rate.
    body: a trained model of the same size over the same codes or latents, with any head: all that fits is taken from
        it, so that heads can be compared without learning to read again for each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: str
    replace: float = 0.12
    blank: float = 0.12
    weights: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4)
    advance: float = 0.3
    share: float = 0.5
    rate_drop: float = 0.1
    body: str | None = None


class LMTask:
    track = "codes"
    """What a row holds of the sound."""

    def __init__(self, recipe: Recipe) -> None:
        self.options = self.read(recipe.options)
        self._prepare()
        self.mixture = Mixture(recipe.data, texts=True)
        voices = sorted({p.entries[int(i)].voice for p, u in zip(self.mixture.packs, self.mixture.usable) for i in u})
        self._drop_unaligned()
        rates = [self._mean_rate(voice) for voice in voices]
        self._build(recipe, dict(zip(voices, rates, strict=True)))
        self.network = self._network()
        self.seconds = recipe.batch_seconds

    def _build(self, recipe: Recipe, rates: dict[str, float]) -> None:
        """Makes the model; `rates`: phones per second of each voice of the data."""
        if recipe.init is None:
            settings = {**recipe.model, "voices": tuple(rates), "rates": tuple(rates.values())}
            self.model = SpeechLM(SpeechLMConfig.model_validate(settings))
        else:
            self.model = _continued(model_folder(str(recipe.init)), recipe.model, rates)
        self.settings = self.model.config
        if self.options.body is not None:
            self._take_body(self.options.body)

    def _take_body(self, name: str) -> None:
        other, codec = load_lm(name)
        own, given = self.model.state_dict(), other.state_dict()
        fits = {key: x for key, x in given.items() if key in own and own[key].shape == x.shape}
        lacking = [key for key in own if not key.startswith("head.") and key not in fits]
        if lacking or Path(codec).name != Path(self.options.codes).name:
            raise ConfigError(
                f"options.body={name} (over {codec}) does not fit {', '.join(lacking[:3]) or 'this codec'}; give a "
                "model of the same backbone, voices and codec"
            )
        self.model.load_state_dict(fits, strict=False)

    def _network(self) -> nn.Module:
        return _Network(self.model, self.options)

    @staticmethod
    def read(options: dict[str, Any]) -> Options:
        """The task's options."""
        return Options.model_validate(options)

    def _prepare(self) -> None:
        """For a task that needs something before its model is built."""

    def voice_id(self, voice: str) -> int:
        return self.settings.voices.index(voice)

    def config(self) -> dict[str, Any]:
        return {"kind": "lm", "codec": self.options.codes, **self.settings.model_dump()}

    def _drop_unaligned(self) -> None:
        for i, pack in enumerate(self.mixture.packs):
            lengths = np.diff(pack.track("align.i16", np.int16)[1])
            self.mixture.usable[i] = self.mixture.usable[i][lengths[self.mixture.usable[i]] > 0]

    def _mean_rate(self, voice: str, most: int = 200) -> float:
        rates = []
        for pack, usable in zip(self.mixture.packs, self.mixture.usable, strict=True):
            for i in usable:
                if pack.entries[int(i)].voice == voice and len(rates) < most:
                    rates.append(self._rate(pack, int(i)))
        return round(float(np.mean(rates)), 3)

    @staticmethod
    def _rate(pack: Pack, index: int) -> float:
        track, offsets = pack.track("align.i16", np.int16)
        starts = track[offsets[index] : offsets[index + 1], 0]
        entry = pack.entries[index]
        return speaking_rate(starts, entry.phones, is_pause, -(-entry.samples // 480))

    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        rows = [self._row(pick, rng) for pick in self.mixture.bucket(rng, self.seconds)]
        out = {}
        for name in (self.track, "phones", "word_start", "upcoming", "pointer", "progress", "advance"):
            items = [row[name] for row in rows]
            longest = max(len(x) for x in items)
            fill = {"codes": self.settings.vocab, "advance": -100}.get(name, 0)  # samples are padded with silence
            padded = [F.pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x)), value=fill) for x in items]
            out[name] = torch.stack(padded)
        if self.track == "codes":
            out["codes"] = out["codes"].transpose(1, 2)
        out["voice"] = torch.tensor([row["voice"] for row in rows])
        out["rate"] = torch.tensor([row["rate"] for row in rows], dtype=torch.float32)
        return out

    def _row(self, pick: Pick, rng: np.random.Generator) -> dict[str, Any]:
        pack, index = pick.pack, pick.index
        track, offsets = pack.track(f"codes.{self.options.codes}.u16", np.uint16, self.settings.codebooks)
        codes = np.asarray(track[offsets[index] : offsets[index + 1]], np.int64)
        return {"codes": torch.from_numpy(codes), **self._text(pick, len(codes), ALIGN_RATE / 25, rng)}

    def _text(self, pick: Pick, frames: int, per_frame: float, rng: np.random.Generator) -> dict[str, Any]:
        """What the model reads beside its own past, and where the pointer goes, for an utterance of so many frames."""
        pack, index = pick.pack, pick.index
        entry = pack.entries[index]
        starts, align_offsets = pack.track("align.i16", np.int16)
        starts = np.asarray(starts[align_offsets[index] : align_offsets[index + 1], 0])
        pointer = pointers(starts, frames, per_frame)
        # The last frame advances past the end: that is the stop.
        following = np.append(pointer[1:], len(entry.phones) + 1)
        features = phone_features(entry.phones, {word[1] for word in entry.words})
        rate = np.log(self._rate(pack, index) / self.settings.rates[self.voice_id(entry.voice)])
        return {
            "phones": features.phones,
            "word_start": features.word_start,
            "upcoming": features.upcoming,
            "pointer": torch.from_numpy(pointer),
            "progress": torch.from_numpy(np.minimum(progress_of(pointer), self.settings.longest)),
            "advance": torch.from_numpy(np.minimum(following - pointer, self.settings.advance)),
            "voice": self.voice_id(entry.voice),
            "rate": 0.0 if rng.random() < self.options.rate_drop else float(np.clip(rate, -0.4, 0.4)),
        }


def _continued(folder: Path, settings: dict[str, Any], rates: dict[str, float]) -> SpeechLM:
    """The model of a checkpoint with its voices and those of the data (`rates`: voice -> phones per second); a new
    voice begins as the mean of the others."""
    config = read_config(folder)
    voices = tuple(config.get("voices", ("default",)))
    old = validated(SpeechLMConfig, {**settings, "voices": voices, "rates": ()}, folder)
    known = dict(zip(voices, config.get("rates") or [float(np.mean(list(rates.values())))] * len(voices), strict=True))
    known |= rates
    model = SpeechLM(old)
    load_weights(model, folder)
    new = len(known) - len(voices)
    grown = SpeechLM(old.model_copy(update={"voices": tuple(known), "rates": tuple(known.values())}))
    tensors = model.state_dict()
    table = tensors["voice.weight"]
    grown.load_state_dict({**tensors, "voice.weight": torch.cat([table, table.mean(0, keepdim=True).expand(new, -1)])})
    return grown


class _Network(nn.Module):
    def __init__(self, model: SpeechLM, options: Options) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        model, options = self.model, self.options
        steps = model.pattern.pack(batch["codes"])
        extra = model.pattern.extra
        pointer, progress = (
            F.pad(batch[k].float(), (0, extra), mode="replicate").long() if extra else batch[k]
            for k in ("pointer", "progress")
        )
        encoded = model.phones(batch["phones"], batch["word_start"], batch["upcoming"])
        previous = self._corrupt(model.shift(steps))
        hidden = model.hidden(previous, encoded, pointer, progress, batch["voice"], batch["rate"])
        frames = hidden[:, : hidden.shape[1] - extra] if extra else hidden
        advance = F.cross_entropy(model.advance(frames).float().transpose(1, 2), batch["advance"], ignore_index=-100)
        holds = (steps != model.config.vocab).any(1)
        chosen = holds & (torch.rand(holds.shape, device=holds.device) < options.share)
        assert not isinstance(model.head, LatentHead)
        levels = model.head.loss(hidden[chosen], steps.transpose(1, 2)[chosen])
        weights = torch.tensor(options.weights[: len(levels)], device=levels.device)
        codes = (levels * weights).sum() / weights.sum()
        return {
            "loss": codes + options.advance * advance,
            "first": levels[0],
            "codes": levels.mean(),
            "advance": advance,
        }

    def _corrupt(self, previous: Tensor) -> Tensor:
        """Past codes `[batch, K, step]` with some frames random and some empty."""
        batch, _, time = previous.shape
        dice = torch.rand(batch, 1, time, device=previous.device)
        random = torch.randint_like(previous, self.model.config.vocab)
        previous = torch.where(dice < self.options.replace, random, previous)
        empty = torch.full_like(previous, self.model.config.vocab)
        return torch.where(dice > 1 - self.options.blank, empty, previous)
