"""Semantic teachers from `transformers`: any HuBERT, WavLM, wav2vec 2.0 or Whisper encoder, by `hf:FOLDER`.

X-Codec's features (Ye et al. 2024, github.com/zhenye234/xcodec): the mean over all hidden states, brought to the
codec's frames. Two things are done otherwise. The teacher never leaves eval mode: X-Codec's trainer puts it into train
mode, with dropout in the targets. And each dimension is shifted and scaled by fixed numbers to mean 0 and variance 1,
so that the semantic loss is of the order of one whatever the teacher (X-Codec weighs raw features by 100).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torchaudio.transforms import Resample

from ..codecs.native import XCodec
from ..errors import BadInput, ConfigError, CorruptFile, MissingFile

__all__ = ["PREFIX", "HubTeacher", "TeacherOutput", "load_hub_teacher"]

PREFIX = "hf:"
RATE = 16_000
"""Hz that all these encoders read."""
_WAVES = ("hubert", "wavlm", "wav2vec2", "data2vec-audio", "unispeech", "unispeech-sat")


@dataclass
class TeacherOutput:
    """Attributes: features `[batch, dim, frame]`."""

    features: Tensor


class HubTeacher(nn.Module):
    """Audio `[batch, 1, sample]` at the codec's rate -> standardised features, one column per frame of the codec.

    Attributes:
        dim: width of the features.
        mean, scale: of each dimension, set by `calibrate` or `standardise_as`; until then features are as the encoder
            gives them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: nn.Module, extractor: Any, sample_rate: int, frame_size: int) -> None:
        super().__init__()
        self.encoder, self.extractor, self.frame_size = encoder, extractor, frame_size
        config: Any = encoder.config
        self.dim = int(config.hidden_size)
        self.whisper = config.model_type == "whisper"
        self.resample = Resample(sample_rate, RATE)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> HubTeacher:
        """Stays in eval mode, whoever asks."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> TeacherOutput:
        """Raises BadInput: shorter than a frame."""
        frames = audio.shape[-1] // self.frame_size
        if not frames:
            raise BadInput(f"the teacher needs at least one frame, {self.frame_size} samples, not {audio.shape[-1]}")
        return TeacherOutput((self._raw(audio, frames) - self.mean[:, None]) * self.scale[:, None])

    @torch.no_grad()
    def calibrate(self, audio: Tensor) -> None:
        """Sets mean and scale by these recordings `[batch, 1, sample]`."""
        rows = self._raw(audio, audio.shape[-1] // self.frame_size).transpose(1, 2).flatten(0, 1).double()
        self.mean.copy_(rows.mean(0))
        self.scale.copy_(1 / rows.std(0).clamp(min=1e-4))

    @torch.no_grad()
    def standardise_as(self, codec: XCodec) -> None:
        """Takes the mean and scale that a codec of the form `teacher_input` was trained with, and carries with it."""
        self.mean.copy_(codec.teacher_mean)
        self.scale.copy_(codec.teacher_scale)

    def _raw(self, audio: Tensor, frames: int) -> Tensor:
        """The mean over hidden states, averaged over each frame of the codec."""
        wave = self.resample(audio[:, 0].float())
        states = self._whisper_states(wave) if self.whisper else self._wave_states(wave)
        features = torch.stack(states).mean(0).transpose(1, 2)
        return F.adaptive_avg_pool1d(features, frames)

    def _wave_states(self, wave: Tensor) -> tuple[Tensor, ...]:
        if getattr(self.extractor, "do_normalize", False):
            wave = (wave - wave.mean(-1, keepdim=True)) / (wave.var(-1, keepdim=True) + 1e-7).sqrt()
        wave = F.pad(wave, (160, 160))  # as X-Codec: the first window is centred on the start, and 320 samples a step
        return self.encoder(wave, output_hidden_states=True).hidden_states

    def _whisper_states(self, wave: Tensor) -> list[Tensor]:
        """Whisper's encoder over as much as there is, instead of a window of 30 s filled with silence: a crop of a
        second would cost thirty times as much. It takes the first positions; longer audio goes in pieces."""
        encoder: Any = self.encoder
        positions = encoder.embed_positions.weight
        pieces = [self._whisper_piece(encoder, part, positions) for part in wave.split(320 * len(positions), -1)]
        return [torch.cat(level, 1) for level in zip(*pieces, strict=True)]

    def _whisper_piece(self, encoder: Any, wave: Tensor, positions: Tensor) -> list[Tensor]:
        mel = self.extractor(
            list(wave.cpu().numpy()), sampling_rate=RATE, padding="longest", truncation=False, return_tensors="pt"
        ).input_features.to(wave.device)
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
        states = [x + positions[: x.shape[1]]]
        for layer in encoder.layers:
            made = layer(states[-1], None)
            states.append(made[0] if isinstance(made, tuple) else made)
        return [*states[:-1], encoder.layer_norm(states[-1])]


def load_hub_teacher(name: str, sample_rate: int, frame_size: int) -> HubTeacher:
    """The encoder of a folder in the format of `save_pretrained`; of Whisper, the encoder only.

    Raises:
        MissingFile, CorruptFile: what is wrong with the folder. ConfigError: an encoder of another kind.
    """
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    folder = Path(name.removeprefix(PREFIX)).expanduser()
    if not (folder / "config.json").exists():
        raise MissingFile(f"{folder / 'config.json'} is missing; give the folder of a HuBERT, WavLM or Whisper model")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = config.model_type
    if kind not in (*_WAVES, "whisper"):
        raise ConfigError(f"{folder} is a {kind!r}; semantic teachers are {', '.join(_WAVES)} or whisper encoders")
    whisper = kind == "whisper"
    try:
        model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32,
            attn_implementation="eager" if whisper else None,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CorruptFile(f"{folder}: {str(error).strip().splitlines()[0]}; fetch the model again") from None
    extractors: Any = WhisperFeatureExtractor if whisper else Wav2Vec2FeatureExtractor
    if (folder / "preprocessor_config.json").exists():
        extractor = extractors.from_pretrained(folder, local_files_only=True)
    else:
        extractor = extractors(feature_size=config.num_mel_bins) if whisper else extractors(do_normalize=False)
    return HubTeacher(model.get_encoder() if whisper else model, extractor, sample_rate, frame_size)
