"""The binary frame of the sub-protocol quaver.v1.bin: 24 bytes of header, little-endian, then the payload.

u8 version | u8 kind | u8 codec | u8 flags | u32 seq | u32 epoch | u32 stream | u64 pts (samples)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np

from ..problems import Problem

SUBPROTOCOL = "quaver.v1.bin"
VERSION = 1
_HEADER = struct.Struct("<BBBBIIIQ")
HEADER_BYTES = _HEADER.size


class Kind(IntEnum):
    """What the payload is. A receiver ignores kinds that it does not know."""

    AUDIO_IN = 1
    AUDIO_OUT = 2
    CODES = 3
    TEXT = 4


class Codec(IntEnum):
    """How the payload is written."""

    S16LE = 0
    F32LE = 1
    OPUS_PACKET = 2
    OGG_OPUS = 3
    MULAW = 4


class Flag(IntFlag):
    """Marks on a frame."""

    FIRST = 1
    LAST = 2
    DISCONTINUITY = 4
    SILENCE = 8


def samples_of(codec: int, payload: bytes) -> np.ndarray:
    """float32 `[n]` of what a client sends.

    Raises:
        Problem: `invalid_value`: a codec that is not taken (PCM of 16 bits or floats is), half a sample, or no number.
    """
    if codec not in (Codec.S16LE, Codec.F32LE):
        raise Problem("invalid_value", "audio is taken as codec 0 (s16le) or 1 (f32le)", "codec")
    width = 2 if codec == Codec.S16LE else 4
    if len(payload) % width:
        raise Problem("invalid_value", f"{len(payload)} bytes are no whole number of samples", "audio")
    if codec == Codec.S16LE:
        return np.frombuffer(payload, "<i2").astype(np.float32) / 32768
    samples = np.frombuffer(payload, "<f4").astype(np.float32)
    if not np.isfinite(samples).all():
        raise Problem("invalid_value", "the audio has samples that are no numbers", "audio")
    return np.clip(samples, -1, 1)


@dataclass(frozen=True)
class Frame:
    """One frame. `epoch`: of the answer, frames of an older one are dropped. `pts`: its first sample's place."""

    kind: int
    codec: int
    flags: int
    seq: int
    epoch: int
    stream: int
    pts: int
    payload: bytes

    def pack(self) -> bytes:
        """The frame's bytes; counters wrap at their width."""
        mask = 0xFFFFFFFF
        head = _HEADER.pack(
            VERSION,
            self.kind,
            self.codec,
            self.flags,
            self.seq & mask,
            self.epoch & mask,
            self.stream & mask,
            self.pts & 0xFFFFFFFFFFFFFFFF,
        )
        return head + self.payload

    @classmethod
    def unpack(cls, data: bytes) -> Frame:
        """The frame of these bytes.

        Raises:
            Problem: `invalid_value`: too short, or of another version.
        """
        if len(data) < HEADER_BYTES:
            raise Problem("invalid_value", f"a binary frame has at least {HEADER_BYTES} bytes, not {len(data)}")
        version, *fields = _HEADER.unpack_from(data)
        if version != VERSION:
            raise Problem("invalid_value", f"binary frames of version {version} are not known; send version {VERSION}")
        return cls(*fields, payload=data[HEADER_BYTES:])
