"""Trains the duplex model on two-channel dialogues: crops of a fixed length, Moshi's loss.

The text stream carries the assistant's words (`text_of: own`); with `text_of: user` and a later text the same task
trains a streaming recogniser, with an earlier text a synthesizer (the text's delay is the model's own setting).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ...codecs.base import Codec
from ...codecs.loading import load_codec, model_folder
from ...dialogue.model import DuplexConfig, DuplexModel, LossWeights
from ...dialogue.monologue import PieceVocabulary, TimedWord, load_vocabulary, monologue
from ...errors import BadInput, ConfigError
from ..corpus import beside
from ..dialogue_audio import DialogueRow, load_dialogues, read_channels
from ..dialogues import texts
from ..recipe import Recipe, start_from
from ..written_dialogues import written_dialogue

__all__ = ["DuplexTask"]


PAPER_PADDING = 0.1
"""Weight of PAD and EPAD in a batch that is only written."""


class Options(BaseModel):
    """Attributes:
    codec: whose codes the model speaks; a bundled name or a folder.
    crop: seconds of a crop. words: size of the vocabulary in whole words.
    loss: weights of the streams. text_of: whose words the text stream holds.
    own_absent, user_absent: shares of crops in which that speaker's voice is hidden from the model and its loss
        (1 for the user makes a synthesizer, 1 for the model's own voice a recogniser).
    voiced: share of the frames on whose codes the depth transformer is trained, drawn anew for every batch.
    written: share of the batches that have no sound, only words of both speakers (`training.written_dialogues`); for a
        model that reads its own record of what it heard.
    replace: share of the past frames of the model's own voice whose codes are drawn at random, and of the words that it
        has written down of the user's (history corruption).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codec: str = "quaver-24k"
    crop: float = Field(default=12.0, gt=0)
    words: int = Field(default=420, ge=1)
    loss: LossWeights = LossWeights()
    text_of: Literal["own", "user"] = "own"
    own_absent: float = Field(default=0.0, ge=0, le=1)
    user_absent: float = Field(default=0.0, ge=0, le=1)
    voiced: float = Field(default=1.0, gt=0, le=1)
    written: float = Field(default=0.0, ge=0, lt=1)
    replace: float = Field(default=0.05, ge=0, le=1)


class DuplexTask:
    """See the module's text. `data` of the recipe names folders of dialogues."""

    def __init__(self, recipe: Recipe) -> None:
        self.options = Options.model_validate(recipe.options)
        self.vocabulary = self._vocabulary(recipe)
        codec = load_codec(self.options.codec)
        self.spec = codec.frame_spec
        if self.spec.kind != "codes":
            raise ConfigError(f"the codec {self.options.codec} gives no codes; choose one with a quantizer")
        size, pad, epad = self.vocabulary.size, self.vocabulary.pad, self.vocabulary.epad
        made = {"text_vocab": size, "vocab": self.spec.vocab, "pad": pad, "epad": epad}
        self.settings = DuplexConfig.model_validate(made | recipe.model)
        self.model = DuplexModel(self.settings)
        start_from(self.model, recipe)
        if recipe.init is not None and self.options.text_of == "user" and self.settings.heard is not None:
            # Such a text is what the second head of a dialogue model writes already.
            self.model.text_head.load_state_dict(self.model.heard_head.state_dict())
        if self.options.written and not self.settings.heard_input:
            raise ConfigError("written dialogues need a model that reads its record (model.heard_input: true)")
        self.network = _Network(self.model, self.options)
        self.rows, weights = [], []
        for source in recipe.data:
            rows = load_dialogues(source.pack, "train")
            if not rows:
                raise BadInput(f"{source.pack} holds no dialogues to train on (split train)")
            self.rows += rows
            weights += [source.weight * row.seconds / sum(r.seconds for r in rows) for row in rows]
        self.weights = np.array(weights) / sum(weights)
        self.codes = [self._coded(codec, row) for row in self.rows]
        self.frames = max(1, round(self.options.crop * float(self.spec.rate)))
        self.crops = max(1, round(recipe.batch_seconds / self.options.crop))

    def _vocabulary(self, recipe: Recipe) -> PieceVocabulary:
        if recipe.init is not None:
            held = load_vocabulary(model_folder(str(recipe.init)))
            if isinstance(held, PieceVocabulary):
                return held
        return PieceVocabulary.of_texts(texts(), self.options.words)

    def config(self) -> dict[str, Any]:
        return {"kind": "duplex", "codec": self.options.codec, **self.settings.model_dump()}

    def save_extra(self, out: Path) -> None:
        """What a run's folder needs besides weights and configuration."""
        self.vocabulary.save(out / "vocabulary.json")

    def _coded(self, codec: Codec, row: DialogueRow) -> np.ndarray:
        """Codes uint16 `[2, codebook, frame]` of both channels (user, assistant); made once, kept beside the audio."""
        path = row.path.parent / f"codes.{Path(self.options.codec).name}" / f"{row.id}.npy"
        if path.exists():
            return np.load(path, allow_pickle=False)
        audio = torch.from_numpy(np.ascontiguousarray(read_channels(row)))[:, None]
        with torch.inference_mode():
            codes = codec.encode(audio)[0].numpy().astype(np.uint16)
        path.parent.mkdir(exist_ok=True)
        with beside(path) as part:
            np.save(part, codes)
        return codes

    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        """`codes[crop, stream, frame]` and what the user says `heard[crop, frame]`; of a batch that is only written,
        `record` in its place: words that are read, and not there to be found."""
        if rng.random() < self.options.written:
            crops = [self._exercise(rng) for _ in range(self.crops)]
            return {"codes": torch.stack([c for c, _ in crops]), "record": torch.stack([h for _, h in crops])}
        picked = rng.choice(len(self.rows), size=self.crops, p=self.weights)
        crops = [self._crop(int(i), rng) for i in picked]
        return {"codes": torch.stack([c for c, _ in crops]), "heard": torch.stack([h for _, h in crops])}

    def _exercise(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Streams `[stream, frame]` of which only the text is there, and the user's words `[frame]`."""
        user, own = written_dialogue(rng, self.options.crop)
        heard, text = (monologue(words, self.frames, self.spec.rate, self.vocabulary) for words in (user, own))
        silent = torch.full((self.settings.own + self.settings.user, self.frames), self.model.nothing)
        return torch.cat([text[None], silent]), heard

    def _crop(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Streams `[stream, frame]` and the user's words `[frame]`, LongTensors; `nothing` past the dialogue's end."""
        row, codes, settings = self.rows[index], self.codes[index], self.settings
        total, nothing = codes.shape[-1], self.model.nothing
        start = int(rng.integers(max(1, total - self.frames + 1)))
        crop = torch.from_numpy(codes[..., start : start + self.frames].astype(np.int64))
        spoken = row.words if self.options.text_of == "own" else _user_words(row)
        text, heard = (
            monologue(words, total, self.spec.rate, self.vocabulary)[start : start + self.frames]
            for words in (spoken, _user_words(row))
        )
        user, own = crop[0, : settings.user].clone(), crop[1, : settings.own].clone()
        if rng.random() < self.options.own_absent:
            own.fill_(nothing)
        if rng.random() < self.options.user_absent:
            user.fill_(nothing)
            heard = torch.full_like(heard, nothing)
        every = torch.cat([text[None], own, user, heard[None]])
        every = nn.functional.pad(every, (0, self.frames - every.shape[-1]), value=nothing)
        return every[:-1], every[-1]


def _user_words(row: DialogueRow) -> list[TimedWord]:
    """The user's words with times: what the script says, spread over the turn by the words' letters, pauses left out
    (not every voice tells its exact times)."""
    pauses = [(e.start, e.end) for e in row.events if e.kind == "pause"]
    words: list[TimedWord] = []
    for event in row.events:
        said = event.text.split() if event.kind in ("turn", "interrupt") else []
        inside = [p for p in pauses if event.start <= p[0] and p[1] <= event.end]
        speech = event.end - event.start - sum(b - a for a, b in inside)
        letters = np.cumsum([0] + [len(w) + 1 for w in said])
        times = [_after_pauses(event.start + speech * n / letters[-1], inside) for n in letters] if said else []
        words += [(w, a, b) for w, a, b in zip(said, times, times[1:], strict=False)]
    return sorted(words, key=lambda w: w[1])


def _after_pauses(time: float, pauses: list[tuple[float, float]]) -> float:
    """A time that counted speech only, as a time that counts the pauses too."""
    for start, end in sorted(pauses):
        if time >= start:
            time += end - start
    return time


class _Network(nn.Module):
    def __init__(self, model: DuplexModel, options: Options) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        codes = batch["codes"]
        if (record := batch.get("record")) is not None:
            # When a word is written is chance here, and which word is not.
            weights = self.options.loss.model_copy(update={"padding": PAPER_PADDING})
            losses = self.model.loss(codes, weights, misheard=self._misheard(record), sound=False)
            return {"loss": losses["loss"], "written": losses["text"]}
        share = self.options.voiced
        voiced = torch.rand(codes.shape[0], codes.shape[-1], device=codes.device) < share if share < 1 else None
        heard = batch["heard"]
        # A recogniser's text is its record: to read the other would be to copy.
        record = self._misheard(heard) if self.options.text_of == "own" else torch.full_like(heard, self.model.nothing)
        losses = self.model.loss(codes, self.options.loss, self._corrupted(codes), heard, voiced, record)
        levels = losses.pop("levels", None)
        return losses if levels is None else {**losses, "semantic": levels[0], "acoustic": levels[1:].mean()}

    def _corrupted(self, codes: Tensor) -> Tensor:
        """Some frames of the model's own past with random codes: at inference its past is not perfect either."""
        config, own = self.model.config, slice(1, 1 + self.model.config.own)
        if not self.options.replace or not config.own:
            return codes
        noisy = codes.clone()
        dice = torch.rand(codes.shape[0], 1, codes.shape[-1], device=codes.device) < self.options.replace
        random = torch.randint_like(codes[:, own], config.vocab)
        noisy[:, own] = torch.where(dice & (codes[:, own] >= 0), random, codes[:, own])
        return noisy

    def _misheard(self, heard: Tensor) -> Tensor:
        """Some of the words written down as others: at inference it mishears, and must listen on all the same."""
        config = self.model.config
        word = (heard >= 0) & (heard != config.pad) & (heard != config.epad)
        wrong = word & (torch.rand(heard.shape, device=heard.device) < self.options.replace)
        return torch.where(wrong, torch.randint_like(heard, config.text_vocab), heard)
