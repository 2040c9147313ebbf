"""Text in, audio out: the public face of `tts/`. A plain generator, no threads; concurrency is the engine's
business."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.loading import load_codec, load_weights, model_folder, read_config, read_json, validated
from ..errors import BadInput, ConfigError
from .decoder import AcousticDecoder
from .generate import Frame, Generation, Request
from .lm import SpeechLM, SpeechLMConfig, phone_features
from .sampling import SamplingConfig
from .text import Frontend, TextStream, Utterance

__all__ = ["AudioChunk", "Speech", "Synthesizer", "TimedSpan", "VoiceSettings", "load_lm"]

DEFAULT_VOICE_MODEL = "quaver-en"
SPEEDS = (0.5, 2.0)
PAUSES = (0.1, 5.0)
CHUNKS = (2, 4, 8)
"""Frames per decoded chunk: small at first so that audio starts early, then larger, which costs less per frame."""


@dataclass(frozen=True)
class TimedSpan:
    """A word or phone and when it sounds, in seconds from the start of the whole audio."""

    text: str
    start: float
    end: float


@dataclass
class AudioChunk:
    """A piece of the answer.

    Attributes:
        samples: float32 `[n]` in [-1, 1]. words, phones: those that this chunk completes.
        progress: share of the text that has been spoken, 0..1 (of what has arrived, when text comes in pieces).
    """

    samples: np.ndarray
    sample_rate: int
    words: list[TimedSpan] = field(default_factory=list)
    phones: list[TimedSpan] = field(default_factory=list)
    progress: float = 0.0


@dataclass
class Speech:
    """A whole answer."""

    samples: np.ndarray
    sample_rate: int
    words: list[TimedSpan]
    phones: list[TimedSpan]


class VoiceSettings(BaseModel):
    """`settings.json` of a voice model: what was chosen on the development list.

    Attributes:
        names: public voice name -> voice of the language model. default: public name.
        language: of the front end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: dict[str, str]
    default: str
    language: str = "en-us"
    sampling: SamplingConfig = SamplingConfig()
    advance_temperature: float = 0.7


def load_lm(name: str) -> tuple[SpeechLM, str]:
    """A language model in eval mode and the name of the codec it speaks, by bundled name or folder.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    folder = model_folder(name)
    config = read_config(folder)
    if config.pop("kind", None) != "lm":
        raise ConfigError(f"{folder} is not a speech language model")
    codec = config.pop("codec", None)
    if not isinstance(codec, str):
        raise ConfigError(f"{folder / 'config.json'} does not name the codec that the model speaks")
    lm = SpeechLM(validated(SpeechLMConfig, config, folder))
    load_weights(lm, folder)
    return lm.eval(), codec


class Synthesizer:
    """A language model, its codec, and the front end.

    synthesizer = Synthesizer.load()
    for chunk in synthesizer.stream("Hello world."):
        play(chunk.samples)
    """

    def __init__(self, lm: SpeechLM, codec: Codec, settings: VoiceSettings) -> None:
        unknown = set(settings.names.values()) - set(lm.config.voices)
        if unknown or settings.default not in settings.names:
            raise ConfigError(f"voice settings name voices that the model lacks: {sorted(unknown) or settings.default}")
        self.lm, self.codec, self.settings = lm, codec, settings
        self.frontend = Frontend(settings.language)
        self.sample_rate = codec.sample_rate

    @classmethod
    def load(cls, name: str = "default") -> Synthesizer:
        """Loads a bundled voice model or a folder.

        Raises:
            MissingFile, ConfigError, CorruptFile: what is wrong with it.
        """
        folder = model_folder(DEFAULT_VOICE_MODEL if name == "default" else name)
        lm, codec = load_lm(str(folder))
        path = folder / "settings.json"
        if path.exists():
            settings = validated(VoiceSettings, read_json(path), folder, path.name)
        else:
            names = lm.config.voices
            settings = VoiceSettings(names={v: v for v in names}, default=names[0])
        local = folder.parent / Path(codec).name
        return cls(lm, load_codec(str(local) if (local / "config.json").exists() else codec), settings)

    @property
    def voices(self) -> tuple[str, ...]:
        return tuple(self.settings.names)

    # -- speaking -----------------------------------------------------------------------------------------------------
    def stream(
        self,
        text: str | Iterable[str],
        *,
        voice: str | None = None,
        speed: float = 1.0,
        seed: int = 0,
        temperature: float | None = None,
        pause: float = 1.0,
        codebooks: int | None = None,
    ) -> Iterator[AudioChunk]:
        """Speaks a text, or pieces of text as they arrive.

        Args:
            voice: one of `voices`. speed: 0.5 to 2. pause: factor on pauses, 0.1 to 5.
            seed: the same seed gives the same audio.
            temperature: of the codes, instead of the voice's own setting.
            codebooks: decode only so many levels (a smaller, rougher sound).

        Raises:
            BadInput: nothing to speak, an unknown voice, or a setting out of range. Checked before the first chunk.
        """
        template = self._request(voice, speed, seed, temperature, pause)
        if codebooks is not None and not 1 <= codebooks <= self.lm.config.codebooks:
            raise BadInput(f"codebooks must lie in 1..{self.lm.config.codebooks}, not {codebooks}")
        if isinstance(text, str):
            utterances: Iterable[tuple[Utterance, float]] = _with_shares(self.frontend(text))
        else:
            utterances = self._arriving(text)
        return self._speak(utterances, template, codebooks)

    def say(self, text: str | Iterable[str], **settings: Any) -> Speech:
        """The whole answer at once; arguments as for `stream`."""
        chunks = list(self.stream(text, **settings))
        return Speech(
            np.concatenate([c.samples for c in chunks]),
            self.sample_rate,
            [w for c in chunks for w in c.words],
            [p for c in chunks for p in c.phones],
        )

    def _request(
        self, voice: str | None, speed: float, seed: int, temperature: float | None, pause: float
    ) -> dict[str, Any]:
        name = voice or self.settings.default
        if name not in self.settings.names:
            raise BadInput(f"no voice {name!r}; choose one of {', '.join(self.voices)}")
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise BadInput(f"speed must lie between {SPEEDS[0]} and {SPEEDS[1]}, not {speed}")
        if not PAUSES[0] <= pause <= PAUSES[1]:
            raise BadInput(f"pause must lie between {PAUSES[0]} and {PAUSES[1]}, not {pause}")
        sampling = self.settings.sampling
        if temperature is not None:
            if not 0 <= temperature <= 2:
                raise BadInput(f"temperature must lie between 0 and 2, not {temperature}")
            sampling = sampling.model_copy(update={"temperature": temperature})
        speaker = self.lm.config.voices.index(self.settings.names[name])
        steadiness = self.settings.advance_temperature
        return {
            "voice": speaker,
            "speed": speed,
            "seed": seed,
            "pause": pause,
            "sampling": sampling,
            "advance_temperature": steadiness,
        }

    def _arriving(self, pieces: Iterable[str]) -> Iterator[tuple[Utterance, float]]:
        """Utterances of a text that comes in pieces, each as soon as its sentence is complete."""
        stream, any_spoken, seen = TextStream(), False, ""
        for piece in pieces:
            seen = (seen + piece)[-200:]
            for sentence in stream.push(piece):
                for utterance in self.frontend.sentence(sentence):
                    any_spoken = True
                    yield utterance, 0.0
        for sentence in stream.close():
            for utterance in self.frontend.sentence(sentence):
                any_spoken = True
                yield utterance, 1.0
        if not any_spoken:
            self.frontend(seen)  # raises the error that names the reason

    def _speak(
        self, utterances: Iterable[tuple[Utterance, float]], template: dict[str, Any], codebooks: int | None
    ) -> Iterator[AudioChunk]:
        generation, writer = Generation(self.lm), _Writer(self.codec, codebooks)
        for number, (utterance, share) in enumerate(utterances):
            words = frozenset(w.start for w in utterance.words)
            features = phone_features(utterance.phones, words)
            seed = template["seed"] + 1_000_003 * number  # sentences must not repeat each other's random numbers
            yield from self._one(generation, writer, utterance, Request(features, **{**template, "seed": seed}), share)
        chunk = writer.finish()
        if len(chunk.samples):
            yield chunk

    def _one(
        self, generation: Generation, writer: _Writer, utterance: Utterance, request: Request, share: float
    ) -> Iterator[AudioChunk]:
        plan = generation.join(0, request)
        timeline = _Timeline(utterance, writer.frames_in, self.codec.frame_size / self.sample_rate)
        breaks: dict[int, float] = {}
        for index, seconds in utterance.breaks:  # +1: the plan counts ^ as phone 0
            breaks[index + 1] = breaks.get(index + 1, 0.0) + seconds
        try:
            while not plan.done:
                frame = generation.tick().get(0)
                if frame is None:
                    continue
                for place in [p for p in sorted(breaks) if p < frame.phone]:
                    timeline.wait(writer.silence(breaks.pop(place)))
                timeline.add(frame)
                chunk = writer.push(frame)
                if chunk is not None:
                    chunk.words, chunk.phones = timeline.take()
                    chunk.progress = share * min(1.0, frame.phone / len(request.features)) if share else 0.0
                    yield chunk
            for place in sorted(breaks):
                timeline.wait(writer.silence(breaks[place]))
            chunk = writer.drain()
            chunk.words, chunk.phones = timeline.close()
            chunk.progress = share
            if len(chunk.samples) or chunk.words or chunk.phones:
                yield chunk
        finally:
            generation.leave(0)


def _with_shares(utterances: list[Utterance]) -> Iterator[tuple[Utterance, float]]:
    """Each utterance with the share of the text that is done after it."""
    total, done = sum(len(u.phones) for u in utterances), 0
    for utterance in utterances:
        done += len(utterance.phones)
        yield utterance, done / total


class _Writer:
    """Collects frames and decodes them in chunks of growing size."""

    def __init__(self, codec: Codec, codebooks: int | None) -> None:
        self.codec, self.codebooks = codec, codebooks
        self.decoder = AcousticDecoder(codec)
        self.waiting: list[Tensor] = []
        self.frames_in, self.chunks = 0, 0
        self._quiet: Tensor | None = None

    def push(self, frame: Frame) -> AudioChunk | None:
        self.waiting.append(frame.codes[: self.codebooks])
        self.frames_in += 1
        if len(self.waiting) < CHUNKS[min(self.chunks, len(CHUNKS) - 1)]:
            return None
        return self.drain()

    def silence(self, seconds: float) -> int:
        """Queues frames of silence; returns how many."""
        if self._quiet is None:
            with torch.inference_mode():
                empty = torch.zeros(1, 1, 8 * self.codec.frame_size)
                self._quiet = self.codec.encode(empty)[0][0, : self.codebooks, -1]
        count = round(seconds * self.codec.sample_rate / self.codec.frame_size)
        self.waiting += [self._quiet] * count
        self.frames_in += count
        return count

    def drain(self, final: bool = False) -> AudioChunk:
        """Decodes what waits."""
        frames = torch.stack(self.waiting, 1) if self.waiting else torch.zeros(1, 0, dtype=torch.long)
        self.chunks += bool(self.waiting)
        self.waiting = []
        return AudioChunk(self.decoder.push(frames, final), self.codec.sample_rate)

    def finish(self) -> AudioChunk:
        return dataclasses.replace(self.drain(final=True), progress=1.0)


class _Timeline:
    """Turns the pointer of each frame into times of phones and words."""

    def __init__(self, utterance: Utterance, first_frame: int, frame_seconds: float) -> None:
        self.utterance, self.frame_seconds = utterance, frame_seconds
        self.now = first_frame
        self.starts: list[float] = []  # of the phones reached so far
        self.reached = 0  # pointer: 0 is ^
        self.phones_out, self.words_out = 0, 0

    def add(self, frame: Frame) -> None:
        """Takes the next frame. Phones that one frame passes over share its time evenly."""
        passed = frame.phone - self.reached
        for i in range(passed):
            self.starts.append((self.now + i / passed) * self.frame_seconds if i else self.now * self.frame_seconds)
        self.reached = frame.phone
        self.now += 1

    def wait(self, frames: int) -> None:
        """A break of so many frames."""
        self.now += frames

    def take(self) -> tuple[list[TimedSpan], list[TimedSpan]]:
        """Words and phones that are complete and have not been taken."""
        return self._words(len(self.starts) - 1), self._phones(len(self.starts) - 1)

    def close(self) -> tuple[list[TimedSpan], list[TimedSpan]]:
        """All that is left; phones that were passed over at the very end get the last moment."""
        end = self.now * self.frame_seconds
        self.starts += [end] * (len(self.utterance.phones) - len(self.starts))
        count = len(self.utterance.phones)
        return self._words(count), self._phones(count)

    def _end(self, phone: int) -> float:
        return self.starts[phone + 1] if phone + 1 < len(self.starts) else self.now * self.frame_seconds

    def _phones(self, complete: int) -> list[TimedSpan]:
        names = self.utterance.phones
        out = [TimedSpan(names[i], self.starts[i], self._end(i)) for i in range(self.phones_out, complete)]
        self.phones_out = max(self.phones_out, complete)
        return out

    def _words(self, complete: int) -> list[TimedSpan]:
        out = []
        while self.words_out < len(self.utterance.words) and self.utterance.words[self.words_out].end <= complete:
            word = self.utterance.words[self.words_out]
            out.append(TimedSpan(word.text, self.starts[word.start], self._end(word.end - 1)))
            self.words_out += 1
        return out
