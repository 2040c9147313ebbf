"""The full-duplex model: text, own voice and the other speaker as parallel streams of tokens (Moshi, Défossez et al.
2024, arXiv 2410.00037; github.com/kyutai-labs/moshi).

    column s = [text, own codebook 0.., user codebook 0..], each stream late by its own delay
    temporal transformer: columns before s -> hidden state -> text of column s (the inner monologue)
    depth transformer:    hidden state, text -> codes of column s, one after the other

There is no token for silence: silence is what the codec makes of it. The delay of the text against the audio makes the
same network a dialogue model (0), a streaming recogniser (text later) or a streaming synthesizer (text earlier).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ..errors import BadInput
from ..nn.state import State, StreamingModule
from ..nn.transformer import Transformer, TransformerConfig
from ..tts.patterns import DelayPattern
from .depth import DepthConfig, DepthTransformer

__all__ = ["DuplexConfig", "DuplexLogits", "DuplexModel", "LossWeights", "Mode", "delays_of"]

IGNORED = -100
Mode = Literal["dialogue", "recogniser", "synthesizer"]


def delays_of(own: int, user: int, text: int = 0, acoustic: int = 1) -> tuple[int, ...]:
    """Delays of the streams in frames: semantic codebooks 0, the other codebooks `acoustic`.

    `text > 0`: text after the audio (recognition); `text < 0`: text before it (synthesis), by delaying all audio.
    """
    audio = [0 if k == 0 else acoustic for speaker in (own, user) for k in range(speaker)]
    return max(text, 0), *(delay + max(-text, 0) for delay in audio)


class DuplexConfig(BaseModel):
    """Sizes and streams.

    Attributes:
        text_vocab: text tokens, PAD and EPAD among them. vocab: codes per codebook.
        own, user: codebooks of the model's voice and of the other speaker. predicted: how many of the audio streams
            the depth transformer predicts (default: the own ones; all of them lets a model talk to itself).
        delays: of [text, own.., user..] in frames; the default is `delays_of(own, user)`.
        pad, epad: text tokens "no text in this frame" and "a word begins in the next".
        heard: a second text head writes down what the *other* speaker said, so many frames late (None: no such head).
            Moshi has none; a small model that must find the words learns to understand far sooner, and a page can show
            both sides' words.
        heard_input: what was written down is an input of the next step: an inner monologue of what was *heard*, so that
            to answer is to go on with a text, and no word is written twice.
        schedule: the set of depth weights of each predicted level; default: a set for each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_vocab: int = Field(default=512, ge=2)
    vocab: int = Field(default=1024, ge=1)
    own: int = Field(default=4, ge=0)
    user: int = Field(default=4, ge=0)
    predicted: int | None = None
    delays: tuple[int, ...] | None = None
    pad: int = 3
    epad: int = 0
    heard: int | None = Field(default=None, ge=0)
    heard_input: bool = False
    backbone: TransformerConfig = TransformerConfig()
    depth: DepthConfig = DepthConfig()
    schedule: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> DuplexConfig:
        if self.own + self.user == 0:
            raise ValueError("a model without audio streams is no duplex model")
        if self.heard_input and self.heard is None:
            raise ValueError("heard_input needs the head that writes down what was heard (heard: frames late)")
        if self.delays is not None and (len(self.delays) != self.streams or min(self.delays) != 0):
            raise ValueError(f"delays must be {self.streams} frames counts of which the least is 0, not {self.delays}")
        if not 0 <= self.levels <= self.own + self.user:
            raise ValueError(f"cannot predict {self.levels} of {self.own + self.user} audio streams")
        if self.schedule is not None and len(self.schedule) != self.levels:
            raise ValueError(f"the schedule names {len(self.schedule)} levels, the model predicts {self.levels}")
        if not (0 <= self.pad < self.text_vocab and 0 <= self.epad < self.text_vocab and self.pad != self.epad):
            raise ValueError(f"pad {self.pad} and epad {self.epad} must be two of {self.text_vocab} text tokens")
        return self

    @property
    def streams(self) -> int:
        return 1 + self.own + self.user

    @property
    def levels(self) -> int:
        """How many codes the depth transformer draws for a frame."""
        return self.own if self.predicted is None else self.predicted

    @property
    def stream_delays(self) -> tuple[int, ...]:
        return delays_of(self.own, self.user) if self.delays is None else self.delays

    @property
    def mode(self) -> Mode:
        """What the delays make of the network: text after all audio is recognition, text before it synthesis."""
        text, *audio = self.stream_delays
        return "recogniser" if text > max(audio) else "synthesizer" if text < min(audio) else "dialogue"

    def with_text_delay(self, frames: int) -> DuplexConfig:
        """The same network with its text so many frames after (recogniser) or before (synthesizer) the audio."""
        acoustic = max(self.stream_delays[1:]) - min(self.stream_delays[1:])
        return self.model_copy(update={"delays": delays_of(self.own, self.user, frames, acoustic)})


class LossWeights(BaseModel):
    """Moshi's loss: text + the mean over levels, weighted `semantic` for the first codebook of a speaker and
    `acoustic` for the others; PAD and EPAD count `padding` of a word's token. Moshi takes 100 : 1; at that a small
    model does not learn to speak clearly. `heard`: of the other speaker's words, where the model writes them down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: float = 1.0
    audio: float = 1.0
    semantic: float = 10.0
    acoustic: float = 1.0
    padding: float = 0.5
    heard: float = 1.0


@dataclass
class DuplexLogits:
    """Of delayed columns: `text[batch, column, text_vocab]`, `audio[batch, column, level, vocab]`."""

    text: Tensor
    audio: Tensor


class DuplexModel(StreamingModule):
    """See the module's text. Codes are LongTensor `[batch, 1 + own + user, frame]`, the text first."""

    delays: Tensor
    initial: Tensor
    offsets: Tensor

    def __init__(self, config: DuplexConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern = DelayPattern(config.stream_delays, empty=self.ungenerated)
        width, audio = config.backbone.width, config.own + config.user
        self.text_table = nn.Embedding(config.text_vocab + 1, width)
        self.audio_table = nn.Embedding(audio * (config.vocab + 1), width)
        self.transformer = Transformer(config.backbone)
        self.text_head = nn.Linear(width, config.text_vocab, bias=False)
        if config.heard is not None:
            self.heard_head = nn.Linear(width, config.text_vocab, bias=False)
        if config.heard_input:
            self.heard_table = nn.Embedding(config.text_vocab, width)
        if config.levels:
            self._build_depth(config)
        for table in (m for m in self.modules() if isinstance(m, nn.Embedding)):
            nn.init.normal_(table.weight, std=0.3)
        if config.heard_input:  # a word is the same word, whoever says it: to copy it is then soon learnt
            self.heard_table.weight.data.copy_(self.text_table.weight[:-1])
        self.register_ids()

    def register_ids(self, device: torch.device | str | None = None) -> None:
        """Sets the buffers of ids: they follow from the configuration and are not in the state dict."""
        audio = self.config.own + self.config.user
        initial = torch.tensor([self.text_initial] + [self.audio_initial] * audio, device=device)
        self.register_buffer("initial", initial, persistent=False)
        delays = torch.tensor(self.config.stream_delays, device=device)
        self.register_buffer("delays", delays, persistent=False)
        offsets = torch.arange(audio, device=device) * (self.config.vocab + 1)
        self.register_buffer("offsets", offsets, persistent=False)

    def _build_depth(self, config: DuplexConfig) -> None:
        schedule = config.schedule or tuple(range(config.levels))
        width = config.depth.width
        self.depth = DepthTransformer(config.depth, schedule)
        projections = (nn.Linear(config.backbone.width, width, bias=False) for _ in range(max(schedule) + 1))
        self.depth_in = nn.ModuleList(projections)
        self.depth_text = nn.Embedding(config.text_vocab + 1, width)
        # The last level is never an input.
        self.depth_audio = nn.ModuleList(nn.Embedding(config.vocab + 1, width) for _ in range(config.levels - 1))
        self.depth_heads = nn.ModuleList(nn.Linear(width, config.vocab, bias=False) for _ in range(config.levels))

    # -- special ids --------------------------------------------------------------------------------------------------
    @property
    def audio_initial(self) -> int:
        """Audio token of places before a stream's first frame. Never drawn."""
        return self.config.vocab

    @property
    def text_initial(self) -> int:
        """Text token of places before the text's first frame. Never drawn."""
        return self.config.text_vocab

    @property
    def nothing(self) -> int:
        """Token that adds nothing to the input and counts nothing in the loss: a stream that is absent."""
        return -1

    @property
    def ungenerated(self) -> int:
        """Marks a place that is still to be filled. Never an input."""
        return -2

    # -- delays -------------------------------------------------------------------------------------------------------
    def delay(self, codes: Tensor) -> Tensor:
        """Frames `[batch, stream, T]` -> columns `[batch, stream, T + the longest delay]`, with the initial tokens
        where a stream has none."""
        steps = self.pattern.pack(codes)
        return torch.where(steps == self.ungenerated, self.initial[:, None], steps)

    def undelay(self, steps: Tensor) -> Tensor:
        """The inverse of `delay`."""
        return self.pattern.unpack(steps)

    def shifted(self, steps: Tensor) -> Tensor:
        """Columns -> the inputs that predict them: the initial column, then all but the last."""
        first = self.initial[None, :, None].expand(len(steps), -1, 1)
        return torch.cat([first, steps[..., :-1]], -1)

    # -- the network --------------------------------------------------------------------------------------------------
    def init_state(self, batch: int) -> State:
        return self._state_of(batch, transformer=self.transformer)

    def hidden(self, inputs: Tensor, state: State | None = None, noted: Tensor | None = None) -> Tensor:
        """Input columns `[batch, stream, time]` -> `[batch, time, width]`.

        Args:
            noted: of a model with `heard_input`: the tokens `[batch, time]` that it wrote down in these columns of what
                it heard; negative (or None): nothing.

        Raises:
            BadInput: wrong streams, or ids that are no tokens.
        """
        self._check(inputs)
        audio = inputs[:, 1:].transpose(1, 2)
        x = (self.audio_table(audio.clamp(min=0) + self.offsets) * (audio >= 0)[..., None]).sum(2)
        text = inputs[:, 0]
        x = x + self.text_table(text.clamp(min=0)) * (text >= 0)[..., None]
        if noted is not None and self.config.heard_input:
            x = x + self.heard_table(noted.clamp(min=0)) * (noted >= 0)[..., None]
        return self.transformer(x, None if state is None else state.child("transformer"))

    def _check(self, columns: Tensor) -> None:
        if columns.ndim != 3 or columns.shape[1] != self.config.streams:
            raise BadInput(f"expected tokens [batch, {self.config.streams}, time], got {list(columns.shape)}")
        if columns.device.type == "cpu" and columns.numel():  # elsewhere a look would wait for the device
            odd = (columns < self.nothing) | (columns > self.initial[:, None])
            if bool(odd.any()):
                stream = int(odd.any(2).any(0).nonzero()[0])
                kind = "text" if stream == 0 else "audio"
                raise BadInput(f"stream {stream} holds {kind} tokens outside 0..{int(self.initial[stream]) - 1}")

    def audio_logits(self, hidden: Tensor, steps: Tensor) -> Tensor:
        """Teacher-forced logits of the codes of columns `steps[batch, stream, time]`, given the hidden states that
        predict them `[batch, time, width]` -> `[batch, time, level, vocab]`."""
        batch, time = hidden.shape[:2]
        if not self.config.levels:
            return hidden.new_zeros(batch, time, 0, self.config.vocab)
        flat, tokens = hidden.flatten(0, 1), steps.transpose(1, 2).flatten(0, 1)
        inputs = [self.depth_input(flat, level, tokens[:, level]) for level in range(self.config.levels)]
        y = self.depth(torch.stack(inputs, 1))
        logits = torch.stack([head(y[:, k]) for k, head in enumerate(self.depth_heads)], 1)
        return logits.unflatten(0, (batch, time))

    def depth_input(self, hidden: Tensor, level: int, below: Tensor) -> Tensor:
        """What a level of the depth transformer sees: `hidden[n, width]` and the token below it (`[n]`: the text for
        level 0)."""
        table = self.depth_audio[level - 1] if level else self.depth_text
        rows = table(below.clamp(min=0)) * (below >= 0)[:, None]
        return self.depth_in[self.depth.schedule[level]](hidden) + rows

    def forward(self, codes: Tensor, heard: Tensor | None = None) -> DuplexLogits:
        """Logits of the delayed columns of `codes[batch, stream, T]`, the last `max(delays)` columns left out (there
        not all streams have a token). `heard`: the other's words `[batch, T]`, of a model with `heard_input`."""
        steps = self.delay(codes)[..., : codes.shape[-1]]
        hidden = self.hidden(self.shifted(steps), noted=self._noted(heard))
        return DuplexLogits(self.text_head(hidden), self.audio_logits(hidden, steps))

    def loss(
        self,
        codes: Tensor,
        weights: LossWeights | None = None,
        noisy: Tensor | None = None,
        heard: Tensor | None = None,
        voiced: Tensor | None = None,
        misheard: Tensor | None = None,
        sound: bool = True,
    ) -> dict[str, Tensor]:
        """Losses in nats: `loss`, `text`, `audio` (weighted), `heard` where the model has that head, and each level's
        `levels[level]`.

        Args:
            codes: `[batch, stream, T]`; `nothing` marks what does not count.
            noisy: what the model sees as its past instead of `codes` (history corruption).
            heard: text tokens of the other speaker `[batch, T]`, or None: that head is not trained.
            misheard: what the model has written down of it instead of `heard`; alone, a record that is read and not
                trained on.
            sound: whether the codes are trained on (not where there are none).
            voiced: bool `[batch, T]`, the columns whose codes are trained on, or None: all. The depth transformer runs
                on no others: a random part teaches nearly as much for less (compute amortisation, Sesame's CSM).
        """
        weights = weights or LossWeights()
        frames, config = codes.shape[-1], self.config
        steps = self.delay(codes)[..., :frames]
        seen = steps if noisy is None else self.delay(noisy)[..., :frames]
        hidden = self.hidden(self.shifted(seen), noted=self._noted(heard if misheard is None else misheard))
        target = steps.masked_fill((steps < 0) | (steps >= self.initial[:, None]), IGNORED)
        share = torch.ones(config.text_vocab, device=codes.device)
        share[[config.pad, config.epad]] = weights.padding
        text = _cross_entropy(self.text_head(hidden), target[:, 0], share)
        losses = {"loss": weights.text * text, "text": text}
        if config.heard is not None and heard is not None:
            losses["heard"] = self._heard_loss(hidden, heard, config.heard, share)
            losses["loss"] = losses["loss"] + weights.heard * losses["heard"]
        if config.levels and sound:
            losses |= self._audio_losses(self._level_losses(hidden, steps, target, voiced), weights)
            losses["loss"] = losses["loss"] + weights.audio * losses["audio"]
        return losses

    @staticmethod
    def _record(heard: Tensor, late: int) -> Tensor:
        """What the columns write down `[batch, column]`: column s has heard frame s - 1, so the words of frame
        s - 1 - late."""
        return F.pad(heard, (1 + late, 0), value=IGNORED)[:, : heard.shape[1]]

    def _noted(self, heard: Tensor | None) -> Tensor | None:
        """What the column before each had written down."""
        if heard is None or not self.config.heard_input:
            return None
        return F.pad(self._record(heard, self.config.heard or 0), (1, 0), value=IGNORED)[:, :-1]

    def _heard_loss(self, hidden: Tensor, heard: Tensor, late: int, share: Tensor) -> Tensor:
        target = self._record(heard, late)
        return _cross_entropy(self.heard_head(hidden), target.masked_fill(target < 0, IGNORED), share)

    def _level_losses(self, hidden: Tensor, steps: Tensor, target: Tensor, voiced: Tensor | None) -> Tensor:
        """Mean loss of each level `[level]`, over the columns that `voiced[batch, column]` names."""
        if voiced is not None:  # the named columns, as a batch of single ones
            hidden = hidden[voiced][:, None]
            steps, target = (x.transpose(1, 2)[voiced][..., None] for x in (steps, target))
        logits = self.audio_logits(hidden, steps)
        return torch.stack([_cross_entropy(logits[:, :, k], target[:, 1 + k]) for k in range(self.config.levels)])

    def _audio_losses(self, each: Tensor, weights: LossWeights) -> dict[str, Tensor]:
        semantic = torch.tensor([k in (0, self.config.own) for k in range(len(each))], device=each.device)
        alpha = torch.where(semantic, weights.semantic, weights.acoustic)
        return {"audio": (alpha * each).sum() / alpha.sum(), "levels": each}


def _cross_entropy(logits: Tensor, target: Tensor, share: Tensor | None = None) -> Tensor:
    """Mean over the targets that count; 0 when none does. `logits[batch, time, vocab]`, `target[batch, time]`."""
    total = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), share, ignore_index=IGNORED, reduction="sum"
    )
    held = target[target != IGNORED]
    count = share[held].sum() if share is not None else logits.new_tensor(float(held.numel()))
    return total / count.clamp(min=1e-6)
