"""The native codec, in the manner of X-Codec (Ye et al. 2024), made causal.

    audio -> log-mel 100 Hz -> ConvNeXt -> 25 Hz trunk -+-> acoustic -+
                                                        +-> semantic -+-> prior -> bottleneck
    bottleneck -+-> acoustic post -> 100 Hz -> head
                +-> semantic post (training)

As in X-Codec the two branches are concatenated *before* quantization and the semantic features are reconstructed
*after* it. Unlike X-Codec the semantic branch is a causal student of the teacher, so the teacher is needed only in
training and the codec streams (Mimi's property). `semantic: teacher_input` keeps the strict form for ablations: then
the teacher's features come in as an argument and the codec cannot stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..errors import BadInput
from ..nn.conv import ConvNeXtBlock
from ..nn.state import State
from .base import Codec, FrameSpec, check_audio
from .decoders import HeadOutput, make_head
from .features import LogMel
from .quantizers import FSQ, GaussianVAE, Quantized, ResidualFSQ, ResidualVQ, SplitVQ

__all__ = ["XCodec", "XCodecConfig", "XCodecOutput"]


class XCodecConfig(BaseModel):
    """Sizes and parts.

    Attributes:
        bottleneck: `rvq` (codebooks x vocab), `split_rvq` (the same, the first level apart as in Mimi), `fsq` (levels),
            `rfsq` (codebooks x levels), or `vae` (continuous, `dim` wide).
        head: `harmonic` or `istft`. noise: factor on the noise of the harmonic head in use.
        semantic: `student`, `teacher_input`, or `none`.
        teacher_dim: width of the teacher's 25 Hz features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate: int = 24_000
    hop: int = 240
    n_fft: int = 960
    mels: int = 100
    patch: int = 4
    width: int = 256
    hidden: int = 768
    encoder_blocks: tuple[int, int] = (3, 2)
    decoder_blocks: tuple[int, int] = (2, 6)
    bottleneck: Literal["rvq", "split_rvq", "fsq", "rfsq", "vae"] = "rvq"
    dim: int = 64
    codebooks: int = 8
    vocab: int = 1024
    levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    head: Literal["harmonic", "istft"] = "harmonic"
    noise: float = 1.0
    semantic: Literal["student", "teacher_input", "none"] = "student"
    semantic_dim: int = 128
    semantic_blocks: int = 1
    teacher_dim: int = 256

    @property
    def frame_size(self) -> int:
        return self.hop * self.patch


@dataclass
class XCodecOutput:
    """What training sees. `semantic` and `student` are `[batch, teacher_dim, frame]` reconstructions of the teacher;
    `other` is a second waveform `[batch, sample]` of the same frames, with other noise, where it was asked for."""

    head: HeadOutput
    quantized: Quantized
    semantic: Tensor | None
    student: Tensor | None
    other: Tensor | None = None


class XCodec(Codec):
    """24 kHz, 25 Hz, 8 x 1024 by default (2 kbit/s).

    Attributes:
        teacher_mean, teacher_scale: of `semantic: teacher_input`, `[teacher_dim]`: (features - mean) * scale is what
            the codec was trained with, so whoever makes features for it needs them (`HubTeacher.standardise_as`).
    """

    teacher_mean: Tensor
    teacher_scale: Tensor

    def __init__(self, config: XCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.frame_size = config.sample_rate, config.frame_size
        width = config.width
        self.front = LogMel(config.sample_rate, config.n_fft, config.hop, config.mels)
        self.stem = nn.Linear(config.mels, width)
        self.encoder_fast = _blocks(config, config.encoder_blocks[0])
        self.fold = nn.Linear(config.patch * width, width)
        self.encoder_slow = _blocks(config, config.encoder_blocks[1])
        semantic_width = 0 if config.semantic == "none" else config.semantic_dim
        self.semantic_blocks = _blocks(config, config.semantic_blocks if config.semantic == "student" else 0)
        if config.semantic == "student":
            self.semantic_out = nn.Linear(width, config.semantic_dim)
            self.student_head = nn.Linear(config.semantic_dim, config.teacher_dim)
        elif config.semantic == "teacher_input":
            self.semantic_out = nn.Linear(config.teacher_dim, config.semantic_dim)
            self.register_buffer("teacher_mean", torch.zeros(config.teacher_dim))
            self.register_buffer("teacher_scale", torch.ones(config.teacher_dim))
        self.quantizer = self._bottleneck(config)
        self.prior = nn.Linear(width + semantic_width, config.dim * (2 if config.bottleneck == "vae" else 1))
        self.post = nn.Linear(config.dim, width)
        if config.semantic != "none":
            self.semantic_post = nn.Linear(config.dim, width)
            self.semantic_decoder = _blocks(config, 2)
            self.semantic_head = nn.Linear(width, config.teacher_dim)
        self.decoder_slow = _blocks(config, config.decoder_blocks[0])
        self.unfold = nn.Linear(width, config.patch * width)
        self.decoder_fast = _blocks(config, config.decoder_blocks[1])
        self.norm = nn.LayerNorm(width)
        self.head = make_head(config.head, width, config.sample_rate, config.n_fft, config.hop, config.noise)
        self.latency = self.head.overlap
        self.frame_spec = self._spec(config)

    @staticmethod
    def _bottleneck(config: XCodecConfig) -> ResidualVQ | SplitVQ | FSQ | ResidualFSQ | GaussianVAE:
        if config.bottleneck == "rvq":
            return ResidualVQ(config.dim, config.codebooks, config.vocab)
        if config.bottleneck == "split_rvq":
            return SplitVQ(config.dim, config.codebooks, config.vocab)
        if config.bottleneck in ("fsq", "rfsq"):
            if config.dim != len(config.levels):
                raise BadInput(f"an FSQ bottleneck needs dim = len(levels) = {len(config.levels)}, not {config.dim}")
            return FSQ(config.levels) if config.bottleneck == "fsq" else ResidualFSQ(config.levels, config.codebooks)
        return GaussianVAE(config.dim)

    @staticmethod
    def _spec(config: XCodecConfig) -> FrameSpec:
        rate = Fraction(config.sample_rate, config.frame_size)
        if config.bottleneck == "vae":
            return FrameSpec("latents", rate, dim=config.dim)
        if config.bottleneck == "fsq":
            return FrameSpec("codes", rate, 1, math.prod(config.levels))
        if config.bottleneck == "rfsq":
            return FrameSpec("codes", rate, config.codebooks, math.prod(config.levels))
        return FrameSpec("codes", rate, config.codebooks, config.vocab)

    # -- streaming state ----------------------------------------------------------------------------------------------
    def init_state(self, batch: int) -> State:
        if self.config.semantic == "teacher_input":
            raise BadInput(
                "this codec reads the (non-causal) teacher's features and cannot stream; use semantic: student"
            )
        state = self._state_of(
            batch,
            front=self.front,
            encoder_fast=self.encoder_fast,
            encoder_slow=self.encoder_slow,
            semantic_blocks=self.semantic_blocks,
            decoder_slow=self.decoder_slow,
            decoder_fast=self.decoder_fast,
            head=self.head,
        )
        self._add_pending(state, self.norm.weight.device)
        return state

    # -- encoding -----------------------------------------------------------------------------------------------------
    def _run(self, name: str, x: Tensor, state: State | None) -> Tensor:
        blocks = getattr(self, name)
        for i, block in enumerate(blocks):
            x = block(x, None if state is None else state.child(f"{name}.{i}"))
        return x

    def _latents(self, audio: Tensor, teacher: Tensor | None, state: State | None) -> tuple[Tensor, Tensor | None]:
        """Whole frames of audio -> bottleneck input `[batch, dim, frame]` and the student's teacher estimate."""
        x = self.front(audio, None if state is None else state.child("front"))
        x = _linear(self.stem, x)
        x = self._run("encoder_fast", x, state)
        batch, width, time = x.shape
        folded = x.view(batch, width, time // self.config.patch, self.config.patch).transpose(2, 3).flatten(1, 2)
        x = self._run("encoder_slow", _linear(self.fold, folded), state)
        student = None
        if self.config.semantic == "student":
            semantic = _linear(self.semantic_out, self._run("semantic_blocks", x, state))
            student = _linear(self.student_head, semantic)
            x = torch.cat([x, semantic], 1)
        elif self.config.semantic == "teacher_input":
            if teacher is None:
                raise BadInput("this codec needs the teacher's features to encode; pass them or use semantic: student")
            x = torch.cat([x, _linear(self.semantic_out, teacher)], 1)
        return _linear(self.prior, x), student

    def encode(
        self,
        audio: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        codebooks: int | None = None,
        teacher: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Audio `[batch, 1, sample]` -> frames `[batch, codebooks, frame]` (or latents) and their counts.

        Args:
            lengths: LongTensor[batch] in samples (offline only).
            codebooks: keep only the first so many levels.
            teacher: `[batch, teacher_dim, frame]`, for `semantic: teacher_input`; standardised.

        Raises:
            BadInput: not finite, not mono, or streaming slots out of step with each other.
        """
        check_audio(audio)
        audio, counts = self._whole_frames(audio, lengths, state)
        latents, _ = self._latents(audio, teacher, state)
        levels = codebooks if codebooks is not None else self.frame_spec.codebooks or None
        return self.quantizer.encode(latents, levels), counts

    def posterior(self, audio: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Codec.posterior`, of the `vae` bottleneck.

        Raises:
            BadInput: a codec of codes.
        """
        if not isinstance(self.quantizer, GaussianVAE):
            raise BadInput("this codec makes codes, which have no posterior; use one with a vae bottleneck")
        audio, _ = self._whole_frames(audio, None, None)
        return self.quantizer.posterior(self._latents(audio, None, None)[0])

    # -- decoding -----------------------------------------------------------------------------------------------------
    def _synthesise(self, latents: Tensor, state: State | None = None, f0: Tensor | None = None) -> HeadOutput:
        return self.head(self._hidden(latents, state), None if state is None else state.child("head"), f0)

    def _hidden(self, latents: Tensor, state: State | None) -> Tensor:
        """What the head reads of the bottleneck's output `[batch, dim, frame]`."""
        x = self._run("decoder_slow", _linear(self.post, latents), state)
        batch, width, frames = x.shape
        x = _linear(self.unfold, x).view(batch, self.config.patch, width, frames)
        x = x.permute(0, 2, 3, 1).reshape(batch, width, frames * self.config.patch)
        x = self._run("decoder_fast", x, state)
        return self.norm(x.transpose(1, 2)).transpose(1, 2)

    def decode(self, frames: Tensor, state: State | None = None) -> Tensor:
        """Frames (any number of leading codebooks) -> audio `[batch, 1, frame * frame_size]`.

        Raises:
            BadInput: too many codebooks, a code outside the vocabulary, or latents of another width.
        """
        if frames.ndim != 3:
            raise BadInput(f"frames must be [batch, codebook, frame], not {list(frames.shape)}")
        dim = self.frame_spec.dim  # 0 of codes, which the quantizer checks
        if dim and (frames.shape[1] != dim or not frames.is_floating_point()):
            raise BadInput(f"latents must be float [batch, {dim}, frame], not {frames.dtype} {list(frames.shape)}")
        if frames.shape[-1] == 0:
            return torch.zeros(frames.shape[0], 1, 0, device=frames.device)
        return self._synthesise(self.quantizer.decode(frames), state).audio[:, None]

    def flush(self, state: State) -> Tensor:
        return self.head.flush(state.child("head"))[:, None]

    # -- training -----------------------------------------------------------------------------------------------------
    def forward(
        self,
        audio: Tensor,
        f0: Tensor | None = None,
        levels: Tensor | None = None,
        bypass: Tensor | None = None,
        teacher: Tensor | None = None,
        twice: bool = False,
    ) -> XCodecOutput:
        """The training path: whole frames of audio `[batch, 1, sample]`, true `f0[batch, 100 Hz frame]` in Hz; `twice`
        asks for a second waveform."""
        latents, student = self._latents(audio, teacher, None)
        quantized = self.quantizer(latents, levels, bypass)
        semantic = None
        if self.config.semantic != "none":
            hidden = self._run("semantic_decoder", _linear(self.semantic_post, quantized.latents), None)
            semantic = _linear(self.semantic_head, hidden)
        frames = self._hidden(quantized.latents, None)
        other = self.head(frames, None, f0).audio if twice else None
        return XCodecOutput(self.head(frames, None, f0), quantized, semantic, student, other)


def _blocks(config: XCodecConfig, count: int) -> nn.ModuleList:
    return nn.ModuleList(ConvNeXtBlock(config.width, config.hidden) for _ in range(count))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the channel axis of `[batch, channel, time]`."""
    return layer(x.transpose(1, 2)).transpose(1, 2)
