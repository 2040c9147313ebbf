"""Mimi (Defossez et al. 2024, github.com/kyutai-labs/moshi) in our own modules, with caller-owned state.

    audio -> SEANet 25 Hz -> transformer -> /2 -> split RVQ 12.5 Hz -> x2 -> transformer -> SEANet -> audio

Causal throughout, no latency beyond the frame: a streamed run equals the offline one. Weights come from a checkpoint in
the layout of `transformers` (`kyutai/mimi`).
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..errors import ConfigError, CorruptFile
from ..nn.conv import CausalConvTranspose1d
from ..nn.packed import lay_out_linears
from ..nn.state import State, StreamingModule
from ..nn.transformer import Transformer, TransformerConfig, _Attention
from .base import FrameSpec
from .causal import CausalCodec
from .checkpoints import plain_tensors, put, read_tensors
from .quantizers import SplitVQ
from .seanet import PaddedConv1d, SEANetConfig, SEANetDecoder, SEANetEncoder

__all__ = ["MimiCodec", "MimiConfig", "load_mimi"]

_SLACK = 63
"""A streamed chunk runs through the transformer in pieces of so many steps and one."""


class MimiConfig(BaseModel):
    """The published configuration's fields that shape the model; other keys of its `config.json` are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sampling_rate: int = 24_000
    hidden_size: int = 512
    num_filters: int = 64
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    last_kernel_size: int = 3
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    compress: int = 2
    codebook_size: int = 2048
    codebook_dim: int = 256
    num_quantizers: int = 32
    num_semantic_quantizers: int = 1
    upsample_groups: int = 512
    num_hidden_layers: int = 8
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    norm_eps: float = 1e-5
    sliding_window: int = 250
    rope_theta: float = 10_000.0
    resample: int = 2
    """Steps of the convolutions in one frame."""

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
        )

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(
            width=self.hidden_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            hidden=self.intermediate_size,
            window=self.sliding_window,
            slack=_SLACK,
            rope_base=self.rope_theta,
            qk_norm=False,
            eps=self.norm_eps,
        )


class _Block(StreamingModule):
    """Layer norm, attention, layer norm, two-layer MLP with GELU; both branches scaled per channel."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.attention = _Attention(config)
        self.attention_scale = nn.Parameter(torch.full((config.width,), 0.01))
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        self.mlp_scale = nn.Parameter(torch.full((config.width,), 0.01))

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, attention=self.attention)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        mask: Tensor | None,
        write: Tensor | None,
        condition: Tensor | None,
        state: State | None,
    ) -> Tensor:
        child = None if state is None else state.child("attention")
        x = x + self.attention_scale * self.attention(self.attention_norm(x), tables, mask, write, child)
        return x + self.mlp_scale * self.down(F.gelu(self.up(self.mlp_norm(x))))


class _LatentTransformer(Transformer):
    """Mimi's transformer over `[batch, width, step]`, chunks of any length."""

    def _block(self) -> StreamingModule:
        return _Block(self.config)

    def _last_norm(self) -> None:
        return None

    def run(self, x: Tensor, state: State | None) -> Tensor:
        rows = x.transpose(1, 2)
        if state is None:
            return self(rows).transpose(1, 2)
        pieces = [self(piece, state) for piece in rows.split(self.config.slack + 1, 1)]
        return torch.cat(pieces, 1).transpose(1, 2)


class MimiCodec(CausalCodec):
    """24 kHz, 12.5 Hz, 32 x 2048 as published (4.4 kbit/s; Moshi and most others use the first 8 levels)."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sampling_rate
        self.frame_size = math.prod(config.upsampling_ratios) * config.resample
        self.latency = 0
        rate = Fraction(self.sample_rate, self.frame_size)
        self.frame_spec = FrameSpec("codes", rate, config.num_quantizers, config.codebook_size)
        self.encoder = SEANetEncoder(config.seanet)
        self.encoder_transformer = _LatentTransformer(config.transformer)
        width, step = config.hidden_size, config.resample
        self.downsample = PaddedConv1d(width, width, 2 * step, step, bias=False, pad_mode="replicate")
        self.quantizer = SplitVQ(
            width,
            config.num_quantizers,
            config.codebook_size,
            semantic=config.num_semantic_quantizers,
            inner=config.codebook_dim,
            projected=config.codebook_dim != width,
        )
        self.upsample = CausalConvTranspose1d(width, width, 2 * step, step, bias=False, groups=config.upsample_groups)
        self.decoder_transformer = _LatentTransformer(config.transformer)
        self.decoder = SEANetDecoder(config.seanet)

    def init_state(self, batch: int) -> State:
        names = ("encoder", "encoder_transformer", "downsample", "upsample", "decoder_transformer", "decoder")
        state = self._state_of(batch, **{name: getattr(self, name) for name in names})
        self._add_pending(state, self.upsample.conv.weight.device)
        return state

    def _latents(self, audio: Tensor, state: State | None) -> Tensor:
        x = self.encoder(audio, None if state is None else state.child("encoder"))
        x = self.encoder_transformer.run(x, None if state is None else state.child("encoder_transformer"))
        return self.downsample(x, None if state is None else state.child("downsample"))

    def _audio(self, latents: Tensor, state: State | None) -> Tensor:
        x = self.upsample(latents, None if state is None else state.child("upsample"))
        x = self.decoder_transformer.run(x, None if state is None else state.child("decoder_transformer"))
        return self.decoder(x, None if state is None else state.child("decoder"))

    def flush(self, state: State) -> Tensor:
        """Nothing is held back: `[batch, 1, 0]`."""
        return torch.zeros(state.batch, 1, 0, device=self.upsample.conv.weight.device)


_FIXED: dict[str, tuple[Any, ...]] = {
    "audio_channels": (1,),
    "use_causal_conv": (True,),
    "use_conv_shortcut": (False,),
    "pad_mode": ("constant",),
    "trim_right_ratio": (1.0,),
    "hidden_act": ("gelu",),
    "attention_bias": (False,),
}


def mimi_config(raw: dict[str, Any], folder: Path) -> MimiConfig:
    """The configuration of a published `config.json`.

    Raises:
        ConfigError: it asks for a part that this model does not have.
    """
    from .loading import validated

    for key, allowed in _FIXED.items():
        if key in raw and raw[key] not in allowed:
            raise ConfigError(
                f"{folder / 'config.json'}: a Mimi with {key}={raw[key]!r} is not supported, only {allowed}"
            )
    if raw.get("num_key_value_heads", raw.get("num_attention_heads")) != raw.get("num_attention_heads"):
        raise ConfigError(f"{folder / 'config.json'}: a Mimi with grouped keys is not supported")
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(
            f"{folder / 'config.json'}: rotary embeddings of type {rope['rope_type']!r} are not supported"
        )
    theta = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    config = validated(MimiConfig, {k: v for k, v in raw.items() if v is not None} | {"rope_theta": theta}, folder)
    stated = raw.get("frame_rate") or raw.get("_frame_rate")
    if stated:
        steps = Fraction(config.sampling_rate, math.prod(config.upsampling_ratios)) / Fraction(stated)
        if steps.denominator != 1 or steps < 2:
            raise ConfigError(
                f"{folder / 'config.json'}: frame_rate {stated} does not divide the rate of its convolutions"
            )
        config = config.model_copy(update={"resample": int(steps)})
    return config


def mimi_state(tensors: dict[str, Tensor], codec: MimiCodec) -> dict[str, Tensor]:
    """A checkpoint in the layout of `transformers` as the state dict of our codec.

    Raises:
        CorruptFile: a tensor is missing.
    """
    plain = plain_tensors(tensors)
    state: dict[str, Tensor] = {}
    try:
        for half in ("encoder", "decoder"):
            state |= getattr(codec, half).from_published(plain, half)
            for i in range(codec.config.num_hidden_layers):
                _layer(state, plain, f"{half}_transformer.layers.{i}.")
        state["downsample.conv.weight"] = plain["downsample.weight"]
        state["upsample.conv.weight"] = plain["upsample.weight"]
        for ours, theirs in (("semantic", "semantic"), ("acoustic", "acoustic")):
            _levels_of(state, plain, f"quantizer.{ours}", f"quantizer.{theirs}_residual_vector_quantizer", codec)
    except KeyError as error:
        raise CorruptFile(f"the checkpoint lacks the tensor {error}; it is no Mimi of this configuration") from None
    return state


def _layer(state: dict[str, Tensor], plain: dict[str, Tensor], prefix: str) -> None:
    attention = prefix + "self_attn."
    state[prefix + "attention.qkv.weight"] = torch.cat([plain[f"{attention}{n}_proj.weight"] for n in "qkv"])
    state[prefix + "attention.out.weight"] = plain[attention + "o_proj.weight"]
    for ours, theirs in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
        for part in ("weight", "bias"):
            state[f"{prefix}{ours}.{part}"] = plain[f"{prefix}{theirs}.{part}"]
    state[prefix + "up.weight"] = plain[prefix + "mlp.fc1.weight"]
    state[prefix + "down.weight"] = plain[prefix + "mlp.fc2.weight"]
    state[prefix + "attention_scale"] = plain[prefix + "self_attn_layer_scale.scale"]
    state[prefix + "mlp_scale"] = plain[prefix + "mlp_layer_scale.scale"]


def _levels_of(state: dict[str, Tensor], plain: dict[str, Tensor], ours: str, theirs: str, codec: MimiCodec) -> None:
    if codec.quantizer.projected:
        state[f"{ours}_in.weight"] = plain[f"{theirs}.input_proj.weight"]
        state[f"{ours}_out.weight"] = plain[f"{theirs}.output_proj.weight"]
    levels = codec.get_submodule(ours).codebooks
    books = [f"{theirs}.layers.{k}.codebook." for k in range(int(levels))]  # type: ignore[arg-type]
    usage = torch.stack([plain[book + "cluster_usage"] for book in books])
    sums = torch.stack([plain[book + "embed_sum"] for book in books])
    state |= {f"{ours}.usage": usage, f"{ours}.sums": sums, f"{ours}.ready": torch.tensor(True)}
    state[f"{ours}.codebook"] = sums / usage.clamp(min=1e-5)[..., None]


def load_mimi(folder: Path, raw: dict[str, Any]) -> MimiCodec:
    """A published Mimi in eval mode, from a folder with `config.json` (already read: `raw`) and its weights.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    codec = MimiCodec(mimi_config(raw, folder))
    put(codec, mimi_state(read_tensors(folder), codec), folder)
    lay_out_linears(codec)
    return codec.eval()
