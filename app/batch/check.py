"""Reading back what was spoken: word errors by a recogniser, phone errors by quaver's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .speech import SpeechWork

__all__ = ["Checker"]


class Checker:
    """Judges one row at a time; the models are loaded at the first."""

    def __init__(self, work: SpeechWork) -> None:
        from ...evaluation.judges import Judges

        self._phones = work.check_phones
        self._judges = Judges(work.asr, threads=1)
        self._frontend: Any = None

    def check(self) -> None:
        """Raises QuaverError if a judge or its package is missing."""
        from ...evaluation.words import compare

        compare(["a"], ["a"])
        if self._judges.asr:
            self._judges.load_asr()
        if self._phones:
            self._judges.load_phones()

    def __call__(self, text: str, samples: np.ndarray, sample_rate: int) -> dict[str, Any]:
        """`wer`, `heard` and, where words are missing or repeated, `flaws`; with phones `per`."""
        from ...evaluation.signals import resample
        from ...evaluation.words import compare, normalise

        found: dict[str, Any] = {}
        if self._judges.asr:
            heard = self._judges.transcribe(resample(samples, sample_rate))
            reference = normalise(text).split()
            found["heard"] = heard
            if reference:
                counts = compare(reference, normalise(heard).split())
                found["wer"] = round(counts.rate, 4)
                if counts.failures:
                    found["flaws"] = counts.failures
        if self._phones:
            counts = compare(self._read(text), self._judges.transcribe_phones(samples, sample_rate))
            found["per"] = round(counts.rate, 4)
        return found

    def _read(self, text: str) -> list[str]:
        from ...tts.phones import is_pause, strip_stress
        from ...tts.text import Frontend

        if self._frontend is None:
            self._frontend = Frontend()
        return [strip_stress(p) for said in self._frontend(text) for p in said.phones if not is_pause(p)]
