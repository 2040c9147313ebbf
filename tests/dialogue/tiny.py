"""Small random duplex models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.depth import DepthConfig
from quaver.dialogue.model import DuplexConfig, DuplexModel
from quaver.dialogue.monologue import PieceVocabulary
from quaver.nn.transformer import TransformerConfig

from ..laws import randomised

BACKBONE = TransformerConfig(width=32, layers=2, heads=2, hidden=48, window=24, slack=8)
DEPTH = DepthConfig(width=16, layers=2, heads=2, hidden=24)


def tiny_config(**changes: Any) -> DuplexConfig:
    settings = {"text_vocab": 12, "vocab": 8, "own": 3, "user": 2, "backbone": BACKBONE, "depth": DEPTH}
    return DuplexConfig(**{**settings, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> DuplexModel:
    torch.manual_seed(seed)
    return randomised(DuplexModel(tiny_config(**changes)), seed, 0.1)


def random_codes(model: DuplexModel, batch: int, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    text = torch.randint(config.text_vocab, (batch, 1, frames), generator=generator)
    audio = torch.randint(config.vocab, (batch, config.own + config.user, frames), generator=generator)
    return torch.cat([text, audio], 1)


CODEC: dict[str, Any] = {
    "hop": 16,
    "n_fft": 64,
    "mels": 8,
    "width": 8,
    "hidden": 8,
    "encoder_blocks": (1, 1),
    "decoder_blocks": (1, 1),
    "dim": 4,
    "codebooks": 3,
    "vocab": 8,
    "semantic": "none",
}
VOCABULARY = PieceVocabulary(["hello", "yes", "no", "blue", "seven", "what"])


def tiny_codec(seed: int = 0, **changes: Any) -> XCodec:
    torch.manual_seed(seed)
    return randomised(XCodec(XCodecConfig(**(CODEC | changes))), seed, 0.3)


def talking_model(seed: int = 0, **changes: Any) -> DuplexModel:
    """A model whose text is `VOCABULARY`'s."""
    return tiny_model(seed, text_vocab=VOCABULARY.size, pad=VOCABULARY.pad, epad=VOCABULARY.epad, **changes)


def noise_frames(count: int, size: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal((count, size))).astype(np.float32)
