"""quaver: text and audio into speech tokens, speech tokens into speech, as a stream.

    import quaver

    synthesizer = quaver.Synthesizer.load()                    # the bundled voice
    speech = synthesizer.say("Hello world.")                   # samples, sample_rate, words, phones
    for chunk in synthesizer.stream("A longer text ..."):      # audio as it comes, with time stamps
        ...

    codec = quaver.load_codec("quaver-24k")                    # audio <-> codes, 24 kHz, 25 frames a second
    codes, lengths = codec.encode(audio)                       # [batch, 1, sample] -> [batch, codebook, frame]
    audio = codec.decode(codes)

The floors, each of which imports only those before it:

    nn          streaming building blocks; knows nothing of audio or text
    codecs      audio <-> frames
    tts         text -> frames
    dialogue    frames <-> frames
    app         the command line; later the server

and beside them `training` and `evaluation`. docs/architecture.md has the whole picture and the laws.
Importing quaver loads nothing else: the names above are resolved when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codecs.loading import load_codec as load_codec
    from .tts.synthesizer import Synthesizer as Synthesizer

__all__ = ["Synthesizer", "load_codec"]

_WHERE = {"Synthesizer": ".tts.synthesizer", "load_codec": ".codecs.loading"}


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use, so that `import quaver` does not import torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("quaver")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
