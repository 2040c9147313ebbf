"""What `--speculate` and its fellows mean, for every command that speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BadInput

__all__ = ["speculate_with"]


def speculate_with(
    synthesizer: Any,
    model: str,
    mode: str,
    draft: str | None,
    length: int | str,
    delta: float,
    groups: Path | None = None,
) -> None:
    """Lets a loaded voice speculate; arguments as the options of `quaver say`.

    Raises:
        BadInput: an unknown rule, settings out of range, or a model that cannot.
    """
    from ..tts.speculative_voice import MODES, SpeculationSettings, speculate

    if mode not in MODES:
        raise BadInput(f"--speculate is off, {', '.join(MODES)}, not {mode!r}")
    if length != "auto" and not (str(length).isdecimal() and 0 <= int(length) <= 64):
        raise BadInput(f"--draft-length must lie between 0 and 64, or be auto, not {length}")
    if not delta >= 0:
        raise BadInput(f"--delta cannot be negative: {delta}")
    from ..tts.synthesizer import DEFAULT_VOICE_MODEL

    checked: Any = mode  # one of MODES: just looked at
    drafted: Any = length if length == "auto" else int(length)
    settings = SpeculationSettings(mode=checked, draft=draft, length=drafted, delta=delta, groups=groups)
    speculate(synthesizer, DEFAULT_VOICE_MODEL if model == "default" else model, settings)
