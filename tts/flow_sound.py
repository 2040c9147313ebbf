"""A flow with its vocoder and tokenizer: how semantic tokens come to sound, in a voice by name or of a voice file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.loading import (
    load_codec,
    load_semantic,
    model_folder,
    read_config,
    read_json,
    weights_sha256,
)
from ..codecs.mel import MelCodec, load_mel
from ..codecs.semantic import SemanticTokenizer
from ..errors import BadInput, ConfigError
from .flow import FlowModel, load_flow
from .flow_decoder import FlowDecoder, Prompt, WarmPrompts
from .voices import Voice, reference_clip, unknown_voice

__all__ = ["FlowSound", "load_sound", "near", "tokens_of"]

VOCODER = "mel-vocoder"
WINDOW, MARGIN = 30.0, 2.0
"""Seconds that are tokenized at a time, and how much more is heard on either side (a tokenizer hears about 1 s)."""
PUSHED = 25  # tokens handed to the decoder at a time in conversion


def near(folder: Path, name: str) -> str:
    """A model named by another: beside that one's folder if it is there, else as it is called."""
    local = folder.parent / Path(name).name
    return str(local) if (local / "config.json").exists() else name


@torch.inference_mode()
def tokens_of(tokenizer: SemanticTokenizer | Codec, samples: np.ndarray) -> Iterator[Tensor]:
    """Tokens `[K, n]` of mono audio `[n]` at the tokenizer's rate, in windows: constant memory, and equal to the whole
    as far as the tokenizer hears no further than the margin."""
    size = tokenizer.frame_size
    rate = tokenizer.config.sample_rate if isinstance(tokenizer, SemanticTokenizer) else tokenizer.sample_rate
    step, margin = (round(seconds * rate / size) * size for seconds in (WINDOW, MARGIN))
    for start in range(0, len(samples), step):
        before = min(start, margin)
        window = torch.from_numpy(samples[start - before : start + step + margin].copy())
        codes = tokenizer.encode(window[None, None])[0][0].cpu()
        count = -(-min(step, len(samples) - start) // size)
        yield codes[:, before // size : before // size + count].clone()


class FlowSound:
    """A flow, its vocoder, and (loaded when first needed) the tokenizer whose tokens it reads.

    Args:
        codec: name or folder of the tokenizer. identity: hash of the flow's weights, "" if it has none.
    """

    def __init__(self, flow: FlowModel, vocoder: MelCodec, *, codec: str = "", identity: str = "") -> None:
        self.flow, self.vocoder, self.codec, self.identity = flow, vocoder, codec, identity
        self.sample_rate = vocoder.sample_rate
        self.voices = flow.config.voices
        self._tokenizer: SemanticTokenizer | Codec | None = None
        self._warm = WarmPrompts()

    @property
    def tokenizer(self) -> SemanticTokenizer | Codec:
        """Raises MissingFile, ConfigError or CorruptFile when it cannot be loaded."""
        if self._tokenizer is None:
            if not self.codec:
                raise ConfigError("this flow does not say whose tokens it reads; load it from its folder")
            kind = read_config(model_folder(self.codec)).get("kind")
            found = load_semantic(self.codec) if kind == "semantic" else load_codec(self.codec)
            self.use(found)
        assert self._tokenizer is not None
        return self._tokenizer

    def use(self, tokenizer: SemanticTokenizer | Codec) -> None:
        """Takes a tokenizer that is loaded already.

        Raises:
            ConfigError: its frames are not those of the flow.
        """
        if tokenizer.frame_size != self.flow.config.patch * self.vocoder.frame_size:
            raise ConfigError(
                f"a token of {self.codec or 'the tokenizer'} lasts {tokenizer.frame_size} samples, the flow makes "
                f"{self.flow.config.patch} mel frames of {self.vocoder.frame_size} of it"
            )
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def decoder(self, voice: str | Voice | None, seed: int, prompt: Prompt | None = None) -> FlowDecoder:
        """A stream of tokens to audio.

        Args:
            voice: a name (the first speaker if it is none of the flow's), or a voice file's content.

        Raises:
            BadInput: a voice of another model, or one that is too short for the flow's chunks.
        """
        device = self.flow.nobody.device
        if isinstance(voice, Voice):
            prompt = prompt or self._prompt(voice)
            if voice.vector is not None and self.flow.vector is not None:
                speaker = self.flow.speaker(None, voice.vector[None].to(device))[0]
            else:  # no encoder: the prompt alone says how to sound
                speaker = self.flow.voice.weight.mean(0)
        else:
            index = self.voices.index(voice) if voice in self.voices else 0
            speaker = self.flow.speaker(torch.tensor([index], device=device))[0]
        return FlowDecoder(self.flow, self.vocoder, speaker, seed=seed, prompt=prompt, warm=self._warm)

    def _prompt(self, voice: Voice) -> Prompt:
        if voice.flow and self.identity and voice.flow != self.identity:
            raise BadInput(
                f"the voice {voice.name!r} was made for another flow (weights {voice.flow[:12]}, here "
                f"{self.identity[:12]}); make it anew with `quaver voice create`"
            )
        if voice.vector is not None and self.flow.vector is not None:
            wide = self.flow.config.vector
            if voice.vector.shape != (wide,):
                raise BadInput(f"the voice {voice.name!r} has a vector of {len(voice.vector)}, the flow one of {wide}")
        return Prompt(voice.tokens, voice.mel.to(self.flow.nobody.device))

    @torch.inference_mode()
    def describe(self, samples: np.ndarray, *, name: str = "voice", text: str = "") -> Voice:
        """A voice made of a recording `[n]` (mono, at `sample_rate`); `text` is what is said in it, if known.

        Raises:
            BadInput: too short, too long, silent (see `reference_clip`).
        """
        clip = reference_clip(samples, self.sample_rate, text)
        size = self.tokenizer.frame_size
        clip = clip[: len(clip) // size * size]  # whole tokens: a padded end is not the speaker's
        tokens = torch.cat(list(tokens_of(self.tokenizer, clip)), -1)
        device = self.flow.nobody.device
        mel, frames = self.vocoder.encode(torch.from_numpy(clip)[None, None].to(device))
        vector = self.flow.describe(mel, frames)[0].cpu() if self.flow.encoder is not None else None
        return Voice(name, vector, tokens, mel[0].cpu(), text.strip(), self.identity, Path(self.codec).name)

    def convert(self, samples: np.ndarray, voice: str | Voice, *, seed: int = 0) -> Iterator[np.ndarray]:
        """The words and the melody of a recording `[n]` (mono, at `sample_rate`), in another voice: audio in pieces,
        together as long as the recording.

        Raises:
            BadInput: an unknown voice, or nothing to convert. Checked before the first piece.
        """
        if isinstance(voice, str) and voice not in self.voices:
            raise unknown_voice(voice, self.voices)
        if not len(samples):
            raise BadInput("there is nothing to convert: the recording has no samples")
        return self._convert(self.decoder(voice, seed), samples)

    def _convert(self, decoder: FlowDecoder, samples: np.ndarray) -> Iterator[np.ndarray]:
        left = len(samples)
        for tokens in tokens_of(self.tokenizer, samples):
            for part in tokens.split(PUSHED, -1):
                audio = decoder.push(part)[:left]
                left -= len(audio)
                if len(audio):
                    yield audio
        audio = decoder.push(torch.zeros(self.flow.config.codebooks, 0, dtype=torch.long), final=True)[:left]
        if len(audio):
            yield audio


def load_sound(name: str, vocoder: str | None = None) -> FlowSound:
    """The flow of a model (a flow, or a token language model whose settings name one) with its vocoder.

    Args:
        vocoder: instead of the one that the model's `settings.json` names, or `mel-vocoder` beside it.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    folder = model_folder(name)
    config, path = read_config(folder), folder / "settings.json"
    settings = read_json(path) if path.exists() else {}
    vocoder = vocoder or settings.get("vocoder") or VOCODER
    if config.get("kind") == "token_lm" and settings.get("flow"):
        folder = model_folder(near(folder, str(settings["flow"])))
    elif config.get("kind") != "flow":
        raise ConfigError(f"{folder} has no flow, so it can neither imitate nor convert a voice; give one that has")
    flow, codec = load_flow(str(folder))
    return FlowSound(
        flow, load_mel(near(folder, str(vocoder))), codec=near(folder, codec), identity=weights_sha256(folder)
    )
