"""Trains token language models (CosyVoice 1 and 2, Koel-TTS, VAT, VITA-Audio) on packed speech tokens.

Whole utterances, teacher forcing, history corruption as for the pointer layout. The interleave is trained half as
itself and half as `prefix` (CosyVoice 2), and as `prefix` where an utterance has too little speech for the ratio.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...errors import BadInput, ConfigError
from ...tts.backbones import HFBackbone, hf_config, load_hf_weights
from ...tts.cross import beta_binomial_log_prior
from ...tts.layouts import FILL, SPEECH, sequence
from ...tts.text import is_pause
from ...tts.token_heads import MultiTokenHead
from ...tts.token_lm import TokenLM, TokenLMConfig, phone_text
from ..align import pointers
from ..recipe import Recipe, start_from
from ..sampling import Mixture, Pick

__all__ = ["TokenLMTask"]


class Options(BaseModel):
    """Attributes:
    codes: name of the token track (a semantic tokenizer or a codec).
    replace, blank: share of past steps whose codes are drawn at random, and that are blanked.
    weights: of the levels in the loss (the last one repeats). share: of the steps whose loss is computed.
    speakers: the model is told who speaks.
    drop: share of utterances trained without text and voice, for guidance.
    mixed: interleave: share of utterances trained as prefix.
    drafts: multi-token head: weight of the cascade's loss.
    prior_until, prior: cross layout: step at which the beta-binomial prior has faded out (from half of it on), and its
        scale. align, place: weights of the attention's and the place's loss against the packs' alignments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: str
    replace: float = 0.1
    blank: float = 0.1
    weights: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    share: float = 1.0
    speakers: bool = True
    drop: float = 0.0
    mixed: float = 0.5
    drafts: float = 0.5
    prior_until: int = 0
    prior: float = 0.5
    align: float = 0.0
    place: float = 0.0


class TokenLMTask:
    def __init__(self, recipe: Recipe) -> None:
        self.options = Options.model_validate(recipe.options)
        self.track = f"codes.{self.options.codes}.u16"
        self.mixture = Mixture(recipe.data)
        self.mixture.keep(self.track, np.uint16)
        raw = dict(recipe.model)
        checkpoint = raw.get("backbone")
        if isinstance(checkpoint, str):
            raw["backbone"] = hf_config(checkpoint).model_dump()
        speakers = self.mixture.voices() if self.options.speakers else []
        self.voice_ids = {voice: i for i, voice in enumerate(speakers)}
        self.settings = self._labelled(TokenLMConfig.model_validate({**raw, "voices": speakers}))
        if self.settings.silent_run and not self.settings.silent:
            self.settings = self.settings.model_copy(update={"silent": self._silent()})
        self.model = TokenLM(self.settings)
        self.tokenizer = _tokenizer(checkpoint) if self.settings.text == "bpe" else None
        if isinstance(checkpoint, str) and isinstance(self.model.backbone, HFBackbone):
            load_hf_weights(self.model.backbone, checkpoint)
        start_from(self.model, recipe)
        self.network = _Network(self.model, self.options)
        self.seconds = recipe.batch_seconds

    def _labelled(self, settings: TokenLMConfig) -> TokenLMConfig:
        """The labels of its conditions, where the recipe does not name them: all that the packs have."""
        filled = []
        for condition in settings.conditions:
            if condition.kind == "label" and not condition.labels:
                found = {
                    e.about[condition.name] for p in self.mixture.packs for e in p.entries if condition.name in e.about
                }
                condition = condition.model_copy(update={"labels": tuple(sorted(found))})
            if not any(condition.name in e.about for p in self.mixture.packs for e in p.entries):
                raise ConfigError(
                    f"no pack says {condition.name!r} of any utterance; add it to the manifest, pack again"
                )
            filled.append(condition)
        return settings.model_copy(update={"conditions": tuple(filled)})

    def config(self) -> dict[str, Any]:
        return {"kind": "token_lm", "codec": self.options.codes, **self.settings.model_dump()}

    def _silent(self, most: int = 200) -> tuple[int, ...]:
        """Codes of level 0 that stand in pauses at least half of the times they occur, by the packs' alignments."""
        quiet, all_ = np.zeros(self.settings.vocab), np.zeros(self.settings.vocab)
        for pack, usable in zip(self.mixture.packs, self.mixture.usable, strict=True):
            for i in usable[:most]:
                pick = Pick(pack, int(i))
                first, pointer = self._codes(pick)[:, 0], self._pointer(pick)
                if pointer is not None:
                    pause = [p < 0 or is_pause(pack.entries[int(i)].phones[p]) for p in pointer]
                    np.add.at(quiet, first[np.array(pause)], 1)
                    np.add.at(all_, first, 1)
        return tuple(int(c) for c in np.flatnonzero((quiet >= 0.5 * all_) & (quiet >= 5)))

    def _codes(self, pick: Pick) -> np.ndarray:
        """int64 `[frame, codebook]`."""
        track, offsets = pick.pack.track(self.track, np.uint16, self.settings.codebooks)
        return np.asarray(track[offsets[pick.index] : offsets[pick.index + 1]], np.int64)

    def _pointer(self, pick: Pick) -> np.ndarray | None:
        """The phone of each frame (-1: the silence before the first), or None where nothing is aligned."""
        if not (pick.pack.folder / "align.i16").exists():
            return None
        starts, offsets = pick.pack.track("align.i16", np.int16)
        starts = np.asarray(starts[offsets[pick.index] : offsets[pick.index + 1], 0])
        return pointers(starts, len(self._codes(pick))) - 1 if len(starts) else None

    # -- batches ------------------------------------------------------------------------------------------------------
    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        rows = [self._row(pick, rng) for pick in self.mixture.bucket(rng, self.seconds)]
        empty = self.model.head.empty
        out: dict[str, Tensor] = {}
        for name, fill in (("kind", 0), ("value", 0), ("target", -1), ("ids", 0), ("pointer", -100)):
            out[name] = _padded([row[name] for row in rows], fill)
        for name in ("codes", "steps"):
            out[name] = _padded([row[name].T for row in rows], empty).transpose(1, 2)
        if self.settings.conditions:
            told = _padded([row["told"].T for row in rows], -1).transpose(1, 2)
            drop = np.array([c.drop for c in self.settings.conditions])
            gone = torch.from_numpy(rng.random((len(rows), len(drop))) < drop)
            out["told"] = torch.where(gone[..., None], -1, told)
        out["lengths"] = torch.tensor([len(row["ids"]) for row in rows])
        if self.settings.layout == "cross" and step < self.options.prior_until:
            out["prior"] = self._priors(out, step)
        return out

    def _row(self, pick: Pick, rng: np.random.Generator) -> dict[str, Tensor]:
        entry = pick.pack.entries[pick.index]
        codes = torch.from_numpy(self._codes(pick)).T
        steps = self.model.finished(codes)
        ids = self._text(pick)
        ratio = self.settings.interleave
        if ratio is not None and (
            rng.random() < self.options.mixed or len(ids) // ratio[0] * ratio[1] > codes.shape[1]
        ):
            ratio = None
        voice = self.voice_ids[entry.voice] if self.voice_ids else None
        text = 0 if self.settings.layout == "cross" else len(ids)
        items, targets = sequence(ratio, text, steps.shape[1], codes.shape[1], voice, len(self.settings.conditions))
        if self.model.context is not None and len(items) > self.model.context:
            raise BadInput(f"{entry.id} fills {len(items)} positions, the model has {self.model.context}; widen it")
        kind, value = torch.tensor([i.kind for i in items]), torch.tensor([i.value for i in items])
        given = torch.where(kind == SPEECH, value, 0)
        inputs = torch.where(kind == SPEECH, steps[:, given], self.model.head.empty)
        pointer = self._pointer(pick)
        at = torch.full((steps.shape[1],), -100)
        if pointer is not None:
            at[: len(pointer)] = torch.from_numpy(pointer).clamp(min=0)
        target = torch.tensor(targets)
        told = {} if self.model.conditions is None else {"told": self._told(pick)}
        return {
            **told,
            "kind": kind,
            "value": value,
            "target": target,
            "ids": torch.tensor(ids),
            "codes": inputs,
            "steps": steps,
            "pointer": torch.where(target >= 0, at[target.clamp(min=0)], -100),
        }

    def _told(self, pick: Pick) -> Tensor:
        """LongTensor `[condition, n]`: what the pack says of an utterance; an unknown label counts as none."""
        assert self.model.conditions is not None
        values = {}
        for condition in self.settings.conditions:
            value = pick.pack.entries[pick.index].about.get(condition.name, "")
            if value.strip() and (condition.kind == "text" or value in condition.labels):
                values[condition.name] = value
        return self.model.conditions.ids(values)

    def _text(self, pick: Pick) -> list[int]:
        entry = pick.pack.entries[pick.index]
        if self.tokenizer is not None:
            return self.tokenizer(entry.text, add_special_tokens=False)["input_ids"]
        return list(phone_text(entry.phones, {word[1] for word in entry.words}))

    def _priors(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Log-priors `[batch, position, text]`, faded from half of `prior_until` on (Koel-TTS)."""
        half = self.options.prior_until / 2
        faded = max(0.0, (step - half) / half)
        target, longest = batch["target"], batch["ids"].shape[1]
        prior = torch.zeros(*target.shape, longest)
        for row, length in enumerate(batch["lengths"].tolist()):
            last = int(target[row].max()) + 1
            table = beta_binomial_log_prior(length, last, self.options.prior).exp()
            rows = table[target[row].clamp(min=0, max=last - 1)]
            prior[row, :, :length] = (rows + (1 - rows) * faded).clamp(min=1e-6).log()
        return prior


class _Network(nn.Module):
    def __init__(self, model: TokenLM, options: Options) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        model, head, o = self.model, self.model.head, self.options
        codes = self._corrupt(batch["codes"], batch["kind"])
        dropped = torch.rand(len(codes), device=codes.device) < o.drop if o.drop else None
        inputs = (batch["kind"], batch["value"], batch["ids"], batch["lengths"], codes)
        told = None if model.conditions is None else model.conditions(batch["told"])
        out = model.attend(*inputs, batch.get("prior"), dropped, told)
        hidden, target = out[0], batch["target"]
        chosen = target != -1
        if o.share < 1:
            chosen = chosen & (torch.rand(target.shape, device=target.device) < o.share)
        picked, steps = hidden[chosen], self._targets(batch, chosen, 0)
        levels = head.loss(picked, steps)
        weights = torch.tensor([o.weights[min(k, len(o.weights) - 1)] for k in range(len(levels))])
        weights = weights.to(levels.device)
        total = (levels * weights).sum() / weights.sum()
        losses = {"first": levels[0], "codes": levels.mean()}
        if isinstance(head, MultiTokenHead):
            future = torch.stack([self._targets(batch, chosen, i) for i in range(head.drafts + 1)], 1)
            drafts = head.draft_losses(picked, future)
            losses |= {"draft_first": drafts[0], "draft_last": drafts[-1]}
            total = total + o.drafts * drafts.mean()
        if out[1] is not None:
            losses |= self._alignment(out[1], out[2], batch["pointer"])
            total = total + o.align * losses["align"] + o.place * losses["place"]
        return {"loss": total, **losses}

    def _targets(self, batch: dict[str, Tensor], chosen: Tensor, ahead: int) -> Tensor:
        """The steps to predict at the chosen positions, `ahead` further: `[n, K]`, empty past the end."""
        head, steps, target = self.model.head, batch["steps"], batch["target"]
        row = torch.arange(len(target), device=target.device)[:, None].expand_as(target)[chosen]
        at = target[chosen] + ahead
        inside = (target[chosen] >= 0) & (at < steps.shape[2])
        found = steps[row, :, at.clamp(0, steps.shape[2] - 1)].masked_fill(~inside[:, None], head.empty)
        if ahead == 0:
            found[target[chosen] == FILL, 0] = head.fill
        return found

    @staticmethod
    def _alignment(log_attention: Tensor, place: Tensor, pointer: Tensor) -> dict[str, Tensor]:
        """How far the attention is from the packs' alignment: -log of its mass on the phone, and of places."""
        known = pointer >= 0
        index = pointer.clamp(min=0)
        mass = log_attention.gather(2, index[..., None])[..., 0]
        count = known.sum().clamp(min=1)
        distance = F.smooth_l1_loss(place, index + 0.5, reduction="none")
        return {"align": -(mass * known).sum() / count, "place": (distance * known).sum() / count}

    def _corrupt(self, codes: Tensor, kind: Tensor) -> Tensor:
        """Past codes `[batch, K, position]` with some steps random and some empty."""
        speech = (kind == SPEECH)[:, None]
        dice = torch.rand(len(codes), 1, codes.shape[2], device=codes.device)
        random = torch.randint_like(codes, self.model.config.vocab)
        held = speech & (codes != self.model.head.empty)
        codes = torch.where(held & (dice < self.options.replace), random, codes)
        return torch.where(speech & (dice > 1 - self.options.blank), self.model.head.empty, codes)


def _padded(items: list[Tensor], fill: int) -> Tensor:
    """Stacks tensors `[n, ...]` of unlike lengths."""
    longest = max(len(x) for x in items)
    return torch.stack([F.pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x)), value=fill) for x in items])


def _tokenizer(checkpoint: Any) -> Any:
    from transformers import AutoTokenizer

    if not isinstance(checkpoint, str):
        raise ConfigError("bpe text needs the checkpoint whose tokenizer it uses: model.backbone=hf:NAME-or-folder")
    return AutoTokenizer.from_pretrained(checkpoint.removeprefix("hf:"), trust_remote_code=False)
