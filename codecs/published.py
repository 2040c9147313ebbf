"""Published codecs behind the same door: which there are, and how a checkpoint of each becomes a `Codec`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from .base import Codec

__all__ = [
    "DAC_REASON",
    "PUBLISHED",
    "REFUSED",
    "XCODEC2_REASON",
    "XCODEC_REASON",
    "Published",
    "check_known",
    "load_published",
]

DAC_REASON = "its convolutions look ahead"
XCODEC2_REASON = "its semantic encoder (w2v-BERT) and the attention of its decoder see the whole recording"
XCODEC_REASON = "its semantic encoder (HuBERT) and its convolutions look ahead"


@dataclass(frozen=True)
class Published:
    """A family of published codecs.

    Attributes:
        ids: hub ids of well-known checkpoints. summary: what it is, in a line.
        no_stream: why it cannot stream exactly; empty when it can.
        load: from a folder and its `config.json`.
    """

    ids: tuple[str, ...]
    summary: str
    no_stream: str
    load: Callable[[Path, dict[str, Any]], Codec]


def check_known(name: str) -> None:
    """Raises ConfigError for the hub id of a codec that is known not to fit, with the reason."""
    if name in REFUSED:
        raise ConfigError(f"{name} cannot be used here: {REFUSED[name]}")


def load_published(folder: Path, raw: dict[str, Any]) -> Codec:
    """The codec of a folder whose `config.json` (`raw`) names a `model_type` of `transformers`, in eval mode.

    Raises:
        ConfigError: no codec that is known here. MissingFile, CorruptFile: what is wrong with its weights.
    """
    kind = raw.get("model_type")
    if kind not in PUBLISHED:
        raise ConfigError(
            f"{folder / 'config.json'} is of a model of type {kind!r}; known published codecs: {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[kind].load(folder, raw)


def _mimi(folder: Path, raw: dict[str, Any]) -> Codec:
    from .mimi import load_mimi

    return load_mimi(folder, raw)


def _encodec(folder: Path, raw: dict[str, Any]) -> Codec:
    from .encodec_causal import load_encodec

    return load_encodec(folder, raw)


def _dac(folder: Path, raw: dict[str, Any]) -> Codec:
    from .whole import load_dac

    return load_dac(folder, raw)


def _xcodec2(folder: Path, raw: dict[str, Any]) -> Codec:
    from .whole import load_xcodec2

    return load_xcodec2(folder, raw)


def _xcodec(folder: Path, raw: dict[str, Any]) -> Codec:
    from .whole import load_xcodec

    return load_xcodec(folder, raw)


PUBLISHED: dict[str, Published] = {
    "mimi": Published(("kyutai/mimi",), "Mimi: 24 kHz, 12.5 Hz, 32 x 2048, semantic level first", "", _mimi),
    "encodec": Published(
        ("facebook/encodec_24khz",), "EnCodec: 24 kHz, 75 Hz, 32 x 1024; the first 7 frames come together", "", _encodec
    ),
    "dac": Published(
        ("descript/dac_16khz", "descript/dac_24khz", "descript/dac_44khz"),
        "DAC: 50 to 86 Hz, 9 to 32 x 1024",
        DAC_REASON,
        _dac,
    ),
    "xcodec": Published(
        ("hf-audio/xcodec-hubert-librispeech", "hf-audio/xcodec-hubert-general", "hf-audio/xcodec-wavlm-mls"),
        "X-Codec as published: 16 kHz, 50 Hz, 8 x 1024",
        XCODEC_REASON,
        _xcodec,
    ),
    "xcodec2": Published(
        ("HKUSTAudio/xcodec2-hf",), "X-Codec 2: 16 kHz, 50 Hz, one codebook of 65536", XCODEC2_REASON, _xcodec2
    ),
}
"""By the `model_type` of their `config.json`."""

REFUSED: dict[str, str] = {
    "facebook/encodec_48khz": (
        "it codes stereo in windows of a second and sends a gain beside the codes of each, which frames of codes "
        "cannot carry; use facebook/encodec_24khz"
    ),
}
"""Hub ids of published codecs that do not fit behind this door, and why."""
