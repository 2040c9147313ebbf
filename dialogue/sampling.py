"""Sampling with settings of each slot's own, in one batch and without a look at the numbers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sample_rows"]


def sample_rows(logits: Tensor, temperature: Tensor, top_k: Tensor, uniform: Tensor) -> Tensor:
    """Draws one id a row: the law of `tts.sampling.filtered_probabilities` with each row's own settings.

    Args:
        logits: `[slot, vocab]`. temperature: `[slot]`, 0 = the most likely. top_k: LongTensor[slot], 0 = all.
        uniform: `[slot]` in [0, 1).
    """
    vocab = logits.shape[-1]
    best, ids = logits.float().sort(stable=True, dim=-1, descending=True)
    kept = torch.where(top_k > 0, top_k, vocab)[:, None]
    best = best.masked_fill(torch.arange(vocab, device=logits.device) >= kept, float("-inf"))
    cold = temperature <= 0
    probabilities = (best / torch.where(cold, 1.0, temperature)[:, None]).softmax(-1)
    cumulative = probabilities.cumsum(-1)
    # A shade below the total, so that rounding can never push a draw past the last id of non-zero probability.
    target = (uniform * ~cold)[:, None] * (cumulative[:, -1:] * (1 - 1e-6))
    return ids.gather(-1, torch.searchsorted(cumulative, target, right=True))[:, 0]
