"""Streams through a codec one frame at a time, as a live conversation needs them: recorded, and so twice as cheap.

A frame of a small codec is some hundred small operations, each dearer to call than to run. Here the encoder's and the
decoder's step are recorded once (`nn/recorded.py`); what comes out has the bits of `Codec.encode` and `Codec.decode`
with a state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadInput
from ..nn.recorded import Step, record
from .base import Codec, check_audio

__all__ = ["FrameStream"]


class FrameStream:
    """`slots` streams through a codec in eval mode, stepped together.

    stream = FrameStream(load_codec())
    for frame in microphone:  # float32 [1, 1, frame_size]
        play(stream.decode(stream.encode(frame)))

    Args:
        codebooks: encode with the first so many only.
        recorded: record the steps (on a CPU; takes a second). A step that cannot be recorded runs as it is.

    Attributes:
        state: of both directions; `state.reset(slots)` starts slots afresh, `state.save()` keeps them.

    Raises:
        BadInput: a codec that cannot stream, or that does not give a frame for each frame from the first on.
    """

    def __init__(self, codec: Codec, slots: int = 1, *, codebooks: int | None = None, recorded: bool = True) -> None:
        if codec.first_frames > 1:
            raise BadInput(f"this codec gives its first {codec.first_frames} frames together; use encode with a state")
        self.codec, self.slots, self.spec = codec.eval(), slots, codec.frame_spec
        self.codebooks = codec._levels(codebooks) if self.spec.kind == "codes" else self.spec.dim
        with torch.inference_mode():
            self.state = codec.init_state(slots)
        self.device = next(tensor.device for _, tensor in self.state.tensors())
        self._encoder: Step = self._encode
        self._decoder: Step = self._decode
        if recorded and self.device.type == "cpu":
            self._record()

    @property
    def is_recorded(self) -> bool:
        """Whether both directions run from a recording."""
        return self._encoder != self._encode and self._decoder != self._decode

    def encode(self, audio: Tensor, moving: Tensor | None = None) -> Tensor:
        """A frame of audio `[slot, 1, frame_size]` -> its codes `[slot, codebook, 1]` (or latents `[slot, dim, 1]`).

        Args:
            moving: BoolTensor[slot] of the streams that have a frame (default: all); the others stay where they are.

        Raises:
            BadInput: another shape, or samples that are not finite.
        """
        check_audio(audio)
        return self._step(self._encoder, audio, (self.slots, 1, self.codec.frame_size), moving)

    def decode(self, frames: Tensor, moving: Tensor | None = None) -> Tensor:
        """Codes `[slot, codebook, 1]` -> audio `[slot, 1, frame_size]`, late by the codec's `latency`.

        Raises:
            BadInput: another shape, or a code outside the vocabulary.
        """
        self._check(frames)
        return self._step(self._decoder, frames, (self.slots, self.codebooks, 1), moving)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """The last `latency` samples of every slot."""
        return self.codec.flush(self.state)

    @torch.inference_mode()
    def _step(self, step: Step, x: Tensor, shape: tuple[int, ...], moving: Tensor | None) -> Tensor:
        if x.shape != shape:
            raise BadInput(f"a step of this stream takes {list(shape)}, not {list(x.shape)}")
        everybody = torch.ones(self.slots, dtype=torch.bool, device=self.device)
        return step(x.to(self.device), everybody if moving is None else moving)[0]

    def _check(self, frames: Tensor) -> None:
        """A recording cannot look at numbers, so they are looked at here."""
        if self.spec.kind == "codes" and frames.numel():
            low, high = int(frames.min()), int(frames.max())
            if not 0 <= low <= high < self.spec.vocab:
                raise BadInput(f"codes must lie in 0..{self.spec.vocab - 1}, got {low}..{high}")

    def _encode(self, audio: Tensor, moving: Tensor) -> tuple[Tensor, ...]:
        with self.state.only(moving):
            frames = self.codec.encode(audio, state=self.state)[0]
        return (frames[:, : self.codebooks],)

    def _decode(self, frames: Tensor, moving: Tensor) -> tuple[Tensor, ...]:
        with self.state.only(moving):
            return (self.codec.decode(frames, self.state),)

    def _record(self) -> None:
        """Trials: all slots move, some, the others; sound and silence."""
        dice = torch.Generator().manual_seed(0)
        sound = torch.randn(4, self.slots, 1, self.codec.frame_size, generator=dice) / 10
        sound[2] = 0.0
        some = torch.arange(self.slots) % 2 == 0
        masks = (some | True, some, ~some | (self.slots == 1), some | True)
        heard = list(zip(sound, masks, strict=True))
        self._encoder = record(self._encode, self.state, [self.codec], heard) or self._encode
        shape = (4, self.slots, self.codebooks, 1)
        codes = self.spec.kind == "codes"
        frames = torch.randint(self.spec.vocab, shape, generator=dice) if codes else torch.randn(shape, generator=dice)
        said = list(zip(frames, masks, strict=True))
        self._decoder = record(self._decode, self.state, [self.codec], said) or self._decode
