"""Duplex sessions on slots: a frame of what the user says in, a frame of what the model says out, at every step.

All that a slot remembers (codec, key-value ring, tokens on their way, settings, seed, controls) is one row of one state
tree: it can be frozen, reset, saved and taken up again in another slot. Randomness is a function of (seed, step), so a
conversation does not depend on its neighbours, nor on the slot it sits in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..codecs.base import Codec
from ..errors import BadInput, ConfigError
from ..nn.noise import frame_noise
from ..nn.recorded import Step, record
from ..nn.state import State
from .model import DuplexModel
from .monologue import Vocabulary
from .sampling import sample_rows

__all__ = ["Control", "DuplexBatch", "DuplexFrame", "DuplexSession", "DuplexSettings", "latency_seconds"]

Control = Literal["speak", "listen", "free"]
MAX_SEED = 2**62


class DuplexSettings(BaseModel):
    """Of one slot; the defaults are Moshi's. A temperature of 0 takes the most likely, a top-k of 0 keeps all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.8, ge=0, le=5)
    top_k: int = Field(default=250, ge=0)
    text_temperature: float = Field(default=0.7, ge=0, le=5)
    text_top_k: int = Field(default=25, ge=0)
    seed: int = Field(default=0, ge=0, lt=MAX_SEED)


@dataclass(frozen=True)
class DuplexFrame:
    """What a step gives a slot.

    Attributes:
        audio: float32 `[frame_size]`, the model's voice; silence while the first frame is on its way.
        text: what the frame adds to the model's text. token: the text token. frame: index of the audio frame (negative
            while it is on its way). heard: what it adds to the user's words, of a model that writes them down, `late`
            frames (`DuplexConfig.heard`) after they were said; else "".
    """

    audio: np.ndarray
    text: str
    token: int
    frame: int
    heard: str = ""


def latency_seconds(model: DuplexModel, codec: Codec) -> float:
    """Algorithmic latency: a frame to be heard, the delay of the model's own codebooks, the decoder's overlap."""
    own = model.config.stream_delays[1 : 1 + model.config.own]
    return (1 + max(own) - min(own)) * float(1 / codec.frame_spec.rate) + codec.latency / codec.sample_rate


class DuplexBatch:
    """`slots` conversations, stepped together. Every call runs over all slots with those that do not move frozen, so
    the rounding of a row does not depend on the others (law 3).

    `recorded` (on a CPU): a step is recorded once (`nn.recorded`), which takes a second or two and makes each of them
    two to three times cheaper, with the same bits.
    """

    speaks = True
    """Whether it has a voice (`modes.RecogniserBatch` has none)."""
    hears = True
    """Whether it writes down what the user says beside its text (where the model has that head)."""

    def __init__(
        self, model: DuplexModel, codec: Codec, vocabulary: Vocabulary, slots: int = 1, *, recorded: bool = False
    ) -> None:
        config, spec = model.config, codec.frame_spec
        if spec.kind != "codes" or spec.vocab != config.vocab or spec.codebooks < max(config.own, config.user):
            raise ConfigError(f"the model speaks codes of {config.vocab}, the codec gives {spec}")
        if vocabulary.size > config.text_vocab or (vocabulary.pad, vocabulary.epad) != (config.pad, config.epad):
            raise ConfigError(f"the vocabulary ({vocabulary.size} tokens) is not the one of the model")
        if self.speaks and (not config.own or config.levels < config.own):
            raise ConfigError("this model predicts no voice of its own: it can recognise, but not converse")
        self.model, self.codec, self.vocabulary, self.slots = model.eval(), codec, vocabulary, slots
        self.sample_rate, self.frame_size, self.rate = codec.sample_rate, codec.frame_size, spec.rate
        self.late = max(config.stream_delays[1 : 1 + config.own], default=0)
        self.ring = 2 * max(config.stream_delays) + 2
        self.device = next(model.parameters()).device
        self.used = [False] * slots
        with torch.inference_mode():
            self.state = self._new_state()
        self._run: Step = self._step
        if recorded and self.device.type == "cpu":
            self._run = record(self._step, self.state, [model, codec], self._trials()) or self._step

    def _new_state(self) -> State:
        state, long = State(self.slots), torch.long
        state.child("codec", self.codec)
        state.child("model", self.model)
        state.add("tokens", self.model.config.streams, self.ring, dtype=long, device=self.device)
        for name in ("steps", "seed", "top_k", "text_top_k", "listen", "speak"):
            state.add(name, dtype=long, device=self.device)
        for name in ("temperature", "text_temperature"):
            state.add(name, device=self.device)
        if self.model.config.heard_input:
            state.add("noted", dtype=long, device=self.device)  # the token last written down, and 1; 0: none yet
        return state

    # -- slots --------------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def join(self, slot: int, settings: DuplexSettings | None = None) -> None:
        """Starts a conversation in a slot: one step before anything is heard, for the others as if it never was."""
        settings = settings or DuplexSettings()
        only = self._mask({self._known(slot)})
        self.state.reset(only)
        with self.state.only(only):
            for name, value in settings.model_dump().items():
                self.state.update(name, torch.full_like(self.state[name], value))
            self._advance(torch.zeros(self.slots, self.model.config.user, dtype=torch.long, device=self.device))
        self.used[slot] = True

    @torch.inference_mode()
    def leave(self, slot: int) -> None:
        """Frees a slot."""
        self.state.reset(self._mask({self._known(slot)}))
        self.used[slot] = False

    def steer(self, slot: int, control: Control) -> None:
        """`speak`: forces EPAD in the next frame, after which a word comes. `listen`: forces PAD until `free` or
        `speak`. (Moshi, end of section 3.4.4.)

        Raises:
            BadInput: no such control, or nobody in the slot.
        """
        self._seated(slot)
        if control not in ("speak", "listen", "free"):
            raise BadInput(f"no control {control!r}: speak, listen or free")
        with torch.inference_mode():
            self.state["listen"][slot] = int(control == "listen")
            self.state["speak"][slot] = int(control == "speak")

    def snapshot(self, slot: int) -> dict[str, Tensor]:
        """All that a slot remembers, ready for `safetensors`; `resume` goes on from it in any slot of this model."""
        self._seated(slot)
        return {path: tensor[slot].detach().cpu().clone() for path, tensor in self.state.tensors()}

    @torch.inference_mode()
    def resume(self, slot: int, saved: Mapping[str, Tensor]) -> None:
        """Raises BadInput: a snapshot of another model."""
        mine = dict(self.state.tensors())
        if mine.keys() != saved.keys() or any(mine[k].shape[1:] != saved[k].shape for k in mine):
            raise BadInput("this snapshot belongs to another model")
        for path, tensor in mine.items():
            tensor[self._known(slot)] = saved[path].to(tensor.device)
        self.used[slot] = True

    # -- steps --------------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def step(self, heard: Mapping[int, np.ndarray], sample_rate: int | None = None) -> dict[int, DuplexFrame]:
        """One frame of each given slot: float32 `[frame_size]` by slot -> what the model says.

        A call that raises leaves every slot as it was before.

        Raises:
            BadInput: a frame of the wrong size or rate, samples that are no numbers, a slot that nobody sits in.
        """
        if not heard:
            return {}
        audio = self._audio(heard, sample_rate)
        mask, mark = self._mask(heard), self.state.mark()
        try:
            out = self._run(audio, mask)
            spoken, (tokens, words, frames) = out[0].float().cpu().numpy(), (t.tolist() for t in out[1:])
        except BaseException:
            self.state.rollback(mark)
            raise
        return {s: self._frame(spoken[s], tokens[s], frames[s], words[s]) for s in heard}

    def _step(self, audio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the slots of `mask` hear, `[slot, 1, sample]` -> what each says `[slot, sample]`, its text token, the
        token of what it heard, and the index of its frame."""
        with self.state.only(mask):
            codes, _ = self._encode(audio)
            tokens, words = self._advance(codes[..., 0])
        spoken, frames = self._speak(mask)
        return spoken, tokens, words, frames

    def _trials(self) -> list[tuple[Tensor, Tensor]]:
        """Steps to try a recording on: of all slots, of some, of the others."""
        noise = torch.randn(4, self.slots, 1, self.frame_size, generator=torch.Generator().manual_seed(0)) / 10
        some = torch.arange(self.slots) % 2 == 0
        masks = (some | True, some, ~some | (self.slots == 1), some | True)
        return [(audio.to(self.device), mask.to(self.device)) for audio, mask in zip(noise, masks, strict=True)]

    def _frame(self, audio: np.ndarray, token: int, frame: int, words: int) -> DuplexFrame:
        return DuplexFrame(audio, self._text(token), token, frame, self._text(words))

    def _audio(self, heard: Mapping[int, np.ndarray], sample_rate: int | None) -> Tensor:
        if sample_rate not in (None, self.sample_rate):
            raise BadInput(f"the model hears {self.sample_rate} Hz, not {sample_rate} Hz; resample the audio first")
        audio = np.zeros((self.slots, 1, self.frame_size), np.float32)
        for slot, frame in heard.items():
            self._seated(slot)
            frame = np.asarray(frame)
            if frame.shape != (self.frame_size,):
                raise BadInput(f"a frame has {self.frame_size} samples of one channel, not {list(frame.shape)}")
            if not np.isfinite(frame).all():
                raise BadInput(f"slot {slot}: the audio holds NaN or infinite samples; clean it first")
            audio[slot, 0] = frame
        return torch.from_numpy(audio).to(self.device)

    def _encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        codes, counts = self.codec.encode(audio, state=self.state.child("codec"))
        return codes[:, : self.model.config.user], counts

    def _advance(self, user: Tensor) -> tuple[Tensor, Tensor]:
        """The user's codes `[slot, user]` of a frame -> the next column is drawn; its text tokens `[slot]`, and the
        tokens of the user's words `[slot]`.

        Step q of a slot reads column q - 1 (before the first: the initial tokens) and draws column q.
        """
        config, model, state = self.model.config, self.model, self.state
        step, delays = state["steps"], model.delays
        tokens = state["tokens"].clone()
        place = (step[:, None] - 1 + delays[1 + config.own :]) % self.ring
        tokens[:, 1 + config.own :].scatter_(2, place[..., None], user[..., None])
        column = self._column(tokens, step - 1)
        noted = state["noted"][:, None] - 1 if config.heard_input else None
        hidden = model.hidden(column[..., None], state.child("model"), noted)[:, 0]
        drawn, heard = self._draw(hidden, step), self._heard(hidden)
        place = (step % self.ring)[:, None, None].expand(-1, drawn.shape[1], 1)
        tokens[:, : drawn.shape[1]].scatter_(2, place, drawn[..., None])
        state.update("tokens", tokens)
        state.update("steps", step + 1)
        state.update("speak", torch.zeros_like(step))
        if config.heard_input:
            state.update("noted", heard + 1)
        return drawn[:, 0], heard

    def _heard(self, hidden: Tensor) -> Tensor:
        """What the user said: the likeliest token, since it is a record and not an utterance."""
        if not self.hears:
            return torch.full((self.slots,), self.model.nothing, device=self.device)
        if self.model.config.heard is None:
            return torch.full((self.slots,), self.model.config.pad, device=self.device)
        return self.model.heard_head(hidden).argmax(-1)

    def _column(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Column `at[slot]` of every stream `[slot, stream]`, the initial token where a stream has not begun."""
        place = (at % self.ring)[:, None, None].expand(-1, tokens.shape[1], 1)
        held = tokens.gather(2, place)[..., 0]
        return torch.where(at[:, None] < self.model.delays, self.model.initial, held)

    def _draw(self, hidden: Tensor, step: Tensor) -> Tensor:
        """Column `step[slot]` of the text and the own codebooks `[slot, 1 + own]`."""
        model, config, state = self.model, self.model.config, self.state
        noise = frame_noise(state["seed"], step, 1, 1 + config.own)[..., 0]
        uniform = torch.special.ndtr(noise.double()).float().clamp(max=1 - 2**-24)
        begun = step[:, None] >= model.delays
        text = torch.where(begun[:, 0], self._draw_text(hidden, uniform[:, 0]), model.text_initial)
        return self._draw_codes(hidden, text, uniform, begun)

    def _draw_text(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """The text token of the column `[slot]`."""
        config, state = self.model.config, self.state
        logits = self.model.text_head(hidden)
        text = sample_rows(logits, state["text_temperature"], state["text_top_k"], uniform)
        text = torch.where(state["listen"] > 0, config.pad, text)
        return torch.where(state["speak"] > 0, config.epad, text)

    def _draw_codes(self, hidden: Tensor, text: Tensor, uniform: Tensor, begun: Tensor) -> Tensor:
        """The codes under that text, which comes first: `[slot, 1 + own]`."""
        model, config, state = self.model, self.model.config, self.state
        drawn, cache = [text], []
        for level in range(config.own):
            y = model.depth.step(model.depth_input(hidden, level, drawn[-1]), level, cache)
            logits = model.depth_heads[level](y)
            code = sample_rows(logits, state["temperature"], state["top_k"], uniform[:, 1 + level])
            drawn.append(torch.where(begun[:, 1 + level], code, model.audio_initial))
        return torch.stack(drawn, 1)

    def _speak(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes the newest own frame of which every codebook is there: audio `[slot, sample]`, its index `[slot]`."""
        config, state = self.model.config, self.state
        frame = state["steps"] - 1 - self.late
        delays = self.model.delays[1 : 1 + config.own]
        place = (frame[:, None] + delays) % self.ring
        codes = state["tokens"][:, 1 : 1 + config.own].gather(2, place[..., None])
        ready = mask & (frame >= 0)
        codes = codes.masked_fill(~ready[:, None, None], 0).clamp(max=config.vocab - 1)
        with state.only(ready):
            audio = self.codec.decode(codes, state.child("codec"))[:, 0]
        return audio * ready[:, None], frame

    def _text(self, token: int) -> str:
        return self.vocabulary.decode(token) if 0 <= token < self.vocabulary.size else ""

    # -- small things -------------------------------------------------------------------------------------------------
    def _known(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise BadInput(f"there is no slot {slot}; this batch has {self.slots}")
        return slot

    def _seated(self, slot: int) -> None:
        if not self.used[self._known(slot)]:
            raise BadInput(f"nobody sits in slot {slot}; join first")

    def _mask(self, slots: Mapping[int, np.ndarray] | set[int]) -> Tensor:
        return torch.tensor([i in slots for i in range(self.slots)], device=self.device)


class DuplexSession:
    """One conversation: `step(user_frame) -> DuplexFrame`, in a batch of one slot of the given kind."""

    def __init__(
        self,
        model: DuplexModel,
        codec: Codec,
        vocabulary: Vocabulary,
        settings: DuplexSettings | None = None,
        kind: type[DuplexBatch] = DuplexBatch,
    ) -> None:
        self.batch = kind(model, codec, vocabulary)
        self.sample_rate, self.frame_size = self.batch.sample_rate, self.batch.frame_size
        self.batch.join(0, settings)

    def step(self, user_frame: np.ndarray, sample_rate: int | None = None) -> DuplexFrame:
        """float32 `[frame_size]` of the user -> the model's audio and text of one frame. Raises as `DuplexBatch`."""
        return self.batch.step({0: user_frame}, sample_rate)[0]

    def steer(self, control: Control) -> None:
        """See `DuplexBatch.steer`."""
        self.batch.steer(0, control)

    def snapshot(self) -> dict[str, Tensor]:
        """See `DuplexBatch.snapshot`."""
        return self.batch.snapshot(0)

    def resume(self, saved: Mapping[str, Tensor]) -> None:
        """See `DuplexBatch.resume`."""
        self.batch.resume(0, saved)
