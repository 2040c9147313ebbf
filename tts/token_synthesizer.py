"""Text in, audio out, through a token language model: CosyVoice and its family.

    Script -> token language model (`Generation`) -> flow matching and vocoder, or a codec -> audio

One answer at a time, without threads (`tts/token_speaking.py` speaks it). Beside `Synthesizer` (the pointer layout,
which has timestamps and batches on the server) because these models do not know when a word sounds; the parts below it
are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.loading import load_codec, model_folder, read_json, validated
from ..errors import BadInput, ConfigError
from ..nn.packed import lay_out_linears
from .conditions import Conditioners
from .decoder import AcousticDecoder
from .flow_decoder import Prompt
from .flow_sound import FlowSound, load_sound, near
from .generate import Generation
from .guidance import GuidedLM
from .sampling import SamplingConfig
from .script import Script, Split
from .speaking import AudioChunk
from .text import Frontend
from .token_lm import TokenLM, load_token_lm, phone_text
from .token_plan import TokenRequest, WarmClip, parse_schedule
from .token_speaking import Carry, Decoder, Length, TokenSpeech, parts_of, reads_growing_text
from .voices import Voice, unknown_voice

__all__ = ["FlowSound", "TokenSynthesizer", "TokenVoiceSettings"]

SPEEDS = (0.5, 2.0)
LONGEST = 3600.0  # seconds that may be asked for


class TokenVoiceSettings(BaseModel):
    """`settings.json` beside a token language model.

    Attributes:
        flow, vocoder: models that make its tokens sound, looked for beside the folder, then among the bundled ones;
            without them the tokens are those of a codec.
        voice: who speaks by default. names: public voice name -> the model's (empty: as the model calls them).
        schedule: of a multi-token head (see `parse_schedule`). guidance: of a model trained with `options.drop`.
        carry: seconds of the sentence before that the next one continues, if it was no longer than that (0: each
            sentence by itself).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow: str | None = None
    vocoder: str | None = None
    voice: str | None = None
    names: dict[str, str] = {}
    language: str = "en-us"
    schedule: str = "1 0"
    guidance: float = 1.0
    carry: float = Field(default=0.0, ge=0, le=30)
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_k=25, top_p=0.8, ras_window=10, ras_threshold=0.3)


Loop = Callable[[TokenLM | GuidedLM], Generation]


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
        self._clip: tuple[Voice, object, WarmClip] | None = None  # of the voice file that spoke last
        self._hushed: Tensor | None = None
        self.loop: Loop = Generation  # or one that speculates
        self.faster: Loop | None = None  # one that speculates, for answers that ask for it (`offer_speculation`)

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
        lay_out_linears(lm)
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
        text: str | Iterable[str | None],
        *,
        voice: str | Voice | None = None,
        speed: float = 1.0,
        seed: int = 0,
        temperature: float | None = None,
        pause: float = 1.0,
        codebooks: int | None = None,
        guidance: float | None = None,
        prompt: Prompt | None = None,
        split: Split = "sentence",
        duration: float | None = None,
        tokens: int | None = None,
        instruct: str | Mapping[str, str] | None = None,
        speculate: bool = False,
        ahead: Callable[[], bool] | None = None,
    ) -> Iterator[AudioChunk]:
        """Speaks a text, or pieces of text as they arrive.

        Args:
            text: of pieces, None says that no more has arrived yet: a chunk without samples is given for it.
            voice: one of `voices`, or a voice file's content (of a model with a flow): its tokens and mel are the
                flow's prompt, and with its transcript also that of the language model.
            speed: 0.5 to 2, by repeating and leaving out frames. seed: the same seed gives the same audio.
            pause, codebooks: as of `Synthesizer.stream`; these models have neither, so 1 and None.
            guidance: classifier-free guidance, 1 = none.
            prompt: speech of whoever is to be imitated (with a flow only).
            split: how text in pieces is spoken, see `Script`; a model that must read its sentence to the end before it
                speaks takes clauses instead of words.
            duration, tokens: seconds or frames that the answer is to last, instead of a speed (its text must be there
                as a whole). Met exactly where the pace that it takes lies between 0.5 and 2; a shorter answer is filled
                up with silence.
            instruct: how to say it, of a model with conditioners: a label that it knows, or words, or values by the
                conditioners' names. With it, `guidance` weighs the instruction instead of the text.
            speculate: with the drafter that `offer_speculation` found: the same law, other random numbers.
            ahead: asked before each step: whether the listener has sound enough in hand. While that is so, a loop that
                speculates takes plain steps and leaves the machine to others; what a seed gives then depends on time.

        Raises:
            BadInput: nothing to speak, an unknown voice, or a setting out of range. Checked before the first chunk.
        """
        if isinstance(voice, str) or voice is None:
            voice = voice or self.settings.voice or self.voices[0]
            if voice not in self._names:
                raise unknown_voice(voice, self.voices)
        if pause != 1 or codebooks is not None:
            raise BadInput("this model cannot change its pauses or codebooks; a pointer model such as quaver-en can")
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise BadInput(f"speed must lie between {SPEEDS[0]} and {SPEEDS[1]}, not {speed}")
        if temperature is not None and not 0 <= temperature <= 2:
            raise BadInput(f"temperature must lie between 0 and 2, not {temperature}")
        if (prompt is not None or isinstance(voice, Voice)) and not isinstance(self.sound, FlowSound):
            raise BadInput("this model has no flow, so it cannot imitate a prompt or a voice file")
        frames = self._frames(duration, tokens, whole=isinstance(text, str) and speed == 1)
        loop = self.faster if speculate else self.loop
        if loop is None:
            raise BadInput("this model has no drafter to speculate with; train one with recipes/draft-lm.yaml")
        script, pieces, length = self._script(text, split), iter(()), None
        if isinstance(text, str):
            script.read_all()
            if frames is not None:
                parts = [part for utterance in script.upcoming for part in parts_of(utterance)]
                length = Length.of(parts, frames, self.sample_rate / self.frame)
        else:
            pieces = iter(text)
        conditions = self._conditions(instruct)
        carry, clip = self._context(voice, conditions, loop is Generation)
        wanted = self._requests(voice, seed, temperature, guidance, clip, conditions)
        speech = TokenSpeech(
            loop(self._model(wanted(0).guidance != 1)),
            self._decoder(voice, seed, prompt),
            script,
            pieces,
            wanted,
            sample_rate=self.sample_rate,
            frame=self.frame,
            quiet=self._quiet(),
            speed=speed,
            carry=carry,
            length=length,
            ahead=ahead,
        )
        return iter(speech)

    @property
    def frame(self) -> int:
        """Samples per frame of the language model."""
        if isinstance(self.sound, FlowSound):
            return self.sound.flow.config.patch * self.sound.vocoder.frame_size
        return self.sound.frame_size

    def _script(self, text: str | Iterable[str | None], split: Split) -> Script:
        if isinstance(text, str):
            return Script(self.frontend, text)
        return Script(self.frontend, by="clause" if split == "word" and not reads_growing_text(self.lm) else split)

    def _frames(self, duration: float | None, tokens: int | None, whole: bool) -> int | None:
        """Frames that the answer is to last, or None."""
        if duration is None and tokens is None:
            return None
        if not whole or (duration is not None and tokens is not None):
            raise BadInput("a duration, or a number of tokens, takes the place of the speed and needs the whole text")
        rate = self.sample_rate / self.frame
        seconds = duration if duration is not None else (tokens or 0) / rate
        if not 1 / rate <= seconds <= LONGEST:
            raise BadInput(f"an answer may last {1 / rate:g} s (1 token) to {LONGEST:g} s, not {seconds:g} s")
        return round(seconds * rate)

    @torch.inference_mode()
    def _quiet(self) -> Tensor:
        """A frame `[K]` of silence, or near it."""
        if self._hushed is None:
            codes = torch.zeros(self.lm.config.codebooks, dtype=torch.long)
            if not isinstance(self.sound, FlowSound):
                device = next(iter(self.sound.init_state(1).tensors()))[1].device
                codes = self.sound.encode(torch.zeros(1, 1, 8 * self.frame, device=device))[0][0, :, -1].cpu()
            elif self.lm.config.silent:
                codes[0] = self.lm.config.silent[0]
            self._hushed = codes
        return self._hushed

    def say(self, text: str | Iterable[str], **settings: object) -> np.ndarray:
        """The whole answer, float32 samples; arguments as for `stream`."""
        return np.concatenate([chunk.samples for chunk in self.stream(text, **settings)])  # type: ignore[arg-type]

    def _decoder(self, voice: str | Voice, seed: int, prompt: Prompt | None) -> Decoder:
        if isinstance(self.sound, FlowSound):
            return self.sound.decoder(self._names[voice] if isinstance(voice, str) else voice, seed, prompt)
        return AcousticDecoder(self.sound)

    def _conditions(self, instruct: str | Mapping[str, str] | None) -> dict[str, str]:
        """Values of the model's conditioners, by name."""
        if instruct is None:
            return {}
        known = self.lm.conditions or Conditioners((), 1)
        values = known.guess(instruct) if isinstance(instruct, str) else dict(instruct)
        known.check(values)
        return values

    def _requests(
        self,
        voice: str | Voice,
        seed: int,
        temperature: float | None,
        guidance: float | None,
        clip: WarmClip | None,
        conditions: Mapping[str, str],
    ) -> Callable[[int], TokenRequest]:
        """The request of an answer's part, by number, without its text."""
        settings = self.settings
        scale = settings.guidance if guidance is None else guidance
        if not 0 <= scale <= 10:
            raise BadInput(f"guidance must lie between 0 and 10, not {scale}")
        sampling = settings.sampling
        if temperature is not None:
            sampling = sampling.model_copy(update={"temperature": temperature})
        request = partial(
            TokenRequest,
            (),
            voice=self._speaker(voice),
            clip=clip,
            sampling=sampling,
            schedule=parse_schedule(settings.schedule),
            guidance=scale,
            conditions=conditions,
            over="conditions" if conditions else "text",
        )
        # Sentences must not repeat each other's random numbers.
        return lambda number: request(seed=seed + 1_000_003 * number)

    def _speaker(self, voice: str | Voice) -> int:
        name = voice if isinstance(voice, str) else self.settings.voice or self.voices[0]
        return self.lm.config.voices.index(self._names[name]) if self.lm.config.voices else 0

    def _context(self, voice: str | Voice, conditions: Mapping[str, str], plain: bool) -> tuple[Carry, WarmClip | None]:
        """What every sentence begins with: phones and tokens of the voice's clip, if it has a transcript and they leave
        half of the model's positions free; else nothing, and the flow alone imitates."""
        config, free = self.lm.config, not self.lm.pattern.extra
        room = config.cross.capacity if config.layout == "cross" else self.lm.context
        frames = round(self.settings.carry * self.sample_rate / self.frame) if free else 0
        none = Carry(frames=frames, room=room)
        if isinstance(voice, str) or not voice.text or voice.tokens.shape[0] != config.codebooks or not free:
            return none, None
        ids: list[int] = []
        for utterance in self.frontend(voice.text):
            ids += phone_text(utterance.phones, frozenset(w.start for w in utterance.words))
        if room is not None and 2 * (len(ids) + voice.tokens.shape[1]) > room:
            return none, None
        key = (self._speaker(voice), tuple(sorted(conditions.items())))
        held = self._clip
        if held is None or held[0] is not voice or held[1] != key:
            held = self._clip = (voice, key, WarmClip(len(ids), voice.tokens.shape[1]))
        # A loop that speculates runs a drafter over the same positions, so none may be left out.
        clip = held[2] if plain else None
        return Carry(tuple(ids), voice.tokens, frames, room), clip

    def _model(self, guided: bool) -> TokenLM | GuidedLM:
        if guided and self._guided is None:
            self._guided = GuidedLM(self.lm)
        return self._guided if guided and self._guided is not None else self.lm
