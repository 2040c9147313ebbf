"""Text in, audio out, through a token language model: CosyVoice and its family.

    Script -> token language model (`Generation`) -> flow matching and vocoder, or a codec -> audio

One answer at a time, without threads. Beside `Synthesizer` (the pointer layout, which has timestamps and batches on the
server) because these models know neither when a word sounds nor how fast they speak; the parts below it are shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.loading import load_codec, model_folder, read_json, validated
from ..errors import BadInput, ConfigError
from .decoder import AcousticDecoder
from .flow_decoder import Prompt
from .flow_sound import FlowSound, load_sound, near
from .generate import Generation
from .guidance import GuidedLM
from .sampling import SamplingConfig
from .speaking import AudioChunk, Script
from .text import Frontend, Utterance
from .token_lm import TokenLM, load_token_lm, phone_text
from .token_plan import TokenPlan, TokenRequest, parse_schedule
from .voices import Voice, unknown_voice

__all__ = ["FlowSound", "TokenSynthesizer", "TokenVoiceSettings"]

CHUNK = 4
"""Frames handed to the acoustic decoder at a time (0.16 s); a flow waits for chunks of its own size."""


class TokenVoiceSettings(BaseModel):
    """`settings.json` beside a token language model.

    Attributes:
        flow, vocoder: models that make its tokens sound, looked for beside the folder, then among the bundled ones;
            without them the tokens are those of a codec.
        voice: who speaks by default. names: public voice name -> the model's (empty: as the model calls them).
        schedule: of a multi-token head (see `parse_schedule`). guidance: of a model trained with `options.drop`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow: str | None = None
    vocoder: str | None = None
    voice: str | None = None
    names: dict[str, str] = {}
    language: str = "en-us"
    schedule: str = "1 0"
    guidance: float = 1.0
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_k=25, top_p=0.8, ras_window=10, ras_threshold=0.3)


class _Decoder(Protocol):
    def push(self, frames: Tensor, final: bool = False) -> np.ndarray: ...


class TokenSynthesizer:
    """A token language model, what makes its tokens sound, and the front end."""

    timed = False
    """Its chunks carry no times of words."""

    def __init__(self, lm: TokenLM, sound: Codec | FlowSound, settings: TokenVoiceSettings) -> None:
        if lm.config.text != "phones":
            raise ConfigError("this synthesizer reads phones; speak with a bpe model through tts.generate.Generation")
        self.lm, self.sound, self.settings = lm, sound, settings
        self.frontend = Frontend(settings.language)
        self.sample_rate = sound.sample_rate
        heard = sound.voices if isinstance(sound, FlowSound) else ()
        own = lm.config.voices or heard or ("default",)
        self._names = settings.names or {voice: voice for voice in own}
        if unknown := sorted(set(self._names.values()) - set(own)):
            raise ConfigError(f"the settings name voices that the model lacks: {', '.join(unknown)}")
        if settings.voice is not None and settings.voice not in self._names:
            raise ConfigError(
                f"the settings' voice {settings.voice!r} is none of the model's: {', '.join(self._names)}"
            )
        self._guided: GuidedLM | None = None
        self.loop: Callable[[TokenLM | GuidedLM], Generation] = Generation  # or one that speculates

    @property
    def voices(self) -> tuple[str, ...]:
        return tuple(self._names)

    @classmethod
    def load(cls, name: str) -> TokenSynthesizer:
        """Loads a folder or bundled model with its flow and vocoder, or its codec.

        Raises:
            MissingFile, ConfigError, CorruptFile: what is wrong with it.
        """
        folder = model_folder(name)
        lm, tokens = load_token_lm(str(folder))
        path = folder / "settings.json"
        settings = TokenVoiceSettings()
        if path.exists():
            settings = validated(TokenVoiceSettings, read_json(path), folder, path.name)

        if settings.flow is None:
            return cls(lm, load_codec(near(folder, tokens)), settings)
        sound = load_sound(str(folder))
        if sound.codec != near(folder, tokens) and Path(sound.codec).name != Path(tokens).name:
            raise ConfigError(
                f"the model speaks {tokens} tokens, the flow {settings.flow} reads those of {sound.codec}"
            )
        return cls(lm, sound, settings)

    # -- speaking -----------------------------------------------------------------------------------------------------
    def stream(
        self,
        text: str | Iterable[str],
        *,
        voice: str | Voice | None = None,
        speed: float = 1.0,
        seed: int = 0,
        temperature: float | None = None,
        pause: float = 1.0,
        codebooks: int | None = None,
        guidance: float | None = None,
        prompt: Prompt | None = None,
    ) -> Iterator[AudioChunk]:
        """Speaks a text, or pieces of text as they arrive (each sentence as soon as it is complete).

        Args:
            voice: one of `voices`, or a voice file's content (of a model with a flow): its tokens and mel are the
                flow's prompt, and with its transcript also that of the language model.
            speed, pause, codebooks: as of `Synthesizer.stream`; these models have none of them, so 1, 1 and None.
            seed: the same seed gives the same audio. guidance: classifier-free guidance, 1 = none.
            prompt: speech of whoever is to be imitated (with a flow only).

        Raises:
            BadInput: nothing to speak, an unknown voice, or a setting out of range. Checked before the first chunk.
        """
        if isinstance(voice, str) or voice is None:
            voice = voice or self.settings.voice or self.voices[0]
            if voice not in self._names:
                raise unknown_voice(voice, self.voices)
        if speed != 1 or pause != 1 or codebooks is not None:
            raise BadInput(
                "this model cannot change its speed, pauses or codebooks; a pointer model such as quaver-en can"
            )
        if temperature is not None and not 0 <= temperature <= 2:
            raise BadInput(f"temperature must lie between 0 and 2, not {temperature}")
        if (prompt is not None or isinstance(voice, Voice)) and not isinstance(self.sound, FlowSound):
            raise BadInput("this model has no flow, so it cannot imitate a prompt or a voice file")
        script, pieces = Script(self.frontend, text if isinstance(text, str) else None), iter(())
        if isinstance(text, str):
            script.read_all()
        else:
            pieces = iter(text)
        decoder = self._decoder(voice, seed, prompt)
        return self._speak(script, pieces, decoder, self._requests(voice, seed, temperature, guidance))

    def say(self, text: str | Iterable[str], **settings: object) -> np.ndarray:
        """The whole answer, float32 samples; arguments as for `stream`."""
        return np.concatenate([chunk.samples for chunk in self.stream(text, **settings)])  # type: ignore[arg-type]

    def _decoder(self, voice: str | Voice, seed: int, prompt: Prompt | None) -> _Decoder:
        if isinstance(self.sound, FlowSound):
            return self.sound.decoder(self._names[voice] if isinstance(voice, str) else voice, seed, prompt)
        return AcousticDecoder(self.sound)

    def _requests(
        self, voice: str | Voice, seed: int, temperature: float | None, guidance: float | None
    ) -> Callable[[Utterance, int], TokenRequest]:
        config, settings = self.lm.config, self.settings
        name = voice if isinstance(voice, str) else settings.voice or self.voices[0]
        speaker = config.voices.index(self._names[name]) if config.voices else 0
        schedule = parse_schedule(settings.schedule)
        scale = settings.guidance if guidance is None else guidance
        if not 0 <= scale <= 10:
            raise BadInput(f"guidance must lie between 0 and 10, not {scale}")
        sampling = settings.sampling
        if temperature is not None:
            sampling = sampling.model_copy(update={"temperature": temperature})
        before, prompt = self._context(voice) if isinstance(voice, Voice) else ((), None)

        def request(utterance: Utterance, number: int) -> TokenRequest:
            if utterance.rate != 1:
                raise BadInput("this model cannot change its pace; leave <prosody rate> away, or take a pointer model")
            ids = phone_text(utterance.phones, frozenset(w.start for w in utterance.words))
            least = max(1, math.floor(config.shortest * len(ids)))  # of what is new, not of the transcript
            most = max(2, least, math.ceil(config.longest * len(ids)))
            own = seed + 1_000_003 * number  # sentences must not repeat each other's random numbers
            return TokenRequest(
                (*before, *ids),
                voice=speaker,
                prompt=prompt,
                least=least,
                most=most,
                sampling=sampling,
                schedule=schedule,
                guidance=scale,
                seed=own,
            )

        return request

    def _context(self, voice: Voice) -> tuple[tuple[int, ...], Tensor | None]:
        """Phones and tokens that every sentence begins with: those of the voice's clip, if it has a transcript and
        they leave half of the model's positions free; else none, and the flow alone imitates."""
        fits = voice.tokens.shape[0] == self.lm.config.codebooks and not self.lm.pattern.extra
        if not voice.text or not fits:
            return (), None
        ids: list[int] = []
        for utterance in self.frontend(voice.text):
            ids += phone_text(utterance.phones, frozenset(w.start for w in utterance.words))
        room = self.lm.config.cross.capacity if self.lm.config.layout == "cross" else self.lm.context
        if room is not None and 2 * (len(ids) + voice.tokens.shape[1]) > room:
            return (), None
        return tuple(ids), voice.tokens

    def _model(self, guided: bool) -> TokenLM | GuidedLM:
        if guided and self._guided is None:
            self._guided = GuidedLM(self.lm)
        return self._guided if guided and self._guided is not None else self.lm

    def _speak(
        self,
        script: Script,
        pieces: Iterator[str],
        decoder: _Decoder,
        request: Callable[[Utterance, int], TokenRequest],
    ) -> Iterator[AudioChunk]:
        generation: Generation | None = None
        number, last = 0, torch.zeros(self.lm.config.codebooks, 0, dtype=torch.long)
        while not script.over:
            utterance = script.next()
            if utterance is None:
                piece = next(pieces, None)
                script.close() if piece is None else script.push(piece)
                continue
            wanted = request(utterance, number)
            if generation is None:
                generation = self.loop(self._model(wanted.guidance != 1))
            plan: TokenPlan = generation.join(0, wanted)
            number += 1
            waiting: list[Tensor] = []
            while not plan.done:
                waiting += [frame.codes for frame in generation.tick().values()]
                if waiting and (len(waiting) >= CHUNK or plan.done):
                    samples = decoder.push(torch.stack(waiting, 1))
                    waiting = []
                    if len(samples):
                        yield AudioChunk(samples, self.sample_rate, progress=script.share * 0.999)
            generation.leave(0)
        script.next()  # raises what is wrong with a text in which nothing could be read
        samples = decoder.push(last, final=True)
        if len(samples):
            yield AudioChunk(samples, self.sample_rate, progress=1.0)
