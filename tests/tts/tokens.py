"""Tiny token language models, and how their tests drive them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quaver.tts.backbones import HFConfig
from quaver.tts.generate import Frame, Generation
from quaver.tts.layouts import SPEECH, sequence
from quaver.tts.token_lm import TokenLM, TokenLMConfig
from quaver.tts.token_plan import TokenPlan, TokenRequest

from ..laws import randomised

BACKBONE = {"width": 16, "layers": 2, "heads": 2, "hidden": 24, "window": 200, "slack": 7}
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FLAT: dict[str, Any] = {"vocab": 27, "backbone": BACKBONE, "ratio": (2, 3), "text_hidden": 16}
THREE: dict[str, Any] = {**FLAT, "codebooks": 3, "vocab": 12}
SYSTEMS: dict[str, dict[str, Any]] = {
    "cosyvoice": {**FLAT, "layout": "prefix", "voices": ["a", "b"], "text_blocks": 1},
    "cosyvoice2": {**FLAT, "layout": "interleave"},
    "qwen": {
        **FLAT,
        "layout": "interleave",
        "text": "bpe",
        "backbone": HFConfig(arch=QWEN, context=200, chunk=8).model_dump(),
    },
    "koel": {**THREE, "layout": "cross", "cross": {"stages": 2, "heads": 2, "relative": False, "capacity": 40}},
    "vat": {**THREE, "layout": "cross", "cross": {"stages": 2, "heads": 2, "capacity": 40}, "text_blocks": 1},
    "qtts-depth": {**THREE, "head": "depth", "block": {"width": 8, "layers": 1, "heads": 2, "hidden": 12}},
    "qtts-delay": {**THREE, "pattern": "delay", "voices": ["a"]},
    "delay-interleave": {**THREE, "pattern": "delay:0,1,1", "layout": "interleave"},
    "vita": {**FLAT, "layout": "interleave", "head": "multi_token", "drafts": 3},
}
TEXT = (5, 9, 3, 7, 30, 2, 11)


def token_lm(system: str, **changes: Any) -> TokenLM:
    torch.manual_seed(0)
    lm = TokenLM(TokenLMConfig.model_validate({**SYSTEMS[system], "longest": 4.0, **changes}))
    return randomised(lm, scale=0.2)


def speak(lm: TokenLM, request: TokenRequest, limit: int = 5000) -> tuple[list[Frame], TokenPlan]:
    generation = Generation(lm)
    plan, frames = generation.join(0, request), []
    for _ in range(limit):
        if plan.done:
            return frames, plan
        frames += generation.tick().values()
    raise AssertionError("the plan hangs")


def taught(lm: TokenLM, plan: TokenPlan) -> tuple[Tensor, Tensor]:
    """Teacher-forced hidden states `[step, width]` where each step is predicted, and the steps `[step, K]`."""
    steps = torch.stack(plan.steps, -1)
    text = 0 if lm.config.layout == "cross" else len(plan.ids)
    seq = sequence(lm.config.interleave, text, steps.shape[-1], steps.shape[-1], plan.layout.voice)
    kind = torch.tensor([[i.kind for i in seq.items]])
    value = torch.tensor([[i.value for i in seq.items]])
    codes = torch.full((1, lm.config.codebooks, len(seq.items)), lm.head.empty)
    for at, item in enumerate(seq.items):
        if item.kind == SPEECH:
            codes[0, :, at] = steps[:, item.value]
    ids, lengths = torch.tensor([plan.ids]), torch.tensor([len(plan.ids)])
    with torch.no_grad():
        hidden = lm.hidden(kind, value, ids, lengths, codes)[0]
    at = [seq.targets.index(s) for s in range(steps.shape[-1])]
    return hidden[at], steps.T
