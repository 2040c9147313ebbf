"""A realtime session apart from its socket: the conversation, the answers, and the journal that a socket reads."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import uuid
from collections import OrderedDict
from contextlib import ExitStack
from typing import Any

from ..audio import to_pcm16
from ..engine import Audio, Outcome
from . import logs
from .gate import Context
from .problems import Problem, problem_of
from .protocol import binary
from .protocol import realtime as rt
from .protocol.base import ErrorDetail, to_json
from .protocol.speech import WordTime
from .resumption import Fence, Journal
from .service import Speech, SpeechService, Wish, problem_of_outcome, word_times


class Answer:
    """One response: its speech, and what of it has been written into the journal."""

    def __init__(self, index: int, epoch: int, metadata: dict[str, str] | None) -> None:
        self.id, self.item_id = f"resp_{uuid.uuid4().hex}", f"item_{uuid.uuid4().hex}"
        self.index, self.epoch, self.metadata = index, epoch, metadata
        self.words: list[WordTime] = []
        self.samples = 0
        self.played: float | None = None  # seconds that the client says were heard
        self.speech: Speech | None = None

    @property
    def transcript(self) -> str:
        """What was said; of an answer whose playback is known, only what was heard."""
        heard = [w for w in self.words if self.played is None or w.end <= self.played]
        return " ".join(w.text for w in heard)

    def item(self, status: Any) -> rt.Item:
        """The answer as an item of the conversation."""
        part = rt.ContentPart(type="output_audio", transcript=self.transcript)
        return rt.Item(id=self.item_id, role="assistant", status=status, content=[part] if self.samples else [])


class RealtimeSession:
    """Lives on when its socket drops, for the grace period. All methods belong to the event loop's thread."""

    def __init__(
        self, service: SpeechService, context: Context, *, model: str, beta: bool, binary_frames: bool, stack: ExitStack
    ) -> None:
        self.service, self.context, self.limits, self.stack = service, context, service.limits, stack
        self.id, self.beta, self.binary = f"sess_{uuid.uuid4().hex}", beta, binary_frames
        self.fence, self.journal = Fence(), Journal(service.limits.outbox_bytes)
        self.settings = rt.SessionSettings(model=service.model(model))
        self.voice = service.voice(self.model, None)
        self.speed, self.instructions = 1.0, ""
        self.items: OrderedDict[str, rt.Item] = OrderedDict()
        self.unspoken: list[str] = []
        self.answer: Answer | None = None
        self.answers, self.characters = 0, 0
        self.token = ""
        self.written, self.room, self.idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.idle.set()
        self._task: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        return self.settings.model or "default"

    def describe(self) -> dict[str, Any]:
        """The `session` object of `session.created` and `session.updated`."""
        rate = self.service.engine.synthesizer(self.model).sample_rate
        voice = {"format": {"type": "audio/pcm", "rate": rate}, "voice": self.voice, "speed": self.speed}
        duplex = bool(self.service.duplex)
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self.id,
            "model": self.model,
            "output_modalities": ["audio"],
            "instructions": self.instructions,
            "audio": {"output": voice},
            "protocol": {"name": "quaver", "version": 1, "subprotocols": ["realtime", binary.SUBPROTOCOL]},
            "capabilities": {"text_to_speech": True, "duplex": duplex, "resume": self.limits.grace_seconds > 0},
            "resume_token": self.token,
            "disconnect_grace_s": self.limits.grace_seconds,
        }

    # -- writing ------------------------------------------------------------------------------------------------------
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

    # -- the client's messages ----------------------------------------------------------------------------------------
    def handle(self, message: rt.ClientMessage) -> None:
        """Acts on a message.

        Raises:
            Problem: it cannot be done.
        """
        match message:
            case rt.SessionUpdate(session=settings):
                self._update(settings)
            case rt.ItemCreate():
                self._add(message.item, message.previous_item_id)
            case rt.ItemRetrieve(item_id=identity):
                self.emit(rt.ItemEvent(type="conversation.item.retrieved", item=self._item(identity)))
            case rt.ItemDelete(item_id=identity):
                self._item(identity)
                del self.items[identity]
                self.unspoken = [i for i in self.unspoken if i != identity]
                self.emit(rt.ItemGone(type="conversation.item.deleted", item_id=identity))
            case rt.ItemTruncate():
                self._truncate(message)
            case rt.ResponseCreate(response=settings):
                self._respond(settings)
            case rt.ResponseCancel(response_id=identity):
                self.interrupt(identity)
            case rt.OutputClear():
                cut = self.interrupt(None)
                self.emit(rt.BufferEvent(response_id=cut))
            case rt.PlaybackAck(played_ms=played):
                self._played(played / 1000)
            case rt.EventAck(server_event_seq=seq):
                self.journal.acknowledge(seq)
            case rt.Heartbeat():
                self.emit(rt.SessionHeartbeat())
            case rt.Resume():
                raise Problem("invalid_value", "session.resume must be the first message of a socket", "type")
            case rt.AudioAppend() | rt.AudioCommit() | rt.AudioClear():
                self.service.duplex_backend(self.model)
                raise Problem("not_implemented", "duplex sessions are served over /api/chat so far")

    def _update(self, wanted: rt.SessionSettings) -> None:
        output = wanted.audio.output if wanted.audio else None
        voice = (output.voice if output else None) or wanted.voice
        model = self.service.model(wanted.model) if wanted.model else self.model
        if wanted.output_modalities and "audio" not in wanted.output_modalities:
            raise Problem("invalid_value", "this server answers with audio", "session.output_modalities")
        self.voice = self.service.voice(model, voice or (self.voice if model == self.model else None))
        self.settings = self.settings.model_copy(
            update={"model": model, "seed": self.settings.seed if wanted.seed is None else wanted.seed}
        )
        if output and output.speed:
            self.speed = output.speed
        if wanted.instructions is not None:
            self.instructions = wanted.instructions
        self.emit(rt.SessionEvent(type="session.updated", session=self.describe()))

    def _add(self, item: rt.Item, previous: str | None) -> None:
        if item.type != "message" or not item.text.strip():
            raise Problem("invalid_value", "only messages with text can be spoken", "item.content")
        if len(self.items) >= self.limits.items:
            raise Problem("too_large", f"a conversation may have {self.limits.items} items; delete some")
        self._count(item.text)
        if item.id is not None and item.id in self.items:
            raise Problem("invalid_value", "there is an item with this id already", "item.id")
        identity = item.id or f"item_{uuid.uuid4().hex}"
        added = item.model_copy(update={"id": identity, "status": "completed", "role": item.role or "user"})
        self.items[identity] = added
        self.unspoken.append(identity)
        for kind in ("conversation.item.added", "conversation.item.done"):
            self.emit(rt.ItemEvent(type=kind, item=added, previous_item_id=previous))

    def _item(self, identity: str) -> rt.Item:
        if identity not in self.items:
            raise Problem("invalid_value", "there is no such item", "item_id")
        return self.items[identity]

    def _count(self, text: str) -> None:
        self.characters += len(text)
        if self.characters > self.limits.stream_text_characters:
            raise Problem("text_too_long", f"one session may send {self.limits.stream_text_characters} characters")

    def _truncate(self, message: rt.ItemTruncate) -> None:
        self._item(message.item_id)
        if self.answer is not None and self.answer.item_id == message.item_id:
            self.answer.played = message.audio_end_ms / 1000
        self.emit(
            rt.ItemGone(
                type="conversation.item.truncated",
                item_id=message.item_id,
                content_index=message.content_index,
                audio_end_ms=message.audio_end_ms,
            )
        )

    def _played(self, seconds: float) -> None:
        if self.answer is not None:
            self.answer.played = max(self.answer.played or 0.0, seconds)
            if self.answer.speech is not None:
                self.answer.speech.session.played(seconds)

    def interrupt(self, identity: str | None) -> str | None:
        """Stops the answer: the epoch advances, what was not sent is dropped. Returns the answer's id, if any.

        Raises:
            Problem: `invalid_value`: another answer is named.
        """
        answer = self.answer
        if identity is not None and (answer is None or answer.id != identity):
            raise Problem("invalid_value", "this response is not in progress", "response_id")
        if answer is None:
            return None
        self.journal.fence(self.fence.advance())
        self.room.set()
        if answer.speech is not None:
            answer.speech.session.cancel("client")
        return answer.id

    # -- answering ----------------------------------------------------------------------------------------------------
    def _respond(self, settings: rt.ResponseSettings) -> None:
        if self.answer is not None:
            raise Problem("conflict", "a response is in progress; cancel it first")
        text = self._spoken_text(settings)
        output = settings.audio.output if settings.audio else None
        voice = (output.voice if output else None) or settings.voice
        wish = Wish(
            text=text,
            model=self.model,
            voice=voice or self.voice,
            speed=(output.speed if output else None) or self.speed,
            seed=settings.seed if settings.seed is not None else (self.settings.seed or 0),
            ahead=self.limits.ahead_seconds,
        )
        answer = Answer(self.answers, self.fence.epoch, settings.metadata)
        speech = self.service.speak(wish, self.context, "realtime", identity=f"{self.context.request_id}-{answer.id}")
        answer.speech, self.answer = speech, answer
        self.answers += 1
        self.unspoken.clear()
        self.idle.clear()
        self._task = asyncio.create_task(self._speak(answer, speech))

    def _spoken_text(self, settings: rt.ResponseSettings) -> str:
        """`input` if there is some, else the items since the last answer, else the response's instructions."""
        if settings.input:
            text = " ".join(item.text for item in settings.input)
            self._count(text)
        else:
            text = " ".join(self.items[i].text for i in self.unspoken if i in self.items)
        if not text.strip() and settings.instructions:
            text = settings.instructions
            self._count(text)
        if not text.strip():
            raise Problem(
                "invalid_value", "there is nothing to say: create an item with text, or give input or instructions"
            )
        return text

    async def _speak(self, answer: Answer, speech: Speech) -> None:
        problem: Problem | None = None
        status = "failed"
        try:
            with speech:
                self._open(answer)
                async for event in speech.events():
                    if isinstance(event, Audio):
                        await self._audio(answer, event, speech)
                    elif isinstance(event, Outcome):
                        problem = problem_of_outcome(event)
                        client = event.kind == "cancelled" and event.reason == "client"
                        status = "cancelled" if client else "failed" if problem else "completed"
        except Exception as error:
            problem = problem_of(error)
            logs.event("realtime.failed", 40, exc_info=error if problem.code == "internal" else None)
        finally:
            self._close(answer, status, problem)

    def _open(self, answer: Answer) -> None:
        state = rt.ResponseState(id=answer.id, status="in_progress", metadata=answer.metadata)
        item = answer.item("in_progress")
        self.emit(rt.ResponseEvent(type="response.created", response=state))
        self.emit(rt.OutputItemEvent(type="response.output_item.added", response_id=answer.id, item=item))
        self.emit(rt.ItemEvent(type="conversation.item.added", item=item))
        part = rt.ContentPart(type="audio", transcript="")
        ids: dict[str, Any] = {"response_id": answer.id, "item_id": answer.item_id}
        self.emit(rt.PartEvent(type="response.content_part.added", part=part, **ids))

    async def _audio(self, answer: Answer, event: Audio, speech: Speech) -> None:
        ids: dict[str, Any] = {"response_id": answer.id, "item_id": answer.item_id}
        while self.journal.full and not self.fence.stale(answer.epoch):
            self.room.clear()
            await self.room.wait()
        if self.fence.stale(answer.epoch):
            return
        pcm = to_pcm16(event.samples[None]).tobytes()
        if pcm and self.binary:
            flags = binary.Flag.FIRST if not answer.samples else 0
            head = (binary.Kind.AUDIO_OUT, binary.Codec.S16LE, flags)
            start, index, epoch = answer.samples, answer.index, answer.epoch
            self.journal.append(lambda seq: binary.Frame(*head, seq, epoch, index, start, pcm).pack(), epoch)
            self.written.set()
        elif pcm:
            delta = base64.b64encode(pcm).decode()
            self.emit(rt.DeltaEvent(type="response.output_audio.delta", delta=delta, **ids), answer.epoch)
        answer.samples += len(event.samples)
        speech.sent(event.seconds, len(pcm))
        words = word_times(event)
        if words:
            text = "".join((" " if answer.words or i else "") + w.text for i, w in enumerate(words))
            answer.words += words
            times = [w.model_dump() for w in words]
            self.emit(
                rt.DeltaEvent(type="response.output_audio_transcript.delta", delta=text, words=times, **ids),
                answer.epoch,
            )

    def _close(self, answer: Answer, status: Any, problem: Problem | None) -> None:
        item = answer.item("completed" if status == "completed" else "incomplete")
        ids: dict[str, Any] = {"response_id": answer.id, "item_id": answer.item_id}
        transcript = answer.transcript
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
        if answer.samples:
            self.items[answer.item_id] = item
            while len(self.items) > self.limits.items:
                self.items.popitem(last=False)
        self.answer = None
        self.idle.set()

    async def shut(self, reason: str) -> None:
        """Ends the session for good; may be called again."""
        if self.answer is not None and self.answer.speech is not None:
            self.answer.speech.session.cancel(reason)
            self.journal.fence(self.fence.advance())
            self.room.set()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.stack.close()
