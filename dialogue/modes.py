"""The other two uses of the duplex network, by the delay of its text alone: a streaming recogniser (the text stream
holds the user's words, late) and a streaming synthesizer (it holds the words to be spoken, early).

Both are batches of slots like a conversation, with the same state, steps and laws; one of the two voices is absent.
What a synthesizer says is written for it, but when each word comes is its own choice, as in Delayed Streams Modeling
(Zeghidour et al. 2025, arXiv 2509.08753): where it would begin a word, the next one of the text is put.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInput, ConfigError
from ..nn.state import State
from .model import Mode
from .monologue import TimedWord, Vocabulary, words_heard
from .sampling import sample_rows
from .session import DuplexBatch, DuplexFrame, DuplexSettings

__all__ = ["BATCHES", "RecogniserBatch", "Script", "SynthesizerBatch", "speak", "transcribe"]

PATIENCE = 0.5
"""Seconds of PAD after which the next word is begun, whatever the model would."""
QUIET, LONGEST = 0.2, 1.6
"""Silence that ends an utterance, and the most that may follow its last word's beginning, in seconds."""
LEVEL = 0.01
"""RMS of silence."""


class RecogniserBatch(DuplexBatch):
    """Hears, and writes down the words late (`DuplexFrame.text`); it has no voice, its audio is silence."""

    speaks = False
    hears = False  # its text is the record of the user

    def _draw_codes(self, hidden: Tensor, text: Tensor, uniform: Tensor, begun: Tensor) -> Tensor:
        own = begun[:, 1 : 1 + self.model.config.own]
        absent = torch.where(own, self.model.nothing, self.model.audio_initial)
        return torch.cat([text[:, None], absent], 1)

    def _speak(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        silence = torch.zeros(self.slots, self.frame_size, device=self.device)
        return silence, self.state["steps"] - 1 - self.late


class SynthesizerBatch(DuplexBatch):
    """Speaks what is written for it (`write`); what it is given to hear is not heard."""

    hears = False

    def _new_state(self) -> State:
        state = super()._new_state()
        for name in ("word", "forced"):  # tokens and one, so that an empty state says: none
            state.add(name, dtype=torch.long, device=self.device)
        return state

    def write(self, slot: int, word: int | None, forced: int | None = None) -> None:
        """Of the next step: `word` is the first token of the next word, taken when the model would begin one (None: no
        text is left, it is silent); `forced` is taken in any case."""
        self._seated(slot)
        with torch.inference_mode():
            for name, token in (("word", word), ("forced", forced)):
                self.state[name][slot] = 0 if token is None else 1 + token

    def _encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        absent = torch.full((self.slots, self.model.config.user, 1), self.model.nothing, device=self.device)
        return absent, torch.ones(self.slots, dtype=torch.long, device=self.device)

    def _draw_text(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """PAD, EPAD or "a word": the model's choice; which word: the text's."""
        config, state = self.model.config, self.state
        logits = self.model.text_head(hidden).float()
        marks = torch.tensor([config.pad, config.epad], device=self.device)
        words = logits.index_fill(1, marks, float("-inf")).logsumexp(-1, keepdim=True)
        every = torch.zeros_like(state["steps"])
        choice = sample_rows(torch.cat([logits[:, marks], words], 1), state["text_temperature"], every, uniform)
        text = torch.where(choice == 0, config.pad, torch.where(choice == 1, config.epad, state["word"] - 1))
        text = torch.where(state["word"] > 0, text, config.pad)
        return torch.where(state["forced"] > 0, state["forced"] - 1, text)


BATCHES: Mapping[Mode, type[DuplexBatch]] = {
    "dialogue": DuplexBatch,
    "recogniser": RecogniserBatch,
    "synthesizer": SynthesizerBatch,
}
"""What steps a model, by what its delays make of it."""


class Script:
    """Text on its way into a slot of a `SynthesizerBatch`, word by word; more may come while it is being spoken.

    Raises:
        BadInput: a word that the vocabulary cannot write.
    """

    def __init__(self, vocabulary: Vocabulary, patience: int, text: str = "") -> None:
        self.vocabulary, self.patience = vocabulary, patience
        self._words: deque[list[int]] = deque()
        self._rest: list[int] = []
        self._pads = patience  # the first word comes at once
        self.feed(text)

    def feed(self, text: str) -> None:
        """More words."""
        self._words.extend([self.vocabulary.encode(word) for word in text.split()])

    @property
    def done(self) -> bool:
        """Whether all of the text is in the stream."""
        return not self._words and not self._rest

    def next(self) -> tuple[int | None, int | None]:
        """`word` and `forced` of `SynthesizerBatch.write` for the next step."""
        if self._rest:
            return None, self._rest[0]
        if not self._words:
            return None, None
        first = self._words[0][0]
        return first, first if self._pads >= self.patience else None

    def wrote(self, token: int) -> None:
        """What the step has put into the stream."""
        if token in (self.vocabulary.pad, self.vocabulary.epad):
            # A word stands in the frame after EPAD.
            self._pads = self.patience if token == self.vocabulary.epad else self._pads + 1
        elif self._rest:
            self._rest.pop(0)
        else:
            self._rest, self._pads = self._words.popleft()[1:], 0


class _Utterance:
    """A text being spoken in a slot."""

    def __init__(self, batch: SynthesizerBatch, slot: int, number: int, text: str) -> None:
        self.batch, self.slot, self.number = batch, slot, number
        self.script = Script(batch.vocabulary, round(PATIENCE * batch.rate), text)
        if self.script.done:
            raise BadInput("there is nothing to say: the text has no words")
        self.audio: list[np.ndarray] = []
        self.after = 0

    def prepare(self) -> None:
        self.batch.write(self.slot, *self.script.next())

    def take(self, frame: DuplexFrame) -> None:
        self.script.wrote(frame.token)
        self.after = self.after + 1 if self.script.done else 0
        if frame.frame >= 0:
            self.audio.append(frame.audio)

    @property
    def done(self) -> bool:
        """All words are in, their first frames are out, and the voice is silent (or has had its time)."""
        batch = self.batch
        over = self.after - 2 * max(batch.model.config.stream_delays)
        quiet = round(QUIET * batch.rate)
        if over < quiet:
            return False
        last = np.concatenate(self.audio[-quiet:])
        return over >= LONGEST * batch.rate or float(np.sqrt(np.square(last).mean())) < LEVEL


def speak(
    batch: DuplexBatch, texts: Sequence[str], settings: DuplexSettings | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Speaks texts, as many at once as the batch has slots; yields (number, float32 `[n]`) as they end. Text i has the
    settings' seed + i, and does not depend on the others.

    Raises:
        ConfigError: the batch is no synthesizer's. BadInput: a text without words, or a word that cannot be written.
    """
    if not isinstance(batch, SynthesizerBatch):
        raise ConfigError("this model is no synthesizer: its text is not ahead of its voice (see docs/dialogue.md)")
    settings = settings or DuplexSettings()
    waiting, seats = enumerate(texts), {}
    silence = np.zeros(batch.frame_size, np.float32)
    while True:
        for slot in set(range(batch.slots)) - seats.keys():
            if (following := next(waiting, None)) is not None:
                batch.join(slot, settings.model_copy(update={"seed": settings.seed + following[0]}))
                seats[slot] = _Utterance(batch, slot, *following)
        if not seats:
            return
        for utterance in seats.values():
            utterance.prepare()
        for slot, frame in batch.step(dict.fromkeys(seats, silence)).items():
            seats[slot].take(frame)
            if seats[slot].done:
                batch.leave(slot)
                made = seats.pop(slot)
                yield made.number, np.concatenate(made.audio)


def transcribe(batch: DuplexBatch, audio: np.ndarray, settings: DuplexSettings | None = None) -> list[TimedWord]:
    """The words of a recording float32 `[n]` at the codec's rate, with the times of their tokens in seconds. (For words
    as they come, step a slot of the batch and read `DuplexFrame.text`.)

    Raises:
        ConfigError: the batch is no recogniser's.
    """
    if not isinstance(batch, RecogniserBatch):
        raise ConfigError("this model is no recogniser: its text is not later than the audio (see docs/dialogue.md)")
    batch.join(0, settings or DuplexSettings(text_temperature=0))
    size, late = batch.frame_size, batch.model.config.stream_delays[0]
    padded = np.pad(audio, (0, -len(audio) % size + late * size)).astype(np.float32)
    tokens = [batch.step({0: padded[i : i + size]})[0].token for i in range(0, len(padded), size)]
    batch.leave(0)
    # Step j, counted from 0, draws column j + 1, whose text is that of frame j + 1 - late.
    return words_heard(tokens[late - 1 : len(tokens) - 1], batch.rate, batch.vocabulary)
