"""What the published codecs share that run in our modules: whole frames in, a quantizer in the middle, a stream."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadInput
from ..nn.state import State
from .base import Codec, check_audio
from .quantizers import ResidualVQ, SplitVQ

__all__ = ["CausalCodec"]


class CausalCodec(Codec):
    """A causal codec of codes: a subclass says how whole frames of audio become latents, and latents audio."""

    quantizer: ResidualVQ | SplitVQ

    def _latents(self, audio: Tensor, state: State | None) -> Tensor:
        """Whole frames of audio `[batch, 1, sample]`, at least one -> `[batch, dim, frame]`."""
        raise NotImplementedError

    def _audio(self, latents: Tensor, state: State | None) -> Tensor:
        """`[batch, dim, frame]`, at least one -> audio `[batch, 1, frame * frame_size]`."""
        raise NotImplementedError

    def encode(
        self,
        audio: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        codebooks: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Audio `[batch, 1, sample]` -> codes `[batch, codebooks, frame]` and frame counts.

        Args:
            lengths: LongTensor[batch] in samples (offline only). codebooks: keep only the first so many levels.

        Raises:
            BadInput: not finite, not mono, or streaming slots out of step with each other.
        """
        check_audio(audio)
        audio, counts = self._whole_frames(audio, lengths, state)
        levels = self._levels(codebooks)
        if audio.shape[-1] == 0:
            return torch.zeros(audio.shape[0], levels, 0, dtype=torch.long, device=audio.device), counts
        return self.quantizer.encode(self._latents(audio, state), levels), counts

    def decode(self, frames: Tensor, state: State | None = None) -> Tensor:
        """Codes (any number of leading codebooks) -> audio `[batch, 1, frame * frame_size]`.

        Raises:
            BadInput: not `[batch, codebook, frame]`, too many codebooks, or a code outside the vocabulary.
        """
        if frames.ndim != 3:  # the quantizer checks the rest
            raise BadInput(f"frames must be [batch, codebook, frame], not {list(frames.shape)}")
        if frames.shape[-1] == 0:
            return torch.zeros(frames.shape[0], 1, 0, device=frames.device)
        return self._audio(self.quantizer.decode(frames), state)
