"""Duplex models by name or folder: `config.json` (kind "duplex"), `model.safetensors`, `vocabulary.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..codecs.base import Codec
from ..codecs.loading import load_codec, load_weights, read_json, read_model, validated
from ..nn.packed import pack_linears
from .model import DuplexConfig, DuplexModel
from .modes import BATCHES
from .monologue import Vocabulary, load_vocabulary
from .moshi_folder import is_moshi, load_moshi_folder
from .session import DuplexBatch, DuplexSession, DuplexSettings

__all__ = ["DuplexParts", "load_duplex"]


@dataclass(frozen=True)
class DuplexParts:
    """What a conversation needs; `settings` were chosen on the development dialogues."""

    model: DuplexModel
    codec: Codec
    vocabulary: Vocabulary
    settings: DuplexSettings

    def session(self, settings: DuplexSettings | None = None) -> DuplexSession:
        """One conversation (or one slot of what `batch` gives)."""
        kind = BATCHES[self.model.config.mode]
        return DuplexSession(self.model, self.codec, self.vocabulary, settings or self.settings, kind)

    def batch(self, slots: int, *, recorded: bool = False) -> DuplexBatch:
        """Many; of a model whose text's delay makes it a recogniser or a synthesizer, many of those (`dialogue.modes`).
        For `recorded` see `DuplexBatch`."""
        return BATCHES[self.model.config.mode](self.model, self.codec, self.vocabulary, slots, recorded=recorded)


def load_duplex(name: str, *, packed: bool = True) -> DuplexParts:
    """A duplex model in eval mode, by bundled name or folder; or a published Moshi with its Mimi and its text, by
    folder or hub id (`moshi_folder`).

    Args:
        packed: keep the weights in half precision where the processor can use them so (not of a Moshi, which keeps the
            precision of its files).

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    if is_moshi(name):
        return DuplexParts(*load_moshi_folder(name), DuplexSettings())
    folder, config, codec = read_model(name, "duplex", "duplex model")
    model = DuplexModel(validated(DuplexConfig, config, folder))
    load_weights(model, folder)
    path = folder / "settings.json"
    settings = validated(DuplexSettings, read_json(path), folder, path.name) if path.exists() else DuplexSettings()
    local = folder.parent / Path(codec).name
    spoken = load_codec(str(local) if (local / "config.json").exists() else codec)
    if packed:
        pack_linears(model)
        pack_linears(spoken)
    return DuplexParts(model.eval(), spoken, load_vocabulary(folder), settings)
