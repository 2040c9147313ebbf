"""Where the output of a row goes: a template, and what no row may do with it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import BadInput
from .rows import Row

__all__ = ["FIELDS", "Names"]

FIELDS = ("id", "name", "number", "shard", "voice", "model", "seed")
_FIELD = re.compile(r"\{(\w*)\}")
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
MAX_PART = 180
"""Bytes of one part of a path: a temporary file's name is longer by a few."""


class Names:
    """Fills a template such as "{voice}/{id}" for each row.

    `{name}` is the row's own name, or its id. `{number}` has seven digits, `{shard}` five: it counts groups of
    `shard_rows` rows (all in group 0 where that is 0).

    Raises:
        BadInput: a field that there is not, or none that tells rows apart.
    """

    def __init__(self, template: str, suffix: str, shard_rows: int = 0) -> None:
        self.suffix, self.shard_rows = suffix, shard_rows
        template = template.removesuffix(suffix)
        unknown = [field for field in _FIELD.findall(template) if field not in FIELDS]
        if unknown or "{" in _FIELD.sub("", template) or "}" in _FIELD.sub("", template):
            known = ", ".join("{" + field + "}" for field in FIELDS)
            raise BadInput(f"the name template {template!r} may hold {known} and nothing else in braces")
        if not {"id", "name", "number"} & set(_FIELD.findall(template)):
            raise BadInput(f"the name template {template!r} gives all rows one name; put {{id}} or {{number}} into it")
        self.template = template

    def shard(self, number: int) -> int:
        """The group of a row."""
        return (number - 1) // self.shard_rows if self.shard_rows else 0

    def path(self, row: Row, voice: str, model: str, seed: int) -> str:
        """The row's file, relative to the output folder, with slashes.

        Raises:
            BadInput: it would lie outside the folder, or is no name for a file.
        """
        name = (row.name or row.id).removesuffix(self.suffix)
        values = {
            "id": row.id,
            "name": name,
            "number": f"{row.number:07d}",
            "shard": f"{self.shard(row.number):05d}",
            "voice": voice,
            "model": Path(model).name,
            "seed": str(seed),
        }
        path = _FIELD.sub(lambda found: values[found[1]], self.template) + self.suffix
        _check(path)
        return path


def _check(path: str) -> None:
    parts = path.split("/")
    if path.startswith("/") or ".." in parts:
        raise BadInput(f"the output name {_shown(path)} leads out of the output folder; give a plain name")
    if _FORBIDDEN.search(path):
        raise BadInput(f"the output name {_shown(path)} holds characters that no file name should; give a plain name")
    if any(not part.strip() or part.startswith(".") or part != part.strip() for part in parts):
        raise BadInput(f"the output name {_shown(path)} has an empty or hidden part; give a plain name")
    if any(len(os.fsencode(part)) > MAX_PART for part in parts) or len(os.fsencode(path)) > 1000:
        raise BadInput(f"the output name {_shown(path)} is too long; give a shorter id or name")


def _shown(path: str) -> str:
    return repr(path if len(path) <= 60 else path[:60] + "...")


def inside(folder: Path, path: str) -> Path:
    """The real place of `path` in `folder`, its own folder made.

    Raises:
        BadInput: a link leads out of the folder.
    """
    target = folder / path
    real = Path(os.path.realpath(target.parent))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise BadInput(f"{path} leads out of {folder} through a link; remove the link")
    real.mkdir(parents=True, exist_ok=True)
    return real / target.name
