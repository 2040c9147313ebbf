"""Judging codecs: a recording against what is left of it, and how the codes are used."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..app.audio import write_audio
from ..errors import BadInput, CorruptFile, MissingFile
from .judges import Judges
from .metrics import Metric, Sample
from .report import System
from .scoring import score
from .voices import audio_files, read_mono

if TYPE_CHECKING:
    from torch import Tensor

    from ..codecs.base import Codec

__all__ = ["CodeCounts", "Recording", "judge_codec", "judge_pair", "list_recordings"]


@dataclass(frozen=True)
class Recording:
    """A file to code. Attributes: text, None if unknown; voice, "" if unknown."""

    path: Path
    text: str | None = None
    voice: str = ""


def list_recordings(source: Path, limit: int | None = None, seed: int = 0) -> list[Recording]:
    """The recordings of a folder (all below it), or of a JSONL manifest with `path` and perhaps `text` and `voice`.

    Paths in a manifest are relative to it. A `limit` draws that many, the same ones for the same seed.

    Raises:
        MissingFile: nothing there. CorruptFile: a line that is no such entry.
    """
    if source.is_dir():
        found = [Recording(path, voice=path.parent.name) for path in audio_files(source)]
    elif source.is_file():
        found = _manifest(source)
    else:
        raise MissingFile(f"there is no folder or manifest {source}; check --files")
    if limit is not None and limit < len(found):
        kept = sorted(random.Random(seed).sample(range(len(found)), limit))
        found = [found[i] for i in kept]
    return found


def _manifest(path: Path) -> list[Recording]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            place, text, voice = path.parent / entry["path"], entry.get("text"), entry.get("voice")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CorruptFile(f"{path} line {number} is no JSON object with a path; write one per recording") from None
        found.append(Recording(place, text, voice or ""))
    if not found:
        raise MissingFile(f"{path} names no recordings")
    return found


class CodeCounts:
    """How often each entry of each codebook is drawn."""

    def __init__(self, codebooks: int, vocab: int) -> None:
        self.counts = np.zeros((codebooks, vocab), dtype=np.int64)

    def add(self, codes: np.ndarray) -> None:
        """Counts codes int [codebook, frame]."""
        for level, row in enumerate(codes):
            self.counts[level] += np.bincount(row, minlength=self.counts.shape[1])

    @property
    def frames(self) -> int:
        return int(self.counts[0].sum())

    def use(self) -> list[float]:
        """Share of entries of each level that were drawn at least once. It needs many more frames than entries."""
        return [float(x) for x in (self.counts > 0).mean(axis=1)]

    def entropy(self) -> list[float]:
        """Bits per code of each level, by its own frequencies."""
        shares = self.counts / max(1, self.frames)
        logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
        return [float(x) for x in -(shares * logs).sum(axis=1)]

    def findings(self, rate: float) -> dict[str, Any]:
        """Frames, use, entropy, and bit/s both nominal and by entropy; `rate` in frames per second."""
        codebooks, vocab = self.counts.shape
        return {
            "frames": self.frames, "use": self.use(), "entropy": self.entropy(),
            "bitrate": rate * codebooks * math.log2(vocab), "entropy_bitrate": rate * sum(self.entropy()),
        }  # fmt: skip


def judge_codec(
    codec: Codec, name: str, recordings: Sequence[Recording], metrics: Mapping[str, Metric], judges: Judges, *,
    sweep: Sequence[int] = (), audio_dir: Path | None = None, tick: Any = None,
) -> list[System]:  # fmt: skip
    """The originals and what the codec makes of them; with `sweep` also of only the first n codebooks.

    Every recording is first brought to the codec's rate and one channel: both sides are judged at that rate. Recordings
    without a text are compared with what the recogniser hears in the original, whose own WER is then left out.
    """
    spec = codec.frame_spec
    counts = CodeCounts(spec.codebooks, spec.vocab) if spec.kind == "codes" else None
    depths = _depths(spec.codebooks if counts else 0, sweep)
    heard: dict[int, str] = {}

    def texts(index: int, recording: Recording, original: Sample) -> str | None:
        if recording.text is None and "wer" in metrics:
            if index not in heard:
                heard[index] = original.transcript(judges)
            return heard[index] or None
        return recording.text

    def originals() -> Iterator[tuple[dict[str, Any], Sample]]:
        for index, recording in enumerate(recordings):
            audio, rate = read_mono(recording.path, codec.sample_rate)
            yield _head(index, recording), Sample(audio, rate, recording.text)
            if tick:
                tick()

    def coded(depth: int | None) -> Iterator[tuple[dict[str, Any], Sample]]:
        for index, recording in enumerate(recordings):
            audio, rate = read_mono(recording.path, codec.sample_rate)
            decoded, codes, wall, cpu = _resynthesise(codec, audio, depth)
            if counts is not None and depth in (None, spec.codebooks):
                counts.add(codes)
            text = texts(index, recording, Sample(audio, rate))
            if audio_dir:
                _keep(audio_dir / (name if depth is None else f"{name}-{depth}"), index, recording, decoded, rate)
            head = {**_head(index, recording), "text": text or ""}
            yield head, Sample(decoded, rate, text, reference=audio, wall=wall, cpu=cpu)
            if tick:
                tick()

    plain = _without_reference(metrics, all(recording.text is not None for recording in recordings))
    systems = [score("original", originals(), plain, judges)]
    _resynthesise(codec, np.zeros(codec.sample_rate, np.float32), None)  # first-call costs belong to no recording
    for depth in depths:
        system = score(name, coded(depth), metrics, judges, voice="" if depth is None else f"{depth} codebooks")
        if counts is not None and depth is None:
            system = replace(system, extra={"codes": counts.findings(float(spec.rate))})
        systems.append(system)
    return systems


def _depths(codebooks: int, sweep: Sequence[int]) -> list[int | None]:
    """All codebooks first, then each depth asked for. Raises BadInput for one that the codec does not have."""
    for depth in sweep:
        if not 1 <= depth <= codebooks:
            raise BadInput(f"--sweep {depth}: this codec has {codebooks} codebooks")
    return [None, *sorted({depth for depth in sweep if depth < codebooks}, reverse=True)]


def _resynthesise(codec: Codec, audio: np.ndarray, depth: int | None) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Decoded float32 [sample] as long as `audio`, codes int [codebook, frame], wall and CPU seconds."""
    import torch

    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        frames: Tensor = codec.encode(torch.from_numpy(audio)[None, None])[0]
        if depth is not None:
            frames = frames[:, :depth]
        decoded = codec.decode(frames)[0, 0, : len(audio)].float().numpy()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return decoded, frames[0].numpy(), wall, cpu


def judge_pair(
    reference: Path, decoded: Path, metrics: Mapping[str, Metric], judges: Judges, *, text: str | None = None
) -> list[System]:
    """One recording and what a codec left of it, as two files; the second is brought to the rate of the first."""
    original, rate = read_mono(reference)
    audio, _ = read_mono(decoded, rate)
    first = Sample(original, rate, text)
    plain = _without_reference(metrics, text is not None)
    systems = [score("original", [({"index": 0, "text": text or ""}, first)], plain, judges)]
    if text is None and "wer" in metrics:
        text = first.transcript(judges) or None
    head = {"index": 0, "text": text or "", "length_difference": len(audio) - len(original)}
    return [*systems, score("decoded", [(head, Sample(audio, rate, text, reference=original))], metrics, judges)]


def _without_reference(metrics: Mapping[str, Metric], texts: bool) -> dict[str, Metric]:
    """What can be said of an original: it has no reference, takes no time, and perhaps has no text."""
    unmet = {"reference", "timing"} if texts else {"reference", "timing", "text"}
    return {name: metric for name, metric in metrics.items() if not metric.needs & unmet}


def _head(index: int, recording: Recording) -> dict[str, Any]:
    return {"index": index, "path": str(recording.path), "text": recording.text or "", "voice": recording.voice}


def _keep(folder: Path, index: int, recording: Recording, audio: np.ndarray, rate: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_audio(folder / f"{index:03d}-{recording.path.stem}.wav", audio, rate)
