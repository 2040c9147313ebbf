"""Word and phone times as files: JSON for programs, SubRip for players."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

CUE_CHARACTERS = 42  # what fits on one subtitle line
CUE_SECONDS = 6.0
CUE_GAP = 0.6  # a longer silence between words starts a new cue


class Span(Protocol):
    """A `TimedSpan`: text, and seconds from the start of the audio."""

    @property
    def text(self) -> str: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...


def to_json(words: Sequence[Span], phones: Sequence[Span], seconds: float) -> str:
    """{"seconds", "words": [{"text", "start", "end"}], "phones": [...]}, times in seconds, to the millisecond."""
    table = {"seconds": round(seconds, 3), "words": _rows(words), "phones": _rows(phones)}
    return json.dumps(table, ensure_ascii=False, indent=1) + "\n"


def to_srt(words: Sequence[Span], phones: Sequence[Span], seconds: float) -> str:
    """SubRip cues of whole words: at most one line, six seconds, and no long silence inside."""
    cues = []
    for number, cue in enumerate(_cues(words), 1):
        text = " ".join(word.text for word in cue)
        cues.append(f"{number}\n{_clock(cue[0].start)} --> {_clock(cue[-1].end)}\n{text}\n")
    return "\n".join(cues)


WRITERS: dict[str, Callable[[Sequence[Span], Sequence[Span], float], str]] = {".json": to_json, ".srt": to_srt}


def _rows(spans: Iterable[Span]) -> list[dict[str, str | float]]:
    return [{"text": s.text, "start": round(s.start, 3), "end": round(s.end, 3)} for s in spans]


def _cues(words: Sequence[Span]) -> list[list[Span]]:
    cues: list[list[Span]] = []
    for word in words:
        if cues and _fits(cues[-1], word):
            cues[-1].append(word)
        else:
            cues.append([word])
    return cues


def _fits(cue: list[Span], word: Span) -> bool:
    length = sum(len(w.text) + 1 for w in cue) + len(word.text)
    near = word.start - cue[-1].end <= CUE_GAP
    return near and length <= CUE_CHARACTERS and word.end - cue[0].start <= CUE_SECONDS


def _clock(seconds: float) -> str:
    total = round(seconds * 1000)
    return f"{total // 3_600_000:02}:{total // 60_000 % 60:02}:{total // 1000 % 60:02},{total % 1000:03}"
