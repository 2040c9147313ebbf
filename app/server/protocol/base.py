"""What all messages share: strict parsing with errors that name the field, and JSON that has one spelling."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..problems import Problem

T = TypeVar("T")
MAX_DEPTH = 32


class Message(BaseModel):
    """A message of our own: unknown fields are refused, so that a typing error is not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenMessage(BaseModel):
    """A message of somebody else's protocol: unknown fields are left alone, theirs grow without asking us."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ErrorDetail(BaseModel):
    """OpenAI's error object. `code` is stable; `request_id` is what the server's log knows it by."""

    model_config = ConfigDict(frozen=True, extra="allow")

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    request_id: str | None = None


class ErrorBody(BaseModel):
    """The body of every refusal over HTTP."""

    error: ErrorDetail


def parse_json(data: str | bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Problem: `bad_json`.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Problem("bad_json", "the message is not JSON") from None
    if not isinstance(value, dict):
        raise Problem("bad_json", "the message is not a JSON object")
    return value


def validated(adapter: TypeAdapter[T], value: dict[str, Any]) -> T:
    """A typed message.

    Raises:
        Problem: `unknown_event` when `type` names none, `invalid_value` with the field's name otherwise.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise problem_of_validation(error.errors(include_url=False), value.get("type")) from None


def problem_of_validation(errors: Any, kind: object = None) -> Problem:
    """The first of pydantic's errors as a Problem."""
    first = errors[0]
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        named = f"{kind!r:.60}" if isinstance(kind, str) else "missing"
        return Problem("unknown_event", f"the message's type is {named}, which this protocol does not know", "type")
    skip = {"body", kind} if isinstance(kind, str) else {"body"}
    where = ".".join(str(part) for part in first["loc"] if part not in skip)
    return Problem("invalid_value", f"{where or 'the message'}: {first['msg']}", where or None)


def to_json(message: BaseModel, **extra: Any) -> str:
    """One line of JSON; fields that are None are left out."""
    return json.dumps(message.model_dump(mode="json", exclude_none=True) | extra, ensure_ascii=False)
