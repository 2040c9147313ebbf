"""Trains drafters for speculation from the model that will judge them (`tts/drafters.py`, `tts/speculative_depth.py`).

Along time: the target's first layers, taught by the target's own laws on real utterances. The plain loss is
KL(target || draft). The group-aware one is what coarse-grained acceptance asks for: -log of the acceptance of the group
labels, and, weighted by `within`, the divergence inside the groups, which is what moves the emitted token's law away
from the target's:

    -log sum_k min(P_k, Q_k)  +  within * sum_k Q_k KL(q(.|k) || p(.|k))

By the chain rule of divergences the second sum is KL(q || p) - KL(Q || P): no loop over groups.

Along depth: small heads for the residual codes of a frame, taught by the target's laws at each level.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...codecs.loading import model_folder, read_config
from ...errors import ConfigError
from ...tts.drafters import first_layers, own_parts
from ...tts.groups import load_groups, weights_hash
from ...tts.heads import CategoricalHead
from ...tts.latent_heads import LatentHead
from ...tts.lm import SpeechLM
from ...tts.speculative import Channel
from ...tts.speculative_depth import ResidualDrafter
from ...tts.synthesizer import load_lm
from ...tts.token_heads import DepthHead
from ...tts.token_lm import TokenLM, load_token_lm
from ..recipe import Recipe
from .lm import LMTask
from .token_lm import TokenLMTask

__all__ = ["DraftTask", "group_loss"]


class Options(BaseModel):
    """Attributes:
    target: folder or name of the model to draft for. codes: name of its token track.
    layers: of the target, for a drafter along time. hidden: width of the heads along depth.
    loss: `plain` or `group` (along time; needs `groups`). groups: a file of `quaver groups build`.
    within: weight of the divergence inside the groups.
    temperature: at which both laws are compared: that of the voice's sampling.
    share: of the positions whose loss is computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Path
    codes: str
    layers: int = 1
    hidden: int = 64
    loss: Literal["plain", "group"] = "plain"
    groups: Path | None = None
    within: float = 0.2
    temperature: float = 0.8
    share: float = 0.5


def group_loss(p: Tensor, q: Tensor, channel: Channel, within: float) -> tuple[Tensor, Tensor]:
    """The group-aware loss `[n]` and the acceptance of the labels `[n]`, from log-laws `[n, vocab]`."""
    coarse_p, coarse_q = channel.coarse(p.exp()), channel.coarse(q.exp())
    kept = torch.minimum(coarse_p, coarse_q).sum(-1)
    fine = (q.exp() * (q - p)).sum(-1)
    coarse = (coarse_q * (coarse_q.clamp(min=1e-20).log() - coarse_p.clamp(min=1e-20).log())).sum(-1)
    return -kept.clamp(min=1e-6).log() + within * (fine - coarse), kept


class DraftTask:
    """Batches come from the target's own task, so that a drafter reads what its target reads."""

    def __init__(self, recipe: Recipe) -> None:
        if recipe.init is not None:
            raise ConfigError("a drafter starts from its target's own layers: leave out init")
        self.options = Options.model_validate(recipe.options)
        folder = model_folder(str(self.options.target))
        self.sha256 = weights_hash(folder)
        kind = read_config(folder).get("kind")
        if kind not in ("lm", "token_lm"):
            raise ConfigError(f"{folder} is a {kind}; a drafter is trained for a lm or token_lm")
        target: Any = (load_lm if kind == "lm" else load_token_lm)(str(folder))[0]
        target.requires_grad_(False)
        self.inner = _inner(recipe, self.options, target)
        channel = None
        if self.options.loss == "group":
            if self.options.groups is None:
                raise ConfigError("the group-aware loss needs options.groups; make them with `quaver groups build`")
            channel = load_groups(self.options.groups, self.sha256).channels[0]
        self.along_time = isinstance(target, TokenLM) and target.config.codebooks == 1
        if self.along_time:
            draft = first_layers(target, self.options.layers)
            self.model: nn.Module = own_parts(draft)
            for parameter in self.model.parameters():
                parameter.requires_grad_(True)
            self.network: nn.Module = _AlongTime(target, draft, self.model, self.options, channel)
        else:
            head = target.head
            if channel is not None:
                raise ConfigError("along depth the loss is plain; leave out options.loss and options.groups")
            if not isinstance(head, DepthHead | CategoricalHead):
                raise ConfigError("along depth a drafter needs a target with a depth or chain head")
            first = head.size(0) if isinstance(head, DepthHead) else head.vocab
            self.model = ResidualDrafter(
                head.norm.weight.numel(), head.codebooks, head.vocab, first, self.options.hidden
            )
            self.network = _AlongDepth(target, self.model, self.options)

    def batch(self, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        return self.inner.batch(rng, step)

    def config(self) -> dict[str, Any]:
        own = {"kind": "draft", "layers": self.options.layers}
        if not self.along_time:
            own = {"kind": "depth_draft", "hidden": self.options.hidden}
        return {**own, "target": self.sha256}


def _inner(recipe: Recipe, options: Options, target: SpeechLM | TokenLM) -> TokenLMTask | LMTask:
    """The task that the target was trained by, for its batches."""
    model = {k: v for k, v in target.config.model_dump().items() if k not in ("voices", "rates")}
    own: dict[str, Any] = {"codes": options.codes}
    if isinstance(target, TokenLM):
        own["speakers"] = bool(target.config.voices)
    make = TokenLMTask if isinstance(target, TokenLM) else LMTask
    inner: Any = make(recipe.model_copy(update={"model": model, "options": own, "init": None}))
    named = isinstance(target, TokenLM)  # the other task takes its voices from its settings
    known = inner.voice_ids if named else inner.settings.voices
    if unknown := sorted(set(known) - set(target.config.voices)):
        raise ConfigError(f"the packs have voices that the target does not know: {', '.join(unknown)}")
    inner.settings, inner.model = target.config, target
    if named:
        inner.voice_ids = {voice: i for i, voice in enumerate(target.config.voices)}
    return inner


class _AlongTime(nn.Module):
    def __init__(
        self, target: TokenLM, draft: TokenLM, own: nn.Module, options: Options, channel: Channel | None
    ) -> None:
        super().__init__()
        self.own, self.options = own, options
        self._held = (target, draft, channel)  # not registered: they are not trained, and not saved

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        target, draft, channel = self._held
        device = batch["kind"].device
        target.to(device)
        draft.to(device)
        inputs = tuple(batch[name] for name in ("kind", "value", "ids", "lengths", "codes"))
        chosen = batch["target"] != -1
        chosen &= torch.rand(chosen.shape, device=device) < self.options.share
        with torch.no_grad():
            hidden = target.hidden(*inputs)[chosen]
            none = torch.zeros(len(hidden), 1, dtype=torch.long, device=device)
            q = (target.head.logits(hidden, none)[0].float() / self.options.temperature).log_softmax(-1)
        p = draft.head.logits(draft.hidden(*inputs)[chosen], none)[0].float() / self.options.temperature
        p = p.log_softmax(-1)
        kept = torch.minimum(p.exp(), q.exp()).sum(-1).mean()
        divergence = (q.exp() * (q - p)).sum(-1).mean()
        if channel is None:
            return {"loss": divergence, "kl": divergence, "accept": kept}
        loss, labels = group_loss(p, q, channel.to(device), self.options.within)
        return {"loss": loss.mean(), "kl": divergence, "accept": kept, "accept_groups": labels.mean()}


class _AlongDepth(nn.Module):
    def __init__(self, target: SpeechLM | TokenLM, drafter: nn.Module, options: Options) -> None:
        super().__init__()
        self.drafter, self.options = drafter, options
        self._held = target

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        target = self._held.to(batch["codes"].device)
        head = target.head
        assert not isinstance(head, LatentHead)  # refused when the task was made
        with torch.no_grad():
            hidden, codes = _frames(target, batch)
            whole = (codes != head.empty).all(1) & (torch.rand(len(codes)).to(codes.device) < self.options.share)
            hidden, codes = hidden[whole], codes[whole]
            q = torch.stack(head.logits(hidden, codes)[1:], 1).float() / self.options.temperature
            q = q.log_softmax(-1)
        p = (self.drafter(hidden, codes[:, 0]).float() / self.options.temperature).log_softmax(-1)
        kept = torch.minimum(p.exp(), q.exp()).sum(-1)
        loss = F.kl_div(p, q, reduction="none", log_target=True).sum(-1).mean()
        return {
            "loss": loss,
            "accept": kept.mean(),
            "accept_first": kept[:, 0].mean(),
            "accept_last": kept[:, -1].mean(),
        }


def _frames(target: SpeechLM | TokenLM, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states `[n, width]` and the codes `[n, K]` that are drawn from them, of real utterances."""
    if isinstance(target, TokenLM):
        inputs = tuple(batch[name] for name in ("kind", "value", "ids", "lengths", "codes"))
        hidden, place = target.hidden(*inputs), batch["target"]
        chosen = place >= 0
        row = torch.arange(len(place), device=place.device)[:, None].expand_as(place)[chosen]
        return hidden[chosen], batch["steps"][row, :, place[chosen]]
    steps = target.pattern.pack(batch["codes"])
    encoded = target.phones(batch["phones"], batch["word_start"], batch["upcoming"])
    pointer, progress = (
        F.pad(batch[k].float(), (0, target.pattern.extra), mode="replicate").long() for k in ("pointer", "progress")
    )
    hidden = target.hidden(target.shift(steps), encoded, pointer, progress, batch["voice"], batch["rate"])
    return hidden.flatten(0, 1), steps.transpose(1, 2).flatten(0, 1)
