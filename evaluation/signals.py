"""Distances between a signal and its reference: PESQ, STOI, log-mel and pitch. Arrays are float32 [sample]."""

from __future__ import annotations

import numpy as np
import soxr

from ..errors import BadInput, MissingExtra

__all__ = ["aligned", "f0_error", "mel_distance", "pesq_wb", "pitch", "resample", "stoi"]

RATE = 16_000  # what PESQ-wb, STOI and every neural judge listen at
SHORTEST = 0.3  # seconds; STOI needs 30 frames of 12.8 ms that are not silent
_FLOOR = 1e-5  # of mel power: about 50 dB under speech, so that digital silence and faint noise count the same


def resample(audio: np.ndarray, source: int, target: int = RATE) -> np.ndarray:
    """float32 [sample] at `target` Hz (soxr HQ), clipped to [-1, 1]."""
    if source != target:
        audio = soxr.resample(audio, source, target)
    return np.clip(audio, -1.0, 1.0).astype(np.float32)


def aligned(reference: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to the shorter one: a codec pads the last frame.

    Raises:
        BadInput: one of them is shorter than 0.3 s at 16 kHz, or the reference is silent.
    """
    samples = min(len(reference), len(degraded))
    if samples < SHORTEST * RATE:
        raise BadInput(f"{samples / RATE:.2f} s of speech are too short to compare; give at least {SHORTEST} s")
    if not np.abs(reference[:samples]).max() > 0:
        raise BadInput("the reference is silent; give a recording of speech")
    return reference[:samples], degraded[:samples]


def pesq_wb(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1.04..4.64. Inputs at 16 kHz.

    Raises:
        BadInput: PESQ finds no utterance in the signals.
        MissingExtra: pesq is not installed.
    """
    try:
        import pesq
    except ImportError:
        raise MissingExtra("PESQ needs the package pesq: pip install 'quaver[eval]'") from None
    reference, degraded = aligned(reference, degraded)
    if not np.abs(degraded).max() > 0:
        return 1.04  # PESQ refuses silence; it is the worst that it can say of lost speech
    try:
        return float(pesq.pesq(RATE, reference, degraded, "wb"))
    except pesq.PesqError as error:
        raise BadInput(f"PESQ cannot score this pair: {error}") from None


def stoi(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), 0..1. Inputs at 16 kHz. MissingExtra without pystoi."""
    try:
        import pystoi
    except ImportError:
        raise MissingExtra("STOI needs the package pystoi: pip install 'quaver[eval]'") from None
    reference, degraded = aligned(reference, degraded)
    return float(pystoi.stoi(reference, degraded, RATE))


def mel_distance(reference: np.ndarray, degraded: np.ndarray, sample_rate: int = 24_000) -> float:
    """Mean absolute difference of two log-mel spectrograms (80 bands, 43 ms window, 11 ms hop at 24 kHz), in dB."""
    import librosa

    samples = min(len(reference), len(degraded))
    if samples == 0:
        raise BadInput("there is no audio to compare")

    def log_mel(audio: np.ndarray) -> np.ndarray:
        mel = librosa.feature.melspectrogram(y=audio[:samples], sr=sample_rate, n_fft=1024, hop_length=256, n_mels=80)
        return 10 * np.log10(np.maximum(mel, _FLOOR))

    return float(np.abs(log_mel(reference) - log_mel(degraded)).mean())


def pitch(audio: np.ndarray, frame: float = 0.005) -> np.ndarray:
    """F0 in Hz of every `frame` seconds, 0 where unvoiced; input at 16 kHz.

    WORLD's DIO and StoneMask (Morise et al. 2016). MissingExtra without pyworld.
    """
    try:
        import pyworld.pyworld as world
    except ImportError:
        raise MissingExtra("pitch needs pyworld: pip install 'quaver[train]'") from None
    double = audio.astype(np.float64)
    rough, times = world.dio(double, RATE, f0_floor=60.0, f0_ceil=500.0, frame_period=1000 * frame)
    return world.stonemask(double, rough, times, RATE)


def f0_error(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """Root mean square pitch error in cents over frames that both voice; None if there are none. Inputs at 16 kHz.

    MissingExtra without pyworld.
    """
    reference, degraded = aligned(reference, degraded)
    first, second = pitch(reference), pitch(degraded)
    both = (first > 0) & (second > 0)
    if not both.any():
        return None
    return float(np.sqrt(np.mean((1200 * np.log2(first[both] / second[both])) ** 2)))
