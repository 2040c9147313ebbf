"""Structured logs: one JSON object a line, with the request's id. What is said and heard is never logged."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal

request_id: ContextVar[str] = ContextVar("quaver_request_id", default="")
"""Of the request or socket that the present task serves."""

log = logging.getLogger("quaver.server")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Logs an event with its fields. Fields are figures and names: no text, no audio, no secrets."""
    log.log(level, name, extra=fields)


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "event", "request_id", ...fields}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        line |= {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}
        tail = "".join(f" {k}={v}" for k, v in fields.items())
        own = f" [{request_id.get()[-8:]}]" if request_id.get() else ""
        text = f"{time.strftime('%H:%M:%S')} {record.levelname.lower():7} {record.getMessage()}{own}{tail}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def configure(form: Literal["json", "text"], level: str) -> None:
    """Sends quaver's and uvicorn's logs to stderr. Only `quaver serve` calls this: a library leaves logging alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in ("quaver", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    # These two would log query strings, which may hold a ticket; the gate logs requests.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel("WARNING")
