"""The pointer layout's head: what is drawn at a step, given the backbone's hidden state.

`CategoricalHead` draws the K codes of a step. With `chain` the codes are drawn one after the other, each level seeing
the lower levels of the same frame through their summed embeddings (the cheapest form of RQ-Transformer's depth model:
an MLP per level instead of a transformer); without it they are independent given the hidden state. The other heads of
codes are in `token_heads.py`, those of latents in `latent_heads.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.norm import RMSNorm
from .sampling import SamplingConfig, sample_code
from .token_heads import Mix, TokenHead

__all__ = ["CategoricalHead"]


class CategoricalHead(TokenHead):
    """K codebooks of `vocab` codes each, and no ids beside them: the pointer says when the speech ends.

    One table of embeddings serves as input of the next step and as the chain within a step.

    Args:
        width: of the backbone. codebooks, vocab: of the codec. hidden: width of each level's MLP.
        chain: condition level k on levels 0..k-1 of the same step.
    """

    def __init__(self, width: int, codebooks: int, vocab: int, hidden: int = 256, chain: bool = True) -> None:
        super().__init__(width, codebooks, vocab, stops=0)
        self.chain = chain
        self.norm = RMSNorm(width, eps=1e-6)
        self.link = nn.Parameter(torch.full((codebooks, width), 8.0))  # table rows are small, the hidden state is not
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, vocab)) for _ in range(codebooks)
        )

    def _joined(self, context: Tensor, code: Tensor, level: int) -> Tensor:
        """What the level above `level` sees, given that level's codes `[n]`."""
        if not self.chain:
            return context
        return context + self.table(code + level * (self.empty + 1)) * self.link[level]

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        context, out = self.norm(hidden), []
        for k, level in enumerate(self.levels):
            out.append(level(context))
            context = self._joined(context, codes[:, k], k)
        return out

    def blind_logits(self, hidden: Tensor, first: Tensor) -> Tensor:
        """Logits `[n, K - 1, vocab]` of the levels above 0 from `hidden[n, width]` and the code of level 0 alone."""
        context = self._joined(self.norm(hidden), first, 0)
        return torch.stack([level(context) for level in list(self.levels)[1:]], 1)

    def draw(self, logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
        return sample_code(logits, config, uniform.contiguous())  # the cheaper draw, of the same law

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
            code = self.draw_level(k, logits, uniform, config, recent, empty, banned)
            codes.append(code)
            if k + 1 < self.codebooks:
                branches = len(context) // len(code)  # of guidance: all see the same codes
                context = self._joined(context, code.repeat(branches), k)
        return torch.stack(codes, 1)
