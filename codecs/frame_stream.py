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
from .base import Codec, check_audio, check_codes

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
        sound, frame: shapes of what goes into `encode` and into `decode`.
        state: of both directions; `state.reset(slots)` starts slots afresh, `state.save()` keeps them.

    Raises:
        BadInput: a codec that cannot stream, or that does not give a frame for each frame from the first on.
    """

    def __init__(self, codec: Codec, slots: int = 1, *, codebooks: int | None = None, recorded: bool = True) -> None:
        if codec.first_frames > 1:
            raise BadInput(f"this codec gives its first {codec.first_frames} frames together; use encode with a state")
        self.codec, self.slots, self.spec = codec.eval(), slots, codec.frame_spec
        self.codebooks = codec._levels(codebooks) if self.spec.kind == "codes" else self.spec.dim
        self.sound, self.frame = (slots, 1, codec.frame_size), (slots, self.codebooks, 1)
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
            moving: BoolTensor[slot] of the streams that have a frame (default: all); the others stay where they are,
                and their rows of the result mean nothing.

        Raises:
            BadInput: another shape, or samples that are not finite.
        """
        check_audio(audio)
        self._fits(audio, self.sound)
        if moving is not None and not bool(moving.any()):
            return torch.zeros(self.frame, dtype=torch.long if self.spec.kind == "codes" else None, device=self.device)
        return self._step(self._encoder, audio, moving)

    def decode(self, frames: Tensor, moving: Tensor | None = None) -> Tensor:
        """Codes `[slot, codebook, 1]` -> audio `[slot, 1, frame_size]`, late by the codec's `latency`.

        Raises:
            BadInput: another shape, or a code outside the vocabulary.
        """
        self._fits(frames, self.frame)
        if self.spec.kind == "codes":  # a recording cannot look at numbers, so they are looked at here
            check_codes(frames, self.codebooks, self.spec.vocab)
        if moving is not None and not bool(moving.any()):
            return torch.zeros(self.sound, device=self.device)
        return self._step(self._decoder, frames, moving)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """The last `latency` samples of every slot."""
        return self.codec.flush(self.state)

    @torch.inference_mode()
    def _step(self, step: Step, x: Tensor, moving: Tensor | None) -> Tensor:
        everybody = torch.ones(self.slots, dtype=torch.bool, device=self.device)
        return step(x.to(self.device), everybody if moving is None else moving)[0]

    @staticmethod
    def _fits(x: Tensor, shape: tuple[int, ...]) -> None:
        if x.shape != shape:
            raise BadInput(f"a step of this stream takes {list(shape)}, not {list(x.shape)}")

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
        sound = torch.randn(4, *self.sound, generator=dice) / 10
        sound[2] = 0.0
        some = torch.arange(self.slots) % 2 == 0
        masks = (some | True, some, ~some | (self.slots == 1), some | True)
        heard = list(zip(sound, masks, strict=True))
        self._encoder = record(self._encode, self.state, [self.codec], heard) or self._encode
        shape = (4, *self.frame)
        codes = self.spec.kind == "codes"
        frames = torch.randint(self.spec.vocab, shape, generator=dice) if codes else torch.randn(shape, generator=dice)
        said = list(zip(frames, masks, strict=True))
        self._decoder = record(self._decode, self.state, [self.codec], said) or self._decode
