"""What goes wrong, as clients see it: one table from errors to HTTP status, error body, and WebSocket close code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ... import errors
from ...errors import QuaverError

CLOSE_OK, CLOSE_AWAY, CLOSE_INVALID, CLOSE_POLICY, CLOSE_TOO_BIG, CLOSE_INTERNAL, CLOSE_LATER = (
    1000,
    1001,
    1007,
    1008,
    1009,
    1011,
    1013,
)


@dataclass(frozen=True)
class Kind:
    """A row of the table: HTTP status, OpenAI's error type, WebSocket close code (None: the session goes on)."""

    status: int
    type: str
    close: int


KINDS: dict[str, Kind] = {
    "bad_json": Kind(400, "invalid_request_error", CLOSE_INVALID),
    "bad_input": Kind(400, "invalid_request_error", CLOSE_POLICY),
    "invalid_api_key": Kind(401, "authentication_error", CLOSE_POLICY),
    "forbidden": Kind(403, "permission_error", CLOSE_POLICY),
    "origin_not_allowed": Kind(403, "permission_error", CLOSE_POLICY),
    "not_found": Kind(404, "invalid_request_error", CLOSE_POLICY),
    "model_not_found": Kind(404, "invalid_request_error", CLOSE_POLICY),
    "method_not_allowed": Kind(405, "invalid_request_error", CLOSE_POLICY),
    "timeout": Kind(503, "overloaded_error", CLOSE_POLICY),
    "idle": Kind(408, "invalid_request_error", CLOSE_POLICY),
    "session_expired": Kind(408, "invalid_request_error", CLOSE_POLICY),
    "slow_consumer": Kind(408, "invalid_request_error", CLOSE_POLICY),
    "conversation_lost": Kind(503, "server_error", CLOSE_LATER),
    "conflict": Kind(409, "invalid_request_error", CLOSE_POLICY),
    "too_large": Kind(413, "invalid_request_error", CLOSE_TOO_BIG),
    "text_too_long": Kind(413, "invalid_request_error", CLOSE_TOO_BIG),
    "unsupported_media_type": Kind(415, "invalid_request_error", CLOSE_INVALID),
    "invalid_value": Kind(422, "invalid_request_error", CLOSE_POLICY),
    "cannot_clone": Kind(422, "invalid_request_error", CLOSE_POLICY),
    "unknown_event": Kind(422, "invalid_request_error", CLOSE_POLICY),
    "rate_limited": Kind(429, "rate_limit_error", CLOSE_LATER),
    "too_many_sessions": Kind(429, "rate_limit_error", CLOSE_LATER),
    "overloaded": Kind(503, "overloaded_error", CLOSE_LATER),
    "draining": Kind(503, "overloaded_error", CLOSE_AWAY),
    "not_ready": Kind(503, "overloaded_error", CLOSE_LATER),
    "internal": Kind(500, "server_error", CLOSE_INTERNAL),
    "not_implemented": Kind(501, "server_error", CLOSE_POLICY),
    "no_duplex_model": Kind(501, "server_error", CLOSE_POLICY),
}


@dataclass
class Problem(Exception):
    """A refusal or failure that the client is told of. `code` is a key of KINDS and the stable name on the wire."""

    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    def body(self, request_id: str = "") -> dict[str, Any]:
        """The `error` object in OpenAI's shape, with the request's id beside it."""
        error = {"message": self.message, "type": self.kind.type, "param": self.param, "code": self.code}
        return error | ({"request_id": request_id} if request_id else {}) | self.extra

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, where trying again makes sense."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


def problem_of(error: BaseException) -> Problem:
    """The client's view of any exception. A bug's own text stays in the log: it may hold paths or what was said."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, errors.Overloaded):
        return Problem("overloaded", str(error), retry_after=error.retry_after)
    if isinstance(error, errors.Draining):
        return Problem("draining", str(error), retry_after=5)
    if isinstance(error, errors.BadInput):
        return Problem("bad_input", str(error))
    if isinstance(error, QuaverError) and error.kind in KINDS:
        return Problem(error.kind, str(error))
    return Problem("internal", "the server failed on this request; its log names the cause under the request id")
