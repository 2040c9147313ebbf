"""What events of WS /v1/realtime carry: items and their parts, formats, settings of sessions and answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .base import OpenMessage

__all__ = [
    "AudioConfig",
    "ContentPart",
    "InputAudio",
    "InputFormat",
    "Item",
    "OutputAudio",
    "OutputFormat",
    "ResponseSettings",
    "SessionSettings",
    "Transcription",
    "TurnDetection",
]


class ContentPart(OpenMessage):
    """A piece of an item: text in, or audio with its transcript out."""

    type: str = Field(max_length=40)
    text: str | None = None
    transcript: str | None = None


class Item(OpenMessage):
    """A conversation item. Only messages with text can be spoken."""

    id: str | None = Field(default=None, max_length=64)
    object: Literal["realtime.item"] = "realtime.item"
    type: str = Field(default="message", max_length=40)
    role: Literal["user", "assistant", "system"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    content: list[ContentPart] = Field(default_factory=list, max_length=64)

    @property
    def text(self) -> str:
        """What is to be said."""
        return " ".join(part.text for part in self.content if part.text)


class OutputFormat(OpenMessage):
    """PCM is 16-bit little-endian mono; the rate is the model's."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: int | None = None


class OutputAudio(OpenMessage):
    """`audio.output` of a session or a response."""

    format: OutputFormat | None = None
    voice: str | None = Field(default=None, max_length=200)
    speed: float | None = Field(default=None, ge=0.25, le=4.0, allow_inf_nan=False)


class InputFormat(OpenMessage):
    """PCM is 16-bit little-endian mono; the server brings it to the model's rate."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: int = Field(default=24_000, ge=8_000, le=48_000)


class TurnDetection(OpenMessage):
    """When the user's turns begin and end, by the energy of the sound (`semantic_vad` is taken for `server_vad`).

    A duplex model hears by itself when it is to speak and to be quiet, so that `create_response` (it is made to speak
    when the user stops) and `interrupt_response` (it is cut off when the user starts) are false unless asked for.
    """

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5_000)
    silence_duration_ms: int = Field(default=500, ge=50, le=10_000)
    create_response: bool = False
    interrupt_response: bool = False

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class Transcription(OpenMessage):
    """What the user says, written down by the duplex model itself; OpenAI's fields are taken and change nothing."""

    model: str | None = Field(default=None, max_length=200)
    language: str | None = Field(default=None, max_length=40)
    prompt: str | None = Field(default=None, max_length=16_384)


class InputAudio(OpenMessage):
    """`audio.input` of a session. Turn detection null: no events of it, the client commits. Transcription null: no
    events of it; unlike OpenAI's it is on from the start, for it costs nothing."""

    format: InputFormat | None = None
    turn_detection: TurnDetection | None = TurnDetection()
    transcription: Transcription | None = Transcription()

    @property
    def rate(self) -> int:
        """Samples per second that the client sends."""
        return (self.format or InputFormat()).rate


class AudioConfig(OpenMessage):
    """`audio` of a session or a response."""

    output: OutputAudio | None = None
    input: InputAudio | None = None


class SessionSettings(OpenMessage):
    """What `session.update` can change. `voice` at the top is the beta spelling."""

    type: Literal["realtime"] = "realtime"
    model: str | None = Field(default=None, max_length=200)
    instructions: str | None = Field(default=None, max_length=16_384)
    output_modalities: list[Literal["audio", "text"]] | None = None
    audio: AudioConfig | None = None
    voice: str | None = Field(default=None, max_length=200)
    seed: int | None = Field(default=None, ge=0, lt=1 << 48)


class ResponseSettings(OpenMessage):
    """`response.create`: `input` items are spoken instead of the conversation's; else see `spoken_text`."""

    instructions: str | None = Field(default=None, max_length=16_384)
    input: list[Item] | None = Field(default=None, max_length=64)
    audio: AudioConfig | None = None
    voice: str | None = Field(default=None, max_length=200)
    metadata: dict[str, str] | None = None
    seed: int | None = Field(default=None, ge=0, lt=1 << 48)
