"""Who a voice sounds like: each voice of a model against every speaker, and zero-shot imitation of unknown speakers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput
from .judges import Judges
from .signals import RATE, resample
from .tts_table import Table
from .voices import StreamingVoice, audio_files, read_mono

__all__ = ["SpeakerTable", "speakers_of_pack", "voice_matrix", "zero_shot"]

PROMPT = 5.0  # seconds
OTHERS = 6  # recordings of a speaker that say what he sounds like


class SpeakerTable:
    """Cosines `[voice, speaker]` of Resemblyzer's vectors (GE2E).

    Attributes:
        own: the speaker that each voice should sound like.
    """

    def __init__(self, voices: Sequence[str], speakers: Sequence[str], cosines: np.ndarray, own: Sequence[str]) -> None:
        self.voices, self.speakers, self.cosines, self.own = list(voices), list(speakers), cosines, list(own)

    @property
    def right(self) -> int:
        """How many voices are nearest to their own speaker."""
        nearest = self.cosines.argmax(1)
        return sum(self.speakers[int(n)] == own for n, own in zip(nearest, self.own))

    @property
    def similarity(self) -> float:
        """Mean cosine of the voices to their own speakers; nan where none is known."""
        known = [self.cosines[i, self.speakers.index(own)] for i, own in enumerate(self.own) if own in self.speakers]
        return float(np.mean(known)) if known else float("nan")

    def table(self) -> Table:
        rows = [
            [voice, *(f"{c:.2f}" if s != own else f"**{c:.2f}**" for s, c in zip(self.speakers, line))]
            for voice, line, own in zip(self.voices, self.cosines, self.own)
        ]
        nearest = f"{self.right} of {len(self.voices)} nearest to their own speaker"
        note = f"{nearest}, mean similarity to it {self.similarity:.3f}"
        return Table(["voice", *self.speakers], rows, (note,))


def _vector(judges: Judges, clips: Sequence[np.ndarray]) -> np.ndarray:
    mean = np.mean([judges.embedding(clip) for clip in clips], axis=0)
    return mean / np.linalg.norm(mean)


def speakers_of_pack(folders: Sequence[Path], each: int = 10) -> dict[str, list[np.ndarray]]:
    """Recordings at 16 kHz of every speaker of some packs, `each` of them, evenly chosen."""
    from ..training.pack import SAMPLE_RATE, Pack

    found: dict[str, list[np.ndarray]] = {}
    for folder in folders:
        pack = Pack(folder)
        by_voice: dict[str, list[int]] = {}
        for i, entry in enumerate(pack.entries):
            by_voice.setdefault(entry.voice, []).append(i)
        for voice, items in by_voice.items():
            chosen = items[:: max(1, len(items) // each)][:each]
            found.setdefault(voice, []).extend(resample(pack.wave(i), SAMPLE_RATE) for i in chosen)
    return found


def voice_matrix(
    synthesizer: Any, texts: Sequence[str], speakers: Mapping[str, Sequence[np.ndarray]], judges: Judges,
    *, seed: int = 0, names: Mapping[str, str] | None = None,
) -> SpeakerTable:  # fmt: skip
    """Every voice of a synthesizer against every speaker.

    Args:
        speakers: recordings at 16 kHz by speaker. names: voice -> the speaker whom it should sound like (by default the
            one of the same name).
    """
    if not texts or not speakers:
        raise BadInput("the matrix needs sentences to say, and speakers to compare with")
    wanted = np.stack([_vector(judges, clips) for clips in speakers.values()])
    lines = []
    for name in synthesizer.voices:
        voice = StreamingVoice(synthesizer, "", name)
        said = [voice.say(i, text, seed + i) for i, text in enumerate(texts)]
        lines.append(_vector(judges, [resample(s.samples, s.sample_rate) for s in said]) @ wanted.T)
    known = names or {}
    own = [known.get(voice, voice) for voice in map(str, synthesizer.voices)]
    return SpeakerTable(list(synthesizer.voices), list(speakers), np.stack(lines), own)


def zero_shot(
    synthesizer: Any, folder: Path, texts: Sequence[str], judges: Judges, *, seed: int = 0, limit: int | None = None,
    tick: Any = None,
) -> SpeakerTable:  # fmt: skip
    """Imitates every speaker of a folder (`folder/SPEAKER/*.flac`) from 5 s of his first recording, without transcript,
    and compares what was said with his *other* recordings and those of everybody else.

    Raises:
        BadInput: a model without a flow, or speakers with a single recording. MissingFile: no recordings.
    """
    from ..tts.flow_sound import FlowSound

    if not isinstance(getattr(synthesizer, "sound", None), FlowSound):
        raise BadInput("zero-shot needs a token model with a flow")
    found = sorted(path for path in folder.iterdir() if path.is_dir())[:limit] if folder.is_dir() else []
    if not found:
        raise BadInput(f"{folder} holds no folders of speakers")
    prompts, wanted = {}, {}
    for path in found:
        first, *others = audio_files(path)
        if not others:
            raise BadInput(f"{path} holds one recording; the prompt must not judge itself, so there must be two")
        audio = read_mono(first, synthesizer.sample_rate)[0]
        prompts[path.name] = audio[: round(PROMPT * synthesizer.sample_rate)]
        wanted[path.name] = _vector(judges, [read_mono(other, RATE)[0] for other in others[:OTHERS]])
    vectors = np.stack(list(wanted.values()))
    lines = []
    for name, prompt in prompts.items():
        voice = synthesizer.sound.describe(prompt, name=name)
        said = [synthesizer.say(text, voice=voice, seed=seed + i) for i, text in enumerate(texts)]
        lines.append(_vector(judges, [resample(s, synthesizer.sample_rate) for s in said]) @ vectors.T)
        if tick:
            tick()
    return SpeakerTable(list(prompts), list(wanted), np.stack(lines), list(prompts))
