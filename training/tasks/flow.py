"""Trains conditional flow matching from speech tokens to mel on whole utterances (CosyVoice)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...codecs.features import LogMel
from ...tts.flow import FlowConfig, FlowModel
from ..pack import SAMPLE_RATE
from ..recipe import Recipe, start_from
from ..sampling import Mixture, Pick

__all__ = ["FlowTask"]

HOP, N_FFT = 240, 960


class Options(BaseModel):
    """Attributes:
    codes: name of the token track. drop: share of items trained without any condition, for guidance.
    still: share of items trained at time 0, where only the condition tells anything.
    prompted, longest_prompt: share of items that see a prefix of their own mel, and the longest share of it.
    described: of a flow with a speaker encoder: share of items whose speaker is told by the vector of another of their
        speaker's utterances, instead of by name. reference: shortest and longest crop of that one, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: str
    drop: float = 0.2
    still: float = 0.3
    prompted: float = 0.5
    longest_prompt: float = 0.3
    described: float = 0.7
    reference: tuple[float, float] = (1.5, 6.0)


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
        start_from(self.model, recipe)
        self.network = _Network(self.model)
        self.seconds = recipe.batch_seconds
        self.spoken: dict[str, list[Pick]] = {voice: [] for voice in voices}  # what each speaker has said
        for pack, usable in zip(self.mixture.packs, self.mixture.usable, strict=True):
            for index in usable.tolist():
                self.spoken[pack.entries[index].voice].append(Pick(pack, index))

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
        described = self._references(rng, picks) if self.settings.vector else {}
        chunk = int(rng.choice(self.settings.chunks, p=self._shares()))
        return {
            **described,
            "tokens": torch.from_numpy(tokens),
            "audio": torch.from_numpy(audio),
            "known": torch.from_numpy(np.arange(longest) < counts[:, None]),
            "prompt": torch.from_numpy(prompt),
            "dropped": torch.from_numpy(rng.random(len(picks)) < self.options.drop),
            "still": torch.from_numpy(rng.random(len(picks)) < self.options.still),
            "voice": torch.tensor([self.voice_ids[p.pack.entries[p.index].voice] for p in picks]),
            "chunk": torch.tensor(chunk),
            "first": torch.tensor(int(rng.integers(1, chunk + 1)) if chunk else 0),  # any grid of chunks
        }

    def _references(self, rng: np.random.Generator, picks: list[Pick]) -> dict[str, Tensor]:
        """For each item a crop of another utterance of its speaker (of itself, where there is no other)."""
        crops = []
        for pick in picks:
            entry = pick.pack.entries[pick.index]
            others = self.spoken[entry.voice]
            other = others[int(rng.integers(len(others)))]
            if other == pick and len(others) > 1:
                other = others[(others.index(pick) + 1) % len(others)]
            wanted = int(rng.uniform(*self.options.reference) * SAMPLE_RATE)
            have = other.pack.entries[other.index].samples
            start = int(rng.integers(max(1, have - wanted)))
            crops.append(other.pack.wave(other.index, start, min(wanted, have)))
        longest = max(len(crop) for crop in crops)
        audio = np.stack([np.pad(crop, (0, longest - len(crop))) for crop in crops])
        return {
            "reference": torch.from_numpy(audio[:, None]),
            "reference_frames": torch.tensor([-(-len(crop) // HOP) for crop in crops]),
            "described": torch.from_numpy(rng.random(len(picks)) < self.options.described),
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
        speaker = self.model.speaker(batch["voice"])
        if "reference" in batch:
            with torch.no_grad():
                reference = self.front(F.pad(batch["reference"], (0, -batch["reference"].shape[-1] % HOP)))
            vector = self.model.describe(reference, batch["reference_frames"])
            speaker = torch.where(batch["described"][:, None], self.model.speaker(None, vector), speaker)
        loss = self.model.loss(
            mel,
            batch["tokens"],
            batch["known"],
            speaker,
            batch["prompt"],
            batch["dropped"],
            int(batch["chunk"]),
            int(batch["first"]),
            batch["still"],
        )
        return {"loss": loss}
