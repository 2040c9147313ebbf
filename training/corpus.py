"""Manifests of speech corpora: what was said, by whom, with which phones, in which file; read and written."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import CorruptFile, MissingExtra, MissingFile
from ..tts.text import WordSpan, is_pause, phones_from_misaki

__all__ = [
    "MANIFEST_RATE",
    "Item",
    "audio_items",
    "beside",
    "load_manifest",
    "manifest_rows",
    "reader",
    "words_of",
    "write_manifest",
]

MANIFEST_RATE = 24_000
_READ = frozenset({"id", "path", "text", "voice", "phonemes"})
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")

_EDGES = " \t\n.,;:!?…—–-\"'“”‘’()[]{}<>*_~"


@dataclass(frozen=True)
class Item:
    """One utterance of a corpus.

    `path` is the audio file (absolute, or relative to the working directory as the manifest was), `seconds` its
    length, `phones` symbols of `quaver.tts.text.PHONES` ending in . ? or !, `words` ranges into them. `about`: what
    else the manifest says in words (`emotion`, `instruct`, ...), for conditioners.
    """

    id: str
    path: Path
    text: str
    voice: str
    seconds: float
    phones: tuple[str, ...]
    words: tuple[WordSpan, ...]
    about: Mapping[str, str] = field(default_factory=dict)


def load_manifest(path: str | Path, textless: bool = False) -> list[Item]:
    """All usable utterances of a manifest, in its order.

    Two formats are read, plain or gzipped: lhotse cuts (`quaver corpus build` writes them; lhotse itself is not needed
    to read them) and plain JSON lines with `path`, `text`, `voice`, `seconds` and `phonemes` (a G2P string; made from
    the text when it is absent). Paths count from the manifest's folder. A last line that a running job has not
    finished writing is left out, and so are rows without a single phone, unless `textless` (for codecs, which need
    none): then even `text` may be absent.
    Raises MissingFile, or CorruptFile naming the line.
    """
    path = Path(path)
    items = [_item(row, path.parent, where, textless) for row, where in _rows(path)]
    return items if textless else [item for item in items if item.phones]


def manifest_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a manifest of either format as flat dictionaries with `id`, and whatever else they have."""
    for row, where in _rows(Path(path)):
        try:
            row = _flat_cut(row) if "recording" in row else row
            yield {**row, "id": _id(row)}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CorruptFile(f"{where}: no usable utterance ({type(error).__name__}: {error})") from error


def audio_items(folder: Path) -> list[Item]:
    """The audio files of a folder and its sub-folders as items without text, by name; the folder in which a file lies
    is taken for its speaker, up to the first level (`19/198/19-198-0001.flac` is by 19)."""
    import soundfile

    items = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO and p.is_file()):
        inside = path.relative_to(folder)
        try:
            seconds = soundfile.info(path).duration
        except soundfile.LibsndfileError as error:
            raise CorruptFile(f"{path} cannot be read as audio ({error.error_string}); mend or remove it") from None
        voice = inside.parts[0] if len(inside.parts) > 1 else folder.resolve().name
        items.append(Item(inside.with_suffix("").as_posix(), path, "", voice, seconds, (), ()))
    return items


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


def _item(row: dict[str, Any], folder: Path, where: str, textless: bool) -> Item:
    try:
        if "recording" in row:
            row = _flat_cut(row)
        text = str(row.get("text", "") if textless else row["text"])
        phonemes = row.get("phonemes") or (reader()(text) if text.strip() else "")
        phones, ranges = phones_from_misaki(phonemes) if phonemes else ([], [])
        return Item(
            id=_id(row),
            path=folder / row["path"],
            text=text,
            voice=str(row["voice"]),
            seconds=float(row["seconds"]),
            phones=tuple(phones),
            words=words_of(text, phones, ranges),
            about={k: v for k, v in row.items() if isinstance(v, str) and k not in _READ},
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CorruptFile(f"{where}: no usable utterance ({type(error).__name__}: {error})") from error


def _id(row: dict[str, Any]) -> str:
    return str(row.get("id") or Path(row["path"]).with_suffix("").as_posix())


def _flat_cut(cut: dict[str, Any]) -> dict[str, Any]:
    """A lhotse MonoCut as the flat row of the simple format."""
    supervision = cut["supervisions"][0]
    if cut.get("start"):
        raise ValueError("a cut from within a recording; write each utterance to a file of its own first")
    custom = supervision.get("custom") or {}
    return {
        "id": supervision.get("id") or cut["id"],
        "path": cut["recording"]["sources"][0]["source"],
        "text": supervision["text"],
        "voice": supervision["speaker"],
        "seconds": cut["duration"],
        "phonemes": custom.get("phonemes"),
        "speed": custom.get("speed", 1.0),
        **{k: v for k, v in custom.items() if k not in ("phonemes", "speed")},
    }


@lru_cache(maxsize=1)
def reader() -> Any:
    """The G2P: text -> a phoneme string."""
    from hibari.g2p import G2P  # takes a second to load

    return G2P()


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
