"""Text in, audio out: the public face of `tts/`. A plain generator, no threads; concurrency is the engine's
business."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..codecs.base import Codec
from ..codecs.grouped import grouped
from ..codecs.loading import load_codec, load_weights, model_folder, read_config, read_json, read_model, validated
from ..errors import BadInput, ConfigError
from ..nn.packed import pack_linears
from .ardit import Ardit, ArditConfig
from .lm import SpeechLM, SpeechLMConfig
from .sampling import SamplingConfig
from .script import Script, Split
from .speaking import CHUNKS, AudioChunk, SpeechBatch, SpeechSettings, expected_phones
from .text import Frontend
from .timeline import TimedSpan
from .voices import unknown_voice

if TYPE_CHECKING:
    from .token_synthesizer import TokenSynthesizer

__all__ = ["AudioChunk", "Speech", "Synthesizer", "TimedSpan", "VoiceSettings", "load_lm", "load_synthesizer"]

DEFAULT_VOICE_MODEL = "quaver-en"
SPEEDS = (0.5, 2.0)
PAUSES = (0.1, 5.0)
MAX_SEED = 2**62
PHONE_RATE = 13.0
"""Phones per second outside pauses, of a voice that does not say how fast it speaks."""


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


def load_lm(name: str) -> tuple[SpeechLM | Ardit, str]:
    """A language model (or ARDiT) in eval mode and the name of the codec it speaks, by bundled name or folder.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    if read_config(model_folder(name)).get("kind") == "ardit":
        folder, config, codec = read_model(name, "ardit", "block diffusion model")
        lm: SpeechLM | Ardit = Ardit(validated(ArditConfig, config, folder))
    else:
        folder, config, codec = read_model(name, "lm", "speech language model")
        lm = SpeechLM(validated(SpeechLMConfig, config, folder))
    load_weights(lm, folder)
    return lm.eval(), codec


def codec_of(folder: Path, codec: str) -> Codec:
    """The codec that a model's configuration names: the one of that name beside its folder, or else by that name."""
    local = folder.parent / Path(codec).name
    return load_codec(str(local) if (local / "config.json").exists() else codec)


def load_synthesizer(name: str = "default") -> Synthesizer | TokenSynthesizer:
    """A model that speaks, of whichever kind: a pointer voice, or a token language model with its flow or codec.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    folder = model_folder(DEFAULT_VOICE_MODEL if name == "default" else name)
    if read_config(folder).get("kind") == "token_lm":
        from .token_synthesizer import TokenSynthesizer

        return TokenSynthesizer.load(str(folder))
    return Synthesizer.load(name)


class Synthesizer:
    """A language model, its codec, and the front end.

    synthesizer = Synthesizer.load()
    for chunk in synthesizer.stream("Hello world."):
        play(chunk.samples)
    """

    timed = True
    """Its chunks carry the times of words and phones."""

    def __init__(self, lm: SpeechLM | Ardit, codec: Codec, settings: VoiceSettings) -> None:
        unknown = set(settings.names.values()) - set(lm.config.voices)
        if unknown or settings.default not in settings.names:
            raise ConfigError(f"voice settings name voices that the model lacks: {sorted(unknown) or settings.default}")
        self.lm, self.codec, self.settings = lm, codec, settings
        self.frontend = Frontend(settings.language)
        self.sample_rate = codec.sample_rate

    @classmethod
    def load(cls, name: str = "default", *, packed: bool = True) -> Synthesizer:
        """Loads a bundled voice model or a folder; `packed` keeps the weights of linear layers in half precision
        where the processor has a kernel for it, which is much faster (`nn/packed.py`).

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
        spoken = grouped(codec_of(folder, codec), lm.config.group)
        if packed:
            pack_linears(lm)
            pack_linears(spoken)
        return cls(lm, spoken, settings)

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
        split: Split = "sentence",
        duration: float | None = None,
    ) -> Iterator[AudioChunk]:
        """Speaks a text, or pieces of text as they arrive.

        Args:
            voice: one of `voices`. speed: 0.5 to 2. pause: factor on pauses, 0.1 to 5.
            seed: the same seed gives the same audio.
            temperature: of the codes, instead of the voice's own setting.
            codebooks: decode only so many levels (a smaller, rougher sound).
            split: how text in pieces is spoken, see `Script`.
            duration: seconds that the whole answer is to last, instead of a speed (of a text that is there as a whole).

        Raises:
            BadInput: nothing to speak, an unknown voice, or a setting out of range. Checked before the first chunk.
        """
        settings = self.settings_of(
            voice=voice, speed=speed, seed=seed, temperature=temperature, pause=pause, codebooks=codebooks
        )
        if duration is not None and (speed != 1 or not isinstance(text, str)):
            raise BadInput("a duration takes the place of the speed, and needs the whole text at once")
        if not isinstance(text, str):
            return self._speak(Script(self.frontend, by=split), settings, iter(text))
        if not text.strip():
            raise BadInput("there is no text to speak; give at least one word")
        script = Script(self.frontend, text)
        script.read_all()
        if duration is not None:
            settings = self._lasting(settings, script, duration)
        return self._speak(script, settings, iter(()))

    def say(self, text: str | Iterable[str], **settings: Any) -> Speech:
        """The whole answer at once; arguments as for `stream`."""
        chunks = list(self.stream(text, **settings))
        return Speech(
            np.concatenate([c.samples for c in chunks]),
            self.sample_rate,
            [w for c in chunks for w in c.words],
            [p for c in chunks for p in c.phones],
        )

    def settings_of(
        self,
        *,
        voice: str | None = None,
        speed: float = 1.0,
        seed: int = 0,
        temperature: float | None = None,
        pause: float = 1.0,
        codebooks: int | None = None,
    ) -> SpeechSettings:
        """The settings of an answer, checked; arguments as for `stream`.

        Raises:
            BadInput: an unknown voice, or a setting out of range.
        """
        name = voice or self.settings.default
        if name not in self.settings.names:
            raise unknown_voice(name, self.voices)
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise BadInput(f"speed must lie between {SPEEDS[0]} and {SPEEDS[1]}, not {speed}")
        if not PAUSES[0] <= pause <= PAUSES[1]:
            raise BadInput(f"pause must lie between {PAUSES[0]} and {PAUSES[1]}, not {pause}")
        if not 0 <= seed <= MAX_SEED:
            raise BadInput(f"seed must lie between 0 and {MAX_SEED}, not {seed}")
        spec = self.codec.frame_spec
        if codebooks is not None and spec.kind == "latents":
            raise BadInput("this voice speaks in continuous tokens, which have no codebooks to leave out")
        if codebooks is not None and not 1 <= codebooks <= spec.codebooks:
            raise BadInput(f"codebooks must lie in 1..{spec.codebooks}, not {codebooks}")
        sampling = self.settings.sampling
        if temperature is not None:
            if not 0 <= temperature <= 2:
                raise BadInput(f"temperature must lie between 0 and 2, not {temperature}")
            sampling = sampling.model_copy(update={"temperature": temperature})
        speaker = self.lm.config.voices.index(self.settings.names[name])
        return SpeechSettings(speaker, speed, seed, pause, sampling, self.settings.advance_temperature, codebooks)

    def _lasting(self, settings: SpeechSettings, script: Script, duration: float) -> SpeechSettings:
        """Settings for an answer of so many seconds.

        Raises:
            BadInput: the voice would have to speak slower or faster than it can.
        """
        rates = self.lm.config.rates
        phone = 1 / (rates[settings.voice] if rates else PHONE_RATE)
        breaks = sum(seconds for u in script.upcoming for _, seconds in u.breaks)
        usual = phone * expected_phones(script.upcoming)
        low, high = (breaks + usual / speed for speed in reversed(SPEEDS))
        if not low <= duration <= high:
            raise BadInput(
                f"this text lasts about {breaks + usual:.1f} s; a duration may lie between {low:.1f} and {high:.1f} s"
            )
        frames = phone * self.codec.sample_rate / self.codec.frame_size
        return replace(settings, duration=duration, pace=frames)

    def batch(self, slots: int = 1, chunks: Sequence[int] = CHUNKS) -> SpeechBatch:
        """Slots that speak many answers at once, with this model."""
        return SpeechBatch(self.lm, self.codec, slots, chunks)

    def _speak(self, script: Script, settings: SpeechSettings, pieces: Iterator[str]) -> Iterator[AudioChunk]:
        batch = self.batch()
        batch.join(0, script, settings)
        while not batch.done(0):
            if batch.waits(0):
                piece = next(pieces, None)
                if piece is None:
                    script.close()
                else:
                    script.push(piece)
                    continue
            yield from batch.tick().get(0, ())
            if 0 in batch.failures:
                raise batch.failures[0]
