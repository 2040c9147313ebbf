"""Sampling from logits: temperature, top-k, top-p, min-p and repetition-aware sampling, with per-request randomness.

Everything is batched over slots and free of host synchronisation. Randomness comes in as uniform numbers that the
caller draws from each request's own generator, so an answer does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

__all__ = ["SamplingConfig", "draw", "filtered_probabilities", "repetition_aware", "sample_code", "sampling_law"]


class SamplingConfig(BaseModel):
    """Settings; the defaults of a voice are stored with its model.

    Attributes:
        temperature: 0 picks the most likely code.
        top_k: keep the k most likely codes (0 = all). top_p: keep the smallest set with this mass. min_p: drop codes
            below this share of the most likely one.
        steps: evaluations a draw of a flow head (None: the model's own). Of what stands here, continuous heads read
            only this and the temperature, a factor on their noise.
        ras_window, ras_threshold: repetition-aware sampling (VALL-E 2, CosyVoice): when a drawn code already makes up
            more than `ras_threshold` of the last `ras_window` codes of its codebook, it is banned and drawn again from
            the unfiltered distribution. A window of 0 switches it off. CosyVoice's threshold of 0.1 of 10 fires on any
            repeat, which is too eager at 25 Hz, where a held vowel repeats codes rightly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.7, ge=0, le=5)
    top_k: int = Field(default=50, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, lt=1)
    steps: int | None = Field(default=None, ge=1)
    ras_window: int = Field(default=0, ge=0)
    ras_threshold: float = Field(default=0.3, gt=0, le=1)


def filtered_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities `[..., vocab]` after temperature and truncation; float32."""
    logits = logits.float()
    if config.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(-1)
    if config.min_p > 0:
        keep = probabilities >= config.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities * keep
    if config.top_p < 1:
        ordered, index = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered * (before < config.top_p))
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-transform sampling: `probabilities[..., vocab]`, `uniform[...]` in [0, 1) -> LongTensor `[...]`."""
    cumulative = probabilities.cumsum(-1)
    # Scaled by the true total, so that rounding can never push a draw past the last code of non-zero probability.
    target = uniform[..., None] * cumulative[..., -1:]
    index = (cumulative <= target).sum(-1)
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).float().argmax(-1)
    return torch.minimum(index, last)


def sample_code(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """Draws from the law of `filtered_probabilities`: `logits[..., vocab]`, `uniform[...]` -> LongTensor `[...]`.

    The same law over the sorted best codes only: a third of the operations, which is what a step of a small model
    costs. Codes are ordered by probability here, so a uniform number picks another code than `draw` would.
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    best, codes = logits.float().topk(min(config.top_k or logits.shape[-1], logits.shape[-1]), -1)
    probabilities = (best / config.temperature).softmax(-1)
    if config.min_p > 0:
        probabilities = probabilities * (probabilities >= config.min_p * probabilities[..., :1])
    if config.top_p < 1:
        probabilities = probabilities * (probabilities.cumsum(-1) - probabilities < config.top_p)
    cumulative = probabilities.cumsum(-1)
    # A shade below the total, so that rounding can never push a draw past the last code of non-zero probability.
    target = uniform[..., None] * (cumulative[..., -1:] * (1 - 1e-6))
    place = torch.searchsorted(cumulative, target, right=True)
    return codes.gather(-1, place)[..., 0]


def repetition_aware(
    code: Tensor, logits: Tensor, recent: Tensor, uniform: Tensor, config: SamplingConfig, codes: int | None = None
) -> Tensor:
    """Draws again where `code` repeats too often in `recent`.

    Args:
        code: LongTensor[slot], the first draw. logits: `[slot, vocab]`, unfiltered.
        recent: LongTensor[slot, window], the last codes of this codebook (ids outside the vocabulary = none yet).
        uniform: `[slot]`, fresh uniform numbers for the second draw.
        codes: how many of the ids are codes; those after them (the end of the speech) are not drawn instead of a code,
            or every long vowel and pause would be a chance to end early. Default: all.
    """
    if config.ras_window == 0 or config.temperature == 0:
        return code
    share = (recent == code[:, None]).float().sum(-1) / config.ras_window
    banned = _codes_only(logits, codes).scatter(-1, code[:, None], float("-inf"))
    possible = torch.isfinite(banned).any(-1)  # else it is the only code that may stand here
    banned = torch.where(possible[:, None], banned, torch.zeros_like(banned))
    again = draw((banned / config.temperature).softmax(-1), uniform)
    return torch.where((share > config.ras_threshold) & possible, again, code)


def _codes_only(logits: Tensor, codes: int | None) -> Tensor:
    """float32; ids from `codes` on have no probability."""
    logits = logits.float()
    if codes is None:
        return logits
    return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= codes, float("-inf"))


def sampling_law(
    logits: Tensor, config: SamplingConfig, recent: Tensor | None = None, codes: int | None = None
) -> Tensor:
    """The law `[..., vocab]` of a code drawn with `config`, repetition-aware sampling included; float32.

    What `draw` and then `repetition_aware` do at random, in closed form: speculation judges laws, not draws.

    Args:
        recent: LongTensor `[..., window]`, as of `repetition_aware`; ids outside the vocabulary = none.
        codes: as of `repetition_aware`.
    """
    law = filtered_probabilities(logits, config)
    if recent is None or config.ras_window == 0 or config.temperature == 0:
        return law
    vocab = law.shape[-1]
    inside = (recent >= 0) & (recent < vocab)
    counts = torch.zeros_like(law).scatter_add(-1, torch.where(inside, recent, 0), inside.to(law.dtype))
    free = (_codes_only(logits, codes) / config.temperature).softmax(-1).nan_to_num(0.0)
    refused = law * (counts / config.ras_window > config.ras_threshold) * (free < 1)
    # A refused code c is drawn again from `free` without c: refused(c) / (1 - free(c)) * free(x) for every other x.
    again = refused / (1 - free).clamp(min=1e-7)
    return law - refused + free * (again.sum(-1, keepdim=True) - again)
