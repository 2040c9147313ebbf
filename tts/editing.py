"""Speech editing: other words in a recording, in the same voice, with everything else as it was (ARDiT's fill-in-the-
middle, Liu et al. 2024).

    recording + transcript -> forced alignment -> the words' frames are a gap -> new phones, new lengths
    -> blocks drawn with both sides known -> decoded -> joined to the codec's resynthesis of the rest

Outside the gap and `MARGIN` on either side, the samples are exactly those of the codec's resynthesis: what is new is
cut into it, with a short cross-fade at the place near the joint where the waves agree best.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.loading import load_semantic, model_folder
from ..codecs.semantic import SemanticTokenizer
from ..errors import BadInput, ConfigError
from .alignment import Alignment, align
from .ardit import Ardit
from .ardit_plan import ArditPlan, Gap
from .decoder import AcousticDecoder
from .generate import Generation
from .lm import PhoneFeatures, phone_features
from .phones import PHONES, is_pause
from .pointer_plan import Request
from .sampling import SamplingConfig
from .synthesizer import codec_of, load_lm
from .text import Frontend, Utterance, WordSpan
from .voices import unknown_voice

__all__ = ["BORDER", "MARGIN", "TRUSTED", "Change", "Edited", "Editor", "Span", "parse_change"]

MARGIN = 0.02
"""Seconds on either side of a gap in which samples may differ: the cross-fade, and the search for its place."""
FADE, SEARCH = 0.010, 0.012
TRUSTED = 0.4
"""Alignment score from which a transcript counts as that of the recording. Right transcripts score 0.48 to 0.92 (40
utterances of ten speakers), those with a third of the words wrong 0.17 to 0.57, wrong ones under 0.33."""
ALIGN_RATE = 50
LEAD = 8
"""Frames of silence before a sentence that count as its beginning."""
BORDER = 2
"""Frames on either side of the words that are drawn anew with them: sounds run into each other, and the aligner may be
off by as much."""
NEAR = 3
"""Phones on either side of the new ones that a candidate is judged by as well."""
MOST = 64
"""Candidates of a gap."""
AROUND = 50
"""Frames on either side of a gap that are decoded with it."""


@dataclass(frozen=True)
class Change:
    """Words of the transcript, and what is to be said instead (nothing: they are cut out)."""

    old: str
    new: str


@dataclass(frozen=True)
class Span:
    """One change as it was made: seconds in the recording and in the result."""

    change: Change
    old: tuple[float, float]
    new: tuple[float, float]


@dataclass(frozen=True)
class Edited:
    """Attributes:
    samples: float32 `[n]`. transcript: what is said now. spans: in order of time. score: of the alignment.
    resynthesis: the recording through the codec, `[n]`, with which the rest agrees.
    """

    samples: np.ndarray
    sample_rate: int
    transcript: str
    spans: tuple[Span, ...]
    score: float
    resynthesis: np.ndarray


def parse_change(text: str) -> Change:
    """`old=>new`.

    Raises:
        BadInput: no arrow, or nothing before it.
    """
    old, arrow, new = text.partition("=>")
    if not arrow or not old.strip():
        raise BadInput(f'{text!r} is no change; write "old words=>new words"')
    return Change(old.strip(), new.strip())


@dataclass(frozen=True)
class _Sentence:
    """A sentence of the transcript in the recording: frames `[first, end)`, and the edges of its phones, `^` first,
    counted in frames from `first` (one more than there are phones)."""

    utterance: Utterance
    first: int
    end: int
    edges: tuple[float, ...]


@dataclass(frozen=True)
class _Filled:
    """New latents `[frame, dim]` for frames `[begin, over)` of the recording; `chars`: of the sentence's text."""

    change: Change
    begin: int
    over: int
    latents: Tensor
    sentence: int
    chars: tuple[int, int]


@dataclass(frozen=True)
class _Place:
    """Some words: number of their sentence, index of the first, how many."""

    sentence: int
    first: int
    count: int


@dataclass(frozen=True)
class _How:
    voice: int
    seed: int
    temperature: float
    candidates: int


class Editor:
    """A model that fills gaps, its codec, and the aligner."""

    def __init__(self, lm: Ardit, codec: Codec, aligner: SemanticTokenizer, language: str = "en-us") -> None:
        self.lm, self.codec, self.aligner = lm, codec, aligner
        self.frontend = Frontend(language)
        self.rate = codec.sample_rate / codec.frame_size

    @classmethod
    def load(cls, name: str = "ardit-1step", aligner: str = "semantic-25hz") -> Editor:
        """Raises MissingFile, ConfigError, CorruptFile: what is wrong with a model."""
        folder = model_folder(name)
        lm, codec = load_lm(str(folder))
        if not isinstance(lm, Ardit):
            raise ConfigError(f"{folder} cannot fill gaps; editing needs a model of the kind ardit")
        return cls(lm, codec_of(folder, codec), load_semantic(aligner))

    @torch.inference_mode()
    def edit(
        self,
        audio: np.ndarray,
        transcript: str,
        changes: Sequence[Change],
        *,
        voice: str | None = None,
        seed: int = 0,
        temperature: float = 0.8,
        candidates: int = 8,
        trusted: float = TRUSTED,
    ) -> Edited:
        """Makes the changes.

        Args:
            audio: mono, float32 `[n]` at the codec's rate. transcript: what is said in it, as it is written.
            voice: a speaker that the model was trained with, where the recording is of one; by default it has only
                the sound around the gap to go by.
            candidates: how many are drawn of every gap; the one is taken whose new words and neighbours the aligner
                reads best (the paper draws eight too, and takes what fits the next block best).
            trusted: alignment score below which the transcript is taken to be of something else.

        Raises:
            BadInput: words that are not in the transcript (or stand there more than once), changes that touch, a
                transcript that is not that of the recording.
        """
        if not 1 <= candidates <= MOST:
            raise BadInput(f"between 1 and {MOST} candidates are possible, not {candidates}")
        speaker = self._speaker(voice)
        wave = torch.from_numpy(np.ascontiguousarray(audio, np.float32))[None, None]
        sentences, score = self._aligned(wave, transcript, trusted)
        latents = self.codec.encode(wave)[0][0].T
        filled = []
        for number, change in enumerate(changes):
            place = _found(sentences, change)
            filled.append(
                self._fill(
                    sentences, place, change, latents, _How(speaker, seed + MOST * number, temperature, candidates)
                )
            )
        filled.sort(key=lambda f: f.begin)
        if any(a.over >= b.begin for a, b in pairwise(filled)):
            raise BadInput("two changes touch or overlap; write them as one")
        return self._joined(latents, filled, _rewritten(sentences, filled), score, len(audio))

    def _speaker(self, voice: str | None) -> int:
        if voice is None:
            return self.lm.nobody
        if voice not in self.lm.config.voices:
            raise unknown_voice(voice, self.lm.config.voices)
        return self.lm.config.voices.index(voice)

    # -- where the words are ------------------------------------------------------------------------------------------
    def _aligned(self, wave: Tensor, transcript: str, trusted: float) -> tuple[list[_Sentence], float]:
        utterances = self.frontend(transcript)
        phones = [p for u in utterances for p in u.phones]
        found: Alignment | None = align(self.aligner, wave, phones)
        if found is None:
            seconds = wave.shape[-1] / self.codec.sample_rate
            raise BadInput(f"the transcript has more to say than fits into {seconds:.1f} s; is it of this recording?")
        if found.score < trusted:
            raise BadInput(
                f"the transcript does not match the recording: it scores {found.score:.2f} of 1, {trusted:.2f} is "
                "asked for. Give what is said, word by word"
            )
        frames = -(-wave.shape[-1] // self.codec.frame_size)
        edges = [*(found.starts * (self.rate / ALIGN_RATE)), float(frames)]
        sentences, before = [], 1  # of `starts`: 0 is the silence at the beginning
        for utterance in utterances:
            after = before + len(utterance.phones)
            first = max(0, int(edges[before]) - LEAD) if sentences else 0
            end = min(frames, int(edges[after]))
            own = [0.0, *(max(0.0, e - first) for e in edges[before:after]), float(end - first)]
            sentences.append(_Sentence(utterance, first, end, tuple(own)))
            before = after
        return sentences, found.score

    # -- what is said instead -----------------------------------------------------------------------------------------
    def _fill(
        self, sentences: Sequence[_Sentence], place: _Place, change: Change, latents: Tensor, how: _How
    ) -> _Filled:
        """Draws the latents of new words in place of old ones."""
        sentence, first, count = sentences[place.sentence], place.first, place.count
        old, words = sentence.utterance, sentence.utterance.words
        chars = _characters(old, place)
        text = " ".join((old.text[: chars[0]] + change.new + old.text[chars[1] :]).split())
        left, right = words[first].start, words[first + count - 1].end
        begin = sentence.first + round(sentence.edges[left + 1])
        over = max(begin + 1, sentence.first + round(sentence.edges[right + 1]))
        new, starts = self._new_phones(text, first, len(words) - first - count) if change.new else ((), [])
        phones = (*old.phones[:left], *new, *old.phones[right:])
        kept = {w.start for w in words[:first]} | {w.start + len(new) - (right - left) for w in words[first + count :]}
        features = phone_features(phones, kept | {left + s for s in starts})
        inner = self._lengths(features, sentence.edges, left, len(new), how.voice)
        frames = max(1, round(sum(inner))) if new else 0
        edges = [*sentence.edges[: left + 1], float(begin - sentence.first)]
        edges += [edges[-1] + n * frames / sum(inner) for n in accumulate(inner)]
        moved = edges[-1] - (over - sentence.first)
        edges += [e + moved for e in sentence.edges[right + 2 :]]
        lengths = tuple(max(0.0, b - a) for a, b in pairwise(edges))
        low, high = max(sentence.first, begin - BORDER), min(sentence.end, over + BORDER)
        room = self.lm.config.backbone.slack // 2  # of the sentence's sound on either side
        before, after = latents[max(sentence.first, low - room) : low], latents[high : sentence.end][:room]
        gap = Gap(lengths, low - sentence.first, (begin - low) + frames + (high - over), before, after)
        drawn = self._drawn(features, how, gap) if gap.frames and phones else [latents[:0]]
        sides = latents[sentence.first : low], latents[high : sentence.end]
        near = range(max(0, left - NEAR), min(len(phones), left + len(new) + NEAR))
        best = max(drawn, key=lambda new: self._likeness(sides, new, phones, near)) if len(drawn) > 1 else drawn[0]
        return _Filled(change, low, high, best, place.sentence, chars)

    def _likeness(self, sides: tuple[Tensor, Tensor], new: Tensor, phones: Sequence[str], near: range) -> float:
        """How surely the aligner finds the new words and their neighbours (`near`), phone by phone: in the score of the
        whole sentence a short word that was lost next to the gap would hardly count."""
        sound = self._decoded(torch.cat([sides[0], new, sides[1]]))
        found = align(self.aligner, torch.from_numpy(sound)[None, None], phones)
        if found is None:
            return -np.inf
        return float(np.mean([found.sureness[i + 1] for i in near if not is_pause(phones[i])] or [0.0]))

    def _new_phones(self, text: str, before: int, after: int) -> tuple[tuple[str, ...], list[int]]:
        """Phones of the words that a changed sentence has between its first `before` and last `after`, and where among
        them words begin."""
        phones: list[str] = []
        words: list[WordSpan] = []
        for utterance in self.frontend(text):
            words += [replace(w, start=w.start + len(phones), end=w.end + len(phones)) for w in utterance.words]
            phones += utterance.phones
        chosen = words[before : len(words) - after]
        if not chosen:
            raise BadInput(f"nothing can be read aloud in what is to be said instead, in {text!r}")
        first, end = chosen[0].start, chosen[-1].end
        return tuple(phones[first:end]), [w.start - first for w in chosen]

    def _lengths(self, features: PhoneFeatures, edges: Sequence[float], left: int, new: int, voice: int) -> list[float]:
        """Frames of the new phones: as the model expects them, at the pace of the words around."""
        encoded = self.lm.phones(features.phones[None], features.word_start[None], features.upcoming[None])
        expected = self.lm.phone_lengths(encoded, torch.tensor([voice]))[0].exp().tolist()
        spoken = [b - a for a, b in pairwise(edges)]
        said = [not is_pause(PHONES[int(i)]) for i in features.phones]
        sides = slice(1, left + 1), slice(left + 1 + new, None)
        usual = sum(n for side in sides for n, k in zip(expected[side], said[side], strict=True) if k)
        # The surroundings are as many phones from the end in the old sentence as in the new one.
        after = len(spoken) - (len(expected) - left - 1 - new)
        actual = [*spoken[1 : left + 1], *spoken[after:]]
        took = sum(n for n, k in zip(actual, [k for side in sides for k in said[side]], strict=True) if k)
        pace = min(1.6, max(0.6, took / usual)) if usual else 1.0
        return [n * pace for n in expected[left + 1 : left + 1 + new]]

    def _drawn(self, features: PhoneFeatures, how: _How, gap: Gap) -> list[Tensor]:
        """Latents `[frame, dim]` for a gap, several times."""
        sampling, generation = SamplingConfig(temperature=how.temperature), Generation(self.lm, how.candidates)
        for slot in range(how.candidates):
            request = _Infill(features, voice=how.voice, seed=how.seed + slot, sampling=sampling, gap=gap)
            generation.join(slot, request)
        frames: list[list[Tensor]] = [[] for _ in range(how.candidates)]
        while not all(plan.done for plan in generation.plans):
            for slot, frame in generation.tick().items():
                frames[slot].append(frame.codes)
        return [torch.stack(rows) for rows in frames]

    # -- sound --------------------------------------------------------------------------------------------------------
    def _decoded(self, latents: Tensor) -> np.ndarray:
        return AcousticDecoder(self.codec).push(latents.T, final=True)

    def _joined(self, latents: Tensor, filled: Sequence[_Filled], transcript: str, score: float, size: int) -> Edited:
        """The resynthesis (of `size` samples) with the new pieces cut in."""
        frame, rate = self.codec.frame_size, self.codec.sample_rate
        whole = self._decoded(latents)[:size]
        half, pieces, at, spans = int(FADE / 2 * rate), [], 0, []
        for fill in filled:
            begin, over = max(half, fill.begin * frame), min(size - half, fill.over * frame)
            if len(fill.latents):
                first = max(0, fill.begin - AROUND)
                near = [latents[first : fill.begin], fill.latents, latents[fill.over : fill.over + AROUND]]
                sound, longer = self._decoded(torch.cat(near)), (len(fill.latents) - fill.over + fill.begin) * frame
                enter = _agreeing(whole, begin, sound, begin - first * frame, rate)
                leave = _agreeing(whole, over, sound, over - first * frame + longer, rate)
                inner = [_blend(whole, begin, sound, enter, half), sound[enter + half : leave - half]]
                inner.append(_blend(sound, leave, whole, over, half))
            else:
                begin = _agreeing(whole, over, whole, begin, rate)
                inner = [_blend(whole, begin, whole, over, half)]
            pieces.append(whole[at : begin - half])
            start = sum(map(len, pieces)) + half
            pieces += inner
            at, end = over + half, sum(map(len, pieces)) - half
            spans.append(Span(fill.change, (begin / rate, over / rate), (start / rate, end / rate)))
        samples = np.concatenate([*pieces, whole[at:]])
        return Edited(samples, rate, transcript, tuple(spans), score, whole)


# -- words ------------------------------------------------------------------------------------------------------------
def _plain(words: str) -> list[str]:
    """Words as they are compared: no case, no punctuation."""
    return [w for w in re.sub(r"[^\w']+", " ", words.casefold()).split() if w.strip("'")]


def _spread(words: Sequence[WordSpan]) -> list[tuple[str, int]]:
    """Plain words, each with the index of the span that it stands in: "1,250" or "Dr. Who" may be one span."""
    return [(word, index) for index, span in enumerate(words) for word in _plain(span.text)]


def _found(sentences: Sequence[_Sentence], change: Change) -> _Place:
    """Where the words are that are to be changed.

    Raises:
        BadInput: it is not there, or more than once.
    """
    wanted, places = _plain(change.old), []
    for number, sentence in enumerate(sentences):
        spread = _spread(sentence.utterance.words)
        for at in range(len(spread) - len(wanted) + 1):
            if wanted and [w for w, _ in spread[at : at + len(wanted)]] == wanted:
                first, last = spread[at][1], spread[at + len(wanted) - 1][1]
                places.append(_Place(number, first, last - first + 1))
    if len(places) == 1:
        return places[0]
    said = " ".join(s.utterance.text for s in sentences)
    if not places:
        raise BadInput(f"{change.old!r} is not in the transcript: {said}")
    raise BadInput(f"{change.old!r} is {len(places)} times in the transcript; give a word before or after it as well")


def _characters(utterance: Utterance, place: _Place) -> tuple[int, int]:
    """Where some words stand in the sentence's text."""
    at, edges = 0, []
    for span in utterance.words:
        begin = utterance.text.find(span.text, at)
        at = begin + len(span.text) if begin >= 0 else at
        edges.append((begin, at))
    begin, end = edges[place.first][0], edges[place.first + place.count - 1][1]
    if begin < 0 or end <= begin:
        word = utterance.words[place.first].text
        raise BadInput(f"the place of {word!r} in {utterance.text!r} is not clear; write the transcript in plain words")
    return begin, end


def _rewritten(sentences: Sequence[_Sentence], filled: Sequence[_Filled]) -> str:
    """What is said now."""
    texts = [s.utterance.text for s in sentences]
    for fill in sorted(filled, key=lambda f: f.chars, reverse=True):
        text = texts[fill.sentence]
        texts[fill.sentence] = text[: fill.chars[0]] + fill.change.new + text[fill.chars[1] :]
    return " ".join(" ".join(texts).split())


# -- waves ------------------------------------------------------------------------------------------------------------
def _agreeing(fixed: np.ndarray, at: int, moving: np.ndarray, near: int, rate: int) -> int:
    """The place in `moving`, close to `near`, at which it agrees best with `fixed` at `at` (normalised correlation)."""
    wide, reach = int(FADE * rate), int(SEARCH * rate)
    low, high = near - reach - wide, near + reach + wide
    if low < 0 or high > len(moving) or at < wide or at + wide > len(fixed):
        return near
    windows = np.lib.stride_tricks.sliding_window_view(moving[low:high], 2 * wide)
    likeness = windows @ fixed[at - wide : at + wide] / (np.linalg.norm(windows, axis=1) + 1e-3)
    return near - reach + int(likeness.argmax())


def _blend(before: np.ndarray, i: int, after: np.ndarray, j: int, half: int) -> np.ndarray:
    """`before` around sample i fading into `after` around sample j, `[2 * half]`."""
    ramp = (np.arange(2 * half, dtype=np.float32) + 0.5) / (2 * half)
    return before[i - half : i + half] * (1 - ramp) + after[j - half : j + half] * ramp


@dataclass(frozen=True)
class _Infill(Request):
    """A request that fills a gap."""

    gap: Gap | None = None

    def plan(self, lm: Ardit) -> ArditPlan:
        return ArditPlan(self, lm, self.gap)
