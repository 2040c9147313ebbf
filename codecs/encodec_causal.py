"""EnCodec 24 kHz (Defossez et al. 2022, github.com/facebookresearch/encodec) in our own modules, with a stream.

The published code cannot stream. Its convolutions are causal, but they pad the start with a reflection of what follows:
so a stream waits for the first seven frames (93 ms) and is exact from then on. Encoding gives those frames at once when
they are there (`Codec.finish` gives them to a stream that ends sooner); decoding lags by six frames throughout.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..errors import ConfigError, CorruptFile
from ..nn.state import State
from .base import FrameSpec, in_step
from .causal import CausalCodec
from .checkpoints import plain_tensors, put, read_tensors
from .published import REFUSED
from .quantizers import ResidualVQ
from .seanet import PadMode, SEANetConfig, SEANetDecoder, SEANetEncoder

__all__ = ["EncodecCodec", "EncodecConfig", "load_encodec"]


class EncodecConfig(BaseModel):
    """The published configuration's fields that shape the model; other keys of its `config.json` are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sampling_rate: int = 24_000
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    compress: int = 2
    num_lstm_layers: int = 2
    use_conv_shortcut: bool = True
    pad_mode: PadMode = "reflect"
    codebook_size: int = 1024
    target_bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)
    """In kbit/s; the highest says how many codebooks there are."""

    @property
    def hop(self) -> int:
        return math.prod(self.upsampling_ratios)

    @property
    def codebooks(self) -> int:
        bits = max(1, (self.codebook_size - 1).bit_length())
        return int(1000 * self.target_bandwidths[-1] // (-(-self.sampling_rate // self.hop) * bits))

    @property
    def seanet(self) -> SEANetConfig:
        return SEANetConfig(
            dim=self.hidden_size,
            filters=self.num_filters,
            ratios=self.upsampling_ratios,
            residuals=self.num_residual_layers,
            kernel=self.kernel_size,
            last_kernel=self.last_kernel_size,
            residual_kernel=self.residual_kernel_size,
            compress=self.compress,
            dilation=self.dilation_growth_rate,
            shortcut=self.use_conv_shortcut,
            lstm=self.num_lstm_layers,
            pad_mode=self.pad_mode,
        )


class EncodecCodec(CausalCodec):
    """24 kHz, 75 Hz, 32 x 1024 as published (24 kbit/s; 8 levels are its 6 kbit/s)."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.frame_size = config.sampling_rate, config.hop
        self.frame_spec = FrameSpec(
            "codes", Fraction(self.sample_rate, self.frame_size), config.codebooks, config.codebook_size
        )
        self.encoder = SEANetEncoder(config.seanet)
        self.quantizer = ResidualVQ(config.hidden_size, config.codebooks, config.codebook_size)
        self.decoder = SEANetDecoder(config.seanet)
        self.first_frames = self.encoder.first_steps()
        self.late_frames = self.decoder.first_steps() - 1
        self.latency = self.late_frames * self.frame_size

    def init_state(self, batch: int) -> State:
        state = self._state_of(batch, encoder=self.encoder, decoder=self.decoder)
        device = next(self.parameters()).device
        self._add_pending(state, device)
        state.add("held", self.config.hidden_size, self.late_frames, device=device)
        state.add("held_length", dtype=torch.long, device=device)
        state.add("decoding", dtype=torch.bool, device=device)
        state.add("late", self.latency, device=device)
        return state

    def _latents(self, audio: Tensor, state: State | None) -> Tensor:
        return self.encoder(audio, None if state is None else state.child("encoder"))

    def _audio(self, latents: Tensor, state: State | None) -> Tensor:
        if state is None:
            return self.decoder(latents)
        if not self.late_frames:
            return self.decoder(latents, state.child("decoder"))
        return self._decode_late(latents, state)

    def _decode_late(self, latents: Tensor, state: State) -> Tensor:
        """Waits for the frames that the first padding needs, and keeps that distance for the rest of the stream."""
        batch, _, count = latents.shape
        samples = count * self.frame_size
        held = in_step(state, "held_length")
        if held is None:  # no slot moves
            return latents.new_zeros(batch, 1, samples)
        before = state["late"][:, None]
        if not in_step(state, "decoding"):
            latents = torch.cat([state["held"][..., :held], latents], -1)
            if latents.shape[-1] <= self.late_frames:
                state.update("held", F.pad(latents, (0, self.late_frames - latents.shape[-1])))
                state.update("held_length", torch.full_like(state["held_length"], latents.shape[-1]))
                return latents.new_zeros(batch, 1, samples)
            state.update("decoding", torch.ones_like(state["decoding"]))
            before = latents.new_zeros(batch, 1, (self.late_frames - held) * self.frame_size)
        audio = torch.cat([before, self.decoder(latents, state.child("decoder"))], -1)
        state.update("late", audio[:, 0, samples:])
        return audio[..., :samples]

    def flush(self, state: State) -> Tensor:
        """The last `latency` samples `[batch, 1, latency]`."""
        held = in_step(state, "held_length")
        if held is None or in_step(state, "decoding") or not held:
            return state["late"][:, None].clone()
        audio = self.decoder(state["held"][..., :held])
        return F.pad(audio, (self.latency - audio.shape[-1], 0))


_FIXED: dict[str, tuple[Any, ...]] = {
    "trim_right_ratio": (1.0,),
    "norm_type": ("weight_norm",),
}


def encodec_config(raw: dict[str, Any], folder: Path) -> EncodecConfig:
    """The configuration of a published `config.json`.

    Raises:
        ConfigError: it asks for a part that this model does not have; the 48 kHz model is of that kind.
    """
    from .loading import validated

    file = folder / "config.json"
    if raw.get("audio_channels", 1) != 1 or raw.get("normalize") or raw.get("chunk_length_s"):
        raise ConfigError(f"{file}: this is an EnCodec like the 48 kHz one: {REFUSED['facebook/encodec_48khz']}")
    if not raw.get("use_causal_conv", True):
        raise ConfigError(f"{file}: an EnCodec whose convolutions look ahead is not supported; use the 24 kHz model")
    for key, allowed in _FIXED.items():
        if key in raw and raw[key] not in allowed:
            raise ConfigError(f"{file}: an EnCodec with {key}={raw[key]!r} is not supported, only {allowed}")
    config = validated(EncodecConfig, {key: value for key, value in raw.items() if value is not None}, folder)
    if raw.get("codebook_dim") not in (None, config.hidden_size):
        raise ConfigError(f"{file}: an EnCodec whose codes are not as wide as its latents is not supported")
    if config.codebooks < 1:
        raise ConfigError(f"{file}: target_bandwidths {config.target_bandwidths} leave no codebook")
    return config


def encodec_state(tensors: dict[str, Tensor], codec: EncodecCodec) -> dict[str, Tensor]:
    """A checkpoint in the layout of `transformers` or of the package `encodec` as the state dict of our codec.

    Raises:
        CorruptFile: a tensor is missing.
    """
    plain = plain_tensors(tensors)
    state: dict[str, Tensor] = {}
    prefix, book = ("quantizer.layers", "codebook")
    if any(name.startswith("quantizer.vq.") for name in plain):
        prefix, book = ("quantizer.vq.layers", "_codebook")
    try:
        for half in ("encoder", "decoder"):
            state |= getattr(codec, half).from_published(plain, half)
        books = [plain[f"{prefix}.{k}.{book}.embed"] for k in range(codec.config.codebooks)]
    except KeyError as error:
        raise CorruptFile(f"the checkpoint lacks the tensor {error}; it is no EnCodec of this configuration") from None
    state["quantizer.codebook"] = torch.stack(books)
    # The published moving averages are not read: these are those of codebooks that are just so.
    state["quantizer.sums"] = state["quantizer.codebook"].clone()
    state["quantizer.usage"] = torch.ones(state["quantizer.codebook"].shape[:2])
    state["quantizer.ready"] = torch.tensor(True)
    return state


def load_encodec(folder: Path, raw: dict[str, Any]) -> EncodecCodec:
    """A published EnCodec 24 kHz in eval mode, from a folder with `config.json` (already read: `raw`) and its weights.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    codec = EncodecCodec(encodec_config(raw, folder))
    put(codec, encodec_state(read_tensors(folder), codec), folder)
    return codec.eval()
