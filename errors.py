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
