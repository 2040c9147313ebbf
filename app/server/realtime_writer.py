"""What a realtime session says: events numbered into its journal, and a response's life as OpenAI's events."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..audio import to_pcm16
from .gate import Context
from .limits import Limits
from .problems import Problem
from .protocol import binary
from .protocol import realtime as rt
from .protocol.base import ErrorDetail, to_json
from .protocol.speech import WordTime
from .resumption import Fence, Journal
from .service import Speech


class Answer:
    """One response, and what of it has been written into the journal.

    Attributes:
        speech: what makes it, for a text that is spoken; None for a turn of a duplex model.
        spacing: what stands between two words of its transcript (a duplex model's pieces bring their own).
    """

    def __init__(self, index: int, epoch: int, metadata: dict[str, str] | None = None, spacing: str = " ") -> None:
        self.id, self.item_id = f"resp_{uuid.uuid4().hex}", f"item_{uuid.uuid4().hex}"
        self.index, self.epoch, self.metadata, self.spacing = index, epoch, metadata, spacing
        self.words: list[WordTime] = []
        self.samples = 0
        self.played: float | None = None  # seconds that the client says were heard
        self.speech: Speech | None = None

    @property
    def transcript(self) -> str:
        """What was said; of an answer whose playback is known, only what was heard."""
        heard = [w for w in self.words if self.played is None or w.end <= self.played]
        return self.spacing.join(w.text for w in heard)

    def item(self, status: Any) -> rt.Item:
        """The answer as an item of the conversation."""
        part = rt.ContentPart(type="output_audio", transcript=self.transcript)
        return rt.Item(id=self.item_id, role="assistant", status=status, content=[part] if self.samples else [])


class RealtimeWriter:
    """All methods belong to the event loop's thread.

    Args:
        identity: of the session. beta: OpenAI's older event names. binary_frames: audio goes out in binary frames.
    """

    def __init__(self, identity: str, context: Context, limits: Limits, *, beta: bool, binary_frames: bool) -> None:
        self.id, self.context, self.limits = identity, context, limits
        self.beta, self.binary = beta, binary_frames
        self.fence, self.journal = Fence(), Journal(limits.outbox_bytes)
        self.written, self.room = asyncio.Event(), asyncio.Event()

    def emit(self, event: rt.ServerEvent, epoch: int | None = None) -> None:
        """Numbers an event and queues it; with an epoch, an interruption voids it."""

        def write(seq: int) -> str:
            changes: dict[str, Any] = {"event_id": f"event_{self.id[-8:]}_{seq}", "server_event_seq": seq}
            changes["epoch"] = self.fence.epoch if epoch is None else epoch
            kind = getattr(event, "type", "")
            if self.beta and kind in rt.BETA_NAMES:
                changes["type"] = rt.BETA_NAMES[kind]
            return to_json(event.model_copy(update=changes))

        self.journal.append(write, epoch)
        self.written.set()

    def refuse(self, problem: Problem, event_id: str | None = None) -> None:
        """Tells the client of an error; `event_id` is its own, of the message at fault."""
        body = problem.body(self.context.request_id) | ({"event_id": event_id} if event_id else {})
        self.emit(rt.RealtimeError(error=ErrorDetail.model_validate(body)))

    # -- a response ---------------------------------------------------------------------------------------------------
    def begin(self, answer: Answer) -> None:
        """The events that open a response."""
        state = rt.ResponseState(id=answer.id, status="in_progress", metadata=answer.metadata)
        item = answer.item("in_progress")
        self.emit(rt.ResponseEvent(type="response.created", response=state))
        self.emit(rt.OutputItemEvent(type="response.output_item.added", response_id=answer.id, item=item))
        self.emit(rt.ItemEvent(type="conversation.item.added", item=item))
        part = rt.ContentPart(type="audio", transcript="")
        self.emit(rt.PartEvent(type="response.content_part.added", part=part, **_ids(answer)))

    async def audio(self, answer: Answer, samples: np.ndarray) -> int | None:
        """Queues a chunk, as soon as there is room; the bytes of its samples, or None when the answer was interrupted
        before."""
        while self.journal.full and not self.fence.stale(answer.epoch):
            self.room.clear()
            await self.room.wait()
        if self.fence.stale(answer.epoch):
            return None
        pcm = to_pcm16(samples[None]).tobytes()
        if pcm and self.binary:
            flags = binary.Flag.FIRST if not answer.samples else 0
            head = (binary.Kind.AUDIO_OUT, binary.Codec.S16LE, flags)
            start, index, epoch = answer.samples, answer.index, answer.epoch
            self.journal.append(lambda seq: binary.Frame(*head, seq, epoch, index, start, pcm).pack(), epoch)
            self.written.set()
        elif pcm:
            delta = base64.b64encode(pcm).decode()
            self.emit(rt.DeltaEvent(type="response.output_audio.delta", delta=delta, **_ids(answer)), answer.epoch)
        answer.samples += len(samples)
        return len(pcm)

    def words(self, answer: Answer, words: Sequence[WordTime]) -> None:
        """Queues words of the transcript."""
        if not words:
            return
        text = answer.spacing.join([*([""] if answer.words else []), *(w.text for w in words)])
        answer.words += words
        times = [w.model_dump() for w in words]
        self.emit(
            rt.DeltaEvent(type="response.output_audio_transcript.delta", delta=text, words=times, **_ids(answer)),
            answer.epoch,
        )

    def end(self, answer: Answer, status: Any, problem: Problem | None = None) -> rt.Item:
        """The events that close a response; gives its item."""
        item = answer.item("completed" if status == "completed" else "incomplete")
        ids, transcript = _ids(answer), answer.transcript
        part = rt.ContentPart(type="audio", transcript=transcript)
        self.emit(rt.PartEnd(type="response.output_audio.done", **ids))
        self.emit(rt.PartEnd(type="response.output_audio_transcript.done", transcript=transcript, **ids))
        self.emit(rt.PartEvent(type="response.content_part.done", part=part, **ids))
        self.emit(rt.OutputItemEvent(type="response.output_item.done", response_id=answer.id, item=item))
        self.emit(rt.ItemEvent(type="conversation.item.done", item=item))
        details: dict[str, Any] | None = None
        if status == "cancelled":
            details = {"type": "cancelled", "reason": "client_cancelled"}
        elif problem is not None:
            details = {"type": "failed", "error": problem.body(self.context.request_id)}
        usage = answer.speech.session.usage if answer.speech else None
        figures = {"audio_seconds": round(usage.audio, 4), "characters": usage.characters} if usage else None
        state = rt.ResponseState(
            id=answer.id,
            status=status,
            status_details=details,
            output=[item],
            metadata=answer.metadata,
            usage=figures,
        )
        self.emit(rt.ResponseEvent(type="response.done", response=state))
        return item


def _ids(answer: Answer) -> dict[str, Any]:
    return {"response_id": answer.id, "item_id": answer.item_id}
