"""Exact phone times from a teacher that knows them, to start the recogniser off.

A phoneme recogniser trained with CTC from random weights sits on a plateau for long; a few hundred steps on frames
whose phone is known take it past that. The hibari teacher computes a duration for every phoneme it reads: they are an
inner value of its ONNX graph, which is re-run here up to that value (no audio is made). Speech without such labels then
joins by CTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import BadInput, MissingExtra
from ..tts.phones import parse_misaki
from .corpus import manifest_rows
from .pack import ALIGN_RATE, Pack

__all__ = ["TRACK", "HibariDurations", "add_teacher_alignment", "symbol_starts"]

TRACK = "align.teacher.i16"


class HibariDurations:
    """Durations of a phoneme string as the bundled hibari voice reads it."""

    def __init__(self) -> None:
        import hibari.tts
        import onnxruntime

        try:
            import onnx
        except ImportError as error:
            raise MissingExtra("reading a teacher's durations needs onnx; run: pip install 'quaver[train]'") from error

        assets = Path(hibari.tts.ASSETS)
        model = onnx.load(str(assets / "hibari.onnx"))
        rounded = [n.output[0] for n in model.graph.node if n.op_type == "Round"]
        if len(rounded) != 1:
            raise BadInput("this hibari-tts has another graph; its durations cannot be read (tried with 0.2.1)")
        self.output = rounded[0]
        model.graph.output.append(onnx.helper.make_tensor_value_info(self.output, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        self.vocab: dict[str, int] = json.loads((assets / "vocab.json").read_text(encoding="utf-8"))

    def __call__(self, phonemes: str, speed: float) -> np.ndarray:
        """Frames per character, float `[len(phonemes) + 2]`: the silence before, each character, the silence after."""
        known = [c for c in phonemes if c in self.vocab]
        ids = np.array([[0, *(self.vocab[c] for c in known), 0]], np.int64)
        feed = {"ids": ids, "speed": np.array([speed], np.float32)}
        frames = np.asarray(self.session.run([self.output], feed)[0]).reshape(-1)
        out, at = [frames[0]], 1
        for character in phonemes:
            out.append(frames[at] if character in self.vocab else 0.0)
            at += character in self.vocab
        return np.array([*out, frames[-1]])


def symbol_starts(phonemes: str, frames: np.ndarray, samples: int) -> np.ndarray:
    """First 50 Hz frame of `^` and of each symbol that `parse_misaki` finds in `phonemes`, int16.

    A stress mark belongs to the vowel after it; spaces belong to the symbol before them. Times are scaled to the true
    length of the audio, so that the unit of `frames` does not matter.
    """
    begins = np.concatenate([[0.0], np.cumsum(frames)])  # begins[1 + i] is where character i begins
    scale = samples / 24_000 * ALIGN_RATE / max(begins[-1], 1e-6)
    starts = [0.0]
    for _, at in parse_misaki(phonemes):
        while at > 0 and at <= len(phonemes) and phonemes[at - 1] in "ˈˌ":
            at -= 1
        starts.append(begins[min(1 + at, len(begins) - 2)])
    return np.round(np.array(starts) * scale).astype(np.int16)


def add_teacher_alignment(pack: Pack, manifest: Path) -> None:
    """Adds `align.teacher.i16` to a pack of hibari's speech.

    Args:
        manifest: what the pack was made of; its rows must hold `phonemes` (else they have no durations) and `speed`.

    Raises:
        MissingFile, CorruptFile: of the manifest. BadInput: it holds none of the pack's utterances.
    """
    durations = HibariDurations()
    rows = {row["id"]: row for row in manifest_rows(manifest) if row.get("phonemes")}
    if not any(entry.id in rows for entry in pack.entries):
        raise BadInput(
            f"{manifest} holds no phonemes of what is in {pack.folder}; give the manifest it was packed from"
        )

    def starts() -> Iterator[np.ndarray]:
        for entry in pack.entries:
            row = rows.get(entry.id)
            if row is None:
                yield np.zeros(0, np.int16)
                continue
            found = symbol_starts(
                row["phonemes"], durations(row["phonemes"], float(row.get("speed", 1.0))), entry.samples
            )
            yield found if len(found) == len(entry.phones) + 1 else np.zeros(0, np.int16)

    pack.write_track(TRACK, starts(), np.int16)
