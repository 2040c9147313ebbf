"""Text in, audio out, through a token language model: CosyVoice and its family.

    Script -> token language model (`Generation`) -> flow matching and vocoder, or a codec -> audio

One answer at a time, without threads. Beside `Synthesizer` (the pointer layout, which has timestamps and batches on the
server) because these models know neither when a word sounds nor how fast they speak; the parts below it are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.loading import load_codec, model_folder, read_json, validated
from ..codecs.mel import MelCodec, load_mel
from ..errors import BadInput, ConfigError
from .decoder import AcousticDecoder
from .flow import FlowModel, load_flow
from .flow_decoder import FlowDecoder, Prompt
from .generate import Generation
from .sampling import SamplingConfig
from .speaking import AudioChunk, Script
from .text import Frontend, Utterance
from .token_lm import TokenLM, load_token_lm, phone_text
from .token_plan import TokenPlan, TokenRequest, parse_schedule

__all__ = ["FlowSound", "TokenSynthesizer", "TokenVoiceSettings"]

CHUNK = 4
"""Frames handed to the acoustic decoder at a time (0.16 s); a flow waits for chunks of its own size."""


class TokenVoiceSettings(BaseModel):
    """`settings.json` beside a token language model.

    Attributes:
        flow, vocoder: models that make its tokens sound, looked for beside the folder, then among the bundled ones;
            without them the tokens are those of a codec.
        voice: who speaks by default. schedule: of a multi-token head (see `parse_schedule`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow: str | None = None
    vocoder: str | None = None
    voice: str | None = None
    language: str = "en-us"
    schedule: str = "1 0"
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_k=25, top_p=0.8, ras_window=10, ras_threshold=0.3)


class _Decoder(Protocol):
    def push(self, frames: Tensor, final: bool = False) -> np.ndarray: ...


class FlowSound:
    """A flow and its vocoder: how semantic tokens come to sound."""

    def __init__(self, flow: FlowModel, vocoder: MelCodec) -> None:
        self.flow, self.vocoder = flow, vocoder
        self.sample_rate = vocoder.sample_rate
        self.voices = flow.config.voices

    @torch.inference_mode()
    def decoder(self, voice: str | None, seed: int, prompt: Prompt | None) -> FlowDecoder:
        index = self.voices.index(voice) if voice in self.voices else 0
        speaker = self.flow.speaker(torch.tensor([index], device=self.flow.nobody.device))[0]
        return FlowDecoder(self.flow, self.vocoder, speaker, seed=seed, prompt=prompt)


class TokenSynthesizer:
    """A token language model, what makes its tokens sound, and the front end."""

    def __init__(self, lm: TokenLM, sound: Codec | FlowSound, settings: TokenVoiceSettings) -> None:
        if lm.config.text != "phones":
            raise ConfigError("this synthesizer reads phones; speak with a bpe model through tts.generate.Generation")
        self.lm, self.sound, self.settings = lm, sound, settings
        self.frontend = Frontend(settings.language)
        self.sample_rate = sound.sample_rate
        heard = sound.voices if isinstance(sound, FlowSound) else ()
        self.voices: tuple[str, ...] = lm.config.voices or heard or ("default",)
        if settings.voice is not None and settings.voice not in self.voices:
            raise ConfigError(
                f"the settings' voice {settings.voice!r} is none of the model's: {', '.join(self.voices)}"
            )

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

        def near(other: str) -> str:
            local = folder.parent / Path(other).name
            return str(local) if (local / "config.json").exists() else other

        if settings.flow is None or settings.vocoder is None:
            return cls(lm, load_codec(near(tokens)), settings)
        flow, read = load_flow(near(settings.flow))
        if read != tokens:
            raise ConfigError(f"the model speaks {tokens} tokens, the flow {settings.flow} reads those of {read}")
        return cls(lm, FlowSound(flow, load_mel(near(settings.vocoder))), settings)

    # -- speaking -----------------------------------------------------------------------------------------------------
    def stream(
        self,
        text: str | Iterable[str],
        *,
        voice: str | None = None,
        seed: int = 0,
        temperature: float | None = None,
        prompt: Prompt | None = None,
    ) -> Iterator[AudioChunk]:
        """Speaks a text, or pieces of text as they arrive (each sentence as soon as it is complete).

        Args:
            voice: one of `voices`. seed: the same seed gives the same audio.
            prompt: speech of whoever is to be imitated (with a flow only).

        Raises:
            BadInput: nothing to speak, an unknown voice, or a setting out of range. Checked before the first chunk.
        """
        name = voice or self.settings.voice or self.voices[0]
        if name not in self.voices:
            raise BadInput(f"no voice {name!r}; choose one of {', '.join(self.voices)}")
        if temperature is not None and not 0 <= temperature <= 2:
            raise BadInput(f"temperature must lie between 0 and 2, not {temperature}")
        if prompt is not None and not isinstance(self.sound, FlowSound):
            raise BadInput("this model has no flow, so it cannot imitate a prompt")
        sampling = self.settings.sampling
        if temperature is not None:
            sampling = sampling.model_copy(update={"temperature": temperature})
        pieces: Iterator[str] = iter(())
        if isinstance(text, str):
            script = Script(self.frontend, text)
            script.read_all()
        else:
            script, pieces = Script(self.frontend), iter(text)
        decoder = self._decoder(name, seed, prompt)
        return self._speak(script, pieces, decoder, self._requests(name, seed, sampling))

    def say(self, text: str | Iterable[str], **settings: object) -> np.ndarray:
        """The whole answer, float32 samples; arguments as for `stream`."""
        return np.concatenate([chunk.samples for chunk in self.stream(text, **settings)])  # type: ignore[arg-type]

    def _decoder(self, voice: str, seed: int, prompt: Prompt | None) -> _Decoder:
        if isinstance(self.sound, FlowSound):
            return self.sound.decoder(voice, seed, prompt)
        return AcousticDecoder(self.sound)

    def _requests(self, voice: str, seed: int, sampling: SamplingConfig) -> Callable[[Utterance, int], TokenRequest]:
        speaker = self.lm.config.voices.index(voice) if self.lm.config.voices else 0
        schedule = parse_schedule(self.settings.schedule)

        def request(utterance: Utterance, number: int) -> TokenRequest:
            ids = phone_text(utterance.phones, frozenset(w.start for w in utterance.words))
            own = seed + 1_000_003 * number  # sentences must not repeat each other's random numbers
            return TokenRequest(ids, voice=speaker, sampling=sampling, schedule=schedule, seed=own)

        return request

    def _speak(
        self,
        script: Script,
        pieces: Iterator[str],
        decoder: _Decoder,
        request: Callable[[Utterance, int], TokenRequest],
    ) -> Iterator[AudioChunk]:
        generation, number, last = Generation(self.lm), 0, torch.zeros(self.lm.config.codebooks, 0, dtype=torch.long)
        while not script.over:
            utterance = script.next()
            if utterance is None:
                piece = next(pieces, None)
                script.close() if piece is None else script.push(piece)
                continue
            plan: TokenPlan = generation.join(0, request(utterance, number))
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
