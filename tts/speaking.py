"""Speaking: from the text of an answer to chunks of audio, for a fixed number of answers at once.

    Script (text, sentence by sentence) -> Generation (frames) -> BatchDecoder (samples), with a Timeline beside it

`SpeechBatch` is the one mechanism behind `Synthesizer.stream` (one slot) and the server's engine (many). It has no
threads and no clock: `tick` makes one step of every slot that can move, and says what came out.

Chunks lie at fixed frames of an answer, whatever its neighbours do and whenever it is stepped, so an answer is
bit-identical in any company (law 3). Slots whose chunks are full wait a few ticks for those of the same size, so that
one call of the decoder serves them all.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..codecs.base import Codec
from ..errors import BadInput
from .ardit import Ardit
from .ardit_plan import ArditPlan
from .decoder import BatchDecoder
from .generate import Frame, Generation, PointerPlan, Request
from .lm import SpeechLM
from .marks import FASTEST, SLOWEST
from .phones import PHONE_IDS, START, phone_weight
from .sampling import SamplingConfig
from .script import Script, features_of
from .text import Utterance
from .timeline import TimedSpan, Timeline

__all__ = ["CHUNKS", "AudioChunk", "Script", "SpeechBatch", "SpeechSettings"]

CHUNKS = (2, 4, 8, 16)
"""Frames per decoded chunk: small at first so that audio starts early, then larger, which costs less per frame."""

R = TypeVar("R")


@dataclass
class AudioChunk:
    """A piece of the answer.

    Attributes:
        samples: float32 `[n]` in [-1, 1]. words, phones: those that this chunk completes.
        progress: share of the text that has been spoken, 0..1 (0 until the end of the text is known).
    """

    samples: np.ndarray
    sample_rate: int
    words: list[TimedSpan] = field(default_factory=list)
    phones: list[TimedSpan] = field(default_factory=list)
    progress: float = 0.0


@dataclass(frozen=True)
class SpeechSettings:
    """How an answer is to be spoken, checked against the model.

    Attributes:
        voice: speaker id. codebooks: decode only so many levels, or None for all. The rest is as in `Request`.
        duration: seconds that the whole answer is to last (its text must be known); pace: as in `Request`.
    """

    voice: int
    speed: float
    seed: int
    pause: float
    sampling: SamplingConfig
    advance_temperature: float
    codebooks: int | None = None
    duration: float | None = None
    pace: float = 2.0

    def frames(self, utterance: Utterance, after: Sequence[Utterance], spent: int, frame_seconds: float) -> int | None:
        """How many frames the next utterance may take, so that it and those after it end in time: its share by the
        count of its phones, without the breaks that the text asks for."""
        if self.duration is None:
            return None
        breaks = sum(seconds for u in (utterance, *after) for _, seconds in u.breaks)
        left = (self.duration - breaks) / frame_seconds - spent
        own, rest = expected_phones([utterance]), expected_phones(after)
        return max(1, round(left * own / (own + rest)))

    def request(self, utterance: Utterance, number: int, whole: bool = True) -> Request:
        """The request of the answer's sentence `number`; not `whole` if more of it is to come. Sentences must not
        repeat each other's random numbers."""
        return Request(
            features_of(utterance, whole),
            whole=whole,
            voice=self.voice,
            speed=min(FASTEST, max(SLOWEST, self.speed * utterance.rate)),
            pause=self.pause,
            sampling=self.sampling,
            advance_temperature=self.advance_temperature,
            seed=self.seed + 1_000_003 * number,
        )


def expected_phones(utterances: Sequence[Utterance]) -> float:
    """How long utterances are expected to last, counted in phones that are no pauses."""
    return sum(phone_weight([PHONE_IDS[p] for p in (START, *u.phones)]) for u in utterances)


class _Answer:
    """One slot's answer: what it says next, the frames that wait for the decoder, and the times."""

    def __init__(self, script: Script, settings: SpeechSettings, chunks: Sequence[int]) -> None:
        self.script, self.settings, self.sizes = script, settings, chunks
        self.plan: PointerPlan | ArditPlan | None = None
        self.timeline: Timeline | None = None
        self.breaks: dict[int, float] = {}
        self.waiting: deque[Tensor] = deque()
        self.frames_in, self.chunks, self.sentences, self.stalled = 0, 0, 0, 0
        self.share_before = self.share = 0.0
        self.progress = 0.0
        self.flushed = False

    @property
    def size(self) -> int:
        """Frames of the next chunk."""
        return self.sizes[min(self.chunks, len(self.sizes) - 1)]

    @property
    def ended(self) -> bool:
        """All frames of the current sentence have been made."""
        return self.plan is None or self.plan.done

    @property
    def starved(self) -> bool:
        """The sentence is still arriving, and what is known of it has been spoken."""
        return self.plan is not None and self.plan.starved

    @property
    def ready(self) -> int:
        """How many frames can be decoded now: a chunk, the rest of a sentence, or none."""
        return self.size if len(self.waiting) >= self.size else len(self.waiting) if self.ended else 0

    @property
    def between(self) -> bool:
        """Neither frames to make nor to decode: the next sentence may begin."""
        return self.ended and not self.waiting and not self.flushed

    def begin(self, utterance: Utterance, plan: PointerPlan | ArditPlan, frame_seconds: float) -> None:
        self.plan, self.timeline = plan, Timeline(utterance, self.frames_in, frame_seconds)
        self.sentences += 1
        self.breaks = {}
        for index, seconds in utterance.breaks:  # +1: the plan counts ^ as phone 0
            self.breaks[index + 1] = self.breaks.get(index + 1, 0.0) + seconds

    def grow(self, utterance: Utterance) -> None:
        """More of the sentence that is being spoken."""
        assert self.timeline is not None
        assert self.plan is not None
        self.timeline.utterance = utterance
        for index, seconds in utterance.breaks:
            if index + 1 >= self.plan.pointer:
                self.breaks[index + 1] = self.breaks.get(index + 1, 0.0) + seconds

    def take(self, frame: Frame, silence: Callable[[float], list[Tensor]]) -> None:
        """A new frame, and the breaks that come before it."""
        assert self.timeline is not None
        self._pause([place for place in sorted(self.breaks) if place < frame.phone], silence)
        self.timeline.add(frame)
        self.waiting.append(frame.codes[: self.settings.codebooks])
        self.frames_in += 1
        assert self.plan is not None
        part = frame.phone / len(self.plan.request.features)
        self.progress = max(self.progress, self.share_before + (self.share - self.share_before) * min(1.0, part))
        if self.plan.done:
            self._pause(sorted(self.breaks), silence)

    def _pause(self, places: list[int], silence: Callable[[float], list[Tensor]]) -> None:
        assert self.timeline is not None
        for place in places:
            frames = silence(self.breaks.pop(place))
            self.waiting.extend(codes[: self.settings.codebooks] for codes in frames)
            self.frames_in += len(frames)
            self.timeline.wait(len(frames))

    def pop(self, count: int) -> Tensor:
        """The next chunk of frames `[K, count]`."""
        return torch.stack([self.waiting[i] for i in range(count)], 1)

    def popped(self, count: int, samples: np.ndarray, sample_rate: int) -> AudioChunk:
        """The chunk that those frames became."""
        for _ in range(count):
            self.waiting.popleft()
        self.chunks, self.stalled = self.chunks + 1, 0
        assert self.timeline is not None
        last = self.ended and not self.waiting
        words, phones = self.timeline.close() if last else self.timeline.take()
        if last:
            self.progress = max(self.progress, self.share)
        return AudioChunk(samples, sample_rate, words, phones, self.progress)


class SpeechBatch:
    """A fixed number of slots, each speaking one answer or none.

    Args:
        chunks: frames per decoded chunk, the last for all further ones.
    """

    def __init__(self, lm: SpeechLM | Ardit, codec: Codec, slots: int = 1, chunks: Sequence[int] = CHUNKS) -> None:
        self.codec, self.slots, self.chunks = codec, slots, tuple(chunks)
        self.generation = Generation(lm, slots)
        self.decoder = BatchDecoder(codec, slots)
        self.answers: list[_Answer | None] = [None] * slots
        self.failures: dict[int, Exception] = {}
        self.retries = 0
        self._quiet: Tensor | None = None

    # -- slots --------------------------------------------------------------------------------------------------------
    def join(self, slot: int, script: Script, settings: SpeechSettings) -> None:
        """Begins an answer in a free slot."""
        if self.answers[slot] is not None:
            raise BadInput(f"slot {slot} is taken")
        self.decoder.reset(slot)
        self.answers[slot] = _Answer(script, settings, self.chunks)

    def leave(self, slot: int) -> None:
        """Frees a slot, whatever state it is in; the others do not notice."""
        self.answers[slot] = None
        self.generation.leave(slot)

    def done(self, slot: int) -> bool:
        """Everything has been spoken."""
        answer = self.answers[slot]
        return answer is not None and answer.flushed

    def waits(self, slot: int) -> bool:
        """Everything that is known of the text has been spoken; the answer goes on when more arrives."""
        answer = self.answers[slot]
        if answer is None or not (answer.between or answer.starved):
            return False
        return not answer.ready and answer.script.waits

    # -- stepping -----------------------------------------------------------------------------------------------------
    def tick(self, held: Collection[int] = ()) -> dict[int, list[AudioChunk]]:
        """One step of every slot that can move, but for those `held`: at most one frame made and one chunk decoded.

        What goes wrong in one slot is put into `failures` (of this tick) and leaves the neighbours as they are; a
        failed slot must leave. When a step of the whole batch raises, the slots are stepped one at a time: those that
        fail alone have failed, the others go on.
        """
        self.failures = {}
        out: dict[int, list[AudioChunk]] = {}
        here = {slot: a for slot, a in enumerate(self.answers) if a is not None and slot not in held}
        for slot, answer in here.items():
            self._guarded(slot, self._begin, slot, answer)
            self._guarded(slot, self._grow, slot, answer)
        self._generate(here)
        live = {slot: a for slot, a in here.items() if slot not in self.failures}
        for group in self._groups(live):
            for slot, chunk in self._decode(group).items():
                out.setdefault(slot, []).append(chunk)
        over = [s for s, a in live.items() if s not in self.failures and a.between and a.script.over]
        for slot, chunk in self._flush(over).items():
            out.setdefault(slot, []).append(chunk)
        return {slot: chunks for slot, chunks in out.items() if slot not in self.failures}

    def _guarded(self, slot: int, call: Callable[..., R], *arguments: object) -> R | None:
        """A slot's own work: its exception is its own."""
        if slot in self.failures:
            return None
        try:
            return call(*arguments)
        except Exception as error:
            self.failures[slot] = error
            return None

    def _together(self, slots: Collection[int], call: Callable[[Collection[int]], dict[int, R]]) -> dict[int, R]:
        """A step of several slots at once; if it raises, of each alone."""
        try:
            return call(slots)
        except Exception as error:
            if len(slots) == 1:
                self.failures.update(dict.fromkeys(slots, error))
                return {}
        self.retries += 1
        _free_memory()  # if that was what lacked
        results: dict[int, R] = {}
        for slot in slots:
            results |= self._guarded(slot, call, {slot}) or {}
        return results

    def _begin(self, slot: int, answer: _Answer) -> None:
        """Starts the next sentence where the last one is over."""
        if not answer.between:
            return
        if answer.plan is not None:
            self.generation.leave(slot)
            answer.plan = None
        before = answer.share
        utterance = answer.script.next()
        if utterance is not None:
            answer.share_before, answer.share = before, answer.script.share
            request = answer.settings.request(utterance, answer.sentences, whole=not answer.script.growing)
            seconds = self.codec.frame_size / self.codec.sample_rate
            frames = answer.settings.frames(utterance, answer.script.upcoming, answer.frames_in, seconds)
            plan = self.generation.join(slot, replace(request, frames=frames, pace=answer.settings.pace))
            answer.begin(utterance, plan, seconds)

    def _grow(self, slot: int, answer: _Answer) -> None:
        """Gives the sentence that is being spoken what has arrived of it."""
        if answer.plan is None or answer.plan.whole:
            return
        while (utterance := answer.script.grow()) is not None:
            whole = not answer.script.growing
            self.generation.extend(slot, features_of(utterance, whole), whole)
            answer.grow(utterance)
            answer.share = answer.script.share

    def _generate(self, here: dict[int, _Answer]) -> None:
        """One frame for every slot that has room for it."""
        moving = {
            s
            for s, a in here.items()
            if s not in self.failures and not a.ended and not a.starved and len(a.waiting) < a.size
        }
        if not moving:
            return

        def step(slots: Collection[int]) -> dict[int, Frame]:
            frames = self.generation.tick([s for s in range(self.slots) if s not in slots])
            self.failures.update(self.generation.failures)
            return frames

        for slot, frame in self._together(moving, step).items():
            self._guarded(slot, here[slot].take, frame, self._silence)

    def _groups(self, live: dict[int, _Answer]) -> list[dict[int, int]]:
        """Which slots to decode now, and how many frames of each: groups of equal shape."""
        groups: dict[tuple[int, int | None], dict[int, int]] = {}
        for slot, answer in live.items():
            if answer.ready:
                groups.setdefault((answer.ready, answer.settings.codebooks), {})[slot] = answer.ready
        chosen = []
        for (count, codebooks), group in groups.items():
            filling = any(
                a.size == count and a.settings.codebooks == codebooks and not a.ready and not a.ended
                for a in live.values()
            )
            members = [live[slot] for slot in group]
            # A first chunk is waited for by a listener; the rest of a sentence has nobody to wait for.
            urgent = any(not a.chunks or a.stalled >= count - 1 or count < a.size for a in members)
            if urgent or not filling:
                chosen.append(group)
            else:
                for answer in members:
                    answer.stalled += 1
        return chosen

    def _decode(self, group: dict[int, int]) -> dict[int, AudioChunk]:
        def step(slots: Collection[int]) -> dict[int, np.ndarray]:
            return self.decoder.decode({slot: self._at(slot).pop(group[slot]) for slot in slots})

        rate, chunks = self.codec.sample_rate, {}
        for slot, samples in self._together(group, step).items():
            chunk = self._guarded(slot, self._at(slot).popped, group[slot], samples, rate)
            if chunk is not None:
                chunks[slot] = chunk
        return chunks

    def _flush(self, slots: list[int]) -> dict[int, AudioChunk]:
        chunks = {}
        for slot, samples in self._together(slots, self.decoder.flush).items() if slots else ():
            self._at(slot).flushed = True
            chunks[slot] = AudioChunk(samples, self.codec.sample_rate, progress=1.0)
        return chunks

    def _at(self, slot: int) -> _Answer:
        answer = self.answers[slot]
        assert answer is not None
        return answer

    def _silence(self, seconds: float) -> list[Tensor]:
        """Frames `[K]` of silence."""
        if self._quiet is None:
            with torch.inference_mode():
                empty = torch.zeros(1, 1, 8 * self.codec.frame_size, device=self.decoder.state_device)
                self._quiet = self.codec.encode(empty)[0][0, :, -1].cpu()
        count = round(seconds * self.codec.sample_rate / self.codec.frame_size)
        return [self._quiet] * count


def _free_memory() -> None:
    """Gives back what is held for nothing: rubbish, and the caching allocator's blocks."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
