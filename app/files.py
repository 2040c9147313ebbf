"""Files that are either whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import BadInput, MissingFile

STDIO = "-"


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well; otherwise nothing has changed.

    "-" is standard output, and a device or a named pipe is written to directly: neither can be renamed into.
    Raises MissingFile if the folder does not exist, BadInput if the path cannot be written.
    """
    if str(path) == STDIO:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = check_writable(path)
    if target.exists() and not target.is_file():
        with target.open("wb") as device:
            yield device
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()


def check_writable(path: str | Path) -> Path:
    """The real place of `path`, links followed; MissingFile or BadInput says why nothing can be written there."""
    target = Path(os.path.realpath(Path(path).expanduser()))
    if len(os.fsencode(target.name)) > 200:
        raise BadInput(f"the file name {target.name[:40]}... is too long; choose a shorter one")
    if target.is_dir():
        raise BadInput(f"{path} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise MissingFile(f"the folder {target.parent} does not exist; make it first or choose another place")
    if not os.access(target.parent if not target.exists() or target.is_file() else target, os.W_OK):
        raise BadInput(f"{path} cannot be written (no permission); choose another place")
    return target


def check_readable(path: str | Path, what: str = "file") -> Path:
    """`path` if it can be opened for reading, else MissingFile or BadInput."""
    source = Path(path).expanduser()
    if not source.exists():
        raise MissingFile(f"there is no {what} {path}; check the name")
    if source.is_dir():
        raise BadInput(f"{path} is a folder, not a {what}; name a file in it")
    if not os.access(source, os.R_OK):
        raise BadInput(f"{path} cannot be read (no permission)")
    return source


def slug(text: str, limit: int = 60) -> str:
    """A file name made of the text's first words: "Hello, world." -> "hello-world"; "speech" if there is none."""
    plain = unicodedata.normalize("NFKD", text[: 8 * limit])
    letters = "".join(c.lower() if c.isascii() and c.isalnum() else " " for c in plain if c not in "'’" and _visible(c))
    name = ""
    for word in letters.split():
        if name and len(name) + 1 + len(word) > limit:
            break
        name = f"{name}-{word}" if name else word[:limit]
    return name or "speech"


def _visible(character: str) -> bool:
    return unicodedata.category(character) != "Mn"  # the accent that NFKD took off its letter
