"""The speech language model: layout x pattern x backbone x head.

This file holds the `pointer` layout, frame-synchronous with the text: at every frame the model sees the phone that it
is in (with its neighbours, through a small convolutional encoder), the next one, and for how many frames it has been
there. It predicts the frame's codes and by how many phones to advance (0..4). Skips and repeats are impossible by
construction, and timestamps, speed and pauses fall out. The idea is CTC-TTS's frame-synchronous layout and VAT's
monotonic pointer, with the advance as a plain classification.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from ..nn.conv import ConvNeXtBlock
from ..nn.recorded import record_steps, stepped
from ..nn.state import State, StreamingModule
from ..nn.transformer import Transformer, TransformerConfig
from .heads import CategoricalHead
from .latent_heads import LatentConfig, LatentHead, Where, make_latent_head
from .patterns import make_pattern
from .phones import PAUSES, PHONE_IDS, PHONES, START
from .token_heads import DepthHead

if TYPE_CHECKING:
    from .generate import PointerPlan, Request

__all__ = ["PhoneEncoder", "PhoneFeatures", "SpeechLM", "SpeechLMConfig", "phone_features"]


class SpeechLMConfig(BaseModel):
    """Sizes and parts.

    Attributes:
        codebooks, vocab: of the codec whose codes are modelled.
        pattern: `parallel`, `delay` or `delay:...` (see `tts/patterns.py`).
        chain: codes of a step are drawn one after the other (see `tts/heads.py`).
        head: `chain`, or `depth`: a small transformer over the levels, of sizes `depth` (see `tts/token_heads.py`); or
            one of continuous tokens, `melle`, `gaussian` or `flow`, of sizes `latent` (see `tts/latent_heads.py`).
        voices: names; the index is the speaker id. rates: mean phones per second of each voice outside pauses.
        advance: largest number of phones that one frame may advance.
        longest: frames after which the model counts no further in one phone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codebooks: int = 8
    vocab: int = 1024
    pattern: str = "parallel"
    chain: bool = True
    head: Literal["chain", "depth", "melle", "gaussian", "flow"] = "chain"
    depth: TransformerConfig | None = None
    latent: LatentConfig | None = None
    head_hidden: int = 256
    backbone: TransformerConfig = TransformerConfig(window=256, slack=16)
    phone_blocks: int = 3
    phone_kernel: int = 5
    phone_hidden: int = 512
    voices: tuple[str, ...] = ("default",)
    rates: tuple[float, ...] = ()
    advance: int = 4
    longest: int = 31

    @model_validator(mode="after")
    def _check(self) -> SpeechLMConfig:
        if (self.head in ("melle", "gaussian", "flow")) != (self.latent is not None):
            raise ValueError(f"head {self.head!r} and latent sizes do not go together")
        if self.latent is not None and self.pattern != "parallel":
            raise ValueError("latents of a step are drawn at once: the pattern must be `parallel`")
        return self

    @property
    def group(self) -> int:
        """Codec frames per step."""
        return 1 if self.latent is None else self.latent.group


@dataclass(frozen=True)
class PhoneFeatures:
    """What the model reads of a text: LongTensors `[phone]`. Index 0 is the silence before the utterance."""

    phones: Tensor
    word_start: Tensor
    upcoming: Tensor

    def __len__(self) -> int:
        return len(self.phones)


def phone_features(phones: tuple[str, ...] | list[str], word_starts: set[int] | frozenset[int]) -> PhoneFeatures:
    """Features of an utterance's phones; `word_starts` are the indices of the phones that begin a word.

    `upcoming` is the kind of the next pause (1..4 for , . ? !): a question is heard long before its question mark.
    """
    kinds = {pause: i + 1 for i, pause in enumerate(PAUSES)}
    upcoming, kind = [], 0
    for phone in reversed(phones):
        kind = kinds.get(phone, kind)
        upcoming.append(kind)
    upcoming.append(upcoming[-1] if upcoming else 0)
    starts = [0, *(int(i in word_starts) for i in range(len(phones)))]
    ids = [PHONE_IDS[START], *(PHONE_IDS[p] for p in phones)]
    return PhoneFeatures(torch.tensor(ids), torch.tensor(starts), torch.tensor(upcoming[::-1]))


class PhoneEncoder(nn.Module):
    """Phones `[batch, phone]` -> `[batch, phone + 1, width]` with a few phones of context on either side (not the whole
    sentence, so that text may arrive in pieces).

    The last row is the end, what lies ahead of the last phone: the same as padding, so that a batch equals its items.
    """

    def __init__(self, width: int, blocks: int = 3, kernel: int = 5, hidden: int = 512) -> None:
        super().__init__()
        self.phone = nn.Embedding(len(PHONES), width)
        self.word_start = nn.Embedding(2, width)
        self.upcoming = nn.Embedding(len(PAUSES) + 1, width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, hidden, kernel, causal=False) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.context = blocks * (kernel // 2)
        for table in (self.phone, self.word_start, self.upcoming):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, phones: Tensor, word_start: Tensor, upcoming: Tensor) -> Tensor:
        phones, word_start, upcoming = (F.pad(x, (0, 1)) for x in (phones, word_start, upcoming))
        keep = (phones != 0)[:, None].float()
        x = (self.phone(phones) + self.word_start(word_start) + self.upcoming(upcoming)).transpose(1, 2) * keep
        for block in self.blocks:
            x = block(x) * keep  # padding stays zero, so that a batch equals its items alone
        return self.norm(x.transpose(1, 2))


class SpeechLM(StreamingModule):
    """Pointer-layout language model over codec codes."""

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.width
        self.pattern = make_pattern(config.pattern, config.codebooks, config.vocab)
        self.phones = PhoneEncoder(width, config.phone_blocks, config.phone_kernel, config.phone_hidden)
        self.next_phone = nn.Linear(width, width, bias=False)
        self.progress = nn.Embedding(config.longest + 1, width)
        self.voice = nn.Embedding(len(config.voices), width)
        self.rate = nn.Parameter(torch.zeros(width))
        self.backbone = Transformer(config.backbone)
        self.head = _head(config)
        self.input_scale = nn.Parameter(torch.tensor(8.0))  # the code table is small at the start, phones are not
        self.advance = nn.Linear(width, config.advance + 1)
        nn.init.normal_(self.progress.weight, std=0.5)
        nn.init.normal_(self.voice.weight, std=0.5)
        nn.init.normal_(self.next_phone.weight, std=width**-0.5)

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, backbone=self.backbone)

    def inputs(
        self,
        previous: Tensor,
        here: Tensor,
        ahead: Tensor,
        progress: Tensor,
        voice: Tensor,
        rate: Tensor,
        where: Where | None = None,
    ) -> Tensor:
        """Inputs of the backbone `[batch, step, width]`.

        Args:
            previous: LongTensor `[batch, K, step]`, the codes of the step before (id `vocab` = none), or FloatTensor
                `[batch, dim, step]`, its latents (NaN = none). where: whose steps these are, for a head whose input
                network is random in use.
            here, ahead: encoded current and next phone `[batch, step, width]`.
            progress: LongTensor `[batch, step]`, frames spent in the phone so far.
            voice: LongTensor[batch]. rate: `[batch]`, log of the speaking rate relative to the voice's mean.
        """
        before = self.head.embed(previous, where) if isinstance(self.head, LatentHead) else self.head.embed(previous)
        x = before * self.input_scale + here + self.next_phone(ahead)
        x = x + self.progress(progress.clamp(max=self.config.longest))
        return x + (self.voice(voice) + rate[:, None] * self.rate)[:, None]

    def hidden(
        self,
        previous: Tensor,
        encoded: Tensor,
        pointer: Tensor,
        progress: Tensor,
        voice: Tensor,
        rate: Tensor,
        state: State | None = None,
        where: Where | None = None,
    ) -> Tensor:
        """Hidden states `[batch, step, width]`; the same path in training and, with a state, step by step.

        Args:
            encoded: `[batch, phone + 1, width]` from `phones`. pointer: LongTensor `[batch, step]` into it.
        """
        width = encoded.shape[-1]

        def at(index: Tensor) -> Tensor:
            index = index.clamp(max=encoded.shape[1] - 1)
            return encoded.gather(1, index[..., None].expand(-1, -1, width))

        x = self.inputs(previous, at(pointer), at(pointer + 1), progress, voice, rate, where)
        return self.backbone(x, None if state is None else state.child("backbone"))

    # -- generation: what `tts/generate.py` asks of a model -----------------------------------------------------------
    def begin(self, request: Request) -> PointerPlan:
        """The plan of a request. Raises BadInput for what would break a step."""
        from .pointer_plan import PointerPlan

        return PointerPlan(request, self)

    def enter(self, plan: PointerPlan, state: State, slot: int) -> None:
        """A request joins, or its text has grown: its phones are read. Rows that were settled stay what they were, to
        the bit, however the text was cut."""
        f = plan.request.features
        parts = (t[None].to(self.rate.device) for t in (f.phones, f.word_start, f.upcoming))
        rows = self.phones(*parts)[0, : plan.settled]
        plan.encoded = rows if plan.encoded is None else torch.cat([plan.encoded, rows[len(plan.encoded) :]])

    def run(self, chunks: Mapping[int, PointerPlan], state: State) -> Tensor:
        """The next position of each plan, by slot: hidden states `[slot, 1, width]`."""
        slots, width, device = state.batch, self.config.backbone.width, self.rate.device
        previous = self.nothing(slots)
        where = None if self.config.latent is None else torch.zeros(2, slots, dtype=torch.long, device=device)
        here, ahead = torch.zeros(2, slots, 1, width, device=device)
        progress, voice = torch.zeros(slots, 1, dtype=torch.long), torch.zeros(slots, dtype=torch.long)
        rate = torch.zeros(slots)
        for slot, plan in chunks.items():
            assert plan.encoded is not None
            if plan.steps:
                previous[slot, :, 0] = plan.steps[-1]
            here[slot, 0], ahead[slot, 0] = plan.encoded[plan.pointer], plan.encoded[plan.pointer + 1]
            progress[slot, 0], voice[slot], rate[slot] = plan.progress, plan.request.voice, plan.rate
            if where is not None:  # only a head of latents asks whose steps these are
                where[0, slot], where[1, slot] = plan.request.seed, len(plan.steps)
        progress, voice, rate = (t.to(device) for t in (progress, voice, rate))
        whose = None if where is None else (where[0], where[1])
        x = self.inputs(previous.to(device), here, ahead, progress, voice, rate, whose)
        return stepped(self.backbone, x, state.child("backbone"))

    def record(self, state: State) -> None:
        """Records the backbone's step over the slots of `state`."""
        record_steps(self.backbone, torch.zeros(state.batch, 1, len(self.rate)), state.child("backbone"))

    def readout(self, hidden: Tensor) -> list[list[float]]:
        """Advance logits of each slot, from `hidden[slot, width]`; of a head with a stop rule of its own, then how sure
        it is of the end."""
        logits = self.advance(hidden).float()
        if self.stops and isinstance(self.head, LatentHead):
            logits = torch.cat([logits, self.head.ended(hidden)[:, None]], 1)
        return logits.tolist()

    @property
    def stops(self) -> bool:
        """The head has a stop rule of its own."""
        return self.config.latent is not None and self.config.latent.stop != "pointer"

    def nothing(self, batch: int) -> Tensor:
        """The step before the first one: empty codes `[batch, K, 1]`, or NaN latents `[batch, dim, 1]`."""
        if self.config.latent is not None:
            return torch.full((batch, self.config.latent.dim, 1), math.nan)
        return torch.full((batch, self.config.codebooks, 1), self.config.vocab)

    def shift(self, steps: Tensor) -> Tensor:
        """Teacher forcing: the step before, `[batch, K or dim, step]`, none at the first."""
        return torch.cat([self.nothing(len(steps)).to(steps), steps[..., :-1]], -1)


def _head(config: SpeechLMConfig) -> CategoricalHead | DepthHead | LatentHead:
    width = config.backbone.width
    if config.latent is not None and config.head in ("melle", "gaussian", "flow"):
        return make_latent_head(config.head, width, config.latent)
    if config.head == "depth":
        return DepthHead(width, config.codebooks, config.vocab, config.depth, stops=0)
    return CategoricalHead(width, config.codebooks, config.vocab, config.head_hidden, config.chain)
