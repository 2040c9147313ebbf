"""A realtime session apart from its socket: the conversation, the answers, and the journal that a socket reads."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import uuid
from collections import OrderedDict
from contextlib import ExitStack
from typing import Any

from ..engine import Audio, Outcome
from . import logs
from .duplex import DuplexRequest
from .gate import Context
from .problems import Problem, problem_of
from .protocol import binary
from .protocol import realtime as rt
from .realtime_talk import Conversation
from .realtime_writer import Answer, RealtimeWriter
from .service import Speech, SpeechService, Wish, problem_of_outcome, word_times


class RealtimeSession(RealtimeWriter):
    """Lives on when its socket drops, for the grace period. All methods belong to the event loop's thread.

    Args:
        model: one that speaks texts, or one that converses (texts are then spoken by the first model that can).
    """

    def __init__(
        self, service: SpeechService, context: Context, *, model: str, beta: bool, binary_frames: bool, stack: ExitStack
    ) -> None:
        identity = f"sess_{uuid.uuid4().hex}"
        super().__init__(identity, context, service.limits, beta=beta, binary_frames=binary_frames)
        self.service, self.stack = service, stack
        self.talker = model if model in service.duplex else "default"
        mute = not service.engine.models and bool(service.duplex)  # it converses, and speaks no texts
        if mute and (self.talker == model or service.no_name(model)):
            self.voice, self.rate = "", service.duplex_backend(self.talker).sample_rate
        else:
            model = service.model(model if self.talker == "default" else "default")
            self.voice, self.rate = service.voice(model, None), service.engine.synthesizer(model).sample_rate
        self.settings, self.input = rt.SessionSettings(model=model), rt.InputAudio()
        self.speed, self.instructions = 1.0, ""
        self.items: OrderedDict[str, rt.Item] = OrderedDict()
        self.said: dict[str, Answer] = {}  # the answers among the items
        self.unspoken: list[str] = []
        self.answer: Answer | None = None
        self.conversation: Conversation | None = None
        self.answers, self.characters = 0, 0
        self.token = ""
        self.input_seq: int | None = None  # of the last binary frame that arrived
        self.unheard = False  # no slot was free for the conversation
        self.idle = asyncio.Event()
        self.idle.set()
        self._task: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        return self.settings.model or "default"

    def describe(self) -> dict[str, Any]:
        """The `session` object of `session.created` and `session.updated`."""
        voice = {"format": {"type": "audio/pcm", "rate": self.rate}, "voice": self.voice, "speed": self.speed}
        speaks, duplex = bool(self.service.engine.models), bool(self.service.duplex)
        detection, writes = self.input.turn_detection, duplex and self.service.duplex_backend(self.talker).transcribes
        ear = {
            "format": {"type": "audio/pcm", "rate": self.input.rate},
            "turn_detection": detection.model_dump() if detection else None,
            "transcription": {"model": self.talker} if writes and self.input.transcription else None,
        }
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self.id,
            "model": self.model,
            "output_modalities": ["audio"],
            "instructions": self.instructions,
            "audio": {"input": ear, "output": voice},
            "protocol": {"name": "quaver", "version": 1, "subprotocols": ["realtime", binary.SUBPROTOCOL]},
            "capabilities": {"text_to_speech": speaks, "duplex": duplex, "resume": self.limits.grace_seconds > 0},
            "resume_token": self.token,
            "disconnect_grace_s": self.limits.grace_seconds,
        }

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
            case rt.AudioAppend(audio=audio):
                self._hear(binary.Codec.S16LE, _bytes(audio))
            case rt.AudioCommit():
                self.commit()
            case rt.AudioClear():
                self.talk().clear()

    def _update(self, wanted: rt.SessionSettings) -> None:
        output = wanted.audio.output if wanted.audio else None
        ear = wanted.audio.input if wanted.audio else None
        voice = (output.voice if output else None) or wanted.voice
        model = self._other_model(wanted.model)
        if wanted.output_modalities and "audio" not in wanted.output_modalities:
            raise Problem("invalid_value", "this server answers with audio", "session.output_modalities")
        if ear is not None:
            ear = self.input.model_copy(update={n: getattr(ear, n) for n in ear.model_fields_set})
            if self.conversation is not None:
                self.conversation.configure(ear)
        if voice or model != self.model:
            self.voice = self.service.voice(model, voice, self.context.caller.name if self.context.caller else "")
            self.rate = self.service.engine.synthesizer(model).sample_rate
        self.input = ear or self.input
        self.settings = self.settings.model_copy(
            update={"model": model, "seed": self.settings.seed if wanted.seed is None else wanted.seed}
        )
        if output and output.speed:
            self.speed = output.speed
        if wanted.instructions is not None:
            self.instructions = wanted.instructions
        self.emit(rt.SessionEvent(type="session.updated", session=self.describe()))

    def _other_model(self, wanted: str | None) -> str:
        """The model that speaks texts. One that converses can be named until audio has been sent."""
        if wanted in self.service.duplex and wanted != self.talker:
            if self.conversation is not None:
                raise Problem("conflict", "this session converses with another model already", "session.model")
            self.talker = wanted
        return self.model if wanted is None or wanted in self.service.duplex else self.service.model(wanted)

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
        answer = self.said.get(message.item_id)
        if self.answer is not None and self.answer.item_id == message.item_id:
            answer = self.answer
        else:
            self._item(message.item_id)
        if answer is not None:
            answer.played = message.audio_end_ms / 1000
            if message.item_id in self.items:
                self.items[message.item_id] = answer.item("incomplete")
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
            elif self.conversation is not None:
                self.conversation.played(seconds)

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
        elif self.conversation is not None:
            self.conversation.interrupt()
        return answer.id

    # -- answering ----------------------------------------------------------------------------------------------------
    def _respond(self, settings: rt.ResponseSettings) -> None:
        if self.answer is not None:
            raise Problem("conflict", "a response is in progress; cancel it first")
        text = self._spoken_text(settings)
        if not text.strip() and self.conversation is not None:
            self.conversation.speak()
            return
        if not text.strip():
            raise Problem(
                "invalid_value", "there is nothing to say: create an item with text, or give input or instructions"
            )
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
        return text

    async def _speak(self, answer: Answer, speech: Speech) -> None:
        problem: Problem | None = None
        status = "failed"
        try:
            with speech:
                self.begin(answer)
                async for event in speech.events():
                    if isinstance(event, Audio):
                        size = await self.audio(answer, event.samples)
                        if size is not None:
                            speech.sent(event.seconds, size)
                            self.words(answer, word_times(event))
                    elif isinstance(event, Outcome):
                        problem = problem_of_outcome(event)
                        client = event.kind == "cancelled" and event.reason == "client"
                        status = "cancelled" if client else "failed" if problem else "completed"
        except Exception as error:
            problem = problem_of(error)
            logs.event("realtime.failed", 40, exc_info=error if problem.code == "internal" else None)
        finally:
            self._keep(answer, self.end(answer, status, problem))

    def _keep(self, answer: Answer, item: rt.Item) -> None:
        """What was said is an item of the conversation."""
        if answer.samples:
            self.said[answer.item_id] = answer
            self._remember(item)
        self.answer = None
        self.idle.set()

    def _remember(self, item: rt.Item) -> None:
        assert item.id is not None
        self.items[item.id] = item
        while len(self.items) > self.limits.items:
            self.said.pop(self.items.popitem(last=False)[0], None)

    # -- conversing ---------------------------------------------------------------------------------------------------
    def hear(self, frame: binary.Frame) -> None:
        """A binary frame of the client's audio; one that has arrived before is ignored.

        Raises:
            Problem: it cannot be taken.
        """
        if self.input_seq is not None and (frame.seq - self.input_seq - 1) & 0xFFFFFFFF >= 1 << 31:
            return
        self._hear(frame.codec, frame.payload)
        self.input_seq = frame.seq

    def _hear(self, codec: int, payload: bytes) -> None:
        self.talk().append(binary.samples_of(codec, payload))

    def talk(self) -> Conversation:
        """The conversation; it takes a slot when it begins.

        Raises:
            Problem: `no_duplex_model`, draining, the caller's rate, or no slot (in which case the socket is closed).
        """
        if self.conversation is not None:
            return self.conversation
        backend, caller = self.service.duplex_backend(self.talker), self.context.caller
        assert caller is not None
        if self.service.draining.is_set():
            raise Problem("draining", "the server is shutting down; another one may take this", retry_after=5)
        self.service.access.count(caller)
        request = DuplexRequest(
            model=self.talker,
            instructions=self.instructions or None,
            seed=self.settings.seed or 0,
            request_id=f"{self.context.request_id}-talk-{uuid.uuid4().hex[:8]}",
        )
        try:
            self.conversation = Conversation(self, backend, request, self.rate, self.input)
        except Exception as error:
            problem = problem_of(error)
            if problem.code == "internal":
                raise
            self.unheard = problem.code == "overloaded"  # the client would go on to send frames into nothing
            raise problem from None
        return self.conversation

    def commit(self, at: int | None = None) -> None:
        """The user's turn becomes an item; it ends `at` so many samples of what was appended, or now.

        Raises:
            Problem: `invalid_value`: there is none.
        """
        previous = next(reversed(self.items), None)
        item = self.talk().commit(previous, at)
        self._remember(item)
        for kind in ("conversation.item.added", "conversation.item.done"):
            self.emit(rt.ItemEvent(type=kind, item=item, previous_item_id=previous))

    def transcribed(self, identity: str, text: str) -> None:
        """What the user said in an item, if it is still there."""
        item = self.items.get(identity)
        if item is not None:
            heard = rt.ContentPart(type="input_audio", transcript=text)
            self.items[identity] = item.model_copy(update={"content": [heard]})

    def take_turn(self) -> Answer:
        """The model begins to speak."""
        self.answer = Answer(self.answers, self.fence.epoch, spacing="")
        self.answers += 1
        self.idle.clear()
        return self.answer

    def finish_turn(self, turn: Answer, status: str, problem: Problem | None) -> None:
        """The model has spoken."""
        self._keep(turn, self.end(turn, status, problem))

    def lost(self, conversation: Conversation, problem: Problem) -> None:
        """The model's side has ended by itself."""
        if self.conversation is conversation:
            self.conversation = None
            self.refuse(problem)

    async def shut(self, reason: str) -> None:
        """Ends the session for good; may be called again."""
        if self.answer is not None and self.answer.speech is not None:
            self.answer.speech.session.cancel(reason)
            self.journal.fence(self.fence.advance())
            self.room.set()
        if self.conversation is not None:
            self.journal.fence(self.fence.advance())
            await self.conversation.shut(reason)
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.stack.close()


def _bytes(audio: str) -> bytes:
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise Problem("invalid_value", "the audio is not base64", "audio") from None
