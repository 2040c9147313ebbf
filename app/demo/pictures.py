"""Pictures of sound and of codes as RGB arrays: no plotting library, so that the demo needs none."""

from __future__ import annotations

import base64
import html
import io

import numpy as np

__all__ = ["figure", "heat_map", "marked", "spectrogram", "waveform"]

Picture = np.ndarray
"""uint8 `[height, width, 3]`."""

WIDTH = 900  # pixels; a page scales it down
DYNAMICS = 80.0  # dB that are shown below the loudest bin
LOWEST, HIGHEST = 60.0, 12_000.0  # Hz
# Anchors of a colour map whose lightness grows evenly, so that it also reads in grey.
_ANCHORS = np.array(
    [(8, 6, 30), (52, 16, 98), (120, 28, 109), (187, 55, 84), (237, 105, 37), (251, 180, 26), (252, 255, 164)], float
)
_LIGHT, _INK = np.array([246, 247, 251], np.uint8), np.array([58, 76, 160], np.uint8)
_MARK = np.array([228, 87, 46], np.uint8)


def _coloured(levels: np.ndarray) -> Picture:
    """Levels 0..1 `[height, width]` in colour."""
    place = np.clip(levels, 0, 1) * (len(_ANCHORS) - 1)
    low = np.minimum(place.astype(int), len(_ANCHORS) - 2)
    part = (place - low)[..., None]
    return np.rint(_ANCHORS[low] * (1 - part) + _ANCHORS[low + 1] * part).astype(np.uint8)


def _columns(count: int, width: int) -> np.ndarray:
    """Which of `count` things stands in each of `width` columns."""
    return np.minimum(np.arange(width) * count // width, count - 1)


def spectrogram(samples: np.ndarray, sample_rate: int, height: int = 220, width: int = WIDTH) -> Picture:
    """Log-power spectrogram of `[n]` samples, low pitches at the bottom, on an axis that grows like hearing (mel)."""
    size = max(256, 1 << round(np.log2(0.032 * sample_rate)))
    hop = max(1, max(len(samples), size) // width)
    padded = np.pad(np.asarray(samples, np.float32), (size // 2, size // 2 + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)) ** 2
    top = min(HIGHEST, sample_rate / 2)
    mels = np.linspace(np.log1p(LOWEST / 700), np.log1p(top / 700), height)
    bins = np.clip(np.rint(700 * np.expm1(mels) * size / sample_rate).astype(int), 0, power.shape[1] - 1)
    loud = 10 * np.log10(np.maximum(power[:, bins].T[::-1], 1e-10))
    loud = loud[:, _columns(loud.shape[1], width)]
    return _coloured(1 + (loud - max(float(loud.max()), -40.0)) / DYNAMICS)


def waveform(samples: np.ndarray, height: int = 120, width: int = WIDTH) -> Picture:
    """Highest and lowest sample of each column."""
    picture = np.tile(_LIGHT, (height, width, 1))
    if not len(samples):
        return picture
    edges = np.linspace(0, len(samples), width + 1).astype(int)
    rows = np.arange(height)
    for column in range(width):
        part = samples[edges[column] : max(edges[column + 1], edges[column] + 1)]
        low, high = (float(part.min()), float(part.max())) if len(part) else (0.0, 0.0)
        middle, half = (height - 1) / 2, (height - 3) / 2
        inside = (rows >= middle - half * min(high, 1.0) - 0.5) & (rows <= middle - half * max(low, -1.0) + 0.5)
        picture[inside, column] = _INK
    return picture


def marked(picture: Picture, begin: float, end: float) -> Picture:
    """A copy in which a part of the time axis (shares of it, 0 to 1) is tinted, with a line on either side."""
    copy, width = picture.copy(), picture.shape[1]
    first = min(max(0, round(begin * width)), width - 1)
    last = min(max(first, round(end * width)), width - 1)
    copy[:, first : last + 1] = (0.72 * copy[:, first : last + 1] + 0.28 * _MARK).astype(np.uint8)
    for column in (first, last):
        copy[:, max(0, column - 1) : column + 1] = _MARK
    return copy


def figure(picture: Picture, caption: str) -> str:
    """A picture as HTML with its caption, which is also its name for those who do not see it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    data, name = base64.b64encode(file.getvalue()).decode(), html.escape(caption)
    return (
        f'<figure class="picture"><figcaption>{name}</figcaption>'
        f'<img alt="{name}" src="data:image/png;base64,{data}"></figure>'
    )


def heat_map(codes: np.ndarray, vocab: int, width: int = WIDTH, row: int = 18) -> Picture:
    """Codes int `[codebook, frame]`: a row for each codebook, the first at the top, the colour is the code's number."""
    picture = _coloured(codes[:, _columns(codes.shape[1], width)] / max(1, vocab - 1))
    picture = np.repeat(picture, row, axis=0)
    picture[::row] = _LIGHT  # a thin line between two rows
    return picture
