"""POST /v1/audio/speech: OpenAI's request with what quaver adds, and the bodies of the answers around it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..encoding import AudioFormat
from .base import Message


class VoiceId(Message):
    """OpenAI's reference to a custom voice."""

    id: str = Field(min_length=1, max_length=200)


class SpeechBody(Message):
    """What to speak.

    Attributes:
        speed: 0.5 to 2 in quaver's models; OpenAI's 0.25 to 4 outside of that is refused with the model's own range.
        instructions: accepted for OpenAI's clients; the present models do not follow them (named in the
            `X-Ignored` header of the answer). speculate: by the exact rule, of a model with a drafter
            (docs/speculation.md); named in `X-Ignored` by a model without one.
        stream_format: `audio` is the bytes of the format; `sse` wraps them as OpenAI's events.
        word_timestamps: with `sse`, events `speech.word_timestamps` among the audio.
        ahead: seconds that speech is made ahead of real time; without it, as fast as it can be made and sent.
    """

    model: str = Field(default="default", max_length=200)
    input: str
    voice: str | VoiceId | None = None
    instructions: str | None = Field(default=None, max_length=4096)
    response_format: AudioFormat = "mp3"
    speed: float = Field(default=1.0, ge=0.25, le=4.0, allow_inf_nan=False)
    stream_format: Literal["audio", "sse"] = "audio"
    seed: int = Field(default=0, ge=0, lt=1 << 48)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    pause: float = Field(default=1.0, ge=0.1, le=5.0, allow_inf_nan=False)
    word_timestamps: bool = False
    speculate: bool = False
    ahead: float | None = Field(default=None, gt=0, le=600, allow_inf_nan=False)


class WordTime(Message):
    """A word and when it sounds, in seconds from the start of the answer."""

    text: str
    start: float
    end: float


class SpeechUsage(Message):
    """OpenAI counts tokens; here they are characters in and audio frames' worth of seconds out."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    audio_seconds: float


class AudioDelta(Message):
    """A piece of the audio, base64."""

    type: Literal["speech.audio.delta"] = "speech.audio.delta"
    audio: str


class WordTimes(Message):
    """Words that the audio so far completes."""

    type: Literal["speech.word_timestamps"] = "speech.word_timestamps"
    words: list[WordTime]


class AudioDone(Message):
    """The end of the audio."""

    type: Literal["speech.audio.done"] = "speech.audio.done"
    usage: SpeechUsage


class SpeechError(Message):
    """The speech failed after it had begun."""

    type: Literal["error"] = "error"
    error: dict[str, Any]


SseEvent = Annotated[AudioDelta | WordTimes | AudioDone | SpeechError, Field(discriminator="type")]


class SpeechOutcome(BaseModel):
    """How a request went; raw audio has no room to say so. Times in seconds."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["audio.speech"] = "audio.speech"
    status: Literal["in_progress", "done", "cancelled", "failed", "timeout"]
    reason: str | None = None
    model: str
    created: float
    characters: int = 0
    audio_seconds: float = 0.0
    bytes: int = 0
    first_audio: float | None = None
    queue_wait: float | None = None
    total: float = 0.0
    underrun: float = 0.0
    words: list[WordTime] | None = None
    ignored: list[str] = []


class ModelCard(BaseModel):
    """One model, as GET /v1/models lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "quaver"
    sample_rate: int
    voices: list[str]
    duplex: bool = False  # it converses (/v1/realtime, /api/chat); it does not read texts out


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class VoiceCard(BaseModel):
    """One voice, as GET /v1/audio/voices lists it. `type`: `built_in`, or made of an `audio_sample`."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    name: str
    type: Literal["built_in", "audio_sample"] = "built_in"
    created_at: int = 0
    model: str
    default: bool = False


class VoiceList(BaseModel):
    """GET /v1/audio/voices."""

    object: Literal["list"] = "list"
    data: list[VoiceCard]


class VoiceDeleted(BaseModel):
    """DELETE /v1/audio/voices/{id}."""

    id: str
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"
    deleted: bool = True


class TicketBody(Message):
    """POST /v1/realtime/client_secrets. OpenAI's clients send a session; it is taken up by `session.update` later."""

    model_config = ConfigDict(extra="ignore")


class TicketAnswer(BaseModel):
    """A single-use ticket for a browser."""

    value: str
    expires_at: int
    session: dict[str, Any] = {}
