"""Supervised semantic tokens: FSQ inside a phoneme recogniser (the idea of CosyVoice's S3 tokenizer).

One network, four uses: its codes are the semantic tokens of an LLM-based TTS; its hidden features teach the codec's
semantic branch; its frame-wise phoneme posteriors align a transcript (`training/align.py`); and its best path gives a
phone error rate. It is not causal: nothing of it is needed while a stream runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..nn.conv import ConvNeXtBlock
from .base import check_audio
from .features import LogMel
from .quantizers import FSQ

__all__ = ["SemanticConfig", "SemanticOutput", "SemanticTokenizer"]


class SemanticConfig(BaseModel):
    """Sizes.

    Attributes:
        symbols: names of the recogniser's outputs; index 0 is the CTC blank.
        blank: log-probability of the blank, a constant. A learned blank takes nearly all frames and leaves each phoneme
            a single spike (Graves 2006; Zeyer et al. 2021), useless for alignment. A dear constant one makes every
            frame choose a phoneme, and stays there only to part equal neighbours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate: int = 24_000
    hop: int = 240
    n_fft: int = 960
    mels: int = 100
    width: int = 256
    hidden: int = 768
    low_blocks: int = 3
    middle_blocks: int = 4
    upper_blocks: int = 2
    top_blocks: int = 1
    levels: tuple[int, ...] = (3, 3, 3, 3, 3, 3, 3, 3)
    symbols: tuple[str, ...] = ()
    blank: float = -4.0


@dataclass
class SemanticOutput:
    """Attributes: codes `[batch, 1, frame]` and features `[batch, width, frame]` at 25 Hz, log_probs `[batch, 2 *
    frame, symbol]` at 50 Hz."""

    codes: Tensor
    features: Tensor
    log_probs: Tensor


class SemanticTokenizer(nn.Module):
    """Log-mel (100 Hz) -> 50 Hz -> 25 Hz -> FSQ -> 25 Hz features -> 50 Hz phoneme log-probabilities."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = 4 * config.hop

        def blocks(count: int) -> nn.Sequential:
            return nn.Sequential(*[ConvNeXtBlock(config.width, config.hidden, causal=False) for _ in range(count)])

        self.front = LogMel(config.sample_rate, config.n_fft, config.hop, config.mels)
        self.stem = nn.Conv1d(config.mels, config.width, 4, 2, padding=1)
        self.low = blocks(config.low_blocks)
        self.down = nn.Conv1d(config.width, config.width, 4, 2, padding=1)
        self.middle = blocks(config.middle_blocks)
        self.to_code = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, len(config.levels)))
        self.quantizer = FSQ(config.levels)
        self.from_code = nn.Linear(len(config.levels), config.width)
        self.upper = blocks(config.upper_blocks)
        self.up = nn.Linear(config.width, 2 * config.width)
        self.top = blocks(config.top_blocks)
        self.head = nn.Linear(config.width, max(len(config.symbols) - 1, 1))

    def forward(self, audio: Tensor, bypass: Tensor | None = None) -> SemanticOutput:
        """Audio `[batch, 1, sample]`; the end is padded with silence to a whole frame of 960 samples.

        `bypass` (BoolTensor[batch], training only): items whose bounded latents are not rounded.
        """
        code = self.quantizer(self._before_codes(audio), bypass=bypass)
        x = self.upper(self.from_code(code.latents.transpose(1, 2)).transpose(1, 2))
        # Per-frame standardised features: a target of unit scale, without statistics to keep.
        features = F.layer_norm(x.transpose(1, 2), (self.config.width,)).transpose(1, 2)
        batch, width, frames = x.shape
        y = self.up(x.transpose(1, 2)).view(batch, frames * 2, width).transpose(1, 2)
        log_probs = self.head(self.top(y).transpose(1, 2)).float().log_softmax(-1)
        blank = torch.full_like(log_probs[..., :1], self.config.blank)
        return SemanticOutput(code.frames, features, torch.cat([blank, log_probs], -1))

    @torch.inference_mode()
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Semantic tokens `[batch, 1, frame]` of audio `[batch, 1, sample]`, and frame counts, as a codec does."""
        check_audio(audio)
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[-1], device=audio.device)
        return self.quantizer.encode(self._before_codes(audio)), -(-lengths // self.frame_size)

    def _before_codes(self, audio: Tensor) -> Tensor:
        """What FSQ rounds `[batch, level, frame]`."""
        audio = F.pad(audio, (0, -audio.shape[-1] % self.frame_size))
        x = self.low(F.gelu(self.stem(self.front(audio))))
        x = self.middle(F.gelu(self.down(x)))
        return self.to_code(x.transpose(1, 2)).transpose(1, 2)

    @torch.inference_mode()
    def transcribe(self, audio: Tensor) -> list[list[str]]:
        """Best-path phoneme symbols of each item of `[batch, 1, sample]` (CTC: repeats merged, blanks dropped)."""
        best = self(audio).log_probs.argmax(-1)
        return [
            [self.config.symbols[i] for i in torch.unique_consecutive(row).tolist() if i != 0] for row in best.cpu()
        ]
