"""Every error that quaver raises on purpose, in one place.

The CLI turns a `QuaverError` into one line on stderr and exit code 2; the server turns it into a typed error on the
wire. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class QuaverError(Exception):
    """Base class: the message says what is wrong and what to do about it. `kind` is the stable name on the wire."""

    kind = "error"


class BadInput(QuaverError, ValueError):
    """The user's text, audio or option cannot be used as given."""

    kind = "bad_input"


class CorruptFile(QuaverError, ValueError):
    """A file is truncated, damaged, or not of the format that its place demands."""

    kind = "corrupt_file"


class ConfigError(QuaverError, ValueError):
    """A recipe or model configuration is inconsistent or has unknown keys."""

    kind = "config"


class MissingFile(QuaverError, FileNotFoundError):
    """A model, voice, corpus or tool is not where it was looked for; the message says how to get it."""

    kind = "missing_file"


class MissingExtra(QuaverError, ImportError):
    """An optional dependency is not installed; the message names the extra."""

    kind = "missing_extra"


class Overloaded(QuaverError):
    """Every slot is taken and the queue is full, or no slot came free in time. `retry_after`: seconds, an estimate."""

    kind = "overloaded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Draining(QuaverError):
    """The engine finishes what it has accepted and takes nothing new; another replica may."""

    kind = "draining"


class EngineError(QuaverError, RuntimeError):
    """The model failed while it made this answer (out of memory, a defect, a restart); the same request may be sent
    again. The cause is chained as `__cause__`."""

    kind = "engine"
