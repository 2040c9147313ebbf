"""Judging voices: every sentence said, heard and compared, and what length costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..app.audio import write_audio
from ..errors import BadInput, MissingFile
from .judges import Judges
from .metrics import Metric, Sample
from .report import System
from .scoring import score
from .signals import RATE
from .voices import Voice, audio_files, read_mono

__all__ = ["judge_voice", "length_scaling", "speaker_vector"]

SHORT, LONG = 5.0, 30.0  # seconds of audio whose cost is compared
REFERENCES = 10  # recordings of a speaker that make its vector


def judge_voice(
    voice: Voice, texts: Sequence[str], metrics: Mapping[str, Metric], judges: Judges, *,
    seed: int = 0, audio_dir: Path | None = None, speaker_refs: Path | None = None, tick: Any = None,
) -> System:  # fmt: skip
    """One voice on all sentences. Sentence i is said with `seed` + i, whatever was said before it.

    Arguments:
        audio_dir: keeps what was said as `audio_dir/VOICE/000.wav`.
        speaker_refs: recordings of speakers, `speaker_refs/VOICE/*`, for the similarity.
        tick: called after each sentence.
    """
    speaker = None
    if "similarity" in metrics and speaker_refs is not None:
        speaker = speaker_vector(speaker_refs, voice.voice or voice.name, judges)
    if voice.timed:
        voice.say(0, texts[0], seed)  # loading and first-call costs belong to no sentence
    folder = audio_dir / (voice.voice or voice.name) if audio_dir else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    phones = _phones(texts) if "per" in metrics else [None] * len(texts)

    def samples() -> Iterator[tuple[dict[str, Any], Sample]]:
        for index, text in enumerate(texts):
            head: dict[str, Any] = {"index": index, "text": text, "voice": voice.voice or voice.name}
            try:
                said = voice.say(index, text, seed + index)
            except BadInput as error:  # a sentence that a voice refuses counts as one it lost
                head["refused"] = str(error)
                yield head, Sample(np.zeros(0, np.float32), RATE, text, phones[index])
            else:
                if folder and len(said.samples):
                    write_audio(folder / f"{index:03d}.wav", said.samples, said.sample_rate)
                yield head, Sample(
                    said.samples, said.sample_rate, text, phones[index], speaker=speaker,
                    wall=said.wall, cpu=said.cpu, first=said.first,
                )  # fmt: skip
            if tick:
                tick()

    system = score(voice.name, samples(), metrics, judges, voice=voice.voice)
    if voice.takes_long_text and "cpu_rtf" in metrics:
        seconds = [float(row.get("audio_seconds", 0.0)) for row in system.rows]
        found = length_scaling(voice, texts, seconds, seed=seed)
        system = replace(system, extra={**system.extra, "length_scaling": found} if found else system.extra)
    return system


def speaker_vector(folder: Path, voice: str, judges: Judges) -> np.ndarray:
    """Unit vector [256] of the recordings in `folder/voice` (ten of them, evenly chosen).

    Raises:
        MissingFile: there are none.
    """
    try:
        files = audio_files(folder / voice)
    except MissingFile:
        raise MissingFile(f"there are no recordings of {voice} in {folder / voice}; leave --speaker-refs out") from None
    chosen = files[:: max(1, len(files) // REFERENCES)][:REFERENCES]
    mean = np.mean([judges.embedding(read_mono(path, RATE)[0]) for path in chosen], axis=0)
    return mean / np.linalg.norm(mean)


def length_scaling(
    voice: Voice, texts: Sequence[str], seconds: Sequence[float], *, seed: int = 0, repeats: int = 3
) -> dict[str, float] | None:
    """CPU cost per second of audio of a text of about 30 s against one of about 5 s; None if nothing was said.

    `seconds` says how long each sentence was. Short and long take turns and the cheapest of each counts: a neighbour
    on the machine makes a run dearer, never cheaper.
    """
    if sum(seconds) < 1.0:
        return None
    short, long = (_text_of(texts, seconds, length) for length in (SHORT, LONG))
    costs: dict[str, list[float]] = {"short": [], "long": []}
    lengths: dict[str, float] = {}
    for _ in range(repeats):
        for kind, text in (("short", short), ("long", long)):
            said = voice.say(-1, text, seed)
            lengths[kind] = len(said.samples) / said.sample_rate
            if not lengths[kind] or said.cpu is None:
                return None
            costs[kind].append(said.cpu / lengths[kind])
    short_cost, long_cost = min(costs["short"]), min(costs["long"])
    return {
        "short_seconds": lengths["short"], "long_seconds": lengths["long"],
        "short_cost": short_cost, "long_cost": long_cost, "ratio": long_cost / max(short_cost, 1e-9),
    }  # fmt: skip


def _text_of(texts: Sequence[str], seconds: Sequence[float], length: float) -> str:
    """Sentences in order, from the start again if need be, until they last `length` seconds."""
    chosen: list[str] = []
    total, position = 0.0, 0
    while total < length:
        chosen.append(texts[position % len(texts)])
        total += seconds[position % len(texts)]
        position += 1
    return " ".join(chosen)


def _phones(texts: Sequence[str]) -> list[list[str] | None]:
    from ..tts.phones import is_pause, strip_stress
    from ..tts.text import Frontend

    frontend = Frontend()
    return [
        [strip_stress(p) for utterance in frontend(text) for p in utterance.phones if not is_pause(p)] for text in texts
    ]
