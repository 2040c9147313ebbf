"""Every limit of the server, in one place. Each one is a setting; none is hidden in the code that keeps it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

KIB, MIB = 1 << 10, 1 << 20


class Limits(BaseModel):
    """What one client may ask for. Sizes in bytes, durations in seconds, unless the name says otherwise.

    A request over a limit gets a typed error (HTTP 413/422/429, WebSocket `error` and a close code); nothing is
    cut silently.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # -- sizes
    text_characters: int = Field(default=4096, ge=1)  # of one HTTP request, as OpenAI has it
    stream_text_characters: int = Field(default=262_144, ge=1)  # of all text that one WebSocket session may send
    body_bytes: int = Field(default=256 * KIB, ge=KIB)  # of an HTTP request, but for a voice upload
    voice_bytes: int = Field(default=10 * MIB, ge=KIB)  # of a voice upload
    voice_seconds: float = Field(default=30.0, gt=0)  # of reference audio
    message_bytes: int = Field(default=256 * KIB, ge=KIB)  # of one WebSocket message
    outbox_bytes: int = Field(default=4 * MIB, ge=64 * KIB)  # that may wait for one slow or absent realtime client
    items: int = Field(default=256, ge=1)  # of one realtime conversation

    # -- times
    body_seconds: float = Field(default=10.0, gt=0)  # to send a request's body
    queue_seconds: float = Field(default=10.0, gt=0)  # to wait for a slot
    config_seconds: float = Field(default=10.0, gt=0)  # to send a WebSocket's first message
    idle_seconds: float = Field(default=60.0, gt=0)  # without a message and without speech
    session_seconds: float = Field(default=1800.0, gt=0)  # of one WebSocket
    speech_seconds: float = Field(default=600.0, gt=0)  # to make one answer
    send_seconds: float = Field(default=10.0, gt=0)  # that a client may take nothing of what is sent to it
    grace_seconds: float = Field(default=20.0, ge=0)  # that a dropped realtime session can be resumed; 0: never
    ahead_seconds: float = Field(default=10.0, gt=0)  # that speech is made ahead of what the client has played
    ticket_seconds: float = Field(default=60.0, gt=0, le=600)  # that a browser's ticket is good for

    # -- counts
    voices_per_key: int = Field(default=32, ge=0)  # that are kept
    connections: int = Field(default=256, ge=1)  # of all clients
    sessions_per_key: int = Field(default=32, ge=1)  # at the same time
    requests_per_minute: int = Field(default=600, ge=1)  # of one key (of one address, where there are no keys)
    refused_per_minute: int = Field(default=30, ge=1)  # wrong keys from one address
    outcomes: int = Field(default=1024, ge=1)  # that are remembered for GET /v1/audio/speech/{id}
