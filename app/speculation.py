"""What `--speculate` and its fellows mean, for every command that speaks: say, batch, serve and demo."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..errors import BadInput, QuaverError

__all__ = ["Speculating"]

RULES = ("exact", "pcg", "budgeted", "tolerance")
"""`tts.speculative_voice.MODES`, which cannot be had without torch (tests/app/test_speculating.py holds them equal)."""


class Speculating(BaseModel):
    """How answers are drafted and verified (docs/speculation.md).

    Attributes:
        rule: `off`, or one of `RULES`. draft: `head`, `lookup`, or a drafter's folder; None: what the model has.
        length: tokens to draft at a time, 0 to 64, or `auto`: from costs measured at load.
        delta: total variation that a step may spend (`budgeted`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str = "off"
    draft: str | None = None
    length: int | str = 3
    delta: float = 0.1

    @property
    def on(self) -> bool:
        return self.rule != "off"

    def check(self) -> None:
        """Raises:
        BadInput: an unknown rule, or settings out of range.
        """
        if self.rule not in ("off", *RULES):
            raise BadInput(f"--speculate is off, {', '.join(RULES)}, not {self.rule!r}")
        if self.length != "auto" and not (str(self.length).isdecimal() and 0 <= int(self.length) <= 64):
            raise BadInput(f"--draft-length must lie between 0 and 64, or be auto, not {self.length}")
        if not self.delta >= 0:
            raise BadInput(f"--delta cannot be negative: {self.delta}")

    def apply(self, synthesizer: Any, model: str) -> None:
        """Lets a loaded voice speculate from its next answer on; nothing where the rule is `off`.

        Raises:
            BadInput: as `check`, or a model that cannot. MissingFile, ConfigError, CorruptFile: of the drafter or the
                groups.
        """
        self.check()
        if not self.on:
            return
        from ..tts.speculative_voice import SpeculationSettings, speculate
        from ..tts.synthesizer import DEFAULT_VOICE_MODEL

        rule: Any = self.rule  # one of MODES: just looked at
        length: Any = self.length if self.length == "auto" else int(self.length)
        settings = SpeculationSettings(mode=rule, draft=self.draft, length=length, delta=self.delta)
        speculate(synthesizer, DEFAULT_VOICE_MODEL if model == "default" else model, settings)

    def fingerprint(self, model: str) -> dict[str, Any]:
        """What besides the voice decides how an answer turns out: nothing where the rule is `off`."""
        if not self.on:
            return {}
        drafter, groups = _hashes(self.draft, model)
        return {**self.model_dump(), "drafter": drafter, "groups": groups}


@lru_cache(maxsize=64)
def _hashes(draft: str | None, model: str) -> tuple[str, str]:
    """SHA-256 of the drafter's weights ("" for `lookup` and for a model's own head) and of the groups."""
    from ..codecs.folders import model_folder, weights_sha256

    folder = model_folder(model)
    try:
        place = model_folder(draft or str(folder / "draft"))
    except QuaverError:
        return "", weights_sha256(folder / "groups.safetensors")
    return weights_sha256(place), weights_sha256(folder / "groups.safetensors")
