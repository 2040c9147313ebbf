"""Heads of the token language models: what is drawn at a step, with the stop ids among the codes of level 0.

- `ParallelHead`: K independent levels (CosyVoice with K = 1; Koel-TTS; delay patterns of MusicGen and QTTS).
- `DepthHead`: a small transformer over the levels of a frame (RQ-Transformer, Lee et al. 2022; QTTS's hierarchical
  head; the dual-AR of fish-speech and Moshi).
- `MultiTokenHead`: a parallel head with a cascade of one-layer blocks that draws several steps from one hidden state
  (VITA-Audio's MCTP). The blocks attend to the cascade only, not to the sequence, so the head keeps no state. Drafts
  are not verified: this is multi-token prediction, not speculation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.norm import RMSNorm
from ..nn.recorded import stepped
from ..nn.transformer import Transformer, TransformerConfig
from .sampling import SamplingConfig, draw, filtered_probabilities, repetition_aware

__all__ = ["STOPS", "Mix", "Cascade", "DepthHead", "MultiTokenHead", "ParallelHead", "TokenHead"]

Mix = Callable[[Tensor], Tensor]

STOPS = 2
"""Ids after the codes of level 0: `vocab` ends the speech, `vocab + 1` asks for text (the fill token)."""


class TokenHead(nn.Module):
    """What the heads share: the table of embeddings, the ids, and one level's draw.

    Args:
        width: of the backbone. codebooks, vocab: of the codec. stops: ids beside the codes at level 0.
    """

    def __init__(self, width: int, codebooks: int, vocab: int, stops: int = STOPS) -> None:
        super().__init__()
        self.codebooks, self.vocab, self.stops = codebooks, vocab, stops
        self.eos, self.fill = vocab, vocab + 1
        self.empty = vocab + stops
        self.table = nn.Embedding(codebooks * (self.empty + 1), width)
        nn.init.normal_(self.table.weight, std=0.02)

    def size(self, level: int) -> int:
        """How many ids a level can draw."""
        return self.vocab + (self.stops if level == 0 else 0)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum over codebooks: LongTensor `[batch, K, step]` -> `[batch, step, width]`."""
        offsets = torch.arange(self.codebooks, device=codes.device) * (self.empty + 1)
        return self.table(codes.transpose(1, 2) + offsets).sum(2)

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        """Teacher-forced logits of every level: `hidden[n, width]`, `codes[n, K]` -> K tensors `[n, size(level)]`."""
        raise NotImplementedError

    def loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of every level `[K]` in nats, averaged over the items that hold a code there (0 if none)."""
        return _level_losses(self.logits(hidden, codes), codes, self.empty)

    def log_prob(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Log-probability of whole steps `[n]`; empty places count nothing."""
        total = hidden.new_zeros(len(hidden))
        for k, logits in enumerate(self.logits(hidden, codes)):
            held = codes[:, k] != self.empty
            picked = logits.float().log_softmax(-1).gather(1, codes[:, k, None].clamp(max=self.size(k) - 1))[:, 0]
            total = total + picked * held
        return total

    def draw(self, logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
        """First draws `[slot]` from `logits[slot, size]` with `uniform[slot]`."""
        return draw(filtered_probabilities(logits, config), uniform)

    def draw_level(
        self,
        level: int,
        logits: Tensor,
        uniform: Tensor,
        config: SamplingConfig,
        recent: Tensor | None,
        empty: Tensor | None,
        banned: Tensor | None,
    ) -> Tensor:
        """One level's codes `[slot]`; the other arguments as of `sample`."""
        if level == 0 and banned is not None:
            logits = logits.masked_fill(banned, float("-inf"))
        code = self.draw(logits, uniform[:, 0, level], config)
        if recent is not None:
            code = repetition_aware(code, logits, recent[:, level], uniform[:, 1, level], config, self.vocab)
        return code if empty is None else code.masked_fill(empty[:, level], self.empty)

    def sample(
        self,
        hidden: Tensor,
        uniform: Tensor,
        config: SamplingConfig,
        recent: Tensor | None = None,
        empty: Tensor | None = None,
        banned: Tensor | None = None,
        mix: Mix | None = None,
    ) -> Tensor:
        """Draws a step's codes `[slot, K]`.

        Args:
            hidden: `[slot, width]`. uniform: `[slot, 2, K]`, from each request's own generator.
            recent: LongTensor `[slot, K, window]`, for repetition-aware sampling.
            empty: BoolTensor `[slot, K]`, places that hold no code at this step (delay pattern).
            banned: BoolTensor `[slot, size(0)]`, ids of level 0 that must not be drawn, in no branch.
            mix: guidance: `hidden` holds several rows a slot (`[branch * slot, width]`), and this makes one row of
                logits of theirs.
        """
        raise NotImplementedError


class ParallelHead(TokenHead):
    """K levels, independent given the hidden state: an MLP each (`hidden` wide; 0 = one linear layer)."""

    def __init__(self, width: int, codebooks: int, vocab: int, hidden: int = 0, stops: int = STOPS) -> None:
        super().__init__(width, codebooks, vocab, stops)
        self.norm = RMSNorm(width, eps=1e-6)
        self.levels = nn.ModuleList(_level(width, hidden, self.size(k)) for k in range(codebooks))

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        context = self.norm(hidden)
        return [level(context) for level in self.levels]

    def sample(
        self,
        hidden: Tensor,
        uniform: Tensor,
        config: SamplingConfig,
        recent: Tensor | None = None,
        empty: Tensor | None = None,
        banned: Tensor | None = None,
        mix: Mix | None = None,
    ) -> Tensor:
        context, codes = self.norm(hidden), []
        for k, level in enumerate(self.levels):
            logits = level(context) if mix is None else mix(level(context))
            codes.append(self.draw_level(k, logits, uniform, config, recent, empty, banned))
        return torch.stack(codes, 1)


class DepthHead(TokenHead):
    """The levels of a step, one after the other, by a causal transformer over them.

    Args:
        depth: its sizes; `window` and `slack` are set to what K levels need.
        own: each level has its own input projection of the code below it (else all levels share one).
    """

    def __init__(
        self,
        width: int,
        codebooks: int,
        vocab: int,
        depth: TransformerConfig | None = None,
        own: bool = True,
        stops: int = STOPS,
    ) -> None:
        super().__init__(width, codebooks, vocab, stops)
        sizes = depth or TransformerConfig(width=width, layers=2, hidden=2 * width)
        sizes = sizes.model_copy(update={"window": codebooks, "slack": 0, "causal": True, "condition": None})
        self.norm = RMSNorm(width, eps=1e-6)
        self.start = nn.Linear(width, sizes.width)
        self.below = nn.ModuleList(nn.Linear(width, sizes.width) for _ in range(codebooks - 1 if own else 1))
        self.place = nn.Parameter(0.02 * torch.randn(codebooks, sizes.width))
        self.gain = nn.Parameter(torch.tensor(8.0))  # table rows are small, the hidden state is not
        self.transformer = Transformer(sizes)
        self.levels = nn.ModuleList(nn.Linear(sizes.width, self.size(k)) for k in range(codebooks))

    def _input(self, level: int, code: Tensor) -> Tensor:
        """What level `level > 0` sees: the code below it, `[n]` -> `[n, width]`."""
        rows = self.table(code + (level - 1) * (self.empty + 1)) * self.gain
        return self.below[min(level - 1, len(self.below) - 1)](rows) + self.place[level]

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        first = self.start(self.norm(hidden)) + self.place[0]
        inputs = [first, *(self._input(k, codes[:, k - 1]) for k in range(1, self.codebooks))]
        y = self.transformer(torch.stack(inputs, 1))
        return [level(y[:, k]) for k, level in enumerate(self.levels)]

    def blind_logits(self, hidden: Tensor, first: Tensor) -> Tensor:
        """Logits `[n, K - 1, vocab]` of the levels above 0 from `hidden[n, width]` and the code of level 0 alone."""
        above = self.place[2:].expand(len(hidden), -1, -1)
        begin = torch.stack([self.start(self.norm(hidden)) + self.place[0], self._input(1, first)], 1)
        y = self.transformer(torch.cat([begin, above], 1))
        return torch.stack([level(y[:, k]) for k, level in enumerate(self.levels) if k], 1)

    def sample(
        self,
        hidden: Tensor,
        uniform: Tensor,
        config: SamplingConfig,
        recent: Tensor | None = None,
        empty: Tensor | None = None,
        banned: Tensor | None = None,
        mix: Mix | None = None,
    ) -> Tensor:
        state = self.transformer.init_state(len(hidden))
        x, codes = self.start(self.norm(hidden)) + self.place[0], []
        for k, level in enumerate(self.levels):
            if k:
                x = self._input(k, codes[-1].repeat(len(hidden) // len(codes[-1])))
            logits = level(stepped(self.transformer, x[:, None], state)[:, 0])
            logits = logits if mix is None else mix(logits)
            codes.append(self.draw_level(k, logits, uniform, config, recent, empty, banned))
        return torch.stack(codes, 1)


class MultiTokenHead(ParallelHead):
    """A parallel head whose cascade draws up to `drafts` further steps from the same hidden state.

    Block i reads the code drawn before it and the hidden state of the block before it, attends to the inputs of the
    blocks below, and shares the output levels with the main model.
    """

    def __init__(
        self,
        width: int,
        codebooks: int,
        vocab: int,
        hidden: int = 0,
        drafts: int = 4,
        block: TransformerConfig | None = None,
        stops: int = STOPS,
    ) -> None:
        super().__init__(width, codebooks, vocab, hidden, stops)
        sizes = block or TransformerConfig(width=width, hidden=2 * width)
        sizes = sizes.model_copy(update={"width": width, "layers": 1, "window": drafts + 1, "causal": True})
        self.drafts = drafts
        self.code_norms = nn.ModuleList(RMSNorm(width, eps=1e-6) for _ in range(drafts))
        self.hidden_norms = nn.ModuleList(RMSNorm(width, eps=1e-6) for _ in range(drafts))
        self.joins = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(drafts))
        self.blocks = nn.ModuleList(Transformer(sizes) for _ in range(drafts))

    def cascade(self, hidden: Tensor) -> Cascade:
        """The cascade over `hidden[slot, width]`, to be drawn block by block."""
        return Cascade(self, hidden)

    def draft_losses(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of each block `[drafts]`, averaged over levels.

        Args:
            hidden: `[n, width]`. codes: LongTensor `[n, drafts + 1, K]`, the step drawn from `hidden` and those after
            it; steps whose codes are all empty end a row.
        """
        cascade, losses = self.cascade(hidden), []
        for i in range(self.drafts):
            y = cascade.advance(codes[:, i])
            losses.append(super().loss(y, codes[:, i + 1]).mean())
        return torch.stack(losses)


class Cascade:
    """One run of a multi-token head's blocks."""

    def __init__(self, head: MultiTokenHead, hidden: Tensor) -> None:
        self.head, self.inputs, self.hidden = head, [hidden], hidden

    def advance(self, codes: Tensor) -> Tensor:
        """The codes drawn last `[slot, K]` -> hidden state of the next block `[slot, width]`."""
        head, i = self.head, len(self.inputs) - 1
        rows = head.embed(codes[..., None])[:, 0]
        joined = head.joins[i](torch.cat([head.code_norms[i](rows), head.hidden_norms[i](self.hidden)], -1))
        self.inputs.append(joined)
        self.hidden = self.hidden + head.blocks[i](torch.stack(self.inputs, 1))[:, -1]
        return self.hidden


def _level(width: int, hidden: int, size: int) -> nn.Module:
    if not hidden:
        return nn.Linear(width, size)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, size))


def _level_losses(logits: list[Tensor], codes: Tensor, empty: int) -> Tensor:
    losses = []
    for k, rows in enumerate(logits):
        target = codes[:, k].masked_fill(codes[:, k] == empty, -100)
        total = F.cross_entropy(rows.float(), target, ignore_index=-100, reduction="sum")
        losses.append(total / (target >= 0).sum().clamp(min=1))
    return torch.stack(losses)
