"""Published codecs that see the future: DAC, X-Codec and X-Codec 2, run by `transformers`, whole recordings only.

Their convolutions (and the semantic encoders) look ahead, so a chunked run would differ from a whole one. Items of
different length in a batch run by groups of equal length: with such codecs, padding would change the last codes.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadInput, ConfigError, CorruptFile, MissingExtra
from ..nn.state import State
from .base import Codec, FrameSpec, check_audio, check_codes
from .published import DAC_REASON, XCODEC2_REASON, XCODEC_REASON

__all__ = ["DacCodec", "XCodec2Hub", "XCodecHub", "load_dac", "load_xcodec", "load_xcodec2"]


class _WholeCodec(Codec):
    """Encodes and decodes through a model of `transformers` that this class owns."""

    latency = 0

    def __init__(self, model: nn.Module, sample_rate: int, frame_size: int, codebooks: int, vocab: int) -> None:
        super().__init__()
        self.model = model
        self.sample_rate, self.frame_size = sample_rate, frame_size
        rate = Fraction(sample_rate, frame_size)
        self.frame_spec = FrameSpec("codes", rate, codebooks, vocab)
        self.all_codebooks = codebooks

    def _codes(self, audio: Tensor) -> Tensor:
        """Whole frames of equally long items -> codes of all levels."""
        raise NotImplementedError

    def _audio(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def encode(
        self,
        audio: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        codebooks: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Audio `[batch, 1, sample]` -> codes `[batch, codebooks, frame]` and frame counts; each item as if alone.

        Args:
            lengths: LongTensor[batch] in samples. codebooks: keep only the first so many levels.

        Raises:
            BadInput: not finite, not mono, or a stream.
        """
        check_audio(audio)
        self._refuse(state)
        levels = self._levels(codebooks)
        audio, counts = self._whole_frames(audio, lengths, None)
        codes = torch.zeros(
            audio.shape[0], levels, audio.shape[-1] // self.frame_size, dtype=torch.long, device=audio.device
        )
        for count in sorted({int(n) for n in counts if n}):
            rows = torch.nonzero(counts == count)[:, 0]
            part = audio[rows, :, : count * self.frame_size]
            if lengths is not None:  # what lies past an item's end is not its own
                index = torch.arange(part.shape[-1], device=audio.device)
                part = part * (index < lengths[rows, None])[:, None]
            made = self._codes(part)
            if made.shape[-1] != count:
                raise BadInput(f"{count} frames of audio gave {made.shape[-1]} frames of codes; give longer audio")
            codes[rows, :, :count] = made[:, :levels]
        return codes, counts

    def decode(self, frames: Tensor, state: State | None = None) -> Tensor:
        """Codes (any number of leading codebooks) -> audio `[batch, 1, frame * frame_size]`."""
        self._refuse(state)
        check_codes(frames, self.all_codebooks, self.frame_spec.vocab)
        samples = frames.shape[-1] * self.frame_size
        if not samples:
            return torch.zeros(frames.shape[0], 1, 0, device=frames.device)
        audio = self._audio(frames)
        # An odd stride without output padding (DAC at 16 and 24 kHz) gives a few samples less than it took.
        return F.pad(audio, (0, max(0, samples - audio.shape[-1])))[..., :samples]

    def _refuse(self, state: State | None) -> None:
        if state is not None:
            self.init_state(1)


class DacCodec(_WholeCodec):
    """DAC (Kumar et al. 2023, github.com/descriptinc/descript-audio-codec), 16, 24 or 44.1 kHz."""

    no_stream = DAC_REASON

    def _codes(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio).audio_codes  # type: ignore[operator]

    def _audio(self, codes: Tensor) -> Tensor:
        return self.model.decode(audio_codes=codes).audio_values[:, None]  # type: ignore[operator]


class XCodecHub(_WholeCodec):
    """X-Codec as published (Ye et al. 2024), 16 kHz, 50 Hz, 8 x 1024; the native `XCodec` is its causal relative."""

    no_stream = XCODEC_REASON

    def train(self, mode: bool = True) -> XCodecHub:
        """The semantic teacher stays in eval mode: the published trainer left its dropout on."""
        super().train(mode)
        self.model.semantic_model.eval()  # type: ignore[union-attr]
        return self

    def _codes(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, return_dict=False)  # type: ignore[operator]

    def _audio(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes, return_dict=False)  # type: ignore[operator]


class XCodec2Hub(_WholeCodec):
    """X-Codec 2 as published (Ye et al. 2025), 16 kHz, 50 Hz, one codebook of 65536.

    Its feature extractor adds a sample before it fills the last frame with silence, so that a recording of whole frames
    grows by one; that frame of silence is seen by the encoder and then left out, as the published mask of codes says.
    """

    no_stream = XCODEC2_REASON

    def __init__(self, model: nn.Module, sample_rate: int, frame_size: int, codebooks: int, vocab: int) -> None:
        from transformers import Xcodec2FeatureExtractor

        super().__init__(model, sample_rate, frame_size, codebooks, vocab)
        self.extractor = Xcodec2FeatureExtractor(sampling_rate=sample_rate, hop_length=frame_size)

    def train(self, mode: bool = True) -> XCodec2Hub:
        """The semantic encoder stays in eval mode."""
        super().train(mode)
        self.model.semantic_encoder.eval()  # type: ignore[union-attr]
        return self

    def _codes(self, audio: Tensor) -> Tensor:
        given = self.extractor(list(audio[:, 0].cpu()), sampling_rate=self.sample_rate, return_tensors="pt")
        made = self.model.encode(**{key: value.to(audio.device) for key, value in given.items()})  # type: ignore[operator]
        return made.audio_codes[..., : audio.shape[-1] // self.frame_size].long()

    def _audio(self, codes: Tensor) -> Tensor:
        audio = self.model.decode(audio_codes=codes).audio_values  # type: ignore[operator]
        return audio if audio.ndim == 3 else audio[:, None]


def load_dac(folder: Path, raw: dict[str, Any]) -> DacCodec:
    """A published DAC in eval mode. Raises MissingFile, ConfigError, CorruptFile: what is wrong with it."""
    from transformers import DacModel

    model = _pretrained(DacModel, folder)
    config = model.config
    rate = int(config.sampling_rate)
    return DacCodec(model, rate, int(config.hop_length), int(config.n_codebooks), int(config.codebook_size)).eval()


def load_xcodec(folder: Path, raw: dict[str, Any]) -> XCodecHub:
    """A published X-Codec in eval mode. Raises MissingFile, ConfigError, CorruptFile: what is wrong with it."""
    from transformers import XcodecModel

    model = _pretrained(XcodecModel, folder)
    config = model.config
    rate = int(config.sample_rate)
    return XCodecHub(model, rate, int(config.hop_length), int(config.num_quantizers), int(config.codebook_size)).eval()


def load_xcodec2(folder: Path, raw: dict[str, Any]) -> XCodec2Hub:
    """A published X-Codec 2 in eval mode. Raises MissingFile, ConfigError, CorruptFile: what is wrong with it."""
    try:
        from transformers import Xcodec2Model
    except ImportError:
        raise MissingExtra("this version of transformers has no X-Codec 2: pip install -U transformers") from None

    model = _pretrained(Xcodec2Model, folder)
    config = model.config
    vocab = math.prod(config.quantization_levels)
    return XCodec2Hub(model, int(config.sampling_rate), int(config.hop_length), 1, vocab).eval()


def _pretrained(model_class: Any, folder: Path) -> Any:
    from .checkpoints import read_tensors

    read_tensors(folder)  # what is missing, damaged or not finite is said in our words
    try:
        model, info = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (RuntimeError, OSError, KeyError) as error:
        line = str(error).strip().splitlines()[0]
        raise CorruptFile(f"{folder}: the weights do not fit config.json ({line}); fetch the model again") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / 'config.json'}: {str(error).strip().splitlines()[0]}") from None
    odd = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]))
    if odd:
        raise CorruptFile(f"{folder}: the weights do not fit config.json (such as {odd[0]}); fetch the model again")
    return model
