"""A user's own recordings: a folder of audio files, each with a text file of the same name beside it.

What does not fit is left out with a reason, because one wrong transcript spoils more than one good one mends.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, MissingFile
from ..tts.phones import parse_misaki
from .corpus import AUDIO, beside, reader

__all__ = ["Recordings", "read_folder", "write_split"]

SHORTEST, LONGEST = 0.5, 16.0
"""Seconds; longer utterances do not fit into a training batch."""
QUIET = 1e-3
PACE = (2.0, 35.0)
"""Phones per second between which speech lies; a text outside does not belong to its audio."""
LEAST_COUNT, LEAST_SECONDS = 4, 10.0


@dataclass
class Recordings:
    """What a folder holds.

    Attributes:
        rows: of a manifest. left_out: reason -> names of the files.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(row["seconds"] for row in self.rows)

    def reasons(self) -> str:
        """For people: `3 silent, 1 without a text`."""
        counts = Counter({reason: len(names) for reason, names in self.left_out.items()})
        return ", ".join(f"{count} {reason} ({self.left_out[reason][0]})" for reason, count in counts.most_common())


def read_folder(folder: Path, voice: str) -> Recordings:
    """The usable pairs `name.wav` + `name.txt` below a folder (also flac, ogg, opus, mp3; any rate and channels).

    Raises:
        MissingFile: no such folder. BadInput: too little is usable; the message says why the rest is not.
    """
    if not folder.is_dir():
        raise MissingFile(f"there is no folder {folder}; give one that holds pairs of name.wav and name.txt")
    found = Recordings()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO and p.is_file()):
        row = _row(path, voice)
        if isinstance(row, str):
            found.left_out.setdefault(row, []).append(path.name)
        else:
            found.rows.append({**row, "id": path.relative_to(folder).with_suffix("").as_posix()})
    if not found.rows and not found.left_out:
        raise BadInput(f"{folder} holds no audio; put pairs of name.wav and name.txt there")
    if len(found.rows) < LEAST_COUNT or found.seconds < LEAST_SECONDS:
        rest = f"; left out: {found.reasons()}" if found.left_out else ""
        raise BadInput(
            f"{folder} holds {len(found.rows)} usable utterances of {found.seconds:.0f} s in all; at least "
            f"{LEAST_COUNT} of {LEAST_SECONDS:g} s are needed, and 5 minutes are better{rest}"
        )
    return found


def _row(path: Path, voice: str) -> dict[str, Any] | str:
    """A manifest row, or the reason why there is none."""
    import soundfile

    script = path.with_suffix(".txt")
    if not script.is_file():
        return "without a text file"
    try:
        text = " ".join(script.read_text("utf-8-sig").split())
    except UnicodeDecodeError:
        return "with a text that is not UTF-8"
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return "unreadable"
    seconds = len(wave) / rate
    if not SHORTEST <= seconds <= LONGEST:
        return f"not between {SHORTEST:g} and {LONGEST:g} s long"
    if not np.isfinite(wave).all():
        return "with samples that are not numbers"
    if float(np.sqrt(np.square(wave.mean(1)).mean())) < QUIET:
        return "silent"
    phonemes = reader()(text) if text else ""
    if not phonemes.strip():
        return "with an empty text"
    count = len(parse_misaki(phonemes))
    if not PACE[0] <= count / seconds <= PACE[1]:
        return "whose text does not fit its length"
    return {"path": str(path.resolve()), "text": text, "voice": voice, "seconds": seconds, "phonemes": phonemes}


def write_split(rows: list[dict[str, Any]], folder: Path, share: float, seed: int = 0) -> tuple[Path, Path]:
    """Manifests `train.jsonl` and `held.jsonl`: at least one utterance, about `share` of them, is held out."""
    order = np.random.default_rng(seed).permutation(len(rows))
    held = set(order[: max(1, round(share * len(rows)))].tolist())
    paths = folder / "train.jsonl", folder / "held.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    for path, wanted in zip(paths, (False, True), strict=True):
        with beside(path) as part:
            lines = [json.dumps(row, ensure_ascii=False) for i, row in enumerate(rows) if (i in held) == wanted]
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths
