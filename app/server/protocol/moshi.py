"""Moshi's wire (kyutai-labs/moshi, rust/protocol.md): binary messages whose first byte says what they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..problems import Problem


class Kind(IntEnum):
    """First byte of a message. Receivers discard kinds that they do not know."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6
    COLOURED_TEXT = 7


class Control(IntEnum):
    """Payload of a CONTROL message."""

    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


@dataclass(frozen=True)
class MoshiMessage:
    """One message: AUDIO carries Ogg/Opus pages (24 kHz, mono), TEXT, METADATA and ERROR UTF-8."""

    kind: int
    payload: bytes = b""

    @property
    def known(self) -> bool:
        return self.kind in Kind._value2member_map_

    @property
    def text(self) -> str:
        """The payload as text.

        Raises:
            Problem: `invalid_value`: it is not UTF-8.
        """
        try:
            return self.payload.decode()
        except UnicodeDecodeError:
            raise Problem("invalid_value", "the text of a message must be UTF-8") from None

    @property
    def control(self) -> Control:
        """What a CONTROL message asks for.

        Raises:
            Problem: `invalid_value`: not one byte, or no known control.
        """
        if len(self.payload) != 1 or self.payload[0] not in Control._value2member_map_:
            raise Problem("invalid_value", "a control message has one byte: 0 start, 1 end of turn, 2 pause, 3 restart")
        return Control(self.payload[0])

    def pack(self) -> bytes:
        """The message's bytes."""
        return bytes([self.kind]) + self.payload

    @classmethod
    def unpack(cls, data: bytes) -> MoshiMessage:
        """The message of these bytes.

        Raises:
            Problem: `invalid_value`: there are none.
        """
        if not data:
            raise Problem("invalid_value", "an empty message has no kind")
        return cls(data[0], data[1:])


HANDSHAKE = MoshiMessage(Kind.HANDSHAKE)
"""What Moshi's Python server sends: the kind alone. (Its Rust one appends two u32 versions; clients ignore them.)"""
