"""Conditional flow matching from speech tokens to mel (CosyVoice 1-3; Lipman et al. 2023, Tong et al. 2023).

tokens (25 Hz) + look-ahead -> condition; noise -> mel by N Euler steps of a transformer over the same 25 Hz places,
each holding the `patch` mel frames of its token. Choices, and why:

- The network predicts the clean mel, and the velocity follows: v = (x1 - x_t) / (1 - t). A patch of 4 x 100 mels
  is wider than a small network, which could not carry the noise through itself ("Back to basics", Li and He 2025).
- Attention is chunk-causal: a position sees its own chunk and `window` positions back. Training draws the chunk size
  (none = full attention, or one of `chunks`), as CosyVoice 2 does, so one network serves offline and streaming.
- Noise is indexed by absolute frame (`nn/noise.py`) and the cache holds every Euler step's keys and values, so decoding
  in chunks equals decoding the whole with the same chunk mask, and each chunk costs the same: no prefix is recomputed.
- Classifier-free guidance: (1 + beta) v(condition) - beta v(nothing), with dropped conditions in training.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ..codecs.loading import load_weights, read_model, validated
from ..codecs.quantizers import FSQ
from ..errors import BadInput
from ..nn.noise import frame_noise
from ..nn.state import State, StreamingModule
from ..nn.transformer import Transformer, TransformerConfig
from .speaker import SpeakerEncoder

__all__ = ["FlowConfig", "FlowModel", "chunk_mask", "cosine_times", "load_flow"]


class FlowConfig(BaseModel):
    """Sizes and settings.

    Attributes:
        codebooks, vocab: of the tokens. levels: of FSQ tokens: they are read digit by digit, so that near codes are
            near (empty: a table per codebook).
        mels, patch: mel bins, and mel frames per token. lookahead: tokens ahead that the condition sees.
        chunk: tokens per chunk in streaming; chunks: the sizes that training draws from (0 = full attention).
        first: tokens of a stream's first chunk (0 = `chunk`): fewer, so that audio starts earlier.
        voices: names of speakers. vector: width of a speaker vector (0 = none), which the flow's own encoder makes of
            any speech (`describe`).
        steps, guidance: Euler steps and CFG strength beta in use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codebooks: int = 1
    vocab: int = 6561
    levels: tuple[int, ...] = (3, 3, 3, 3, 3, 3, 3, 3)
    mels: int = 100
    patch: int = 4
    lookahead: int = 3
    chunk: int = Field(default=10, ge=1)
    first: int = Field(default=5, ge=0)
    chunks: tuple[int, ...] = (0, 10, 20)
    voices: tuple[str, ...] = ()
    vector: int = 0
    steps: int = Field(default=8, ge=1)
    guidance: float = Field(default=0.7, ge=0)
    backbone: TransformerConfig = TransformerConfig(width=256, layers=6, window=100, slack=31, condition=256)

    @model_validator(mode="after")
    def _check(self) -> FlowConfig:
        if self.backbone.condition is None:
            raise ValueError("the flow's backbone needs a condition width (the time enters by adaLN)")
        if self.chunk > self.backbone.slack + 1:
            raise ValueError(f"chunk {self.chunk} is longer than the backbone's slack + 1 = {self.backbone.slack + 1}")
        if self.levels and (math.prod(self.levels) != self.vocab or self.codebooks != 1):
            raise ValueError("levels are those of one codebook and multiply to vocab")
        return self

    @property
    def opening(self) -> int:
        """Tokens of the first chunk."""
        return min(self.first or self.chunk, self.chunk)


def cosine_times(steps: int) -> list[float]:
    """Times 0 = t_0 < ... < t_steps = 1 of CosyVoice's schedule 1 - cos(pi u / 2): small steps first."""
    return [1 - math.cos(math.pi / 2 * i / steps) for i in range(steps)] + [1.0]


class _ChunkTransformer(Transformer):
    """A transformer whose positions see their whole chunk, in a stream too; chunks end at `first` + n `chunk`."""

    chunk, first = 1, 1

    def _ring_mask(self, positions: Tensor) -> Tensor:
        last = positions[:, -1:]
        place = torch.arange(self.capacity, device=positions.device)[None]
        held = (last - (last - place) % self.capacity)[:, None]
        end = _chunk_ends(positions, self.chunk, self.first)[:, :, None]
        return ((held < end) & (positions[:, :, None] - held < self.config.window) & (held >= 0))[:, None]


def _chunk_ends(positions: Tensor, chunk: int, first: int) -> Tensor:
    """The position at which the chunk of each position ends."""
    return (positions - first).div(chunk, rounding_mode="floor") * chunk + chunk + first


def chunk_mask(positions: int, chunk: int, window: int, device: torch.device | None = None, first: int = 0) -> Tensor:
    """BoolTensor `[1, 1, position, position]`, True = may attend; `chunk` 0 = everything sees everything; `first`
    positions in the first chunk (0 = `chunk`)."""
    index = torch.arange(positions, device=device)
    if chunk == 0:
        return torch.ones(1, 1, positions, positions, dtype=torch.bool, device=device)
    end = _chunk_ends(index, chunk, first or chunk)
    return ((index[None] < end[:, None]) & (index[:, None] - index[None] < window))[None, None]


class _TokenEncoder(StreamingModule):
    """Tokens `[batch, K, token]` -> rows `[batch, token, width]`, each seeing `lookahead` tokens ahead.

    Streaming goes by windows: the caller gives the tokens of a chunk and those ahead of it, so no state is needed.
    """

    def __init__(self, config: FlowConfig, width: int) -> None:
        super().__init__()
        self.config = config
        if config.levels:
            self.fsq = FSQ(config.levels)
            self.digits = nn.Embedding(sum(config.levels), width)
            self.join = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            self.offsets = [sum(config.levels[:i]) for i in range(len(config.levels))]
        else:
            self.tables = nn.ModuleList(nn.Embedding(config.vocab, width) for _ in range(config.codebooks))
        self.ahead = nn.Conv1d(width, width, config.lookahead + 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, known: Tensor | None = None) -> Tensor:
        """`[batch, K, token + lookahead]` -> `[batch, token, width]`; `known[batch, token + lookahead]` False = past
        the end."""
        if self.config.levels:
            digits = (tokens[:, 0, :, None] // self.fsq.basis) % self.fsq.counts
            rows = self.digits(digits + torch.tensor(self.offsets, device=tokens.device)).sum(2)
            x = rows + self.join(rows)
        else:
            x = torch.stack([table(tokens[:, k]) for k, table in enumerate(self.tables)]).sum(0)
        if known is not None:
            x = x * known[..., None]
        own = x[:, : x.shape[1] - self.config.lookahead]
        return self.norm(own + self.ahead(x.transpose(1, 2)).transpose(1, 2))


class FlowModel(nn.Module):
    """The velocity field, its training loss, and the solver; see the module's docstring."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        width, mel = config.backbone.width, config.mels * config.patch
        condition = config.backbone.condition
        assert condition is not None
        self.tokens = _TokenEncoder(config, width)
        self.noisy = nn.Linear(mel, width)
        self.prompt = nn.Linear(mel + 1, width)
        self.voice = nn.Embedding(max(1, len(config.voices)), condition)
        self.vector = nn.Linear(config.vector, condition) if config.vector else None
        self.encoder = SpeakerEncoder(config.mels, config.vector) if config.vector else None
        self.nobody = nn.Parameter(torch.zeros(condition))
        self.nothing = nn.Parameter(0.1 * torch.randn(width))
        self.time = nn.Sequential(nn.Linear(64, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.backbone = _ChunkTransformer(config.backbone)
        self.backbone.chunk, self.backbone.first = config.chunk, config.opening
        self.out = nn.Linear(width, mel)
        nn.init.normal_(self.voice.weight, std=0.3)

    # -- the network --------------------------------------------------------------------------------------------------
    def speaker(self, voice: Tensor | None, vector: Tensor | None = None) -> Tensor:
        """The speaker's part of the condition `[batch, condition]`, by id LongTensor[batch] or vector."""
        if vector is not None:
            if self.vector is None:
                raise BadInput("this flow knows speakers by name, not by vector")
            return self.vector(F.normalize(vector, dim=-1))
        if voice is None:
            raise BadInput("say who speaks: a voice or a speaker vector")
        return self.voice(voice)

    def describe(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Speaker vectors `[batch, vector]` of mel `[batch, mels, frame]` of `lengths` frames.

        Raises:
            BadInput: the flow was trained without a speaker encoder.
        """
        if self.encoder is None:
            raise BadInput("this flow knows speakers by name, not by vector")
        return self.encoder(mel, lengths)

    def clean(
        self,
        x: Tensor,
        time: Tensor,
        condition: Tensor,
        prompt: Tensor,
        speaker: Tensor,
        mask: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        """The network's estimate of the clean mel, patched `[batch, position, mel * patch]`.

        Args:
            x: noisy patches. time: `[batch]` in 0..1. condition: rows of the token encoder.
            prompt: known mel patches and a flag, `[batch, position, mel * patch + 1]`, zeros where not known.
            speaker: `[batch, condition]`.
        """
        rates = (torch.arange(32, device=x.device) * (math.log(1000) / 31)).exp()
        angles = time[:, None] * rates
        how = self.time(torch.cat([angles.sin(), angles.cos()], -1)) + speaker
        hidden = self.noisy(x) + condition + self.prompt(prompt)
        return self.out(self.backbone(hidden, state, condition=F.silu(how)[:, None], mask=mask))

    def fold(self, mel: Tensor) -> Tensor:
        """Mel `[batch, mels, frame]` -> patches `[batch, frame / patch, mels * patch]`."""
        return mel.transpose(1, 2).reshape(mel.shape[0], mel.shape[2] // self.config.patch, -1)

    def unfold(self, patches: Tensor) -> Tensor:
        """The inverse of `fold`."""
        return patches.reshape(patches.shape[0], -1, self.config.mels).transpose(1, 2)

    def no_prompt(self, patches: Tensor) -> Tensor:
        return patches.new_zeros(*patches.shape[:2], patches.shape[2] + 1)

    # -- training -----------------------------------------------------------------------------------------------------
    def loss(
        self,
        mel: Tensor,
        tokens: Tensor,
        known: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        dropped: Tensor,
        chunk: int,
        first: int = 0,
        still: Tensor | None = None,
    ) -> Tensor:
        """Weighted squared error of the clean mel, over known positions that no prompt gives away.

        The weight is the velocity's, 1 / (1 - t)^2, but at most 4. Unbounded, late times rule the gradient, where the
        noisy mel says nearly everything: after 900 steps the tokens were hardly read, and speech from true tokens was
        babble (91 % word errors); 300 steps on pure noise brought it to 21 %. Hence also `still`.

        Args:
            mel: `[batch, mels, frame]`. tokens: `[batch, K, token]`, `known[batch, token]`.
            prompt: BoolTensor `[batch, token]`, positions whose mel is shown. dropped: BoolTensor[batch], items that
                are trained without tokens, prompt and speaker, for guidance. chunk: 0 = full attention. first: tokens
                of the first chunk (0 = `chunk`). still: BoolTensor[batch], items that begin at time 0, pure noise.
        """
        x1 = self.fold(mel)
        batch, positions, _ = x1.shape
        ahead = self.config.lookahead
        rows = self.tokens(F.pad(tokens, (0, ahead)), F.pad(known, (0, ahead)))
        condition = torch.where(dropped[:, None, None], self.nothing, rows)
        speaker = torch.where(dropped[:, None], self.nobody, speaker)
        shown = (prompt & ~dropped[:, None])[..., None].to(x1.dtype)
        time = 1 - (torch.rand(batch, device=mel.device) * math.pi / 2).cos()
        if still is not None:
            time = time * ~still
        t = time[:, None, None]
        x = (1 - t) * torch.randn_like(x1) + t * x1
        mask = chunk_mask(positions, chunk, self.config.backbone.window, mel.device, first)
        mask = mask & (known[:, None, None] | torch.eye(positions, dtype=torch.bool, device=mel.device))
        clean = self.clean(x, time, condition, torch.cat([x1 * shown, shown], -1), speaker, mask)
        weight = 1 / (1 - t).clamp(min=0.5).square()  # the velocity's error is the mel's over 1 - t
        counted = (known & (shown[..., 0] == 0))[..., None].to(x1.dtype)
        squares = (clean - x1).square() * weight * counted
        return squares.sum() / (counted.sum() * x1.shape[2]).clamp(min=1)

    # -- use ----------------------------------------------------------------------------------------------------------
    def init_state(self, batch: int, steps: int | None = None, guided: bool = True) -> State:
        """The state of a stream of mel: a position, and a cache for every Euler step and branch."""
        state = State(batch)
        state.add("position", dtype=torch.long, device=self.nobody.device)
        for i in range(steps or self.config.steps):
            for branch in ("given", "free") if guided else ("given",):
                state.child(f"{i}.{branch}", self.backbone)
        return state

    @torch.inference_mode()
    def decode(
        self,
        tokens: Tensor,
        speaker: Tensor,
        seed: Tensor,
        *,
        known: Tensor | None = None,
        prompt: Tensor | None = None,
        state: State | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Mel `[batch, mels, token * patch]` of the tokens that are not look-ahead.

        Args:
            tokens: `[batch, K, token + lookahead]`; `known[batch, token + lookahead]` is False past the end of speech.
            speaker: `[batch, condition]` from `speaker`. seed: LongTensor[batch].
            prompt: known patches with their flag (see `clean`), or None.
            state: with one, the tokens are the next chunk of a stream: `config.opening` tokens, then whole chunks of
                `config.chunk`, but the last.
            chunk: offline: tokens per chunk of the mask, 0 = full attention; None = `config.chunk` (and `opening`).

        Raises:
            BadInput: too few tokens for the look-ahead.
        """
        c = self.config
        positions = tokens.shape[-1] - c.lookahead
        if positions < 1:
            raise BadInput(f"{tokens.shape[-1]} tokens are too few for a look-ahead of {c.lookahead}")
        count, beta = steps or c.steps, c.guidance if guidance is None else guidance
        start = seed.new_zeros(len(seed)) if state is None else state["position"].clone()
        x = self.fold(frame_noise(seed, start * c.patch, positions * c.patch, c.mels))
        given = self.tokens(tokens, known)
        nothing = self.nothing.expand_as(given)
        shown, empty = self.no_prompt(x) if prompt is None else prompt, self.no_prompt(x)
        mask = None
        if state is None:
            grid = (c.chunk, c.opening) if chunk is None else (chunk, 0)
            mask = chunk_mask(positions, grid[0], c.backbone.window, x.device, grid[1])
        times = cosine_times(count)
        for i, (now, after) in enumerate(pairwise(times)):
            t = x.new_full((len(x),), now)

            def velocity(branch: str, *arguments: Tensor, x: Tensor = x, t: Tensor = t, i: int = i) -> Tensor:
                child = None if state is None else state.child(f"{i}.{branch}")
                return (self.clean(x, t, *arguments, mask=mask, state=child) - x) / (1 - t[:, None, None])

            v = velocity("given", given, shown, speaker)
            if beta:
                v = (1 + beta) * v - beta * velocity("free", nothing, empty, self.nobody.expand_as(speaker))
            x = x + (after - now) * v
        if state is not None:
            state.update("position", start + positions)
        return self.unfold(x)


def load_flow(name: str) -> tuple[FlowModel, str]:
    """A flow in eval mode and the name of the tokens that it reads, by bundled name or folder.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    folder, config, codec = read_model(name, "flow", "flow")
    flow = FlowModel(validated(FlowConfig, config, folder))
    load_weights(flow, folder)
    return flow.eval(), codec
