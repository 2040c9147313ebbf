"""Mel spectrograms as latents: the front of the codec one way, a vocoder on the shared decoder heads the other.

What conditional flow matching (CosyVoice) and MELLE predict, and what turns it into sound. Causal ConvNeXt blocks and a
decoder head, as in the native codec's own decoder, whose weights the vocoder may start from.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..errors import BadInput, ConfigError
from ..nn.conv import ConvNeXtBlock
from ..nn.state import State
from .base import Codec, FrameSpec, check_audio
from .decoders import HeadOutput, make_head
from .features import LogMel
from .loading import load_weights, model_folder, read_config, validated

__all__ = ["MelCodec", "MelConfig", "load_mel"]


class MelConfig(BaseModel):
    """Sizes; `head`: `harmonic` or `istft`; `noise`: factor on the noise of the harmonic head in use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate: int = 24_000
    hop: int = 240
    n_fft: int = 960
    mels: int = 100
    width: int = 256
    hidden: int = 768
    blocks: int = 6
    head: Literal["harmonic", "istft"] = "harmonic"
    noise: float = 1.0


class MelCodec(Codec):
    """Audio <-> standardised log-mel `[batch, mels, frame]`, one frame per hop (100 Hz)."""

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.frame_size = config.sample_rate, config.hop
        self.front = LogMel(config.sample_rate, config.n_fft, config.hop, config.mels)
        self.stem = nn.Linear(config.mels, config.width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config.width, config.hidden) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.head = make_head(config.head, config.width, config.sample_rate, config.n_fft, config.hop, config.noise)
        self.latency = self.head.overlap
        self.frame_spec = FrameSpec("latents", Fraction(config.sample_rate, config.hop), dim=config.mels)

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, front=self.front, blocks=self.blocks, head=self.head)

    def encode(self, audio: Tensor, lengths: Tensor | None = None, state: State | None = None) -> tuple[Tensor, Tensor]:
        """Audio `[batch, 1, sample]` -> mel `[batch, mels, frame]` and frame counts. Streamed chunks are whole hops.

        Raises:
            BadInput: not finite, not mono, or a streamed chunk that is not a multiple of the hop.
        """
        check_audio(audio)
        if state is None:
            if lengths is None:
                lengths = torch.full((audio.shape[0],), audio.shape[-1], device=audio.device)
            audio = F.pad(audio, (0, -audio.shape[-1] % self.frame_size))
            return self.front(audio), -(-lengths // self.frame_size)
        mel = self.front(audio, state.child("front"))
        return mel, torch.full((audio.shape[0],), mel.shape[-1], device=audio.device)

    def synthesise(self, mel: Tensor, state: State | None = None, f0: Tensor | None = None) -> HeadOutput:
        """Mel `[batch, mels, frame]` -> the head's output; `f0[batch, frame]` in Hz replaces the predicted one."""
        return self.head(self.hidden(mel, state), None if state is None else state.child("head"), f0)

    def hidden(self, mel: Tensor, state: State | None = None) -> Tensor:
        """What the head reads of a mel `[batch, mels, frame]`: `[batch, width, frame]`."""
        x = self.stem(mel.transpose(1, 2)).transpose(1, 2)
        for i, block in enumerate(self.blocks):
            x = block(x, None if state is None else state.child(f"blocks.{i}"))
        return self.norm(x.transpose(1, 2)).transpose(1, 2)

    def decode(self, frames: Tensor, state: State | None = None) -> Tensor:
        """Mel `[batch, mels, frame]` -> audio `[batch, 1, frame * hop]`, delayed by `latency` in a stream."""
        if frames.ndim != 3 or frames.shape[1] != self.config.mels:
            raise BadInput(f"mel must be [batch, {self.config.mels}, frame], not {list(frames.shape)}")
        if frames.shape[-1] == 0:
            return torch.zeros(frames.shape[0], 1, 0, device=frames.device)
        return self.synthesise(frames, state).audio[:, None]

    def flush(self, state: State) -> Tensor:
        return self.head.flush(state.child("head"))[:, None]


def load_mel(name: str) -> MelCodec:
    """A mel codec with its vocoder in eval mode, by bundled name or folder.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    folder = model_folder(name)
    config = read_config(folder)
    if config.pop("kind", None) != "mel":
        raise ConfigError(f"{folder} is not a mel vocoder")
    codec = MelCodec(validated(MelConfig, config, folder))
    load_weights(codec, folder)
    return codec.eval()
