"""Acoustic decoder of the CosyVoice family: speech tokens in, audio out, by flow matching and a vocoder.

The interface of `tts/decoder.py`: `push(frames, final) -> audio`. Tokens wait until a chunk and its look-ahead are
there; every chunk costs the same, and all pushes together equal one push of everything, however they are cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.mel import MelCodec
from ..errors import BadInput, ConfigError
from .decoder import AcousticDecoder
from .flow import FlowModel

__all__ = ["FlowDecoder", "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """How the speaker sounds: tokens LongTensor `[K, token]` and their mel `[mels, token * patch]` (zero-shot)."""

    tokens: Tensor
    mel: Tensor


class FlowDecoder:
    """One stream through a flow and a vocoder.

    Args:
        speaker: `[condition]` from `FlowModel.speaker`. seed: of the noise; the same seed gives the same audio.
        prompt: its tokens come first and are not heard; cut to whole chunks, the latest are kept.
        steps, guidance: instead of the flow's own settings.
    """

    def __init__(
        self,
        flow: FlowModel,
        vocoder: MelCodec,
        speaker: Tensor,
        *,
        seed: int = 0,
        prompt: Prompt | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> None:
        if flow.config.mels != vocoder.config.mels:
            raise ConfigError(f"the flow makes {flow.config.mels} mel bins, the vocoder reads {vocoder.config.mels}")
        self.flow, self.speaker = flow, speaker[None]
        self.settings = {"steps": steps, "guidance": guidance}
        self.seed = torch.tensor([seed], device=speaker.device)
        beta = flow.config.guidance if guidance is None else guidance
        self.state = flow.init_state(1, steps, guided=bool(beta))
        self.vocoder = AcousticDecoder(vocoder)
        self.waiting = torch.zeros(flow.config.codebooks, 0, dtype=torch.long)
        self.shown: Tensor | None = None
        self.silent = 0  # tokens of the prompt, whose mel is not sent on
        if prompt is not None:
            self._begin(prompt)

    def _begin(self, prompt: Prompt) -> None:
        c = self.flow.config
        count = prompt.tokens.shape[-1]
        if prompt.tokens.shape[0] != c.codebooks or list(prompt.mel.shape) != [c.mels, count * c.patch]:
            raise BadInput(
                f"a prompt is tokens [{c.codebooks}, n] and mel [{c.mels}, n * {c.patch}] of the same speech"
            )
        keep = count // c.chunk * c.chunk
        if not keep:
            raise BadInput(f"a prompt needs at least {c.chunk} tokens ({c.chunk / 25:.1f} s), this has {count}")
        self.waiting = prompt.tokens[:, count - keep :].clone()
        patches = self.flow.fold(prompt.mel[None, :, (count - keep) * c.patch :])
        self.shown = torch.cat([patches, patches.new_ones(1, keep, 1)], -1)
        self.silent = keep

    @torch.inference_mode()
    def push(self, frames: Tensor, final: bool = False) -> np.ndarray:
        """`frames[K, token]` -> float32 samples `[n]` that are certain by now; with `final`, all that is left."""
        c = self.flow.config
        self.waiting = torch.cat([self.waiting, frames.cpu()], -1)
        parts = []
        while self.waiting.shape[-1] >= c.chunk + c.lookahead:
            parts.append(self._chunk(c.chunk, c.lookahead))
        while final and self.waiting.shape[-1]:
            count = min(c.chunk, self.waiting.shape[-1])
            parts.append(self._chunk(count, min(c.lookahead, self.waiting.shape[-1] - count)))
        mel = torch.cat(parts, -1) if parts else torch.zeros(1, c.mels, 0, device=self.speaker.device)
        return self.vocoder.push(mel[0], final)

    def _chunk(self, count: int, ahead: int) -> Tensor:
        """Mel of the next `count` tokens, `ahead` more of which are known; the prompt's is left out."""
        c, device = self.flow.config, self.speaker.device
        window = self.waiting[:, : count + ahead]
        self.waiting = self.waiting[:, count:]
        missing = c.lookahead - ahead
        tokens = F.pad(window, (0, missing))[None].to(device)
        known = (torch.arange(count + c.lookahead, device=device) < count + ahead)[None]
        shown = None
        if self.shown is not None and self.silent:
            shown, self.shown = self.shown[:, :count], self.shown[:, count:]
        mel = self.flow.decode(
            tokens, self.speaker, self.seed, known=known, prompt=shown, state=self.state, **self.settings
        )
        if self.silent:
            self.silent -= count
            return mel[..., :0]
        return mel
