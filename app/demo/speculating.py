"""How many drafts a model keeps, over all its answers: what the Speak tab shows where speculation is on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["CountedLoop", "count_drafts", "drafts_of"]

KEPT = 256  # answers whose own figures still grow


class CountedLoop:
    """A synthesizer's generation loop that adds up its generations' figures (`tts.speculative_plan.Figures`)."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self._recent: deque[Any] = deque()
        self._judged = self._kept = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        generation = self.make(*arguments, **named)
        self._recent.append(generation.figures)
        if len(self._recent) > KEPT:
            oldest = self._recent.popleft()
            self._judged, self._kept = self._judged + oldest.judged, self._kept + oldest.kept
        return generation

    def totals(self) -> dict[str, int]:
        """Drafted tokens that a rule judged, and those of them that were kept."""
        recent = list(self._recent)
        return {
            "judged": self._judged + sum(figures.judged for figures in recent),
            "kept": self._kept + sum(figures.kept for figures in recent),
        }


def drafts_of(synthesizer: Any) -> dict[str, int]:
    """Drafted tokens judged and kept so far, along time or along depth; nothing where the model does not speculate."""
    loop = getattr(synthesizer, "loop", None)
    if isinstance(loop, CountedLoop):
        return loop.totals()
    asked = getattr(synthesizer, "faster", None)  # of answers that ask for it (`tts.speculative_voice`)
    if asked is not None:
        figures = asked.keywords["figures"]
        return {"judged": figures.judged, "kept": figures.kept}
    head = getattr(getattr(synthesizer, "lm", None), "head", None)
    figures = getattr(head, "figures", None)  # of `tts.speculative_depth.SpeculativeHead`, which adds up by itself
    return {"judged": figures.judged, "kept": figures.kept} if figures is not None else {}


def count_drafts(name: str, synthesizer: Any) -> None:
    """Counts from now on, where a model that is being served speculates along time; elsewhere nothing happens."""
    loop: Any = getattr(synthesizer, "loop", None)
    if "speculation" in getattr(loop, "keywords", {}):
        synthesizer.loop = CountedLoop(loop)
