"""What the server asks of a full-duplex model: frames in, frames and text out, one link per session.

The model comes with the dialogue package; until an engine offers one, the endpoints answer `no_duplex_model`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from .problems import Problem


@dataclass(frozen=True)
class DuplexAudio:
    """The model's voice: float32 `[n]` in [-1, 1]."""

    samples: np.ndarray


@dataclass(frozen=True)
class DuplexText:
    """A piece of what the model is saying (its inner monologue)."""

    text: str


@dataclass(frozen=True)
class DuplexHeard:
    """What the user has said in what was pushed, up to `until` seconds of it: the piece that this adds, often ""."""

    text: str
    until: float


@dataclass(frozen=True)
class DuplexEnd:
    """The link has ended; nothing follows. `reason` as in the engine's outcomes."""

    reason: str


DuplexEvent = DuplexAudio | DuplexText | DuplexHeard | DuplexEnd


@dataclass(frozen=True)
class DuplexRequest:
    """What a client asks of a duplex session."""

    model: str = "default"
    voice: str | None = None
    instructions: str | None = None
    seed: int = 0
    request_id: str = ""
    options: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class DuplexLink(Protocol):
    """One session. `push` never blocks: when the model is behind, the oldest unheard audio is dropped."""

    def push(self, samples: np.ndarray) -> int:
        """Takes float32 `[n]` at the backend's rate; returns how many samples had to be dropped."""
        ...

    def forget(self) -> int:
        """Drops what was pushed and has not been heard yet; returns how many samples."""
        ...

    def steer(self, action: Literal["speak", "listen", "interrupt"]) -> None:
        """Forces the model to speak or to listen, or stops what it is saying: what it had said and nobody had taken is
        dropped, and no word comes for a second."""
        ...

    def played(self, seconds: float) -> None:
        """How much of the model's voice has been heard."""
        ...

    def events(self) -> AsyncIterator[DuplexEvent]:
        """All events; the last one is the end."""
        ...

    def close(self, reason: str) -> None:
        """Ends the link; its slot is free within one tick."""
        ...


@runtime_checkable
class DuplexBackend(Protocol):
    """A loaded duplex model."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def frame_samples(self) -> int:
        """Samples per frame of the model's clock."""
        ...

    @property
    def transcribes(self) -> bool:
        """Whether it writes down what the user says (`DuplexHeard`)."""
        ...

    def open(self, request: DuplexRequest) -> DuplexLink:
        """A slot for a session. Raises what `Engine.submit` raises."""
        ...


def no_duplex_model() -> Problem:
    """The answer as long as no duplex model is loaded."""
    return Problem("no_duplex_model", "no duplex model is loaded on this server; it can speak, but not listen")
