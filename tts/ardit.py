"""ARDiT: an autoregressive diffusion transformer over blocks of latents (Liu et al. 2024, arXiv 2406.05551).

One network is language model and denoiser. Its sequence has three segments: the condition C (phones), the clean latents
Z, and the same latents noised, Z_t. Each block of Z_t is denoised knowing C and the blocks before it, so a forward
trains all blocks at once; in use C and Z live in the key-value cache and only the block in work is computed. What a
frame may see follows from one number, its *rank* (`segment_mask`), for speech and for filling a gap (editing) alike.

Places (RoPE) are measured in phones. With `align: uniform` frame j of N lies at (j + 1/2) P / N, the paper's
fractional RoPE: the total length is then a condition, and where in the text a frame is must be learnt. With `align:
exact` every phone has its own length, from the alignment in training and from a small predictor in use, and the frame
is told which phone it is in. The paper trained for days on four GPUs; on a CPU only the second speaks.

The network tells the clean latents, as in `tts/flow.py`. Time runs from noise (0) to speech (1), the paper's back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ..nn.noise import frame_noise
from ..nn.state import State, StreamingModule
from ..nn.transformer import Transformer, TransformerConfig
from .ardit_plan import ArditChunk, ArditPlan
from .flow import cosine_times
from .lm import PhoneEncoder
from .pointer_plan import Request
from .sampling import SamplingConfig

__all__ = ["Ardit", "ArditConfig", "Course", "segment_mask"]


class ArditConfig(BaseModel):
    """Sizes and settings.

    Attributes:
        dim: latents per codec frame. block: frames that are denoised together, B.
        align: `exact` or `uniform`, see the module's docstring.
        steps: Euler steps in use; 1 for a distilled model.
        voices: names; the index is the speaker id. rates: mean phones per second of each voice outside pauses.
        longest: frames after which the model counts no further in one phone.
        backbone: its ring holds the text of a sentence, pinned, and then the newest latents: together `window + slack`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = 32
    block: int = Field(default=4, ge=1)
    align: Literal["exact", "uniform"] = "exact"
    steps: int = Field(default=16, ge=1)
    backbone: TransformerConfig = TransformerConfig(window=480, slack=320, condition=128)
    phone_blocks: int = 3
    phone_kernel: int = 5
    phone_hidden: int = 512
    voices: tuple[str, ...] = ("default",)
    rates: tuple[float, ...] = ()
    longest: int = 31

    @model_validator(mode="after")
    def _check(self) -> ArditConfig:
        if self.backbone.condition is None:
            raise ValueError("the backbone needs a condition width (time and voice enter by adaLN)")
        return self

    @property
    def group(self) -> int:
        """Codec frames per frame of this model: blocks are its own affair."""
        return 1


@dataclass(frozen=True)
class Course:
    """Where in the phones some codec frames are: tensors `[..., frame]`.

    Attributes:
        pointer: index of the phone. progress, left: frames since it began, and until it ends. place: in phones.
    """

    pointer: Tensor
    progress: Tensor
    left: Tensor
    place: Tensor

    @classmethod
    def of(cls, starts: Sequence[float], end: float, frames: int, align: Literal["exact", "uniform"]) -> Course:
        """Of `frames` frames, given where each phone starts and the last one ends, counted in frames."""
        edges = torch.tensor([*starts, max(end, *starts)], dtype=torch.float64)
        middle = torch.arange(frames, dtype=torch.float64) + 0.5
        pointer = (torch.searchsorted(edges, middle, right=True) - 1).clamp(0, len(starts) - 1)
        begin, over = edges[pointer], edges[pointer + 1]
        share = ((middle - begin) / (over - begin).clamp(min=1e-3)).clamp(0, 1)
        place = pointer + share if align == "exact" else middle * (len(starts) / max(frames, 1))
        progress, left = (middle - begin).clamp(min=0).long(), (over - middle).clamp(min=0).long()
        return cls(pointer, progress, left, place)

    def __getitem__(self, part: slice | Tensor) -> Course:
        return Course(self.pointer[part], self.progress[part], self.left[part], self.place[part])


def segment_mask(text: Tensor, rank: Tensor) -> Tensor:
    """What sees what in `[C, Z, Z_t]`: BoolTensor `[batch, 1, query, key]` over P + 2 N places.

    All see the text, and the text sees itself. A clean frame sees the clean frames of its rank and below; a noisy one
    sees the clean frames of lower rank, and the noisy ones of its own.

    Args:
        text: BoolTensor `[batch, P]`, False = padding. rank: LongTensor `[batch, N]`: 0 for frames that are known from
            the start (what surrounds a gap), then the number of the block, from 1; negative = padding.
    """
    phones, frames = text.shape[1], rank.shape[1]
    known = rank[:, None, :] >= 0
    mine, its = rank[:, :, None], rank[:, None, :]
    mask = torch.zeros(len(text), 1, phones + 2 * frames, phones + 2 * frames, dtype=torch.bool, device=text.device)
    rows = mask[:, 0]
    clean, noisy = slice(phones, phones + frames), slice(phones + frames, None)
    rows[:, :, :phones] = text[:, None]
    rows[:, clean, clean] = (its <= mine) & known
    rows[:, noisy, clean] = (its < mine) & known
    rows[:, noisy, noisy] = (its == mine) & known
    rows.diagonal(dim1=1, dim2=2).fill_(True)  # padding sees itself, for a row of nothing is NaN
    return mask


class _RingTransformer(Transformer):
    """A transformer that sees its chunks whole; its ring keeps the first `pinned` positions of a slot for good."""

    spare = 0
    """Positions at the old end of the ring that are not seen, so that a chunk in work overwrites nothing in use."""

    def init_state(self, batch: int) -> State:
        state = super().init_state(batch)
        state.add("pinned", dtype=torch.long, device=state["position"].device)
        return state

    def _ring(self, positions: Tensor, state: State) -> tuple[Tensor, Tensor]:
        pinned = state["pinned"][:, None]
        ring = self.capacity - pinned
        write = torch.where(positions < pinned, positions, pinned + (positions - pinned) % ring)
        last = positions[:, -1:]
        place = torch.arange(self.capacity, device=positions.device)[None]
        held = torch.where(place < pinned, place, last - (last - place) % ring)
        seen = (place < pinned) | ((held >= pinned) & (last - held < ring - self.spare))
        return write, (seen & (held <= last))[:, None, None].expand(-1, 1, positions.shape[1], -1)


class _Given(nn.Module):
    """The head's part in the loop: latents that `run` has drawn already."""

    continuous, noise = True, 0

    def sample(self, hidden: Tensor, noise: Tensor, config: SamplingConfig, previous: Tensor) -> Tensor:
        return hidden


class Ardit(StreamingModule):
    """The network, its loss, and what the generation loop asks of it."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: ArditConfig) -> None:
        super().__init__()
        self.config, self.head = config, _Given()
        width, condition = config.backbone.width, config.backbone.condition
        assert condition is not None
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("scale", torch.ones(config.dim))
        self.phones = PhoneEncoder(width, config.phone_blocks, config.phone_kernel, config.phone_hidden)
        self.next_phone = nn.Linear(width, width, bias=False)
        self.progress = nn.Embedding(config.longest + 1, width)
        self.left = nn.Embedding(config.longest + 1, width)
        self.latents = nn.Linear(config.dim, width)
        self.voice = nn.Embedding(len(config.voices) + 1, condition)  # the last is nobody that it knows
        self.segment = nn.Embedding(2, condition)  # text, clean
        self.time = nn.Sequential(nn.Linear(64, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.lengths = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.pace = nn.Embedding(len(config.voices) + 1, width)
        self.backbone = _RingTransformer(config.backbone)
        self.backbone.spare = config.block
        self.out = nn.Linear(width, config.dim)
        for table in (self.progress, self.left, self.voice, self.segment):
            nn.init.normal_(table.weight, std=0.5)
        nn.init.zeros_(self.pace.weight)

    @property
    def nobody(self) -> int:
        """The speaker id of a voice that is not among those trained."""
        return len(self.config.voices)

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Takes mean and scale of each dimension from examples `[n, dim]`."""
        self.mean.copy_(latents.mean(0))
        self.scale.copy_(latents.std(0).clamp(min=1e-3))

    # -- parts --------------------------------------------------------------------------------------------------------
    def phone_lengths(self, encoded: Tensor, voice: Tensor) -> Tensor:
        """Log of the expected frames of each phone `[batch, phone]`, from `encoded[batch, phone + 1, width]`. The
        encoder learns nothing from it: lengths would pull it away from sounds."""
        rows = encoded[:, :-1].detach() + self.pace(voice)[:, None]
        return self.lengths(rows)[..., 0]

    def rows(self, encoded: Tensor, course: Course) -> Tensor:
        """What each frame is told of the text `[batch, frame, width]`; with `align: uniform`, nothing."""
        if self.config.align == "uniform":
            return encoded.new_zeros(*course.pointer.shape, encoded.shape[-1])
        width, most = encoded.shape[-1], encoded.shape[1] - 1

        def at(index: Tensor) -> Tensor:
            return encoded.gather(1, index.clamp(max=most)[..., None].expand(-1, -1, width))

        spent, left = (x.clamp(max=self.config.longest) for x in (course.progress, course.left))
        told = at(course.pointer) + self.next_phone(at(course.pointer + 1))
        return told + self.progress(spent) + self.left(left)

    def _when(self, time: Tensor) -> Tensor:
        """Times `[...]` in 0..1 -> `[..., condition]`."""
        rates = (torch.arange(32, device=time.device) * (math.log(1000) / 31)).exp()
        angles = time[..., None] * rates
        return self.time(torch.cat([angles.sin(), angles.cos()], -1))

    # -- training -----------------------------------------------------------------------------------------------------
    def clean(
        self,
        encoded: Tensor,
        text: Tensor,
        past: Tensor,
        noisy: Tensor,
        time: Tensor,
        rank: Tensor,
        course: Course,
        voice: Tensor,
    ) -> Tensor:
        """The network's estimate of the clean latents, normalised, `[batch, N, dim]`; all blocks at once.

        Args:
            encoded: `[batch, P + 1, width]` from `phones`; text: BoolTensor `[batch, P]`.
            past: the clean segment, and noisy: that with noise, both normalised `[batch, N, dim]`.
            time: `[batch, N]`, one and the same within a block. rank: `[batch, N]`, see `segment_mask`.
            voice: LongTensor[batch].
        """
        rows, phones, frames = self.rows(encoded, course), text.shape[1], rank.shape[1]
        x = torch.cat([encoded[:, :-1], rows + self.latents(past), rows + self.latents(noisy)], 1)
        kinds = self.segment.weight[:, None].expand(-1, len(text), -1)
        how = [kinds[0][:, None].expand(-1, phones, -1), kinds[1][:, None].expand(-1, frames, -1), self._when(time)]
        condition = F.silu(torch.cat(how, 1) + self.voice(voice)[:, None])
        here = torch.arange(phones, device=text.device).expand(len(text), -1) + 0.5
        places = torch.cat([here.to(course.place), course.place, course.place], 1)
        hidden = self.backbone(x, condition=condition, mask=segment_mask(text, rank), positions=places)
        return self.out(hidden[:, phones + frames :])

    # -- generation: what `tts/generate.py` asks of a model -----------------------------------------------------------
    def init_state(self, batch: int) -> State:
        return self._state_of(batch, backbone=self.backbone)

    def begin(self, request: Request) -> ArditPlan:
        """The plan of a request. Raises BadInput for what would break a step."""
        return ArditPlan(request, self)

    def enter(self, plan: ArditPlan, state: State, slot: int) -> None:
        """A request joins, or its text has grown. The whole sentence is a condition of every frame, so nothing is read
        before it is there."""
        if not plan.whole or plan.encoded is not None:
            return
        f = plan.request.features
        encoded = self.phones(*(t[None].to(self.mean.device) for t in (f.phones, f.word_start, f.upcoming)))
        voice = torch.tensor([plan.request.voice], device=self.mean.device)
        plan.settle(encoded, self.phone_lengths(encoded, voice)[0].exp().tolist())
        pinned = state.child("backbone")["pinned"]
        pinned[slot] = plan.pinned

    def run(self, chunks: Mapping[int, ArditChunk], state: State) -> Tensor:
        """Text and known latents go into the cache; a block is denoised, and then goes into it as well. Its latents
        are `[slot, 1, block * dim]`; the rows of other slots mean nothing."""
        out = torch.zeros(state.batch, self.config.block, self.config.dim, device=self.mean.device)
        groups: dict[tuple[str, int], dict[int, ArditChunk]] = {}
        for slot, chunk in chunks.items():
            steps = (chunk.sampling.steps or self.config.steps) if chunk.kind == "block" else 0
            groups.setdefault((chunk.kind, steps), {})[slot] = chunk
        for (kind, steps), group in groups.items():
            moving = torch.tensor([slot in group for slot in range(state.batch)], device=self.mean.device)
            with state.only(moving):
                if kind == "block":
                    out = torch.where(moving[:, None, None], self._draw(group, steps, state), out)
                else:
                    self._read(group, state)
        return (out * self.scale + self.mean).flatten(1)[:, None]

    def readout(self, hidden: Tensor) -> list[list[float]]:
        return []

    def nothing(self, batch: int) -> Tensor:
        """Latents of no block `[batch, block * dim, 1]`."""
        return torch.zeros(batch, self.config.block * self.config.dim, 1)

    def _read(self, group: Mapping[int, ArditChunk], state: State) -> None:
        """Text and known latents: rows that are clean from the start."""
        rows, places, how = self._gathered(group, state.batch)
        for slot, chunk in group.items():
            how[slot] = how[slot] + self.segment.weight[int(chunk.kind != "text")]
            if chunk.latents is not None:
                rows[slot] += self.latents((chunk.latents.to(self.mean.device) - self.mean) / self.scale)
        self.backbone(rows, state.child("backbone"), condition=F.silu(how)[:, None], positions=places)

    def _gathered(self, group: Mapping[int, ArditChunk], slots: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows `[slot, length, width]`, places `[slot, length]` and voices `[slot, condition]` of chunks."""
        length, width = next(iter(group.values())).length, self.config.backbone.width
        rows = torch.zeros(slots, length, width, device=self.mean.device)
        places = torch.zeros(slots, length, dtype=torch.float64, device=self.mean.device)
        voice = torch.zeros(slots, dtype=torch.long, device=self.mean.device)
        for slot, chunk in group.items():
            rows[slot], places[slot], voice[slot] = chunk.rows, chunk.places, chunk.voice
        return rows, places, self.voice(voice)

    def _draw(self, group: Mapping[int, ArditChunk], steps: int, state: State) -> Tensor:
        """One block of each slot, normalised `[slot, block, dim]`, by Euler steps; then the cache takes it."""
        cache, length = state.child("backbone"), next(iter(group.values())).length
        rows, places, voice = self._gathered(group, state.batch)
        seed, first = torch.zeros(2, state.batch, dtype=torch.long, device=rows.device)
        warmth = torch.zeros(state.batch, device=rows.device)
        for slot, chunk in group.items():
            seed[slot], first[slot], warmth[slot] = chunk.seed, chunk.first, chunk.sampling.temperature
        x = frame_noise(seed, first, length, self.config.dim).transpose(1, 2) * warmth[:, None, None]
        here = cache["position"].clone()

        def run(x: Tensor, how: Tensor) -> Tensor:
            condition = F.silu(how + voice)[:, None]
            return self.backbone(rows + self.latents(x), cache, condition=condition, positions=places)

        for now, after in pairwise(cosine_times(steps)):
            clean = self.out(run(x, self._when(x.new_full((state.batch,), now))))
            cache.update("position", here)  # what was written is overwritten
            x = x + (after - now) / (1 - now) * (clean - x)
        run(x, self.segment.weight[1])
        return F.pad(x, (0, 0, 0, self.config.block - length))  # the last block may be shorter
