"""Exact phone times from a teacher that knows them, to start the recogniser off.

A phoneme recogniser trained with CTC from random weights sits on a plateau for long; a few hundred steps on frames
whose phone is known take it past that. The hibari teacher computes a duration for every phoneme it reads: they are an
inner value of its ONNX graph, which is re-run here up to that value (no audio is made). Speech without such labels then
joins by CTC. The Kokoro teacher is read the same way. No aligner is as exact as the teacher itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, MissingExtra
from ..tts.phones import parse_misaki
from .corpus import manifest_rows
from .pack import ALIGN_RATE, Pack
from .teachers import Kokoro

__all__ = ["TRACK", "HibariDurations", "KokoroDurations", "add_teacher_alignment", "symbol_starts"]

TRACK = "align.teacher.i16"


class HibariDurations:
    """Durations of a phoneme string as the bundled hibari voice reads it."""

    def __init__(self) -> None:
        import hibari.tts

        assets = Path(hibari.tts.ASSETS)
        self.vocab: dict[str, int] = json.loads((assets / "vocab.json").read_text(encoding="utf-8"))
        self.run = _durations_of(assets / "hibari.onnx", "Round")

    def __call__(self, phonemes: str, voice: str, speed: float) -> np.ndarray:
        """Frames per character, float `[len(phonemes) + 2]`: the silence before, each character, the silence after."""
        ids = [self.vocab[c] for c in phonemes if c in self.vocab]
        feed = {"ids": np.array([[0, *ids, 0]], np.int64), "speed": np.array([speed], np.float32)}
        return _per_character(self.run(feed), phonemes, self.vocab)


class KokoroDurations:
    """Durations as a Kokoro voice reads a phoneme string; about a tenth of the cost of the speech itself."""

    def __init__(self, folder: str | None = None) -> None:
        self.teacher = Kokoro(folder)
        self.run = _durations_of(self.teacher.path, "Clip", after="Round")

    def __call__(self, phonemes: str, voice: str, speed: float) -> np.ndarray:
        """As of `HibariDurations`; `voice` is Kokoro's name for it (`am_michael`)."""
        feed = self.teacher.inputs(phonemes, voice, speed)
        return _per_character(self.run(feed), phonemes, self.teacher.vocab)


def _durations_of(path: Path, kind: str, after: str | None = None) -> Callable[[Any], np.ndarray]:
    """Runs an ONNX graph up to the one node of that kind (fed by a node of kind `after`) that gives the durations."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("reading a teacher's durations needs onnx; run: pip install 'quaver[train]'") from error
    model = onnx.load(str(path))
    fed = {output for node in model.graph.node if node.op_type == after for output in node.output}
    found = [n.output[0] for n in model.graph.node if n.op_type == kind and (after is None or fed & set(n.input))]
    if len(found) != 1:
        raise BadInput(
            f"{path} has another graph than the one whose durations quaver can read (hibari-tts 0.2.1, Kokoro 1.0)"
        )
    inputs = [i.name for i in model.graph.input]
    model.graph.output.append(onnx.helper.make_tensor_value_info(found[0], onnx.TensorProto.FLOAT, None))
    part = onnx.utils.Extractor(model).extract_model(inputs, found)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(part.SerializeToString(), options)
    return lambda feed: np.asarray(session.run(found, feed)[0]).reshape(-1)


def _per_character(frames: np.ndarray, phonemes: str, vocab: Mapping[str, int]) -> np.ndarray:
    """Durations of the characters that the teacher knows -> of all, 0 for those that it does not."""
    out, at = [frames[0]], 1
    for character in phonemes:
        out.append(frames[at] if character in vocab else 0.0)
        at += character in vocab
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


def add_teacher_alignment(pack: Pack, manifest: Path, kokoro: str | None = None) -> None:
    """Adds `align.teacher.i16` to a pack of hibari's or Kokoro's speech; utterances of other voices get an empty row.

    Args:
        manifest: what the pack was made of; its rows must hold `phonemes` (else they have no durations) and `speed`.
        kokoro: folder of the Kokoro model (default: $KOKORO_DIR); needed only where a voice is called `kokoro_...`.

    Raises:
        MissingFile, CorruptFile: of the manifest or Kokoro. BadInput: it holds none of the pack's utterances.
    """
    rows = {row["id"]: row for row in manifest_rows(manifest) if row.get("phonemes")}
    if not any(entry.id in rows for entry in pack.entries):
        raise BadInput(
            f"{manifest} holds no phonemes of what is in {pack.folder}; give the manifest it was packed from"
        )
    models: dict[str, HibariDurations | KokoroDurations] = {}

    def starts() -> Iterator[np.ndarray]:
        for entry in pack.entries:
            teacher, _, voice = entry.voice.partition("_")
            row = rows.get(entry.id)
            if row is None or teacher not in ("hibari", "kokoro"):
                yield np.zeros(0, np.int16)
                continue
            if teacher not in models:
                models[teacher] = HibariDurations() if teacher == "hibari" else KokoroDurations(kokoro)
            frames = models[teacher](row["phonemes"], voice, float(row.get("speed", 1.0)))
            found = symbol_starts(row["phonemes"], frames, entry.samples)
            yield found if len(found) == len(entry.phones) + 1 else np.zeros(0, np.int16)

    pack.write_track(TRACK, starts(), np.int16)
