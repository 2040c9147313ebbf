"""Heads: what is drawn at a step, given the backbone's hidden state.

`CategoricalHead` draws the K codes of a step. With `chain` the codes are drawn one after the other, each level seeing
the lower levels of the same frame through their summed embeddings (the cheapest form of RQ-Transformer's depth model:
an MLP per level instead of a transformer); without it they are independent given the hidden state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sampling import SamplingConfig, repetition_aware, sample_code

__all__ = ["CategoricalHead"]


class CategoricalHead(nn.Module):
    """K codebooks of `vocab` codes each.

    One table of embeddings serves as input of the next step and as the chain within a step.

    Args:
        width: of the backbone. codebooks, vocab: of the codec. hidden: width of each level's MLP.
        chain: condition level k on levels 0..k-1 of the same step.
    """

    def __init__(self, width: int, codebooks: int, vocab: int, hidden: int = 256, chain: bool = True) -> None:
        super().__init__()
        self.codebooks, self.vocab, self.chain = codebooks, vocab, chain
        self.empty = vocab
        self.table = nn.Embedding(codebooks * (vocab + 1), width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.link = nn.Parameter(torch.full((codebooks, width), 8.0))  # table rows are small, the hidden state is not
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, vocab)) for _ in range(codebooks)
        )

    def _rows(self, codes: Tensor, level: int) -> Tensor:
        return self.table(codes + level * (self.vocab + 1))

    def embed(self, codes: Tensor) -> Tensor:
        """Sum over codebooks: LongTensor `[batch, K, step]` (id `vocab` = empty) -> `[batch, step, width]`."""
        offsets = torch.arange(self.codebooks, device=codes.device) * (self.vocab + 1)
        return self.table(codes.transpose(1, 2) + offsets).sum(2)

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        """Teacher-forced logits of every level: `hidden[n, width]`, `codes[n, K]` -> K tensors `[n, vocab]`."""
        context = self.norm(hidden)
        out = []
        for k, level in enumerate(self.levels):
            out.append(level(context))
            if self.chain:
                context = context + self._rows(codes[:, k], k) * self.link[k]
        return out

    def loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of every level `[K]` in nats, averaged over the n items that hold a code at that level."""
        losses = []
        for k, logits in enumerate(self.logits(hidden, codes)):
            target = codes[:, k].masked_fill(codes[:, k] == self.empty, -100)
            losses.append(F.cross_entropy(logits.float(), target, ignore_index=-100))
        return torch.stack(losses)

    def log_prob(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Log-probability of whole frames, `[n]`."""
        total = hidden.new_zeros(len(hidden))
        for k, logits in enumerate(self.logits(hidden, codes)):
            total = total + logits.float().log_softmax(-1).gather(1, codes[:, k, None])[:, 0]
        return total

    def sample(
        self,
        hidden: Tensor,
        uniform: Tensor,
        config: SamplingConfig,
        recent: Tensor | None = None,
        empty: Tensor | None = None,
    ) -> Tensor:
        """Draws codes `[slot, K]`.

        Args:
            hidden: `[slot, width]`.
            uniform: `[slot, 2, K]`, from each request's own generator.
            recent: LongTensor `[slot, K, window]`, for repetition-aware sampling.
            empty: BoolTensor `[slot, K]`, places that hold no code at this step (delay pattern).
        """
        context = self.norm(hidden)
        codes = []
        for k, level in enumerate(self.levels):
            logits = level(context)
            code = sample_code(logits, config, uniform[:, 0, k].contiguous())
            if recent is not None:
                code = repetition_aware(code, logits, recent[:, k], uniform[:, 1, k], config)
            if empty is not None:
                code = code.masked_fill(empty[:, k], self.empty)
            codes.append(code)
            if self.chain:
                context = context + self._rows(code, k) * self.link[k]
        return torch.stack(codes, 1)
