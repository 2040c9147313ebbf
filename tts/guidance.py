"""Classifier-free guidance for every token language model and head (Ho and Salimans 2022; Koel-TTS, chatterbox).

`GuidedLM` is a model to the loop like any other: it runs each chunk twice, as it is and with what it is told hidden
(text, voice and conditions, or the conditions alone), each in its own part of the state, and its head mixes the logits
of every level: l = u + scale (c - u). The scale is each request's own; 1 takes c itself: a request without guidance is
what it is without this wrapper. The model runs twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..nn.state import State, StreamingModule
from .sampling import SamplingConfig
from .token_heads import Cascade, MultiTokenHead, TokenHead
from .token_lm import TokenLM

if TYPE_CHECKING:
    from .token_plan import TokenChunk, TokenPlan

__all__ = ["GuidedLM"]


class GuidedLM(StreamingModule):
    """A token language model whose requests may ask for `guidance`; train it with `options.drop`."""

    def __init__(self, lm: TokenLM) -> None:
        super().__init__()
        self.lm = lm
        self.head = _GuidedHead(lm.head)

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, given=self.lm, blind=self.lm)

    def enter(self, plan: TokenPlan, state: State, slot: int) -> None:
        self.lm.enter(plan, state.child("given"), slot)

    def run(self, chunks: Mapping[int, TokenChunk], state: State) -> Tensor:
        """Hidden states `[slot, length, 2 * width + 1]`: both branches, and each request's scale."""
        given = self.lm.run(chunks, state.child("given"))
        blind = self.lm.run(chunks, state.child("blind"), blind=True)
        scale = given.new_ones(len(given), given.shape[1], 1)
        for slot, chunk in chunks.items():
            scale[slot] = chunk.plan.request.guidance
        return torch.cat([given, blind, scale], -1)

    def readout(self, hidden: Tensor) -> list[list[float]]:
        return []


class _GuidedHead:
    """A head over the hidden states of `GuidedLM.run`."""

    def __init__(self, head: TokenHead) -> None:
        self.head = head

    def sample(self, hidden: Tensor, uniform: Tensor, config: SamplingConfig, *places: Any, **more: Any) -> Tensor:
        if hidden.shape[-1] % 2 == 0:  # a cascade's state, which is not guided
            return self.head.sample(hidden, uniform, config, *places, **more)
        given, blind = hidden[:, :-1].chunk(2, -1)
        scale = hidden[:, -1:]

        def mix(logits: Tensor) -> Tensor:
            c, u = logits.chunk(2)
            return torch.where(scale == 1, c, u + scale * (c - u))

        return self.head.sample(torch.cat([given, blind]), uniform, config, *places, **more, mix=mix)

    def cascade(self, hidden: Tensor) -> Cascade:
        """The drafts of a multi-token head follow the branch that sees the text; only the main step is guided."""
        assert isinstance(self.head, MultiTokenHead)
        return self.head.cascade(hidden[:, :-1].chunk(2, -1)[0].contiguous())
