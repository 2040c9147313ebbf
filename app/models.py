"""What lies in models/: names and kinds of the bundled models, without loading one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent.parent / "models"


@dataclass(frozen=True)
class Bundled:
    """A bundled model: its name, its kind ("codec", "tts", ...), the first sentence of its card."""

    name: str
    kind: str
    summary: str


def bundled(kind: str | None = None) -> list[Bundled]:
    """The bundled models (of one kind), by name."""
    found = []
    for config in sorted(MODELS.glob("*/config.json")):
        its = str(json.loads(config.read_text()).get("kind", "model"))
        if kind in (None, its):
            found.append(Bundled(config.parent.name, its, _summary(config.parent)))
    return found


def _summary(folder: Path) -> str:
    """The first line of the model card that is neither a heading, a front matter, a table nor a picture."""
    for card in sorted(folder.glob("*.md")):
        text = card.read_text()
        body = text.split("---", 2)[-1] if text.startswith("---") else text
        for line in body.splitlines():
            if line.strip() and line.strip()[0] not in "#|!<-":
                return line.strip()
    return ""
