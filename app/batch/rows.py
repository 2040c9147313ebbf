"""The input of a job, row by row: csv, tsv, jsonl, parquet, txt, or a folder of such files.

A row that cannot be used comes out as `Refused`, with its place and the reason, and the rows after it go on. Files are
read as streams, as often as they are asked for; nothing but the current row is held (of parquet: a row group).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import BadInput, CorruptFile, MissingExtra, QuaverError
from ..files import check_readable

__all__ = ["AUDIO", "COLUMNS", "Refused", "Row", "audio_rows", "read_rows"]

COLUMNS = ("text", "id", "voice", "model", "speed", "seed", "name")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
MAX_TEXT = 100_000
"""Characters of a row: two hours of speech."""
MAX_SEED = 2**62


@dataclass(frozen=True)
class Row:
    """One thing to do.

    Attributes:
        number: place in the input, from 1. id: unique within the job.
        text, voice, model, speed, seed: what to speak and how; None = as the job says.
        name: of the output file, instead of the job's template.
        source: the audio file, where audio is the input.
        extra: what goes into the manifest as it is.
    """

    number: int
    id: str
    text: str = ""
    voice: str | None = None
    model: str | None = None
    speed: float | None = None
    seed: int | None = None
    name: str | None = None
    source: str = ""
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Refused:
    """A row that cannot be used, and why."""

    number: int
    id: str
    reason: str
    text: str = ""


def read_rows(source: Path) -> Iterator[Row | Refused]:
    """The rows of a file or folder.

    A csv's first line names its columns; of jsonl and parquet the keys do. Only `text` is required, unknown columns are
    ignored. Of a txt each line that is not empty is a text. Of a folder (with its sub-folders, by name) each .txt is
    one text, and every table in it gives its rows. A row without an id is called by its number, a file by its path.

    Raises:
        MissingFile, BadInput: it cannot be read at all. CorruptFile: it is no csv, parquet, ... MissingExtra: pyarrow.
    """
    numbers = count(1)
    if source.is_dir():
        yield from _folder(source, numbers)
        return
    check_readable(source, "table")
    yield from _usable(_table(source), numbers)


def audio_rows(folder: Path) -> Iterator[Row | Refused]:
    """The audio files of a folder and its sub-folders, by name; ids are paths without the suffix."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO and p.is_file())
    if not files:
        raise BadInput(f"{folder} holds no audio files ({', '.join(AUDIO)})")
    for number, path in enumerate(files, 1):
        inside = path.relative_to(folder).with_suffix("").as_posix()
        yield Row(number, inside, source=str(path.absolute()))


Raw = dict[str, Any] | str
"""A row as its file has it, or why it cannot be read."""


def _folder(folder: Path, numbers: Iterator[int]) -> Iterator[Row | Refused]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in TABLES and p.is_file())
    if not files:
        raise BadInput(f"{folder} holds no texts; it may hold {', '.join(TABLES)}")
    for path in files:
        inside = path.relative_to(folder)
        if path.suffix.lower() == ".txt":
            yield from _usable(_whole_text(path, inside), numbers)
            continue
        try:
            yield from _usable(_table(path), numbers)
        except QuaverError as error:  # the other files go on
            yield Refused(next(numbers), inside.as_posix(), str(error))


def _whole_text(path: Path, inside: Path) -> Iterator[Raw]:
    try:
        text = _decode(path.read_bytes())
    except OSError as error:
        yield f"{inside}: {error.strerror}"
        return
    yield {"id": inside.with_suffix("").as_posix(), "text": text}


def _table(path: Path) -> Iterator[Raw]:
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise BadInput(f"{path}: a job is read from {', '.join(TABLES)} or a folder")
    if kind == ".parquet":
        return _parquet(path)
    if kind in (".csv", ".tsv"):
        return _csv(path, "\t" if kind == ".tsv" else None)
    return _jsonl(path) if kind != ".txt" else ({"text": line} for line in _lines(path) if line.strip())


# -- text files -------------------------------------------------------------------------------------------------------
def _encoding(path: Path) -> str:
    """UTF-8, or what a byte order mark says. Bytes that are not UTF-8 become lone surrogates, which `_usable` finds."""
    with path.open("rb") as file:
        mark = file.read(4)
    return "utf-16" if mark[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _decode(data: bytes) -> str:
    form = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(form, errors="surrogateescape" if form != "utf-16" else "replace")


def _open(path: Path, newline: str | None = None) -> Any:
    form = _encoding(path)
    return path.open(encoding=form, errors="surrogateescape" if form != "utf-16" else "replace", newline=newline)


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as file:
        for line in file:
            yield line.rstrip("\n")


def _jsonl(path: Path) -> Iterator[Raw]:
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield f"not JSON ({error})"
            continue
        yield row if isinstance(row, dict) else "not a JSON object"


def _csv(path: Path, delimiter: str | None) -> Iterator[Raw]:
    with _open(path, newline="") as file:
        first = file.readline()
        if not first.strip():
            raise BadInput(f"{path} is empty; its first line must name the columns ({', '.join(COLUMNS)})")
        if delimiter is None:
            delimiter = max(",;\t", key=first.count)
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter))]
        if "text" not in names:
            raise BadInput(f"{path} has no column named text; its first line names {', '.join(names)[:200]}")
        table = csv.reader(file, delimiter=delimiter)
        while True:
            try:
                fields = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"not readable as csv ({error})"
                continue
            if not fields:
                continue
            if len(fields) > len(names):
                yield f"{len(fields)} fields for {len(names)} columns; quote texts that hold {delimiter!r}"
            else:
                yield {name: value for name, value in zip(names, fields) if value.strip() or name == "text"}


# -- parquet ----------------------------------------------------------------------------------------------------------
def _parquet(path: Path) -> Iterator[Raw]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("parquet needs pyarrow: pip install 'quaver[batch]', or give csv or jsonl") from None
    broken = (pyarrow.ArrowException, OSError, ValueError)
    try:
        table = parquet.ParquetFile(path)
        names = {name.lower(): name for name in table.schema_arrow.names}
    except broken as error:
        raise CorruptFile(
            f"{path} is not a parquet file that can be read ({_first_line(error)}); make it again"
        ) from None
    if "text" not in names:
        raise BadInput(f"{path} has no column named text; it has {', '.join(names)[:200]}")
    columns = [names[name] for name in COLUMNS if name in names]
    with table:
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            try:
                read = table.read_row_group(group, columns).to_pylist()
            except broken as error:
                yield from [f"row group {group} of {path.name} is damaged ({_first_line(error)})"] * rows
                continue
            for row in read:
                yield {name.lower(): value for name, value in row.items() if value is not None}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


# -- from raw rows to usable ones --------------------------------------------------------------------------------------
def _usable(raws: Iterator[Raw], numbers: Iterator[int]) -> Iterator[Row | Refused]:
    for raw in raws:
        number = next(numbers)
        if isinstance(raw, str):
            yield Refused(number, f"{number:06d}", raw)
            continue
        name = str(raw.get("id", "")).strip() or f"{number:06d}"
        try:
            yield _row(number, name, {key: value for key, value in raw.items() if value is not None})
        except BadInput as error:
            yield Refused(number, _printable(name), str(error), _printable(str(raw.get("text", "")))[:MAX_TEXT])


def _row(number: int, name: str, raw: dict[str, Any]) -> Row:
    for column in COLUMNS:
        if isinstance(raw.get(column), str) and not _is_text(raw[column]):
            raise BadInput(f"{column} is not UTF-8; convert the file")
    text = raw.get("text", "")
    if not isinstance(text, str):
        raise BadInput(f"text is {type(text).__name__}, not a string")
    if not text.strip():
        raise BadInput("there is no text to speak")
    if len(text) > MAX_TEXT:
        raise BadInput(f"the text has {len(text)} characters; split it into rows of at most {MAX_TEXT}")
    return Row(
        number,
        name,
        text,
        voice=_string(raw, "voice"),
        model=_string(raw, "model"),
        speed=_number(raw, "speed", float),
        seed=_number(raw, "seed", _integer),
        name=_string(raw, "name"),
    )


def _string(raw: dict[str, Any], column: str) -> str | None:
    value = str(raw.get(column, "")).strip()
    return value or None


def _number(raw: dict[str, Any], column: str, read: Callable[[Any], Any]) -> Any:
    value = raw.get(column)
    if value is None or value == "":
        return None
    try:
        number = read(value)
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{column} is {str(value)[:40]!r}, not a number") from None
    if column == "seed" and not 0 <= number <= MAX_SEED:
        raise BadInput(f"seed must lie between 0 and {MAX_SEED}, not {number}")
    return number


def _integer(value: Any) -> int:
    if isinstance(value, str):
        return int(value)
    if int(value) != value:
        raise ValueError
    return int(value)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "�" not in value


def _printable(value: str) -> str:
    return value.encode("utf-8", "replace").decode()
