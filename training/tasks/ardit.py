"""Trains ARDiT: block diffusion over stored latents, with gaps to fill among what it learns, and phone lengths.

The latents come from `quaver corpus codes PACK --codec CODEC` of a codec with a `vae` bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ...codecs.loading import load_codec, load_weights, model_folder
from ...errors import ConfigError
from ...tts.ardit import Ardit, ArditConfig, Course
from ...tts.lm import phone_features
from ..align import check_latents, latents_track
from ..pack import ALIGN_RATE, Pack
from ..recipe import Recipe
from ..sampling import Pick
from .lm import LMTask

__all__ = ["ArditTask", "Given", "Options"]

FITTED = 24
"""Utterances of each pack from which the latents' mean and scale are taken."""


class Options(BaseModel):
    """Attributes:
    codes: name or folder of the codec of latents.
    noise: largest share of the past's variance that is noise (CAM's idea in CALM's form).
    gaps: share of utterances of which a part is to be filled in, knowing what is around it (FIM).
    nobody: share of utterances whose voice is not told.
    still: share of blocks that begin at time 0, pure noise.
    lengths: weight of the phone lengths' loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: str
    noise: float = Field(default=0.3, ge=0, lt=1)
    gaps: float = Field(default=0.3, ge=0, le=1)
    nobody: float = Field(default=0.15, ge=0, le=1)
    still: float = Field(default=0.2, ge=0, le=1)
    lengths: float = 0.1


class ArditTask(LMTask):
    options: Options
    model: Ardit
    settings: ArditConfig

    @staticmethod
    def read(options: dict[str, Any]) -> Options:
        return Options.model_validate(options)

    def _prepare(self) -> None:
        folder = model_folder(self.options.codes)
        spec = load_codec(str(folder)).frame_spec
        if spec.kind != "latents":
            raise ConfigError(f"{self.options.codes} makes codes; ARDiT needs a codec with a vae bottleneck")
        self.rate, self.codec_folder = float(spec.rate), folder
        self.track_name = latents_track(folder.resolve().name)

    def _build(self, recipe: Recipe, rates: dict[str, float]) -> None:
        self.settings = ArditConfig.model_validate(
            {**recipe.model, "voices": tuple(rates), "rates": tuple(rates.values())}
        )
        self.model = Ardit(self.settings)
        self.mixture.keep(self.track_name, np.float16)
        for pack in self.mixture.packs:
            check_latents(pack, self.codec_folder.resolve().name, self.codec_folder)
        if recipe.init is not None:
            load_weights(self.model, model_folder(str(recipe.init)))
        else:
            self.model.fit(self._examples())

    def _network(self) -> nn.Module:
        return _Network(self.model, self.options)

    def config(self) -> dict[str, Any]:
        return {"kind": "ardit", "codec": self.options.codes, **self.settings.model_dump()}

    def _latents(self, pack: Pack, index: int) -> np.ndarray:
        """Posterior means `[frame, dim]`."""
        track, offsets = pack.track(self.track_name, np.float16, 2 * self.settings.dim)
        return np.asarray(track[offsets[index] : offsets[index + 1], : self.settings.dim], np.float32)

    def _examples(self) -> Tensor:
        pairs = [(pack, int(i)) for pack, use in zip(self.mixture.packs, self.mixture.usable) for i in use[-FITTED:]]
        return torch.from_numpy(np.concatenate([self._latents(pack, i) for pack, i in pairs]))

    def _row(self, pick: Pick, rng: np.random.Generator) -> dict[str, Any]:
        pack, index = pick.pack, pick.index
        entry, latents = pack.entries[index], self._latents(pack, index)
        starts, offsets = pack.track("align.i16", np.int16)
        begins = np.asarray(starts[offsets[index] : offsets[index + 1], 0], np.float64) * (self.rate / ALIGN_RATE)
        frames = len(latents)
        course = Course.of(begins.tolist(), frames, frames, self.settings.align)
        features = phone_features(entry.phones, {word[1] for word in entry.words})
        lengths = np.diff(np.append(begins, max(frames, begins[-1])))
        return {
            "phones": features.phones,
            "word_start": features.word_start,
            "upcoming": features.upcoming,
            "lengths": torch.from_numpy(lengths).float(),
            "latents": torch.from_numpy(latents),
            "rank": torch.from_numpy(self._rank(frames, rng)),
            "pointer": course.pointer,
            "progress": course.progress,
            "left": course.left,
            "place": course.place,
            "voice": self.voice_id(entry.voice),
        }

    def _rank(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Blocks from the start, or of a gap in the middle (see `tts/ardit.segment_mask`)."""
        index, block = np.arange(frames), self.settings.block
        if frames < 4 * block or rng.random() >= self.options.gaps:
            return 1 + index // block
        size = int(rng.integers(block, max(block + 1, round(0.6 * frames))))
        first = int(rng.integers(0, frames - size + 1))
        return np.where((index >= first) & (index < first + size), 1 + (index - first) // block, 0)

    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        rows = [self._row(pick, rng) for pick in self.mixture.bucket(rng, self.seconds)]
        out = {}
        for name in rows[0]:
            items = [row[name] for row in rows]
            if name == "voice":
                out[name] = torch.tensor(items)
                continue
            longest, fill = max(len(x) for x in items), {"rank": -1, "lengths": -1.0}.get(name, 0)
            padded = [F.pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x)), value=fill) for x in items]
            out[name] = torch.stack(padded)
        return out


class _Network(nn.Module):
    def __init__(self, model: Ardit, options: Options) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        model, options = self.model, self.options
        given = Given.of(batch, model, options)
        encoded = given.encoded(model)
        flow = given.flow_loss(model, encoded, given.goal, options.still)
        lengths, known = batch["lengths"], batch["lengths"] >= 0
        told = model.phone_lengths(encoded, batch["voice"])
        # Poisson: the best answer is the mean, so that the whole lasts as long as it should.
        poisson = ((told.exp() - lengths * told) * known).sum() / known.sum()
        return {"loss": flow + options.lengths * poisson, "flow": flow, "lengths": poisson}


@dataclass(frozen=True)
class Given:
    """What a model is told of a batch.

    Attributes:
        goal, past: true latents and the clean segment, normalised `[batch, frame, dim]`; the past is noised a little.
        rank: `[batch, frame]`, see `segment_mask`. voice: LongTensor[batch].
    """

    text: tuple[Tensor, Tensor, Tensor]
    goal: Tensor
    past: Tensor
    rank: Tensor
    course: Course
    voice: Tensor

    @classmethod
    def of(cls, batch: dict[str, Tensor], model: Ardit, options: Options) -> Given:
        goal = (batch["latents"] - model.mean) / model.scale
        share = options.noise * torch.rand(len(goal), 1, 1, device=goal.device)
        past = (1 - share).sqrt() * goal + share.sqrt() * torch.randn_like(goal)
        course = Course(batch["pointer"], batch["progress"], batch["left"], batch["place"])
        hidden = torch.rand(len(goal), device=goal.device) < options.nobody
        text = batch["phones"], batch["word_start"], batch["upcoming"]
        return cls(text, goal, past, batch["rank"], course, batch["voice"].masked_fill(hidden, model.nobody))

    def encoded(self, model: Ardit) -> Tensor:
        return model.phones(*self.text)

    def clean(self, model: Ardit, encoded: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """The model's estimate of the clean latents."""
        known = self.text[0] != 0
        return model.clean(encoded, known, self.past, noisy, time, self.rank, self.course, self.voice)

    def flow_loss(self, model: Ardit, encoded: Tensor, goal: Tensor, still: float) -> Tensor:
        """Squared error of the clean latents at random times, weighted as in `tts/flow.py`."""
        time = self.times(still)
        noisy = torch.randn_like(goal).lerp(goal, time[..., None])
        weight = 1 / (1 - time).clamp(min=0.5).square()
        return self.mean(weight * (self.clean(model, encoded, noisy, time) - goal).square().mean(-1))

    def times(self, still: float) -> Tensor:
        """A time for every block `[batch, frame]`, more often early ones, and 0 for a share `still`."""
        blocks = self.rank.clamp(min=0)
        drawn = torch.rand(len(blocks), int(blocks.max()) + 1, device=blocks.device)
        time = 1 - (drawn * torch.pi / 2).cos()
        time = time * (torch.rand_like(time) >= still)
        return time.gather(1, blocks)

    def mean(self, values: Tensor) -> Tensor:
        """Over the frames that are to be drawn, of `[batch, frame]`."""
        counted = self.rank > 0
        return (values * counted).sum() / counted.sum().clamp(min=1)
