"""Voices that clients have added: a folder of voice files, each with a note of whose it is."""

from __future__ import annotations

import json
import logging
import re
import secrets
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import BadInput, QuaverError
from ...tts.flow_sound import FlowSound
from ...tts.voices import SUFFIX, Voice, dump_voice, load_voice
from ..audio import open_audio
from ..files import replacing
from . import logs
from .problems import Problem

__all__ = ["AddedVoice", "VoiceStore", "reference_samples"]

_ID = re.compile(r"voice_[0-9a-f]{24}")


class AddedVoice(BaseModel):
    """The note beside a voice file. Attributes: owner: name of the API key. model: that it was made for."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    owner: str
    model: str
    created: int
    consent: str


class VoiceStore:
    """Voices by id. Only their owner sees, uses and deletes them.

    Args:
        folder: made when the first voice is added. most: voices that one owner may keep.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._voices: dict[str, AddedVoice] = {}
        self._content: dict[str, Voice] = {}
        self._lock = threading.Lock()  # of the maps
        self._making = threading.Lock()  # one voice is made at a time: it takes a core
        for note in sorted(folder.glob("voice_*.json")):
            try:
                voice = AddedVoice.model_validate_json(note.read_text())
            except (OSError, ValueError, ValidationError) as error:
                logs.event("voice.unreadable", logging.WARNING, file=note.name, error=type(error).__name__)
                continue
            if _ID.fullmatch(voice.id) and note.name == f"{voice.id}.json":
                self._voices[voice.id] = voice

    def of(self, owner: str) -> list[AddedVoice]:
        """The owner's voices, the oldest first."""
        with self._lock:
            return sorted((v for v in self._voices.values() if v.owner == owner), key=lambda v: (v.created, v.id))

    def find(self, identity: str, owner: str) -> AddedVoice | None:
        """A voice of that owner."""
        with self._lock:
            voice = self._voices.get(identity)
        return voice if voice is not None and voice.owner == owner else None

    def content(self, voice: AddedVoice) -> Voice:
        """What a model speaks with. Raises MissingFile or CorruptFile when somebody has been at the folder."""
        with self._lock:
            held = self._content.get(voice.id)
        if held is None:
            held = load_voice(self.folder / (voice.id + SUFFIX))
            with self._lock:
                held = self._content.setdefault(voice.id, held)
        return held

    def add(
        self,
        sound: FlowSound,
        data: bytes,
        *,
        name: str,
        owner: str,
        model: str,
        text: str,
        consent: str,
        seconds: float,
    ) -> AddedVoice:
        """Makes a voice of a recording (the bytes of an audio file). Blocks for as long as that takes.

        Torch runs in the calling thread here, beside the engine's: the flow and the tokenizer keep nothing between
        calls, and running streams would have to wait a second or two for it otherwise.

        Raises:
            BadInput: not audio, or too short, too long, silent. Problem: `conflict`: too many voices.
        """
        if len(self.of(owner)) >= self.most:
            raise Problem("conflict", f"there are {self.most} voices already; delete one first")
        samples = reference_samples(data, sound.sample_rate, seconds)
        with self._making:
            made = sound.describe(samples, name=name, text=text)
        identity = f"voice_{secrets.token_hex(12)}"
        note = AddedVoice(id=identity, name=name, owner=owner, model=model, created=int(time.time()), consent=consent)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(self.folder / (identity + SUFFIX)) as file:
            file.write(dump_voice(made))
        with replacing(self.folder / f"{identity}.json") as file:
            file.write(json.dumps(note.model_dump()).encode())
        with self._lock:
            self._voices[identity], self._content[identity] = note, made
        return note

    def remove(self, identity: str, owner: str) -> bool:
        """Deletes a voice and its files; False when that owner has none of this id."""
        if self.find(identity, owner) is None:
            return False
        with self._lock:
            self._voices.pop(identity, None)
            self._content.pop(identity, None)
        for suffix in (".json", SUFFIX):
            (self.folder / (identity + suffix)).unlink(missing_ok=True)
        return True


def reference_samples(data: bytes, sample_rate: int, longest: float) -> np.ndarray:
    """An uploaded recording as float32 `[n]`: channels mixed, resampled.

    Raises:
        BadInput: not audio that libsndfile reads, damaged, or longer than `longest` seconds.
    """
    if not data:
        raise BadInput("the upload is empty; send a recording as wav, flac, ogg or mp3")
    with tempfile.NamedTemporaryFile(prefix="quaver-voice-") as file:
        file.write(data)
        file.flush()
        parts, count = [], 0
        try:
            with open_audio(file.name) as audio:
                for block in audio.blocks(sample_rate):
                    parts.append(block.mean(0))
                    count += block.shape[1]
                    if count > longest * sample_rate:
                        raise BadInput(f"the recording is longer than {longest:g} s; 10 s of it are used, send those")
        except QuaverError as error:
            raise BadInput(str(error).replace(file.name, "the upload")) from None
    return np.concatenate(parts)
