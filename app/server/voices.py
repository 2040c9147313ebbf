"""The HTTP endpoints of voices: list, add from a recording, delete."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import FormData, UploadFile

from ...errors import QuaverError
from .gate import Context
from .problems import Problem, problem_of
from .protocol.speech import VoiceCard, VoiceDeleted, VoiceList
from .service import SpeechService

FIELDS = frozenset(["name", "audio_sample", "file", "consent", "text", "model", "type"])
REFUSED_CONSENT = frozenset(["", "false", "no", "0", "none", "null"])
NAME_CHARACTERS = 80

router = APIRouter()

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "audio_sample", "consent"],
                    "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": NAME_CHARACTERS},
                        "audio_sample": {"type": "string", "format": "binary"},
                        "consent": {"type": "string"},
                        "text": {"type": "string"},
                        "model": {"type": "string"},
                        "type": {"type": "string", "enum": ["audio_sample"]},
                    },
                }
            }
        },
    }
}


def _service(request: Request) -> SpeechService:
    return request.app.state.service


def _owner(request: Request) -> str:
    context: Context = request.scope["quaver"]
    assert context.caller is not None
    return context.caller.name


@router.get("/v1/audio/voices")
async def list_voices(request: Request) -> VoiceList:
    """The voices of all models, and those that this key has added."""
    return VoiceList(data=_service(request).voices(_owner(request)))


@router.post("/v1/audio/voices", openapi_extra=_FORM)
async def create_voice(request: Request) -> VoiceCard:
    """Adds a voice from a recording of 1 to 30 s, of one speaker who agrees (`consent`). Speech requests name its id.

    `audio_sample` (or `file`): wav, flac, ogg or mp3. `text`: what is said in it, which brings the voice closer.
    `model`: by default the first that can imitate. `consent`: as of OpenAI an id of a consent recording; any word but
    no, false and none is taken as the client's assurance, and kept with the voice.
    """
    service, context = _service(request), request.scope["quaver"]
    service.access.count(context.caller)
    form = await _form(request, service.limits.voice_bytes)
    try:
        sample = form.get("audio_sample") or form.get("file")
        if not isinstance(sample, UploadFile):
            raise Problem("invalid_value", "audio_sample: send the recording as a file", "audio_sample")
        words = {name: " ".join(value.split()) for name, value in form.items() if isinstance(value, str)}
        check_words(words)
        data = await sample.read()
    finally:
        await form.close()
    return await make_voice(service, words, data, _owner(request))


async def make_voice(service: SpeechService, words: dict[str, str], data: bytes, owner: str) -> VoiceCard:
    """Adds a voice from checked words and a recording. Raises Problem: no model imitates, or the recording is bad."""
    model, sound = service.cloning_model(words.get("model", "default"))
    try:
        made = await asyncio.to_thread(
            service.added.add,
            sound,
            data,
            name=words["name"],
            owner=owner,
            model=model,
            text=words.get("text", ""),
            consent=words["consent"],
            seconds=service.limits.voice_seconds,
        )
    except QuaverError as error:
        raise problem_of(error) from None
    return service.card_of(made)


def check_words(words: dict[str, str]) -> None:
    """Raises Problem when a field is missing, too long, or there is no consent."""
    if not 0 < len(words.get("name", "")) <= NAME_CHARACTERS:
        raise Problem("invalid_value", f"name: give the voice a name of 1 to {NAME_CHARACTERS} characters", "name")
    if words.get("type", "audio_sample") != "audio_sample":
        raise Problem("invalid_value", "type: voices are made of recordings here (audio_sample)", "type")
    if words.get("consent", "").lower() in REFUSED_CONSENT:
        raise Problem("forbidden", "consent: a voice is only made of somebody who agrees; say so", "consent")
    if len(words["consent"]) > 200 or len(words.get("text", "")) > 2000:
        raise Problem("invalid_value", "consent or text is too long (200 and 2,000 characters)")


async def _form(request: Request, most: int) -> FormData:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Problem("unsupported_media_type", "send multipart/form-data with name, audio_sample and consent")
    try:
        import python_multipart  # noqa: F401 (starlette's parser)
    except ImportError:
        raise Problem("not_implemented", "uploads need the package python-multipart on the server") from None
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException

    try:
        form = await request.form(max_files=1, max_fields=len(FIELDS), max_part_size=most)
    except (MultiPartException, HTTPException, ValueError, KeyError):
        raise Problem("bad_input", "the form cannot be read; send multipart/form-data with one file") from None
    if unknown := sorted(set(form) - FIELDS):
        await form.close()
        raise Problem("invalid_value", f"{unknown[0]!r:.60} is no field of this form", "form")
    return form


@router.delete("/v1/audio/voices/{voice_id}")
async def delete_voice(voice_id: str, request: Request) -> VoiceDeleted:
    """Deletes a voice that this key has added. The models' own cannot be deleted."""
    service, owner = _service(request), _owner(request)
    if await asyncio.to_thread(service.added.remove, voice_id, owner):
        return VoiceDeleted(id=voice_id)
    if any(voice.id == voice_id for voice in service.voices(owner)):
        raise Problem("forbidden", "this voice is part of its model and cannot be deleted", "voice_id")
    raise Problem("not_found", "there is no such voice", "voice_id")
