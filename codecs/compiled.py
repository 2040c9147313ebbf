"""The native codec through `torch.compile`: the same results, other speed."""

from __future__ import annotations

import os

from ..errors import BadInput
from .base import Codec
from .native import XCodec

__all__ = ["SWITCH", "compiled"]

SWITCH = "QUAVER_COMPILE"
"""Environment variable: `0` leaves every codec as it is, whoever asks for compilation."""


def compiled(codec: Codec, *, backend: str = "inductor") -> Codec:
    """Compiles the networks of a native codec, in place; its first calls then take minutes and need a C++ compiler.

    The ConvNeXt blocks are compiled, with their states, which stay the caller's. Chunks, the quantizer's search and the
    Fourier transforms stay as they are.

    Raises:
        BadInput: a codec that is not native.
    """
    if not isinstance(codec, XCodec):
        raise BadInput("only native codecs are compiled here; published ones run as they are")
    if os.environ.get(SWITCH, "1") == "0":
        return codec
    for name in ("encoder_fast", "encoder_slow", "semantic_blocks", "decoder_slow", "decoder_fast"):
        for block in getattr(codec, name):
            block.compile(backend=backend, dynamic=True)
    return codec
