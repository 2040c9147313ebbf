"""Acoustic decoder of the CosyVoice family: speech tokens in, audio out, by flow matching and a vocoder.

The interface of `tts/decoder.py`: `push(frames, final) -> audio`. Tokens wait until a chunk and its look-ahead are
there; every chunk costs the same, and all pushes together equal one push of everything, however they are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.mel import MelCodec
from ..errors import BadInput, ConfigError
from .decoder import AcousticDecoder
from .flow import FlowModel

__all__ = ["FlowDecoder", "Prompt", "WarmPrompts"]


@dataclass(frozen=True)
class Prompt:
    """How the speaker sounds: tokens LongTensor `[K, token]` and their mel `[mels, token * patch]` (zero-shot)."""

    tokens: Tensor
    mel: Tensor


class WarmPrompts:
    """The states of a flow after the last few prompts: a voice's clip is run once, not for every answer."""

    def __init__(self, most: int = 2) -> None:
        self.most = most
        self._held: list[tuple[Tensor, Tensor, tuple[Any, ...], dict[str, Tensor]]] = []

    def get(self, prompt: Prompt, key: tuple[Any, ...]) -> dict[str, Tensor] | None:
        """The state after `prompt` with these settings, if it is held."""
        for place, (tokens, mel, its, state) in enumerate(self._held):
            if tokens is prompt.tokens and _same(its, key) and torch.equal(mel, prompt.mel):
                self._held.append(self._held.pop(place))
                return state
        return None

    def put(self, prompt: Prompt, key: tuple[Any, ...], state: dict[str, Tensor]) -> None:
        self._held = [*self._held, (prompt.tokens, prompt.mel, key, state)][-self.most :]


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


class FlowDecoder:
    """One stream through a flow and a vocoder.

    Args:
        speaker: `[condition]` from `FlowModel.speaker`. seed: of the noise; the same seed gives the same audio.
        prompt: its tokens come first and are not heard; cut to whole chunks, the latest are kept.
        steps, guidance: instead of the flow's own settings.
        warm: where the state after a prompt is kept from one answer to the next.
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
        warm: WarmPrompts | None = None,
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
        self.position = 0
        if prompt is not None:
            self._begin(prompt, warm)

    def _begin(self, prompt: Prompt, warm: WarmPrompts | None) -> None:
        c = self.flow.config
        count = prompt.tokens.shape[-1]
        if prompt.tokens.shape[0] != c.codebooks or list(prompt.mel.shape) != [c.mels, count * c.patch]:
            raise BadInput(
                f"a prompt is tokens [{c.codebooks}, n] and mel [{c.mels}, n * {c.patch}] of the same speech"
            )
        keep = count // c.chunk * c.chunk  # speech then begins `opening` tokens before a chunk's end
        if not keep:
            raise BadInput(f"a prompt needs at least {c.chunk} tokens ({c.chunk / 25:.1f} s), this has {count}")
        self.waiting = prompt.tokens[:, count - keep :].clone()
        patches = self.flow.fold(prompt.mel[None, :, (count - keep) * c.patch :])
        self.shown = torch.cat([patches, patches.new_ones(1, keep, 1)], -1)
        self.silent = keep
        self._warm(prompt, warm)

    @torch.inference_mode()
    def _warm(self, prompt: Prompt, warm: WarmPrompts | None) -> None:
        """Runs the chunks that hold the prompt alone, or takes the state after them from an earlier answer. Their noise
        is that of seed 0, so that it is the same for every answer."""
        key = (*(self.settings.values()), self.speaker)
        held = None if warm is None else warm.get(prompt, key)
        own, self.seed = self.seed, torch.zeros_like(self.seed)
        while self.silent >= self._size + self.flow.config.lookahead:
            if held is None:
                self._chunk(self._size, self.flow.config.lookahead)
            else:
                self._skip(self._size)
        self.seed = own
        if held is not None:
            self.state.restore(held)
        elif warm is not None:
            warm.put(prompt, key, self.state.save())

    @property
    def _size(self) -> int:
        """Tokens of the next chunk."""
        return self.flow.config.chunk if self.position else self.flow.config.opening

    @torch.inference_mode()
    def push(self, frames: Tensor, final: bool = False) -> np.ndarray:
        """`frames[K, token]` -> float32 samples `[n]` that are certain by now; with `final`, all that is left."""
        c = self.flow.config
        self.waiting = torch.cat([self.waiting, frames.cpu()], -1)
        parts = []
        while self.waiting.shape[-1] >= self._size + c.lookahead:
            parts.append(self._chunk(self._size, c.lookahead))
        while final and self.waiting.shape[-1]:
            count = min(self._size, self.waiting.shape[-1])
            parts.append(self._chunk(count, min(c.lookahead, self.waiting.shape[-1] - count)))
        mel = torch.cat(parts, -1) if parts else torch.zeros(1, c.mels, 0, device=self.speaker.device)
        return self.vocoder.push(mel[0], final)

    def _chunk(self, count: int, ahead: int) -> Tensor:
        """Mel of the next `count` tokens, `ahead` more of which are known; the prompt's is left out."""
        c, device = self.flow.config, self.speaker.device
        window = self.waiting[:, : count + ahead]
        missing = c.lookahead - ahead
        tokens = F.pad(window, (0, missing))[None].to(device)
        known = (torch.arange(count + c.lookahead, device=device) < count + ahead)[None]
        shown, silent = None, min(self.silent, count)
        if self.shown is not None and silent:
            shown = F.pad(self.shown[:, :silent], (0, 0, 0, count - silent))
        mel = self.flow.decode(
            tokens, self.speaker, self.seed, known=known, prompt=shown, state=self.state, **self.settings
        )
        self._skip(count)
        return mel[..., silent * c.patch :]

    def _skip(self, count: int) -> None:
        """So many tokens are done."""
        silent = min(self.silent, count)
        if self.shown is not None and silent:
            self.shown = self.shown[:, silent:]
        self.silent -= silent
        self.position += count
        self.waiting = self.waiting[:, count:]
