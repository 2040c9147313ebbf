"""Token language models: text and speech tokens in one sequence, or speech that attends to text.

One class for CosyVoice 1 (`prefix`), CosyVoice 2 and VITA-Audio (`interleave`), Koel-TTS and VAT (`cross`), over the
semantic tokens of a `SemanticTokenizer` (one codebook, 25 Hz) or the codes of any codec (patterns and heads as in
`tts/patterns.py` and `tts/token_heads.py`), on our transformer or on any `transformers` causal language model.
The pointer layout, which needs alignments and gives timestamps, is `tts/lm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ..codecs.loading import load_weights, read_model, validated
from ..errors import BadInput, ConfigError
from ..nn.conv import ConvNeXtBlock
from ..nn.recorded import stepped
from ..nn.state import State, StreamingModule
from ..nn.transformer import TransformerConfig
from .backbones import HFBackbone, HFConfig, make_backbone
from .conditions import Condition, Conditioners
from .cross import CrossConfig, CrossOutput, CrossStack
from .layouts import CONDITION, NOTHING, SPEECH, TEXT, VOICE
from .patterns import make_pattern
from .phones import PHONE_IDS, PHONES
from .token_heads import STOPS, DepthHead, MultiTokenHead, ParallelHead, TokenHead

if TYPE_CHECKING:
    from .token_plan import TokenChunk, TokenPlan

__all__ = ["PHONE_VOCAB", "TokenLM", "TokenLMConfig", "load_token_lm", "phone_text"]

PHONE_VOCAB = 2 * len(PHONES)
"""Text ids of the phone alphabet: each phone, and each phone that begins a word."""


class TokenLMConfig(BaseModel):
    """Sizes and parts.

    Attributes:
        layout: `prefix`, `interleave` or `cross`. ratio: n text ids to m steps of the interleave.
        text: `phones` (ids from `phone_text`) or `bpe` (ids of the backbone's own tokenizer).
        text_blocks: convolution blocks that read the text; each looks `text_kernel // 2` ids ahead, so text that
            arrives in pieces waits for so many. 0: the ids' embeddings alone, as in CosyVoice 2.
        codebooks, vocab, pattern: of what is modelled.
        head: `parallel`, `depth` (sizes in `block`) or `multi_token` (`drafts` further steps, block sizes in `block`).
        conditions: named conditioners, such as an emotion or an instruction (`tts/conditions.py`).
        voices: names; none: the model is not told who speaks (CosyVoice 2: the flow is).
        shortest, longest: frames per text id, the length guard. silent: codes of level 0 that sound as silence;
            silent_run: how many of them may follow each other (0 = any).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal["prefix", "interleave", "cross"] = "prefix"
    ratio: tuple[int, int] = (5, 15)
    text: Literal["phones", "bpe"] = "phones"
    text_blocks: int = 0
    text_kernel: int = 5
    text_hidden: int = 512
    codebooks: int = 1
    vocab: int = 6561
    pattern: str = "parallel"
    head: Literal["parallel", "depth", "multi_token"] = "parallel"
    head_hidden: int = 0
    drafts: int = Field(default=4, ge=1)
    block: TransformerConfig | None = None
    backbone: TransformerConfig | HFConfig = TransformerConfig(window=768, slack=31)
    cross: CrossConfig = CrossConfig()
    voices: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    shortest: float = 0.5
    longest: float = 8.0
    silent: tuple[int, ...] = ()
    silent_run: int = 0

    @model_validator(mode="after")
    def _check(self) -> TokenLMConfig:
        if isinstance(self.backbone, HFConfig) and self.layout == "cross":
            raise ValueError("a transformers backbone has no cross-attention; choose prefix or interleave")
        if self.text == "bpe" and not isinstance(self.backbone, HFConfig):
            raise ValueError("bpe text needs a transformers backbone, whose tokenizer and embeddings it uses")
        if min(self.ratio) < 1 or not 0 <= self.shortest <= self.longest:
            raise ValueError("ratio must be positive, and shortest at most longest")
        if len({c.name for c in self.conditions}) < len(self.conditions):
            raise ValueError("two conditions have the same name")
        return self

    @property
    def interleave(self) -> tuple[int, int] | None:
        return self.ratio if self.layout == "interleave" else None


def phone_text(phones: tuple[str, ...] | list[str], word_starts: set[int] | frozenset[int]) -> tuple[int, ...]:
    """Text ids of phones; `word_starts` are the indices of those that begin a word."""
    return tuple(PHONE_IDS[p] + len(PHONES) * (i in word_starts) for i, p in enumerate(phones))


class _TextReader(nn.Module):
    """Text ids `[batch, text]` -> rows `[batch, text, width]`, each with a bounded view of its neighbours."""

    def __init__(self, config: TokenLMConfig, width: int, table: nn.Module | None) -> None:
        super().__init__()
        if table is None:
            own = nn.Embedding(PHONE_VOCAB, width)
            nn.init.normal_(own.weight, std=0.5)
            self.table: nn.Module | None = own
        else:
            self.table = None  # the backbone's, which must not be saved twice
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, config.text_hidden, config.text_kernel, causal=False)
            for _ in range(config.text_blocks)
        )
        self.context: int = config.text_blocks * (config.text_kernel // 2)

    def forward(self, ids: Tensor, lengths: Tensor, table: nn.Module | None) -> Tensor:
        rows = (self.table or table)(ids)  # type: ignore[misc]
        if not len(self.blocks):
            return rows
        keep = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])[:, None].to(rows.dtype)
        x = rows.transpose(1, 2) * keep
        for block in self.blocks:
            x = block(x) * keep  # padding stays zero, so that a batch equals its items alone
        return x.transpose(1, 2)


class TokenLM(StreamingModule):
    """Language model over speech tokens; see the module's docstring."""

    def __init__(self, config: TokenLMConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = (
            CrossStack(config.backbone, config.cross)
            if config.layout == "cross" and isinstance(config.backbone, TransformerConfig)
            else make_backbone(config.backbone)
        )
        foreign = isinstance(self.backbone, HFBackbone)
        width = self.backbone.width if isinstance(self.backbone, HFBackbone) else config.backbone.width  # type: ignore[union-attr]
        self.width = width
        self.text_vocab: int = self.backbone.vocab if config.text == "bpe" else PHONE_VOCAB  # type: ignore[union-attr]
        self.reader = _TextReader(config, width, self._bpe_table)
        self.marks = nn.Embedding(4, width)  # pad, start, task, nothing
        self.voice = nn.Embedding(max(1, len(config.voices)), width)
        self.conditions = Conditioners(config.conditions, width) if config.conditions else None
        self.head = _make_head(config, width)
        self.pattern = make_pattern(config.pattern, config.codebooks, self.head.empty)
        if self.pattern.delays[0]:
            raise ConfigError(f"pattern {config.pattern!r} delays level 0, which says where the speech ends")
        # Code tables begin small; our transformer likes inputs of unit scale, a pretrained one those of its own table.
        self.input_scale = nn.Parameter(torch.tensor(1.0 if foreign else 8.0))
        for table in (self.marks, self.voice):
            nn.init.normal_(table.weight, std=0.02 if foreign else 0.5)

    # -- sizes --------------------------------------------------------------------------------------------------------
    @property
    def _bpe_table(self) -> nn.Module | None:
        return self.backbone.text_table if self.config.text == "bpe" else None  # type: ignore[union-attr]

    @property
    def chunk(self) -> int:
        """Positions that one forward with a state may take."""
        backbone = self.config.backbone
        return backbone.chunk if isinstance(backbone, HFConfig) else backbone.slack + 1

    @property
    def context(self) -> int | None:
        """Positions that a request may fill, or None for any number (old ones are forgotten)."""
        backbone = self.config.backbone
        if isinstance(backbone, HFConfig):
            return backbone.context
        return backbone.window if self.config.layout == "prefix" else None

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, backbone=self.backbone)

    # -- the model ----------------------------------------------------------------------------------------------------
    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Text ids `[batch, text]` of `lengths` -> rows `[batch, text, width]`."""
        return self.reader(ids, lengths, self._bpe_table)

    def inputs(
        self, kind: Tensor, value: Tensor, text: Tensor, codes: Tensor, conditions: Tensor | None = None
    ) -> Tensor:
        """Inputs of the backbone `[batch, time, width]`.

        Args:
            kind, value: LongTensor `[batch, time]` (see `tts/layouts.py`).
            text: `[batch, time, width]`, the row of each text position.
            codes: LongTensor `[batch, K, time]`, the step of each speech position (`empty` elsewhere).
            conditions: `[batch, condition, width]` from `Conditioners`, of a model that has any.
        """
        speech = self.head.embed(codes) * self.input_scale
        voice = self.voice(torch.where(kind == VOICE, value, 0))
        x = self.marks(torch.where(kind == NOTHING, 3, kind.clamp(max=2)))
        if conditions is not None:
            index = torch.where(kind == CONDITION, value, 0)
            rows = conditions.gather(1, index[..., None].expand(-1, -1, conditions.shape[2]))
            x = torch.where((kind == CONDITION)[..., None], rows.to(x.dtype), x)
        x = torch.where((kind == VOICE)[..., None], voice, x)
        x = torch.where((kind == TEXT)[..., None], text, x)
        return torch.where((kind == SPEECH)[..., None], speech, x)

    def hidden(self, kind: Tensor, value: Tensor, ids: Tensor, lengths: Tensor, codes: Tensor) -> Tensor:
        """Hidden states of a whole batch `[batch, time, width]`; of `cross`, use `attend` for the alignment too.

        Args:
            ids: text ids `[batch, text]` of `lengths`; the other arguments as of `inputs`.
        """
        return self.attend(kind, value, ids, lengths, codes)[0]

    def attend(
        self,
        kind: Tensor,
        value: Tensor,
        ids: Tensor,
        lengths: Tensor,
        codes: Tensor,
        prior: Tensor | None = None,
        dropped: Tensor | None = None,
        conditions: Tensor | None = None,
    ) -> CrossOutput:
        """`(hidden, log_attention, place)`; the last two are None but for the cross layout. `dropped` (BoolTensor
        [batch]): items trained without text, voice and conditions, for guidance. `conditions`: as of `inputs`."""
        rows = self.read(ids, lengths)
        if dropped is not None:
            kind = torch.where(dropped[:, None], hidden_kinds(kind), kind)
            rows = torch.where(dropped[:, None, None], self.marks.weight[3], rows)
        index = torch.where(kind == TEXT, value, 0).clamp(max=rows.shape[1] - 1)
        text = rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
        x = self.inputs(kind, value, text, codes, conditions)
        if isinstance(self.backbone, CrossStack):
            return self.backbone(x, rows, lengths, prior=prior)
        return CrossOutput((self.backbone(x), None, None))

    # -- generation: what `tts/generate.py` asks of a model -----------------------------------------------------------
    def enter(self, plan: TokenPlan, state: State, slot: int) -> None:
        """A request joins; its text is read when it is first needed."""

    def run(self, chunks: Mapping[int, TokenChunk], state: State, blind: bool = False) -> Tensor:
        """Chunks of one length, by slot -> hidden states `[slot, length, width]`; `blind`: hidden is what the plan's
        request weighs by guidance, all that the model is told or its conditions alone."""
        length = next(iter(chunks.values())).length
        device, slots = self.input_scale.device, state.batch
        kind = torch.zeros(slots, length, dtype=torch.long)
        value = torch.zeros(slots, length, dtype=torch.long)
        codes = torch.full((slots, self.config.codebooks, length), self.head.empty)
        text = torch.zeros(slots, length, self.width, device=device, dtype=self.input_scale.dtype)
        child = state.child("backbone")
        told: Tensor | None = None
        if self.conditions is not None:
            told = self.conditions.absent.expand(slots, -1, -1).clone()
        for slot, chunk in chunks.items():
            if told is not None and not blind:
                told[slot] = self._told(chunk.plan)
            clip = chunk.plan.request.clip
            if clip is not None and chunk.plan.clip and chunk.at == chunk.plan.clip:
                (clip.put if chunk.plan.skipped else clip.keep)(blind, child, slot)
            hidden_text = blind and chunk.plan.request.over == "text"
            self._read_new_text(chunk.plan, child, slot, hidden_text)
            for i, item in enumerate(chunk.items):
                kind[slot, i], value[slot, i] = item
                if item.kind == TEXT:
                    text[slot, i] = chunk.plan.encoded[item.value]
                elif item.kind == SPEECH:
                    codes[slot, :, i] = chunk.plan.history[item.value]
            if hidden_text:
                kind[slot] = hidden_kinds(kind[slot])
        x = self.inputs(kind.to(device), value.to(device), text, codes.to(device), told)
        if not isinstance(self.backbone, CrossStack):
            return stepped(self.backbone, x, child)
        hidden, _, place = self.backbone(x, state=child)
        for slot, chunk in () if blind else chunks.items():
            chunk.plan.place = float(place[slot, -1])
        return hidden

    def _told(self, plan: TokenPlan) -> Tensor:
        """The rows of a plan's conditions `[condition, width]`, read once."""
        told = plan.told
        if told is None:
            assert self.conditions is not None
            ids = self.conditions.ids(plan.request.conditions)
            told = plan.told = self.conditions(ids[None].to(self.input_scale.device))[0]
        return told

    def _read_new_text(self, plan: TokenPlan, state: State, slot: int, blind: bool) -> None:
        if plan.read != len(plan.ids):
            device = self.input_scale.device
            ids = torch.tensor([plan.ids], device=device)
            plan.encoded = self.read(ids, torch.tensor([len(plan.ids)], device=device))[0]
            plan.read = len(plan.ids)
        if isinstance(self.backbone, CrossStack) and int(state["count"][slot]) != len(plan.ids):
            memory = self.marks.weight[3].expand_as(plan.encoded) if blind else plan.encoded
            self.backbone.remember(memory, state, slot)

    def readout(self, hidden: Tensor) -> list[list[float]]:
        return []

    def shift(self, steps: Tensor) -> Tensor:
        """Teacher forcing: `[batch, K, step]`, the codes of the step before, empty at the first."""
        return F.pad(steps, (1, 0), value=self.head.empty)[..., :-1]

    def finished(self, codes: Tensor) -> Tensor:
        """Steps to predict for whole codes `[K, frame]`, the end included: `[K, frame + max(extra, 1)]`."""
        if codes.ndim != 2 or codes.shape[0] != self.config.codebooks:
            raise BadInput(f"expected codes [{self.config.codebooks}, frame], got {list(codes.shape)}")
        steps = self.pattern.pack(codes[None])[0]
        steps = F.pad(steps, (0, int(self.pattern.extra == 0)), value=self.head.empty)
        steps[0, codes.shape[1]] = self.head.eos
        return steps


def hidden_kinds(kind: Tensor) -> Tensor:
    """Kinds of positions with text, voice and conditions hidden."""
    return torch.where((kind == TEXT) | (kind == VOICE) | (kind == CONDITION), NOTHING, kind)


def _make_head(config: TokenLMConfig, width: int) -> TokenHead:
    base: dict[str, Any] = {"width": width, "codebooks": config.codebooks, "vocab": config.vocab, "stops": STOPS}
    if config.head == "depth":
        return DepthHead(**base, depth=config.block)
    if config.head == "multi_token":
        return MultiTokenHead(**base, hidden=config.head_hidden, drafts=config.drafts, block=config.block)
    return ParallelHead(**base, hidden=config.head_hidden)


def load_token_lm(name: str) -> tuple[TokenLM, str]:
    """A token language model in eval mode and the name of the tokens that it speaks, by bundled name or folder.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    folder, config, codec = read_model(name, "token_lm", "token language model")
    lm = TokenLM(validated(TokenLMConfig, config, folder))
    load_weights(lm, folder)
    return lm.eval(), codec
