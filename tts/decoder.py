"""Acoustic decoder: frames in, audio out, chunk by chunk, with the codec's delay taken out at the front."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..codecs.base import Codec
from ..errors import BadInput

__all__ = ["AcousticDecoder", "BatchDecoder"]


class BatchDecoder:
    """`slots` streams through a codec's decoder, stepped together.

    Every call runs over all slots, with those that have nothing to decode frozen: the shapes of its matrix products,
    and so the rounding of each row, do not depend on the neighbours (law 3).
    """

    def __init__(self, codec: Codec, slots: int = 1) -> None:
        self.codec, self.slots = codec, slots
        self.state = codec.init_state(slots)
        self.to_drop = [codec.latency] * slots

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        """Starts a new stream in a slot."""
        self.state.reset(self._mask({slot}))
        self.to_drop[slot] = self.codec.latency

    @torch.inference_mode()
    def decode(self, frames: Mapping[int, Tensor]) -> dict[int, np.ndarray]:
        """`frames[K, frame]` by slot, all of one shape -> float32 samples `[n]` by slot: those that are certain by now.

        A call that raises leaves every slot as it was before.

        Raises:
            BadInput: the shapes differ.
        """
        if not frames:
            return {}
        first = next(iter(frames.values()))
        if any(f.shape != first.shape for f in frames.values()):
            raise BadInput("slots that are decoded together need frames of one shape")
        if not first.shape[-1]:
            return {slot: np.zeros(0, np.float32) for slot in frames}
        batch = first.new_zeros(self.slots, *first.shape)
        for slot, its in frames.items():
            batch[slot] = its
        mark = self.state.mark()
        try:
            with self.state.only(self._mask(frames)):
                audio = self.codec.decode(batch.to(self.state_device), self.state)[:, 0].cpu().numpy()
        except BaseException:
            self.state.rollback(mark)
            raise
        return {slot: self._trim(slot, audio[slot]) for slot in frames}

    @torch.inference_mode()
    def flush(self, slots: Iterable[int]) -> dict[int, np.ndarray]:
        """The samples that the decoder still holds; those streams are over (`reset` before the next)."""
        wanted = set(slots)
        if not wanted:
            return {}
        with self.state.only(self._mask(wanted)):
            audio = self.codec.flush(self.state)[:, 0].cpu().numpy()
        return {slot: self._trim(slot, audio[slot]) for slot in sorted(wanted)}

    @property
    def state_device(self) -> torch.device:
        return next(tensor.device for _, tensor in self.state.tensors())

    def _mask(self, slots: Collection[int] | Mapping[int, Tensor]) -> Tensor:
        return torch.tensor([i in slots for i in range(self.slots)], device=self.state_device)

    def _trim(self, slot: int, audio: np.ndarray) -> np.ndarray:
        dropped = min(self.to_drop[slot], len(audio))
        self.to_drop[slot] -= dropped
        return audio[dropped:].copy()  # not a view that keeps the whole batch alive


class AcousticDecoder:
    """One stream through a codec's decoder.

    `push(frames, final)` returns the samples that are certain by now; all pushes together equal the offline decode.
    """

    def __init__(self, codec: Codec) -> None:
        self.batch = BatchDecoder(codec)

    def push(self, frames: Tensor, final: bool = False) -> np.ndarray:
        """`frames[K, frame]` -> float32 samples `[n]`; with `final` also what the decoder still holds."""
        audio = self.batch.decode({0: frames})[0]
        return np.concatenate([audio, self.batch.flush([0])[0]]) if final else audio
