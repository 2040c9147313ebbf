"""All that a published Moshi needs to converse, from its folder: the model, its codec Mimi, its SentencePiece text.

kyutai's repositories     model.safetensors, tokenizer-e351c8d8-checkpoint125.safetensors (Mimi),
                          tokenizer_spm_32k_3.model; a config.json in newer ones
those of `transformers`   config.json, model-0000N-of-0000M.safetensors with Mimi among the tensors; put
                          tokenizer_spm_32k_3.model of kyutai's repository beside them
any                       a folder `mimi/` in it: Mimi as published for `transformers` (`kyutai/mimi`)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..codecs.base import Codec
from ..codecs.checkpoints import check_finite, is_hub_id, put
from ..codecs.kyutai import load_kyutai
from ..codecs.loading import load_codec, read_config
from ..codecs.mimi import MimiCodec, mimi_config, mimi_state
from ..errors import MissingFile
from .model import DuplexConfig, DuplexModel
from .monologue import SentencePieces, Vocabulary, load_vocabulary
from .moshi import load_moshi, moshi_folder, weight_files

__all__ = ["is_moshi", "load_moshi_folder"]

MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
TEXT = "tokenizer_spm_32k_3.model"
_INSIDE = "audio_encoder."


def is_moshi(name: str) -> bool:
    """Whether a name is that of a published Moshi: a hub id that says so, or a folder in a published layout."""
    folder = Path(name)
    if not folder.is_dir():
        return is_hub_id(name) and "moshi" in name.lower()
    if not (folder / "config.json").exists():  # kyutai's first repositories have none
        return (folder / "model.safetensors").exists()
    raw = read_config(folder)
    return "kind" not in raw and (raw.get("model_type") == "moshi" or "dep_q" in raw)


def load_moshi_folder(name: str) -> tuple[DuplexModel, Codec, Vocabulary]:
    """Model, codec and vocabulary in eval mode; the weights stay in the precision in which they are stored.

    Raises:
        MissingFile: a file is missing; the message says which one goes where. ConfigError, CorruptFile: of `load_moshi`
        and of Mimi. MissingExtra: the package sentencepiece.
    """
    folder = moshi_folder(name)
    raw = read_config(folder) if (folder / "config.json").exists() else {}
    # The small parts first: nobody wants to read 15 GB to hear that a file is missing.
    codec = _mimi(folder, raw)
    text = folder / str(raw.get("tokenizer_name", TEXT))
    if not text.exists() and not any(folder.glob("tokenizer*.model")) and not (folder / "vocabulary.json").exists():
        raise MissingFile(f"{text} is missing: put the SentencePiece model of the Moshi's text there")
    model = load_moshi(folder)
    codec.keep(max(model.config.own, model.config.user))
    return model, codec, _vocabulary(folder, text, model.config)


def _vocabulary(folder: Path, text: Path, config: DuplexConfig) -> Vocabulary:
    if text.exists():
        return SentencePieces(text, config.pad, config.epad)
    found = load_vocabulary(folder)
    if isinstance(found, SentencePieces):
        found.pad, found.epad = config.pad, config.epad
    return found


def _mimi(folder: Path, raw: dict[str, Any]) -> Codec:
    """Its codec: a file in kyutai's layout, a folder `mimi`, or among the tensors of the model."""
    named = folder / str(raw.get("mimi_name", MIMI))
    for file in (named, *sorted(folder.glob("tokenizer-*.safetensors"))):
        if file.exists():
            return load_kyutai(file)
    if (folder / "mimi" / "config.json").exists():
        return load_codec(str(folder / "mimi"))
    if "audio_encoder_config" in raw and (codec := _inside(folder, raw)) is not None:
        return codec
    raise MissingFile(
        f"{folder} has no Mimi, without which a Moshi neither hears nor speaks: put the file {MIMI} of kyutai's "
        f"repository there, or config.json and model.safetensors of kyutai/mimi into {folder / 'mimi'}"
    )


def _inside(folder: Path, raw: dict[str, Any]) -> Codec | None:
    """Mimi from the tensors `audio_encoder.*` of a model in the layout of `transformers`; None where there are none."""
    tensors = {}
    for file in weight_files(folder, raw):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dictionary)
                if name.startswith(_INSIDE):
                    tensors[name.removeprefix(_INSIDE)] = stored.get_tensor(name)
    if not tensors:
        return None
    check_finite(tensors, folder)
    codec = MimiCodec(mimi_config(raw["audio_encoder_config"], folder))
    put(codec, mimi_state(tensors, codec), folder)
    return codec.eval()
