"""The codec lab: a recording through a codec with as many codebooks as the slider says, judged and pictured."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadInput, QuaverError
from ..audio import open_audio
from ..models import bundled

if TYPE_CHECKING:
    from ...codecs.base import Codec

__all__ = ["LONGEST", "CodecLab", "Coding"]

LONGEST = 30.0
"""Seconds of a recording that are taken; longer ones are refused."""


@dataclass(frozen=True)
class Coding:
    """What became of a recording.

    Attributes:
        original, decoded: float32 `[n]` at `sample_rate`. codes: int `[codebook, frame]`, those that were kept.
        bitrate: bit/s. pesq, stoi: None where they cannot be computed, and then `notes` say why.
    """

    original: np.ndarray
    decoded: np.ndarray
    sample_rate: int
    codes: np.ndarray
    vocab: int
    bitrate: float
    pesq: float | None
    stoi: float | None
    notes: tuple[str, ...]


class CodecLab:
    """Codecs by name, loaded when they are first needed. Thread-safe; one recording is coded at a time."""

    def __init__(self, names: tuple[str, ...] | None = None) -> None:
        self.names = names if names is not None else tuple(model.name for model in bundled("codec"))
        self._loaded: dict[str, Codec] = {}
        self._lock = threading.Lock()

    def codec(self, name: str) -> Codec:
        """Raises BadInput: a name that is not offered (a page may not choose folders on this disk)."""
        if name not in self.names:
            raise BadInput(f"there is no codec {name!r}; choose one of {', '.join(self.names)}")
        with self._lock:
            return self._load(name)

    @staticmethod
    def short(name: str) -> str:
        """What people see of a folder."""
        return name.rstrip("/").rsplit("/", 1)[-1]

    def _load(self, name: str) -> Codec:
        from ...codecs.loading import load_codec

        if name not in self._loaded:
            codec = load_codec(name)
            if codec.frame_spec.kind != "codes":
                raise BadInput(
                    f"{self.short(name)} makes continuous latents, which have no codebooks; choose another codec"
                )
            self._loaded[name] = codec
        return self._loaded[name]

    def levels(self, name: str) -> int:
        """How many codebooks it has."""
        return self.codec(name).frame_spec.codebooks

    def run(self, recording: str | Path, name: str, codebooks: int) -> Coding:
        """Blocks while it works; call it in a thread.

        Raises:
            BadInput: no audio, too long, a codec or a number of codebooks that there is not. MissingFile: no file.
        """
        import torch

        codec = self.codec(name)
        spec = codec.frame_spec
        if not 1 <= codebooks <= spec.codebooks:
            raise BadInput(
                f"{self.short(name)} has {spec.codebooks} codebooks; take 1 to {spec.codebooks}, not {codebooks}"
            )
        original = read_mono(recording, codec.sample_rate, LONGEST)
        with self._lock, torch.inference_mode():
            codes, _ = codec.encode(torch.from_numpy(original)[None, None])
            codes = codes[:, :codebooks]
            decoded = codec.decode(codes)[0, 0, : len(original)].numpy()
        decoded = np.clip(decoded, -1.0, 1.0).astype(np.float32)
        pesq, stoi, notes = _judge(original, decoded, codec.sample_rate)
        bitrate = float(spec.rate) * codebooks * math.log2(spec.vocab)
        return Coding(
            original, decoded, codec.sample_rate, codes[0].numpy(), spec.vocab, bitrate, pesq, stoi, tuple(notes)
        )


def read_mono(recording: str | Path, sample_rate: int, longest: float) -> np.ndarray:
    """float32 `[n]`: channels mixed, resampled.

    Raises:
        MissingFile, BadInput: not there, not audio, damaged, silent throughout, or longer than `longest` seconds.
    """
    parts, count = [], 0
    try:
        with open_audio(recording) as audio:
            for block in audio.blocks(sample_rate):
                parts.append(block.mean(0))
                count += block.shape[1]
                if count > longest * sample_rate:
                    raise BadInput(f"the recording is longer than {longest:g} s; cut it")
    except QuaverError as error:  # a temporary name tells a visitor nothing
        raise type(error)(str(error).replace(str(recording), "the recording")) from None
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def _judge(original: np.ndarray, decoded: np.ndarray, rate: int) -> tuple[float | None, float | None, list[str]]:
    from ...evaluation.signals import RATE, pesq_wb, resample, stoi

    reference, heard = resample(original, rate, RATE), resample(decoded, rate, RATE)
    figures: list[float | None] = []
    notes: list[str] = []
    for measure in (pesq_wb, stoi):
        try:
            figures.append(measure(reference, heard))
        except QuaverError as error:
            figures.append(None)
            if str(error) not in notes:
                notes.append(str(error))
    return figures[0], figures[1], notes
