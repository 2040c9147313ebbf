"""Trains conditional flow matching from speech tokens to mel on whole utterances (CosyVoice)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...codecs.features import LogMel
from ...tts.flow import FlowConfig, FlowModel
from ..recipe import Recipe
from ..sampling import Mixture

__all__ = ["FlowTask"]

HOP, N_FFT, SAMPLE_RATE = 240, 960, 24_000


class Options(BaseModel):
    """Attributes:
    codes: name of the token track. drop: share of items trained without any condition, for guidance.
    prompted, longest_prompt: share of items that see a prefix of their own mel, and the longest share of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: str
    drop: float = 0.2
    prompted: float = 0.5
    longest_prompt: float = 0.3


class FlowTask:
    def __init__(self, recipe: Recipe) -> None:
        self.options = Options.model_validate(recipe.options)
        self.track = f"codes.{self.options.codes}.u16"
        self.mixture = Mixture(recipe.data)
        self.mixture.keep(self.track, np.uint16)
        voices = self.mixture.voices()
        self.voice_ids = {voice: i for i, voice in enumerate(voices)}
        self.settings = FlowConfig.model_validate({**recipe.model, "voices": voices})
        self.model = FlowModel(self.settings)
        self.network = _Network(self.model)
        self.seconds = recipe.batch_seconds

    def config(self) -> dict[str, Any]:
        return {"kind": "flow", "codec": self.options.codes, **self.settings.model_dump()}

    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        picks = self.mixture.bucket(rng, self.seconds)
        codes = []
        for pick in picks:
            track, offsets = pick.pack.track(self.track, np.uint16, self.settings.codebooks)
            codes.append(np.asarray(track[offsets[pick.index] : offsets[pick.index + 1]], np.int64))
        counts = np.array([len(c) for c in codes])
        longest = counts.max()
        tokens = np.zeros((len(picks), self.settings.codebooks, longest), np.int64)
        audio = np.zeros((len(picks), 1, longest * self.settings.patch * HOP), np.float32)
        prompt = np.zeros((len(picks), longest), bool)
        for row, pick in enumerate(picks):
            tokens[row, :, : counts[row]] = codes[row].T
            wave = pick.pack.wave(pick.index)
            audio[row, 0, : len(wave)] = wave
            if rng.random() < self.options.prompted:
                prompt[row, : int(counts[row] * self.options.longest_prompt * rng.random())] = True
        return {
            "tokens": torch.from_numpy(tokens),
            "audio": torch.from_numpy(audio),
            "known": torch.from_numpy(np.arange(longest) < counts[:, None]),
            "prompt": torch.from_numpy(prompt),
            "dropped": torch.from_numpy(rng.random(len(picks)) < self.options.drop),
            "voice": torch.tensor([self.voice_ids[p.pack.entries[p.index].voice] for p in picks]),
            "chunk": torch.tensor(int(rng.choice(self.settings.chunks, p=self._shares()))),
        }

    def _shares(self) -> np.ndarray:
        """Full attention in half of the steps, the chunk sizes share the other half (CosyVoice 2)."""
        full = np.array([c == 0 for c in self.settings.chunks])
        if full.all() or not full.any():
            return np.full(len(full), 1 / len(full))
        return np.where(full, 0.5 / full.sum(), 0.5 / (~full).sum())


class _Network(nn.Module):
    def __init__(self, model: FlowModel) -> None:
        super().__init__()
        self.model = model
        self.front = LogMel(SAMPLE_RATE, N_FFT, HOP, model.config.mels)

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        with torch.no_grad():
            mel = self.front(batch["audio"])
        loss = self.model.loss(
            mel,
            batch["tokens"],
            batch["known"],
            self.model.speaker(batch["voice"]),
            batch["prompt"],
            batch["dropped"],
            int(batch["chunk"]),
        )
        return {"loss": loss}
