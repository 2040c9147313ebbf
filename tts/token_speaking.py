"""An answer of a token language model: text as it arrives, sentence parts, silences, pace, and the sound of it all.

    Script -> parts (a sentence, cut where the text asks for silence) -> Generation -> Pace -> decoder -> AudioChunk

Where the model can begin before its text is whole (`interleave`; `cross` with a place), words go into the request as
they arrive: no position is run twice, and what comes out does not depend on when the words came. One decoder runs
through the whole answer. Memory does not grow with the text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .generate import Generation
from .marks import FASTEST, SLOWEST
from .phones import SENTENCE_ENDS
from .script import Script
from .speaking import AudioChunk, expected_phones
from .text import Utterance, WordSpan
from .token_lm import TokenLM, phone_text
from .token_plan import TokenPlan, TokenRequest

__all__ = ["Carry", "Decoder", "Length", "Pace", "Part", "Silencer", "TokenSpeech", "parts_of", "reads_growing_text"]

CHUNK = 4
"""Frames handed to the acoustic decoder at a time (0.16 s); a flow waits for chunks of its own size."""
EDGE = 0.005  # seconds in which a silence fades in and out


class Decoder(Protocol):
    """What makes frames sound: `FlowDecoder`, `AcousticDecoder`."""

    def push(self, frames: Tensor, final: bool = False) -> np.ndarray: ...


def reads_growing_text(lm: TokenLM) -> bool:
    """Whether speech can begin before a sentence's text is whole."""
    return lm.config.layout == "interleave" or (lm.config.layout == "cross" and lm.config.cross.relative)


# -- what is spoken at a time -----------------------------------------------------------------------------------------
@dataclass
class Part:
    """What one request speaks: an utterance, or a stretch of one between two silences.

    Attributes:
        before, after: seconds of silence around it. whole: no more of it will come.
    """

    utterance: Utterance
    before: float = 0.0
    after: float = 0.0
    whole: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        return phone_text(self.utterance.phones, frozenset(w.start for w in self.utterance.words))


def parts_of(utterance: Utterance) -> list[Part]:
    """The parts of a whole utterance: a new one after each silence that a mark asked for. A part that does not end its
    sentence ends in a full stop, as a sentence does that is too long."""
    cuts: dict[int, float] = {}
    for index, seconds in utterance.breaks:
        cuts[index + 1] = cuts.get(index + 1, 0.0) + seconds
    parts, start, silence = [], 0, cuts.pop(0, 0.0)
    for end in sorted(cuts):
        parts.append(Part(_stretch(utterance, start, end), silence, 0.0))
        start, silence = end, cuts[end]
    if start < len(utterance.phones) or not parts:
        return [*parts, Part(_stretch(utterance, start, len(utterance.phones)), silence)]
    parts[-1].after = silence
    return parts


def _stretch(utterance: Utterance, start: int, end: int) -> Utterance:
    phones = utterance.phones[start:end]
    if phones and phones[-1] not in SENTENCE_ENDS and end < len(utterance.phones):
        phones = (*phones[:-1], ".")
    inside = [w for w in utterance.words if start <= w.start < end]
    words = tuple(WordSpan(w.text, w.start - start, min(w.end, end) - start) for w in inside)
    return replace(utterance, phones=phones, words=words, breaks=())


# -- pace -------------------------------------------------------------------------------------------------------------
class Pace:
    """Speed by repeating and leaving out frames at even distances: frame i of a part is heard until i / speed.

    These models do not know a pace of their own. At 25 Hz a frame is a third of a phone, and the flow draws over the
    joints; beyond about a quarter faster or slower it is heard.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.taken = 0

    def take(self) -> int:
        """How often the next frame is to be heard."""
        self.taken += 1
        return math.floor(self.taken / self.speed + 0.5) - math.floor((self.taken - 1) / self.speed + 0.5)


@dataclass
class Length:
    """How long an answer is to last: `left` frames, shared by the parts that are still to come."""

    left: int
    rate: float
    weights: deque[float] = field(default_factory=deque)
    silences: deque[float] = field(default_factory=deque)

    @staticmethod
    def of(parts: Sequence[Part], frames: int, rate: float) -> Length:
        """Args: parts: all of the answer. rate: frames per second."""
        return Length(
            frames,
            rate,
            deque(expected_phones([p.utterance]) for p in parts),
            deque(p.before + p.after for p in parts),
        )

    def share(self, natural: int, before: float, after: float) -> tuple[int, int]:
        """(frames that the next part is to take of its `natural` ones, frames of silence to fill up at the end)."""
        breaks = sum(round(s * self.rate) for s in self.silences)
        weight, total = self.weights.popleft(), sum(self.weights)
        self.silences.popleft()
        wanted = round((self.left - breaks) * weight / (weight + total))
        frames = max(math.ceil(natural / FASTEST), min(math.floor(natural / SLOWEST), max(1, wanted)))
        self.left -= frames + round(before * self.rate) + round(after * self.rate)
        rest = max(0, self.left) if not self.weights else 0
        return frames, rest


# -- sound ------------------------------------------------------------------------------------------------------------
class Silencer:
    """Sets stretches of a stream of samples to zero, by their absolute places, whatever chunks the stream comes in."""

    def __init__(self, sample_rate: int) -> None:
        self.edge = round(EDGE * sample_rate)
        self.at = 0
        self._ranges: deque[tuple[int, int]] = deque()

    def hush(self, start: int, end: int) -> None:
        """No sound between two samples that have not passed yet."""
        if end > start:
            self._ranges.append((start, end))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The next samples, silenced."""
        first, last = self.at, self.at + len(samples)
        self.at = last
        for start, end in self._ranges:
            a, b = max(first, start), min(last, end)
            if a < b:
                inside = np.arange(a, b)
                depth = np.minimum(inside - start, end - 1 - inside)
                samples[a - first : b - first] *= np.clip(1 - depth / self.edge, 0, 1).astype(samples.dtype)
        while self._ranges and self._ranges[0][1] <= last:
            self._ranges.popleft()
        return samples


@dataclass
class Carry:
    """What the next request begins with: ids and frames `[K, n]` that were given (a voice's clip), then what was
    spoken last, if it is at most `frames` long (0: each sentence by itself)."""

    ids: tuple[int, ...] = ()
    prompt: Tensor | None = None
    frames: int = 0
    room: int | None = None
    last: tuple[tuple[int, ...], Tensor] | None = None

    def spoken(self, ids: tuple[int, ...], frames: list[Tensor]) -> None:
        """What was spoken just now."""
        self.last = (ids, torch.stack(frames, 1)) if 0 < len(frames) <= self.frames else None

    def begin(self, ids: int) -> tuple[tuple[int, ...], Tensor | None]:
        """Text and speech before a part of so many ids."""
        if self.last is None:
            return self.ids, self.prompt
        text, codes = self.last
        before = (*self.ids, *text)
        prompt = codes if self.prompt is None else torch.cat([self.prompt, codes], 1)
        if self.room is not None and 2 * (len(before) + prompt.shape[1]) + ids > self.room:
            return self.ids, self.prompt
        return before, prompt


# -- the answer -------------------------------------------------------------------------------------------------------
class TokenSpeech:
    """One answer, spoken chunk by chunk.

    Args:
        generation: a free loop over the model. decoder: of the answer's sound; `frame`: samples per frame.
        pieces: of the text; None where none has arrived yet: a chunk without samples is given then, and the next one is
            asked for when the answer goes on. request: the request of an answer's part, by number: ids, how many of
            them are given, and the prompt are set here. quiet: a frame `[K]` that is near silence.
        carry: what each part begins with.
        length: how long the answer is to last (of a text that is there as a whole).
        ahead: asked before each step: whether the listener has sound enough in hand (`Generation.ahead`).
    """

    def __init__(
        self,
        generation: Generation,
        decoder: Decoder,
        script: Script,
        pieces: Iterator[str | None],
        request: Callable[[int], TokenRequest],
        *,
        sample_rate: int,
        frame: int,
        quiet: Tensor,
        speed: float = 1.0,
        carry: Carry | None = None,
        length: Length | None = None,
        ahead: Callable[[], bool] | None = None,
    ) -> None:
        self.generation, self.decoder, self.script, self.pieces = generation, decoder, script, pieces
        self.request, self.sample_rate, self.frame, self.quiet = request, sample_rate, frame, quiet
        self.speed, self.carry, self.length = speed, carry or Carry(), length
        self.ahead = ahead
        self.silencer = Silencer(sample_rate)
        self.parts: deque[Part] = deque()
        self.number = 0
        self.pushed = 0  # frames given to the decoder or waiting for it
        self.waiting: list[Tensor] = []

    def __iter__(self) -> Iterator[AudioChunk]:
        while (part := (yield from self._next())) is not None:
            yield from self._silence(part.before)
            yield from self._speak(part)
            yield from self._silence(part.after)
            yield from self._decode(everything=True)
        samples = self.silencer(self.decoder.push(self.quiet[:, None][:, :0], final=True))
        if len(samples):
            yield AudioChunk(samples, self.sample_rate, progress=1.0)

    def _next(self) -> Generator[AudioChunk, None, Part | None]:
        """The next part; text is asked for when there is none. None: the text is over.

        Raises:
            BadInput: what is wrong with the text, or nothing in it could be read.
        """
        while not self.parts:
            utterance = self.script.next()
            if utterance is not None:
                growing = self.script.growing
                self.parts.extend([Part(utterance, whole=False)] if growing else parts_of(utterance))
            elif self.script.over:
                return None
            else:
                yield from self._feed()
        return self.parts.popleft()

    def _feed(self) -> Iterator[AudioChunk]:
        """Takes the next piece of text; gives an empty chunk where it has not arrived."""
        try:
            piece = next(self.pieces)
        except StopIteration:
            self.script.close()
            return
        if piece is None:
            yield AudioChunk(np.zeros(0, np.float32), self.sample_rate)
        else:
            self.script.push(piece)

    def _speak(self, part: Part) -> Iterator[AudioChunk]:
        before, prompt = self.carry.begin(len(part.ids))
        wanted = replace(
            self.request(self.number),
            text=(*before, *part.ids),
            final=part.whole,
            prompt=prompt,
            given=len(before),
        )
        plan: TokenPlan = self.generation.join(0, wanted)
        self.number += 1
        try:
            if self.length is not None:
                yield from self._timed(part, plan)
                return
            pace = Pace(min(FASTEST, max(SLOWEST, self.speed * part.utterance.rate)))
            spoken: list[Tensor] = []
            while not plan.done:
                if plan.starved:
                    yield from self._grow(part, plan)
                    continue
                if self.ahead is not None:
                    self.generation.ahead = {0} if self.ahead() else set()
                for frame in self.generation.tick().values():
                    spoken = [*spoken, frame.codes][-self.carry.frames - 1 :]
                    self._push(frame.codes, pace.take())
                yield from self._decode()
            self.carry.spoken(part.ids, spoken)
        finally:
            self.generation.leave(0)

    def _grow(self, part: Part, plan: TokenPlan) -> Iterator[AudioChunk]:
        """Gives the request what has arrived of its sentence, or asks for more text."""
        grown = self.script.grow()
        if grown is None:
            if self.script.waits:
                yield from self._feed()
            return
        have = len(part.ids)
        if self.script.growing:
            part.utterance = grown
        else:
            first, *rest = parts_of(replace(grown, breaks=tuple((max(i, have - 1), s) for i, s in grown.breaks)))
            first.before = 0.0
            part.utterance, part.after, part.whole = first.utterance, first.after, True
            self.parts.extendleft(reversed(rest))
        plan.push_text(part.ids[have:])
        if part.whole:
            plan.finish_text()

    def _timed(self, part: Part, plan: TokenPlan) -> Iterator[AudioChunk]:
        """A part of a given length: all its frames are drawn, then so many of them are heard."""
        assert self.length is not None
        drawn: list[Tensor] = []
        while not plan.done:
            drawn += [frame.codes for frame in self.generation.tick().values()]
        count, rest = self.length.share(len(drawn), part.before, part.after)
        for i in range(count if drawn else 0):
            self._push(drawn[min(len(drawn) - 1, int((i + 0.5) * len(drawn) / count))])
            yield from self._decode()
        self.carry.spoken(part.ids, drawn)
        yield from self._silence(rest / self.length.rate)

    # -- frames to sound ----------------------------------------------------------------------------------------------
    def _push(self, codes: Tensor, times: int = 1) -> None:
        self.waiting += [codes] * times
        self.pushed += times

    def _silence(self, seconds: float) -> Iterator[AudioChunk]:
        """So many seconds, as whole frames, without any sound."""
        count = round(seconds * self.sample_rate / self.frame)
        self.silencer.hush(self.pushed * self.frame, (self.pushed + count) * self.frame)
        for _ in range(count):
            self._push(self.quiet)
            yield from self._decode()

    def _decode(self, everything: bool = False) -> Iterator[AudioChunk]:
        """Chunks of `CHUNK` frames, and with `everything` the rest."""
        while len(self.waiting) >= CHUNK or (everything and self.waiting):
            frames, self.waiting = self.waiting[:CHUNK], self.waiting[CHUNK:]
            samples = self.silencer(self.decoder.push(torch.stack(frames, 1)))
            if len(samples):
                yield AudioChunk(samples, self.sample_rate, progress=self.script.share * 0.999)
