"""How well speech is edited: are the new words heard, and are all others still heard?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import BadInput, MissingExtra
from ..tts.editing import Change, Editor
from .judges import Judges
from .signals import resample
from .words import normalise

__all__ = ["EditCase", "EditResult", "judge_edit", "read_cases", "run_cases", "summary"]


@dataclass(frozen=True)
class EditCase:
    """A recording, what is said in it, and one change; `voice`: a speaker of the model's, or None."""

    audio: Path
    transcript: str
    old: str
    new: str
    voice: str | None = None


@dataclass(frozen=True)
class EditResult:
    """Attributes:
    transcript, heard: what should be heard now, and what was.
    right: the new words were. kept: so were all others that were heard in the codec's resynthesis of the recording.
    score: of the alignment.
    """

    transcript: str
    heard: str
    right: bool
    kept: bool
    score: float


def read_cases(path: Path) -> list[EditCase]:
    """Cases of a JSONL file, one `{"audio", "transcript", "old", "new"}` a line; paths are relative to the file.

    Raises:
        BadInput: a line that is no case.
    """
    cases = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            case = EditCase(path.parent / row["audio"], row["transcript"], row["old"], row["new"], row.get("voice"))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f'{path}, line {number}: no case ({error}); give "audio", "transcript", "old", "new"'
            ) from None
        cases.append(case)
    if not cases:
        raise BadInput(f"{path} has no cases")
    return cases


def judge_edit(transcript: str, heard: str, case: EditCase, before: str) -> tuple[bool, bool]:
    """Whether the new words are right, and all others kept.

    Args:
        transcript: after the change. heard: what the recogniser made of the result. before: and of the resynthesis.
    """
    left, _, right = transcript.partition(case.new)
    parts = [normalise(part).split() for part in (left, case.new, right)]
    wanted = [word for part in parts for word in part]
    inside = range(len(parts[0]), len(parts[0]) + len(parts[1]))
    old = normalise(case.transcript).split()
    shift = len(wanted) - len(old)  # of the words after the change
    missed = {
        i if i < inside.start else i + shift for i in set(range(len(old))) - _hits(old, normalise(before).split())
    }
    hits = _hits(wanted, normalise(heard).split())
    outside = [place for place in range(len(wanted)) if place not in inside and place not in missed]
    return all(place in hits for place in inside), all(place in hits for place in outside)


def _hits(wanted: Sequence[str], heard: Sequence[str]) -> set[int]:
    """Places of the words that were heard."""
    if not heard:
        return set()
    try:
        import jiwer
    except ImportError:
        raise MissingExtra("word errors need jiwer: pip install 'quaver[eval]'") from None
    steps = jiwer.process_words(" ".join(wanted), " ".join(heard)).alignments[0]
    return {i for s in steps if s.type == "equal" for i in range(s.ref_start_idx, s.ref_end_idx)}


def run_cases(
    editor: Editor,
    cases: Sequence[EditCase],
    judges: Judges,
    read: Callable[[Path, int], np.ndarray],
    *,
    seed: int = 0,
    keep: Callable[[int, np.ndarray, int], None] | None = None,
) -> list[EditResult]:
    """Makes and judges every case; `read(path, rate)` gives mono samples, `keep(number, samples, rate)` stores them."""
    results = []
    for number, case in enumerate(cases):
        audio = read(case.audio, editor.codec.sample_rate)
        edited = editor.edit(audio, case.transcript, [Change(case.old, case.new)], voice=case.voice, seed=seed)
        if keep is not None:
            keep(number, edited.samples, edited.sample_rate)
        before, heard = (
            judges.transcribe(resample(samples, edited.sample_rate)) for samples in (edited.resynthesis, edited.samples)
        )
        right, kept = judge_edit(edited.transcript, heard, case, before)
        results.append(EditResult(edited.transcript, heard, right, kept, edited.score))
    return results


def summary(results: Sequence[EditResult]) -> str:
    """A Markdown table, and the two figures."""
    lines = ["| should be | heard | new words | others | score |", "|---|---|---|---|---:|"]
    for r in results:
        marks = ["right" if r.right else "**wrong**", "kept" if r.kept else "**changed**"]
        lines.append(f"| {r.transcript} | {r.heard.strip()} | {marks[0]} | {marks[1]} | {r.score:.2f} |")
    total = len(results)
    lines.append("")
    lines.append(
        f"New words right in {sum(r.right for r in results)} of {total}, all others kept in "
        f"{sum(r.kept for r in results)} of {total}."
    )
    return "\n".join(lines)


def as_json(results: Sequence[EditResult]) -> str:
    return json.dumps([asdict(r) for r in results], indent=1, ensure_ascii=False)
