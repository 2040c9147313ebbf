"""Voices: names of a model's own speakers, and voice files made of somebody's speech.

A voice file (`my.voice`, safetensors) holds what imitating a speaker needs and nothing that only its recording had: a
speaker vector, the speech tokens of a short clip, their mel, the transcript if there is one, and the hash of the flow
that it was made for. It is made once (`quaver voice create`); speaking with it computes nothing of this again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import BadInput, CorruptFile, MissingFile

__all__ = ["LONGEST", "SHORTEST", "SUFFIX", "Voice", "dump_voice", "load_voice", "reference_clip", "unknown_voice"]

SUFFIX = ".voice"
FORMAT = "quaver-voice-1"
SHORTEST, LONGEST, USED = 1.0, 600.0, 10.0
"""Seconds of reference speech: the least, the most, and how much is kept (zero-shot systems use 3 to 10 s)."""
QUIET = 1e-3  # of full scale (-60 dB): a frame below it is silence
LOUDER = 0.05  # of the loudest frame: what is below it at the edges is cut off
EDGE = 0.1  # seconds of silence that are left at the edges
FRAME = 0.02


@dataclass(frozen=True)
class Voice:
    """How somebody sounds.

    Attributes:
        name: for people. vector: `[d]` of the flow's speaker encoder, or None where it has none.
        tokens: LongTensor `[K, token]`. mel: `[mels, token * patch]`, of the same clip.
        text: what is said in the clip, or "".
        flow: SHA-256 of the flow's weights ("" = not known). codec: name of the tokens.
    """

    name: str
    vector: Tensor | None
    tokens: Tensor
    mel: Tensor
    text: str = ""
    flow: str = ""
    codec: str = ""


def unknown_voice(name: str, known: Iterable[str]) -> BadInput:
    """The error for a voice that a model does not have; it lists the names most like it."""
    names = list(known)
    folded = {voice.lower(): voice for voice in reversed(names)}
    near = [folded[n] for n in difflib.get_close_matches(name.lower(), list(folded), n=3, cutoff=0.5)]
    if near:
        rest = "" if len(near) == len(names) else " (`quaver voices` lists all)"
        return BadInput(f"there is no voice {name!r}; did you mean {' or '.join(near)}?{rest}")
    some = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
    return BadInput(f"there is no voice {name!r}; choose one of {some}")


def reference_clip(samples: np.ndarray, sample_rate: int, text: str = "") -> np.ndarray:
    """What of a recording `[n]` (mono, float32) a voice is made of: silence at the edges cut to 0.1 s, and of what is
    longer than 10 s the stretch of 10 s with the most sound in it.

    Raises:
        BadInput: shorter than 1 s or longer than 10 minutes, silent, or too long to go with its transcript.
    """
    seconds = len(samples) / sample_rate
    if not SHORTEST <= seconds <= LONGEST:
        raise BadInput(
            f"the reference lasts {seconds:.1f} s; give {SHORTEST:g} s to {LONGEST / 60:g} minutes of one speaker "
            f"({USED:g} s are used)"
        )
    size = round(FRAME * sample_rate)
    level = np.sqrt(np.square(samples[: len(samples) // size * size].reshape(-1, size), dtype=np.float64).mean(1))
    loud = np.flatnonzero(level > max(QUIET, LOUDER * level.max()))
    if not len(loud) or len(loud) * FRAME < SHORTEST / 4:
        raise BadInput("the reference is silent (hardly anything in it is louder than -60 dB); record it anew")
    edge = round(EDGE / FRAME)
    first, last = max(0, loud[0] - edge), min(len(level), loud[-1] + 1 + edge)
    wanted = round(USED / FRAME)
    if last - first > wanted:
        if text:
            raise BadInput(
                f"a reference with a transcript may hold at most {USED:g} s of speech, this has "
                f"{(last - first) * FRAME:.1f} s; cut both, or leave the transcript out"
            )
        sound = np.cumsum(np.concatenate([[0], np.isin(np.arange(first, last), loud)]))
        first += int(np.argmax(sound[wanted:] - sound[:-wanted]))
        last = first + wanted
    clip = samples[first * size : last * size]
    if len(clip) < SHORTEST * sample_rate / 2:
        raise BadInput(
            f"the reference holds only {len(clip) / sample_rate:.1f} s of speech; give {SHORTEST:g} s or more"
        )
    return np.ascontiguousarray(clip, np.float32)


def dump_voice(voice: Voice) -> bytes:
    """The content of a voice file."""
    tensors = {"tokens": voice.tokens.to(torch.int32), "mel": voice.mel.float()}
    if voice.vector is not None:
        tensors["vector"] = voice.vector.float()
    about = {"format": FORMAT, "name": voice.name, "text": voice.text, "flow": voice.flow, "codec": voice.codec}
    return save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, about)


def load_voice(path: str | Path) -> Voice:
    """Reads a voice file.

    Raises:
        MissingFile, CorruptFile: not there, damaged, or not a voice.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"there is no voice file {path}; make one with `quaver voice create REF.wav -o {path}`")
    try:
        with safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{path} is not a voice file ({error}); make it anew with `quaver voice create`") from None
    tokens, mel, vector = tensors.get("tokens"), tensors.get("mel"), tensors.get("vector")
    if about.get("format") != FORMAT or tokens is None or mel is None:
        raise CorruptFile(f"{path} is not a voice file of this version; make it anew with `quaver voice create`")
    whole = tokens.ndim == 2 and mel.ndim == 2 and (vector is None or vector.ndim == 1) and tokens.shape[1] > 0
    if not whole or mel.shape[1] % tokens.shape[1] or not bool(torch.isfinite(mel).all()):
        raise CorruptFile(f"{path} is damaged; make it anew with `quaver voice create`")
    return Voice(
        about.get("name", path.stem),
        None if vector is None else vector.float(),
        tokens.long(),
        mel.float(),
        about.get("text", ""),
        about.get("flow", ""),
        about.get("codec", ""),
    )
