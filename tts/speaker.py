"""A small speaker encoder: speech in, one vector that says who speaks.

Trained inside the flow (`training/tasks/flow.py`): the vector of *another* utterance of the same speaker must help to
draw this one, so it keeps what stays the same between utterances, the voice, and not the words. Convolutions and
attentive statistics pooling over the whole utterance (Okabe, Koshinaka and Shinoda 2018; the pooling of x-vectors and
ECAPA-TDNN), in place of CosyVoice's external CAM++ network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.conv import ConvNeXtBlock

__all__ = ["SpeakerEncoder"]


class SpeakerEncoder(nn.Module):
    """Log-mel `[batch, mels, frame]` of lengths `[batch]` -> unit vectors `[batch, vector]`."""

    def __init__(self, mels: int, vector: int, width: int = 128, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(mels, width, 4, 4)  # 100 Hz -> 25 Hz: voices change slowly
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, 2 * width, causal=False) for _ in range(blocks))
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.out = nn.Linear(2 * width, vector)

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        mel = F.pad(mel, (0, -mel.shape[-1] % 4))
        frames = torch.arange(mel.shape[-1], device=mel.device) < lengths[:, None]
        x = self.stem(mel * frames[:, None])
        known = frames[:, ::4]  # a place counts when its first frame is speech
        keep = known[:, None].to(x.dtype)
        x = x * keep
        for block in self.blocks:
            x = block(x) * keep  # padding stays zero, so that a batch equals its items alone
        x = x.transpose(1, 2)
        share = self.score(x).masked_fill(~known[..., None], -1e4).softmax(1)
        mean = (share * x).sum(1)
        spread = ((share * x.square()).sum(1) - mean.square()).clamp(min=1e-6).sqrt()
        return F.normalize(self.out(torch.cat([mean, spread], -1)), dim=-1)
