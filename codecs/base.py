"""What every codec promises: audio to frames and back, offline and as a stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput
from ..nn.state import State, StreamingModule

__all__ = ["Codec", "FrameSpec"]


@dataclass(frozen=True)
class FrameSpec:
    """The shape of a codec's frames.

    Attributes:
        kind: `codes` (LongTensor `[batch, codebook, frame]`) or `latents` (FloatTensor `[batch, dim, frame]`).
        rate: frames per second, exact.
        codebooks: codes per frame (0 for latents).
        vocab: entries per codebook (0 for latents).
        dim: latent width (0 for codes).
    """

    kind: Literal["codes", "latents"]
    rate: Fraction
    codebooks: int = 0
    vocab: int = 0
    dim: int = 0


class Codec(StreamingModule):
    """Audio FloatTensor `[batch, 1, sample]` in [-1, 1] <-> frames.

    Streaming: `encode` with a state takes chunks of any length and returns the frames that became complete; `decode`
    with a state returns `frame_size` samples per frame, delayed by `latency` samples; `flush` gives the last `latency`
    samples. So `cat(decoded chunks, flush)[..., latency:]` equals the offline `decode`.

    Attributes:
        sample_rate: Hz.
        frame_spec: what a frame is.
        frame_size: samples per frame.
        latency: samples by which streamed output lags.
        first_frames: frames that a streamed `encode` waits for before it gives the first ones (1: none waits).
        no_stream: why this codec cannot stream; empty when it can.
    """

    sample_rate: int
    frame_spec: FrameSpec
    frame_size: int
    latency: int
    first_frames: int = 1
    no_stream: str = ""

    def init_state(self, batch: int) -> State:
        if self.no_stream:
            raise BadInput(f"this codec cannot stream: {self.no_stream}; give it whole recordings")
        return super().init_state(batch)

    def encode(self, audio: Tensor, lengths: Tensor | None = None, state: State | None = None) -> tuple[Tensor, Tensor]:
        """Frames and LongTensor[batch] of how many of them each item fills.

        Offline, the end is padded with silence to a whole frame; `lengths` (samples) says how long each item is.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot encode")

    def posterior(self, audio: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of a codec of latents: mean `[batch, dim, frame]` and the logarithm of the standard deviation around it, or
        None where the codec knows no spread (a mel)."""
        return self.encode(audio)[0], None

    def decode(self, frames: Tensor, state: State | None = None) -> Tensor:
        """Audio `[batch, 1, frame * frame_size]`."""
        raise NotImplementedError(f"{type(self).__name__} cannot decode")

    def flush(self, state: State) -> Tensor:
        """The last `latency` samples `[batch, 1, latency]` of a streamed decode."""
        raise NotImplementedError(f"{type(self).__name__} cannot stream")

    def finish(self, state: State) -> Tensor:
        """The frames that a streamed `encode` still waits with (`first_frames`), at the end of a stream."""
        waiting = in_step(state, "pending_length") or 0
        if self.first_frames == 1 or in_step(state, "begun") or not waiting:
            return self.encode(torch.zeros(state.batch, 1, 0, device=state["pending"].device), state=state)[0]
        audio = state["pending"][:, None, :waiting]
        state.update("pending_length", torch.zeros_like(state["pending_length"]))
        return self.encode(audio)[0]

    def keep(self, codebooks: int) -> None:
        """From now on, encode gives only the first so many codebooks (what Moshi does to Mimi).

        Raises:
            BadInput: the codec has not so many, or none at all.
        """
        self.frame_spec = replace(self.frame_spec, codebooks=self._levels(codebooks))

    def _levels(self, codebooks: int | None) -> int:
        most = self.frame_spec.codebooks
        if codebooks is None:
            return most
        if not 1 <= codebooks <= most:
            raise BadInput(f"between 1 and {most} codebooks are possible, not {codebooks}")
        return codebooks

    # -- whole frames of a stream -------------------------------------------------------------------------------------
    def _add_pending(self, state: State, device: torch.device) -> None:
        """The state's place for samples that do not fill a frame yet (or the first frames)."""
        state.add("pending", self.first_frames * self.frame_size, device=device)
        state.add("pending_length", dtype=torch.long, device=device)
        if self.first_frames > 1:
            state.add("begun", dtype=torch.bool, device=device)

    def _whole_frames(self, audio: Tensor, lengths: Tensor | None, state: State | None) -> tuple[Tensor, Tensor]:
        """Whole frames to encode now, and how many each item fills."""
        if state is None:
            if lengths is None:
                lengths = torch.full((audio.shape[0],), audio.shape[-1], device=audio.device)
            return F.pad(audio, (0, -audio.shape[-1] % self.frame_size)), -(-lengths // self.frame_size)
        audio = self._gather(audio, state)
        return audio, torch.full((audio.shape[0],), audio.shape[-1] // self.frame_size, device=audio.device)

    def _gather(self, audio: Tensor, state: State) -> Tensor:
        """Joins a chunk to what was left over, returns the whole frames of it and keeps the rest."""
        waiting = in_step(state, "pending_length")
        if waiting is None:
            return audio[..., :0]
        audio = torch.cat([state["pending"][:, None, :waiting], audio], -1)
        whole = audio.shape[-1] // self.frame_size * self.frame_size
        if self.first_frames > 1 and not in_step(state, "begun"):
            if whole < self.first_frames * self.frame_size:
                whole = 0
            state.update("begun", torch.full_like(state["begun"], whole > 0))
        rest = audio[:, 0, whole:]
        state.update("pending", F.pad(rest, (0, state["pending"].shape[-1] - rest.shape[-1])))
        state.update("pending_length", torch.full_like(state["pending_length"], rest.shape[-1]))
        return audio[..., :whole]


def in_step(state: State, name: str) -> int | None:
    """The value that all moving slots have in `state[name]`; None when no slot moves.

    Raises:
        BadInput: they differ.
    """
    held = state[name] if state.active is None else state[name][state.active]
    if not held.numel():
        return None
    if bool((held != held[0]).any()):
        raise BadInput("slots of one batch are out of step; feed whole frames, or equal chunks since their start")
    return int(held[0])


def check_audio(audio: Tensor) -> None:
    """Raises BadInput unless `audio` is a finite FloatTensor `[batch, 1, sample]`."""
    if audio.ndim != 3 or audio.shape[1] != 1:
        raise BadInput(
            f"audio must be [batch, 1, sample], not {list(audio.shape)}; mix channels down or code each alone"
        )
    if not torch.isfinite(audio).all():
        raise BadInput("the audio holds NaN or infinite samples; clean it first")


def check_codes(frames: Tensor, codebooks: int, vocab: int) -> None:
    """Raises BadInput unless `frames` is `[batch, 1..codebooks, frame]` with codes in 0..vocab-1."""
    if frames.ndim != 3:
        raise BadInput(f"frames must be [batch, codebook, frame], not {list(frames.shape)}")
    if not 1 <= frames.shape[1] <= codebooks:
        raise BadInput(f"between 1 and {codebooks} codebooks are possible, not {frames.shape[1]}")
    if frames.numel() and not 0 <= int(frames.min()) <= int(frames.max()) < vocab:
        raise BadInput(f"codes must lie in 0..{vocab - 1}, got {int(frames.min())}..{int(frames.max())}")
