"""Trains the semantic tokenizer as a phoneme recogniser with the CTC loss.

Targets are phonemes without stress; punctuation is a pause symbol, and every utterance begins and ends with one, so
that silence has a label of its own and does not hide in the blank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...codecs.semantic import SemanticConfig, SemanticTokenizer
from ...tts.alignment import BLANK, PAUSE, ctc_targets
from ...tts.text import BASE_PHONES, is_pause
from ..durations import TRACK
from ..recipe import Recipe, start_from
from ..sampling import Mixture, Pick

__all__ = ["CTCTask", "ctc_symbols"]


def ctc_symbols() -> tuple[str, ...]:
    """The recogniser's outputs: blank, pause, then the phonemes without stress."""
    return (BLANK, PAUSE, *(p for p in BASE_PHONES if p not in ("_", "^") and not is_pause(p)))


class Options(BaseModel):
    """Attributes:
    noise: largest standard deviation of added white noise. gain_db: range of random gain.
    rounding_from: step before which nothing is rounded (from random weights, rounding hides the input); bypass: share
        of items that are not rounded afterwards.
    frames: weight of the frame-wise cross-entropy, on utterances whose teacher told its durations
        (`training/durations.py`). ctc_from: step before which only such utterances are drawn and CTC is off: from
        random weights, CTC pulls every frame to one symbol and sat there for 900 steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: float = 0.02
    gain_db: tuple[float, float] = (-12.0, 3.0)
    rounding_from: int = 300
    bypass: float = 0.25
    frames: float = 1.0
    ctc_from: int = 250


class CTCTask:
    def __init__(self, recipe: Recipe) -> None:
        self.options = Options.model_validate(recipe.options)
        self.symbols = ctc_symbols()
        self.ids = {s: i for i, s in enumerate(self.symbols)}
        self.settings = SemanticConfig.model_validate({**recipe.model, "symbols": self.symbols})
        self.model = SemanticTokenizer(self.settings)
        start_from(self.model, recipe)

        self.mixture = Mixture(recipe.data, texts=True)
        labelled = tuple(s for s in recipe.data if (s.pack / TRACK).exists())
        self.ctc_from = self.options.ctc_from if labelled else 0
        self.start = Mixture(labelled, texts=True) if labelled else self.mixture
        self.network = _Network(self.model, self.options.frames, self.ctc_from)
        self.seconds = recipe.batch_seconds

    def config(self) -> dict[str, Any]:
        return {"kind": "semantic", **self.settings.model_dump()}

    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        picks = (self.start if step < self.ctc_from else self.mixture).bucket(rng, self.seconds)
        longest = max(p.pack.entries[p.index].samples for p in picks)
        longest += -longest % self.model.frame_size
        share = 1.0 if step < self.options.rounding_from else self.options.bypass
        audio = np.zeros((len(picks), 1, longest), np.float32)
        frames, targets, labels = [], [], []
        for row, pick in enumerate(picks):
            wave = pick.pack.wave(pick.index)
            gain = 10 ** (rng.uniform(*self.options.gain_db) / 20)
            noise = rng.standard_normal(len(wave)) * (self.options.noise * rng.random() ** 3)
            audio[row, 0, : len(wave)] = wave * gain + noise
            labels.append(self._labels(pick, longest // self.model.frame_size * 2))
            frames.append(-(-len(wave) // self.model.frame_size) * 2)
            targets.append([self.ids[s] for s in ctc_targets(pick.pack.entries[pick.index].phones)])
        return {
            "audio": torch.from_numpy(audio),
            "frames": torch.tensor(frames),
            "labels": torch.from_numpy(np.stack(labels)),
            "bypass": torch.from_numpy(rng.random(len(picks)) < share),
            "targets": torch.tensor([i for t in targets for i in t]),
            "target_lengths": torch.tensor([len(t) for t in targets]),
        }

    def _labels(self, pick: Pick, frames: int) -> np.ndarray:
        """The symbol of each 50 Hz frame `[frames]`, -100 where it is not known."""
        labels = np.full(frames, -100)
        starts = self._teacher_starts(pick)
        if len(starts):
            entry = pick.pack.entries[pick.index]
            ids = np.array([self.ids[s] for s in ctc_targets(entry.phones)])
            count = min(frames, -(-entry.samples // (self.model.frame_size // 2)))
            labels[:count] = ids[np.searchsorted(starts, np.arange(count), side="right") - 1]
        return labels

    @staticmethod
    def _teacher_starts(pick: Pick) -> np.ndarray:
        if not (pick.pack.folder / TRACK).exists():
            return np.zeros(0, np.int16)
        track, offsets = pick.pack.track(TRACK, np.int16)
        return track[offsets[pick.index] : offsets[pick.index + 1], 0]


class _Network(nn.Module):
    def __init__(self, model: SemanticTokenizer, frame_weight: float, ctc_from: int) -> None:
        super().__init__()
        self.model, self.frame_weight, self.ctc_from = model, frame_weight, ctc_from

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        log_probs = self.model(batch["audio"], batch["bypass"]).log_probs
        loss = F.ctc_loss(
            log_probs.transpose(0, 1), batch["targets"], batch["frames"], batch["target_lengths"], zero_infinity=True
        )
        known = (batch["labels"] >= 0).any()
        frames = F.nll_loss(log_probs.transpose(1, 2), batch["labels"]) if known else log_probs.new_zeros(())
        ctc_weight = float(step >= self.ctc_from)
        return {"loss": ctc_weight * loss + self.frame_weight * frames, "ctc": loss, "frames": frames}
