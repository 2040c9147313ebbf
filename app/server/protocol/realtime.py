"""WS /v1/realtime: OpenAI's Realtime names, and what quaver adds to them.

Additions: every server event carries `server_event_seq` and `epoch` (advanced by each interruption; audio of an older
epoch is never sent); `playback.ack`; `session.resume`, `session.event_ack`, `session.heartbeat`, `session.close`.

With a duplex model, audio may be appended at any time (or sent as binary frames of kind 1, whose `seq` grows: a number
that has been seen is ignored, so that frames may be sent again after a resume). The first one takes a slot. The model
speaks when it wants to: its turns come as responses that nobody created; `response.create` without a text makes it
speak. A text is spoken as always, and the model is not heard meanwhile.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from .base import ErrorDetail, OpenMessage
from .realtime_parts import (  # noqa: F401 (callers know one module of this protocol)
    AudioConfig,
    ContentPart,
    InputAudio,
    InputFormat,
    Item,
    OutputAudio,
    OutputFormat,
    ResponseSettings,
    SessionSettings,
    Transcription,
    TurnDetection,
)

# -- client -> server -------------------------------------------------------------------------------------------------


class ClientEvent(OpenMessage):
    """`event_id` comes back in an error about this event."""

    event_id: str | None = Field(default=None, max_length=512)


class SessionUpdate(ClientEvent):
    """Change the session's settings."""

    type: Literal["session.update"]
    session: SessionSettings


class AudioAppend(ClientEvent):
    """What the microphone hears: 16-bit PCM, base64, at the rate of `audio.input` (needs a duplex model)."""

    type: Literal["input_audio_buffer.append"]
    audio: str


class AudioCommit(ClientEvent):
    """The user's turn is over: it becomes an item (needs a duplex model). `response.create` makes the model answer."""

    type: Literal["input_audio_buffer.commit"]


class AudioClear(ClientEvent):
    """Forget what was appended and the model has not heard yet (needs a duplex model)."""

    type: Literal["input_audio_buffer.clear"]


class ItemCreate(ClientEvent):
    """Add an item; its text is spoken by the next `response.create`."""

    type: Literal["conversation.item.create"]
    item: Item
    previous_item_id: str | None = None


class ItemRetrieve(ClientEvent):
    """Ask for an item."""

    type: Literal["conversation.item.retrieve"]
    item_id: str


class ItemDelete(ClientEvent):
    """Remove an item."""

    type: Literal["conversation.item.delete"]
    item_id: str


class ItemTruncate(ClientEvent):
    """The user heard only so much of an answer."""

    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: int = Field(default=0, ge=0)
    audio_end_ms: int = Field(ge=0)


class ResponseCreate(ClientEvent):
    """Speak."""

    type: Literal["response.create"]
    response: ResponseSettings = ResponseSettings()


class ResponseCancel(ClientEvent):
    """Interrupt: the epoch advances, no audio of the old one follows."""

    type: Literal["response.cancel"]
    response_id: str | None = None


class OutputClear(ClientEvent):
    """As `response.cancel`; OpenAI's WebRTC clients send it."""

    type: Literal["output_audio_buffer.clear"]


class PlaybackAck(ClientEvent):
    """How much of the current answer has been heard."""

    type: Literal["playback.ack"]
    played_ms: float = Field(ge=0, le=1e9, allow_inf_nan=False)


class EventAck(ClientEvent):
    """Events up to this number have arrived and need not be kept for a resume."""

    type: Literal["session.event_ack"]
    server_event_seq: int = Field(ge=0)


class Resume(ClientEvent):
    """First message of a new socket: go on with a dropped session after event `last_seq`."""

    type: Literal["session.resume"]
    resume_token: str = Field(max_length=200)
    last_seq: int = Field(default=0, ge=0)


class Heartbeat(ClientEvent):
    """Keeps an idle session open."""

    type: Literal["session.heartbeat"]


class SessionClose(ClientEvent):
    """End the session; it cannot be resumed."""

    type: Literal["session.close"]


ClientMessage = Annotated[
    SessionUpdate
    | AudioAppend
    | AudioCommit
    | AudioClear
    | ItemCreate
    | ItemRetrieve
    | ItemDelete
    | ItemTruncate
    | ResponseCreate
    | ResponseCancel
    | OutputClear
    | PlaybackAck
    | EventAck
    | Resume
    | Heartbeat
    | SessionClose,
    Field(discriminator="type"),
]
CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)

# -- server -> client -------------------------------------------------------------------------------------------------


class ServerEvent(BaseModel):
    """Numbers are given when the event is sent off (`Journal`), the rest when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: str = ""
    server_event_seq: int = 0
    epoch: int = 0


class ResponseState(BaseModel):
    """The `response` of `response.created` and `response.done`."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["realtime.response"] = "realtime.response"
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    status_details: dict[str, Any] | None = None
    output: list[Item] = []
    output_modalities: list[str] = ["audio"]
    metadata: dict[str, str] | None = None
    usage: dict[str, Any] | None = None


class SessionEvent(ServerEvent):
    """The session as it is now."""

    type: Literal["session.created", "session.updated"]
    session: dict[str, Any]


class SessionResumed(ServerEvent):
    """The old session goes on; the events after `last_seq` follow. The token is a new one. `input_seq`: the number of
    the last binary frame of audio that arrived."""

    type: Literal["session.resumed"] = "session.resumed"
    session_id: str
    resume_token: str
    last_seq: int
    input_seq: int | None = None


class SessionHeartbeat(ServerEvent):
    """Answer to a heartbeat."""

    type: Literal["session.heartbeat"] = "session.heartbeat"


class ItemEvent(ServerEvent):
    """An item as it is now."""

    type: Literal[
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.created",
        "conversation.item.retrieved",
    ]
    item: Item
    previous_item_id: str | None = None


class ItemGone(ServerEvent):
    """An item was deleted or cut."""

    type: Literal["conversation.item.deleted", "conversation.item.truncated"]
    item_id: str
    content_index: int | None = None
    audio_end_ms: int | None = None


class ResponseEvent(ServerEvent):
    """A response begins or ends. `response.done` comes exactly once per response."""

    type: Literal["response.created", "response.done"]
    response: ResponseState


class OutputItemEvent(ServerEvent):
    """The response's item begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    response_id: str
    output_index: int = 0
    item: Item


class PartEvent(ServerEvent):
    """The item's audio begins or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    response_id: str
    item_id: str
    output_index: int = 0
    content_index: int = 0
    part: ContentPart


class DeltaEvent(ServerEvent):
    """A piece of audio (base64) or of its transcript (words, as they are spoken)."""

    type: Literal[
        "response.output_audio.delta",
        "response.output_audio_transcript.delta",
        "response.audio.delta",
        "response.audio_transcript.delta",
    ]
    response_id: str
    item_id: str
    output_index: int = 0
    content_index: int = 0
    delta: str
    words: list[dict[str, Any]] | None = None


class PartEnd(ServerEvent):
    """The audio, or the transcript, is complete."""

    type: Literal[
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.audio.done",
        "response.audio_transcript.done",
    ]
    response_id: str
    item_id: str
    output_index: int = 0
    content_index: int = 0
    transcript: str | None = None


class BufferEvent(ServerEvent):
    """Played audio was cleared; play nothing of an older epoch."""

    type: Literal["output_audio_buffer.cleared"] = "output_audio_buffer.cleared"
    response_id: str | None = None


class SpeechStarted(ServerEvent):
    """The user speaks; times in ms of all audio that was appended."""

    type: Literal["input_audio_buffer.speech_started"] = "input_audio_buffer.speech_started"
    audio_start_ms: int
    item_id: str


class SpeechStopped(ServerEvent):
    """The user is silent; a commit follows."""

    type: Literal["input_audio_buffer.speech_stopped"] = "input_audio_buffer.speech_stopped"
    audio_end_ms: int
    item_id: str


class InputCommitted(ServerEvent):
    """What the user said is an item now."""

    type: Literal["input_audio_buffer.committed"] = "input_audio_buffer.committed"
    item_id: str
    previous_item_id: str | None = None


class InputTranscript(ServerEvent):
    """A piece of what the user says, from a duplex model that writes it down, a moment after it was said. It may come
    before the item is committed."""

    type: Literal["conversation.item.input_audio_transcription.delta"] = (
        "conversation.item.input_audio_transcription.delta"
    )
    item_id: str
    content_index: int = 0
    delta: str


class InputTranscriptDone(ServerEvent):
    """What the user said in a committed item, as soon as the model has heard it to its end."""

    type: Literal["conversation.item.input_audio_transcription.completed"] = (
        "conversation.item.input_audio_transcription.completed"
    )
    item_id: str
    content_index: int = 0
    transcript: str
    usage: dict[str, Any] | None = None


class InputCleared(ServerEvent):
    """What was appended and not heard is forgotten."""

    type: Literal["input_audio_buffer.cleared"] = "input_audio_buffer.cleared"


class RealtimeError(ServerEvent):
    """Something was refused or failed."""

    type: Literal["error"] = "error"
    error: ErrorDetail


ServerMessage = Annotated[
    SessionEvent
    | SessionResumed
    | SessionHeartbeat
    | ItemEvent
    | ItemGone
    | ResponseEvent
    | OutputItemEvent
    | PartEvent
    | DeltaEvent
    | PartEnd
    | BufferEvent
    | SpeechStarted
    | SpeechStopped
    | InputCommitted
    | InputTranscript
    | InputTranscriptDone
    | InputCleared
    | RealtimeError,
    Field(discriminator="type"),
]
SERVER: TypeAdapter[ServerMessage] = TypeAdapter(ServerMessage)

BETA_NAMES = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "conversation.item.added": "conversation.item.created",
}
"""How clients that send `OpenAI-Beta: realtime=v1` know these events."""
