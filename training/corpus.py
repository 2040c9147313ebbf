"""Manifests of speech corpora: what was said, by whom, with which phones, in which file; read and written."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CorruptFile, MissingExtra, MissingFile
from ..tts.text import WordSpan, is_pause, phones_from_misaki

__all__ = ["MANIFEST_RATE", "Item", "beside", "load_manifest", "words_of", "write_manifest"]

MANIFEST_RATE = 24_000

_EDGES = " \t\n.,;:!?…—–-\"'“”‘’()[]{}<>*_~"


@dataclass(frozen=True)
class Item:
    """One utterance of a corpus.

    `path` is the audio file (absolute, or relative to the working directory as the manifest was), `seconds` its
    length, `phones` symbols of `quaver.tts.text.PHONES` ending in . ? or !, `words` ranges into them.
    """

    id: str
    path: Path
    text: str
    voice: str
    seconds: float
    phones: tuple[str, ...]
    words: tuple[WordSpan, ...]


def load_manifest(path: str | Path) -> list[Item]:
    """All usable utterances of a manifest, in its order.

    Two formats are read, plain or gzipped: lhotse cuts (`quaver corpus build` writes them; lhotse itself is not needed
    to read them) and plain JSON lines with `path`, `text`, `voice`, `seconds` and `phonemes` (a G2P string; made from
    the text when it is absent). Paths count from the manifest's folder. A last line that a running job has not
    finished writing is left out, and so are rows without a single phone.
    Raises MissingFile, or CorruptFile naming the line.
    """
    path = Path(path)
    items = (_item(row, path.parent, where) for row, where in _rows(path))
    return [item for item in items if item.phones]


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    if not path.is_file():
        raise MissingFile(f"there is no manifest {path}; make one with `quaver corpus build`")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path} cannot be read as a manifest: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: still being written
                return
            raise CorruptFile(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise CorruptFile(f"{path}, line {number}: a JSON object was expected")
        yield row, f"{path}, line {number}"


def _item(row: dict[str, Any], folder: Path, where: str) -> Item:
    try:
        if "recording" in row:
            row = _flat_cut(row)
        audio, text = Path(row["path"]), str(row["text"])
        phonemes = row.get("phonemes") or _read_aloud(text)
        phones, ranges = phones_from_misaki(phonemes)
        return Item(
            id=str(row.get("id") or audio.with_suffix("").as_posix()),
            path=folder / audio,
            text=text,
            voice=str(row["voice"]),
            seconds=float(row["seconds"]),
            phones=tuple(phones),
            words=words_of(text, phones, ranges),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CorruptFile(f"{where}: no usable utterance ({type(error).__name__}: {error})") from error


def _flat_cut(cut: dict[str, Any]) -> dict[str, Any]:
    """A lhotse MonoCut as the flat row of the simple format."""
    supervision = cut["supervisions"][0]
    if cut.get("start"):
        raise ValueError("a cut from within a recording; write each utterance to a file of its own first")
    return {
        "id": supervision.get("id") or cut["id"],
        "path": cut["recording"]["sources"][0]["source"],
        "text": supervision["text"],
        "voice": supervision["speaker"],
        "seconds": cut["duration"],
        "phonemes": (supervision.get("custom") or {}).get("phonemes"),
    }


def _read_aloud(text: str) -> str:
    from hibari.g2p import G2P

    return G2P()(text)


def words_of(text: str, phones: list[str], ranges: list[tuple[int, int]]) -> tuple[WordSpan, ...]:
    """Word spans for ranges that only the phoneme string gave: named by the text's words where these match one to one,
    else (numbers, abbreviations) by their phones."""
    names = [word for word in (w.strip(_EDGES) for w in text.replace("—", " ").replace("--", " ").split()) if word]
    if len(names) != len(ranges):
        names = ["".join(p for p in phones[start:end] if not is_pause(p)) for start, end in ranges]
    return tuple(WordSpan(name, start, end) for name, (start, end) in zip(names, ranges, strict=True))


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of the simple format as lhotse cuts (https://github.com/lhotse-speech/lhotse), gzipped JSON lines.

    Audio paths stay relative to the manifest's folder (`CutSet.with_recording_path_prefix` for lhotse's own readers).
    """
    try:
        from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet
        from lhotse.audio import AudioSource
    except ImportError as error:
        raise MissingExtra("manifests need lhotse; run: pip install 'quaver[train]'") from error
    recordings, supervisions = [], []
    for row in rows:
        samples = round(row["seconds"] * MANIFEST_RATE)
        source = AudioSource(type="file", channels=[0], source=row["path"])
        recordings.append(Recording(row["id"], [source], MANIFEST_RATE, samples, samples / MANIFEST_RATE))
        supervisions.append(
            SupervisionSegment(
                row["id"],
                row["id"],
                0.0,
                samples / MANIFEST_RATE,
                text=row["text"],
                language="English",
                speaker=row["voice"],
                custom={"phonemes": row["phonemes"], "speed": row["speed"]},
            )
        )
    cuts = CutSet.from_manifests(
        recordings=RecordingSet.from_recordings(recordings), supervisions=SupervisionSet.from_segments(supervisions)
    )
    with beside(path) as part:
        cuts.to_file(part)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place if the block ends well."""
    part = path.with_name(f".{os.getpid()}.part.{path.name}")  # the name's end is kept: libraries choose formats by it
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
