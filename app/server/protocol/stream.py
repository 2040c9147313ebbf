"""WS /v1/audio/speech/stream: text in as it is written, audio out as it is made (the open convention's names).

First message `session.config`; then `input.text` as often as there is text, `input.done` at the end of an utterance.
Audio travels as bare binary frames between `audio.start` and `audio.done`; then the next utterance may begin.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ..encoding import AudioFormat
from .base import ErrorDetail, Message
from .speech import VoiceId, WordTime

# -- client -> server -------------------------------------------------------------------------------------------------


class SessionConfig(Message):
    """The first message, once. Fields as in POST /v1/audio/speech; `ahead` defaults to the server's limit. `split` is
    how text is spoken as it arrives: by `word` (audio after about three), `clause`, or whole `sentence`. `speculate` is
    ignored by a model without a drafter."""

    type: Literal["session.config"]
    model: str = Field(default="default", max_length=200)
    voice: str | VoiceId | None = None
    response_format: AudioFormat = "pcm"
    speed: float = Field(default=1.0, ge=0.25, le=4.0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=1 << 48)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    pause: float = Field(default=1.0, ge=0.1, le=5.0, allow_inf_nan=False)
    word_timestamps: bool = True
    ahead: float | None = Field(default=None, gt=0, le=600, allow_inf_nan=False)
    split: Literal["word", "clause", "sentence"] = "word"
    speculate: bool = False


class InputText(Message):
    """More text of the current utterance; the first one begins it."""

    type: Literal["input.text"]
    text: str


class InputDone(Message):
    """The utterance's text is complete."""

    type: Literal["input.done"]


class InputCancel(Message):
    """Stop speaking: the utterance ends with `audio.done` (status cancelled), no audio follows it."""

    type: Literal["input.cancel"]


class PlaybackAck(Message):
    """How much of the current utterance has been played; lets the server make more (see `ahead`)."""

    type: Literal["playback.ack"]
    played_ms: float = Field(ge=0, le=1e9, allow_inf_nan=False)


class SessionClose(Message):
    """Finish the current utterance, say `session.done`, and close."""

    type: Literal["session.close"]


class Heartbeat(Message):
    """Keeps an idle session open; answered by the same."""

    type: Literal["session.heartbeat"] = "session.heartbeat"


ClientMessage = Annotated[
    SessionConfig | InputText | InputDone | InputCancel | PlaybackAck | SessionClose | Heartbeat,
    Field(discriminator="type"),
]
CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)

# -- server -> client -------------------------------------------------------------------------------------------------


class SessionConfigured(Message):
    """Answer to `session.config`."""

    type: Literal["session.configured"] = "session.configured"
    session_id: str
    model: str
    voice: str
    response_format: AudioFormat
    sample_rate: int


class AudioStart(Message):
    """Binary frames of this format follow."""

    type: Literal["audio.start"] = "audio.start"
    utterance_index: int
    format: AudioFormat
    sample_rate: int
    channels: Literal[1] = 1


class WordTimestamps(Message):
    """Words that the audio sent so far completes, in seconds from the start of the utterance."""

    type: Literal["word.timestamps"] = "word.timestamps"
    utterance_index: int
    words: list[WordTime]


class AudioEnd(Message):
    """No audio of this utterance follows."""

    type: Literal["audio.done"] = "audio.done"
    utterance_index: int
    status: Literal["completed", "cancelled", "failed"]
    total_bytes: int
    seconds: float


class SessionDone(Message):
    """Everything that was asked for has been answered; more may be asked."""

    type: Literal["session.done"] = "session.done"
    utterances: int
    seconds: float


class StreamError(Message):
    """Something was refused or failed. The socket closes after it when the error has a close code."""

    type: Literal["error"] = "error"
    error: ErrorDetail


ServerMessage = Annotated[
    SessionConfigured | AudioStart | WordTimestamps | AudioEnd | SessionDone | StreamError | Heartbeat,
    Field(discriminator="type"),
]
SERVER: TypeAdapter[ServerMessage] = TypeAdapter(ServerMessage)
