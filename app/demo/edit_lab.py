"""The Edit tab: other words in a recording, by a model that fills gaps (`tts/editing.py`)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadInput
from ..models import bundled
from .codec_lab import LONGEST, CodecLab, read_mono

if TYPE_CHECKING:
    from ...tts.editing import Edited, Editor

__all__ = ["EditLab", "Rewriting"]


@dataclass(frozen=True)
class Rewriting:
    """A recording and what became of it.

    Attributes:
        original: float32 `[n]` at the rate of `edited`, the recording itself. edited: as the editor gives it.
    """

    original: np.ndarray
    edited: Edited


class EditLab:
    """Models that fill gaps, by name, loaded when they are first needed. Thread-safe; one edit is made at a time.

    Args:
        trusted: alignment score from which a transcript counts as that of the recording; None: the editor's own.
    """

    def __init__(self, names: tuple[str, ...] | None = None, trusted: float | None = None) -> None:
        self.trusted = trusted
        self.names = names if names is not None else tuple(model.name for model in bundled("ardit"))
        self._loaded: dict[str, Editor] = {}
        self._lock = threading.Lock()

    short = staticmethod(CodecLab.short)

    def run(self, recording: str | Path, transcript: str, old: str, new: str, name: str, seed: int = 0) -> Rewriting:
        """Blocks while it works; call it in a thread.

        Args:
            transcript: what is said. old: words of it. new: what is said instead; nothing cuts them out.

        Raises:
            BadInput: a model that is not offered, no audio, too long, a transcript of something else, words that are
                not in it. MissingFile, ConfigError, CorruptFile: of the model.
        """
        from ...tts.editing import TRUSTED, Change

        if name not in self.names:
            raise BadInput(f"there is no editing model {name!r}; choose one of {', '.join(self.names) or 'none'}")
        for words, what in ((transcript, "what is said in the recording"), (old, "the words that are to be replaced")):
            if not words.strip():
                raise BadInput(f"type {what}")
        with self._lock:
            editor = self._load(name)
            original = read_mono(recording, editor.codec.sample_rate, LONGEST)
            trusted = TRUSTED if self.trusted is None else self.trusted
            changes = [Change(old.strip(), new.strip())]
            edited = editor.edit(original, transcript, changes, seed=seed, trusted=trusted)
        return Rewriting(original, edited)

    def _load(self, name: str) -> Editor:
        from ...tts.editing import Editor

        if name not in self._loaded:
            self._loaded[name] = Editor.load(name)
        return self._loaded[name]
