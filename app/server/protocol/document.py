"""docs/protocol.md, written from the models and the golden messages:

python -m quaver.app.server.protocol.document tests/vectors > docs/protocol.md
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel

from ..limits import Limits
from ..problems import KINDS
from . import binary, moshi, realtime, speech, stream

Vectors = Mapping[str, list[dict[str, Any]]]

_HEAD = """# The protocol

This page is written by `quaver.app.server.protocol.document` from the message models and from the golden messages in
`tests/vectors/`; a test compares it with them. `docs/serving.md` says how to run the server.

All surfaces share one engine, one set of errors and one set of limits. Authorization is `Authorization: Bearer KEY`;
browsers show a single-use ticket of `POST /v1/realtime/client_secrets` as `?ticket=` or as the sub-protocol
`openai-insecure-api-key.TICKET`. Every answer and handshake carries `X-Request-Id`.
"""


def read_vectors(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The golden messages: file name without suffix -> messages."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def protocol_page(vectors: Vectors) -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    parts += ["## HTTP: `POST /v1/audio/speech`\n", _prose(speech), _fields(speech.SpeechBody), _http_table()]
    parts += ["With `stream_format: sse` the answer is a stream of these events:\n"]
    parts += [_message(model) for model in _members(speech.SseEvent)]
    parts += [_examples(vectors["speech"])]
    for title, module, name in (
        ("`WS /v1/audio/speech/stream`", stream, "stream"),
        ("`WS /v1/realtime`", realtime, "realtime"),
    ):
        parts += [f"## {title}\n", _prose(module)]
        for side, union in (("Client to server", module.ClientMessage), ("Server to client", module.ServerMessage)):
            parts += [f"### {side}\n", *(_message(model) for model in _members(union))]
        parts += [_examples(vectors[name])]
    parts += [f"## Binary frames (`{binary.SUBPROTOCOL}`)\n", _prose(binary)]
    parts += [_enum(binary.Kind), _enum(binary.Codec), _enum(binary.Flag), _bytes(vectors["binary"])]
    parts += ["## `WS /api/chat`\n", _prose(moshi), _enum(moshi.Kind), _enum(moshi.Control), _bytes(vectors["moshi"])]
    parts += [_errors(), _limits()]
    page = "\n".join(part.rstrip() + "\n" for part in parts if part)
    return re.sub(r"^(- .*\n)\n(?=- )", r"\1", page, flags=re.MULTILINE)  # items of a list stand together


def _prose(module: ModuleType) -> str:
    return _code_blocks(inspect.cleandoc(module.__doc__ or ""))


def _code_blocks(text: str) -> str:
    """Docstrings indent their layouts; Markdown wants them in a fence."""
    return re.sub(
        r"((?:^    .*\n?)+)", lambda m: "```\n" + inspect.cleandoc(m[1]) + "\n```\n", text, flags=re.MULTILINE
    )


def _members(union: Any) -> Iterable[type[BaseModel]]:
    return get_args(get_args(union)[0])


def _names(model: type[BaseModel]) -> list[str]:
    return list(get_args(model.model_fields["type"].annotation))


def _message(model: type[BaseModel]) -> str:
    names = ", ".join(f"`{name}`" for name in _names(model))
    rows = [f"`{name}`{_default(field)}" for name, field in model.model_fields.items() if name not in _COMMON]
    tail = f" Fields: {', '.join(rows)}." if rows else ""
    return f"- {names}: {_first(model)}{tail}\n"


_COMMON = ("type", "event_id", "server_event_seq", "epoch")


def _default(field: Any) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    simple = value is None or isinstance(value, (str, int, float, bool))
    return f" (`{json.dumps(value)}`)" if simple and value is not None else " (optional)"


def _first(model: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\nAttributes:")[0].split())


def _fields(model: type[BaseModel]) -> str:
    lines = ["| field | default | limits |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        rules = [f"{k} {getattr(m, k)}" for m in field.metadata for k in ("ge", "gt", "le", "lt") if hasattr(m, k)]
        options = [f"`{option}`" for option in get_args(field.annotation) if isinstance(option, str)]
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        lines.append(f"| `{name}` | {default} | {', '.join(rules + options)} |")
    notes = inspect.cleandoc(model.__doc__ or "").split("Attributes:\n")[-1]
    return "\n".join([*lines, "", re.sub(r"\n *(\w+): ", r"\n- `\1`: ", "\n" + inspect.cleandoc(notes)).strip(), ""])


def _http_table() -> str:
    return """Beside it:

| request | answer |
|---|---|
| `GET /v1/audio/speech/{id}` | how that speech went (`status`, `reason`, figures, `words` when they were asked for) |
| `DELETE /v1/audio/speech/{id}` | stops it |
| `GET /v1/models`, `GET /v1/models/{id}` | the models |
| `GET /v1/audio/voices` | the models' voices, and those that this key has added |
| `POST /v1/audio/voices` | adds a voice: a form of `name`, `audio_sample`, `consent`, and perhaps `text` and `model` |
| `DELETE /v1/audio/voices/{id}` | deletes an added voice |
| `POST /v1/realtime/client_secrets` | a single-use ticket for a browser |
| `GET /healthz`, `GET /readyz`, `GET /metrics` | for operators |
"""


def _examples(vectors: list[dict[str, Any]]) -> str:
    lines = ["### Golden messages\n", "```json"]
    lines += [f"{json.dumps(v['message'], ensure_ascii=False)}" for v in vectors]
    return "\n".join([*lines, "```", ""])


def _enum(kind: Any) -> str:
    values = ", ".join(f"{int(member)} {member.name.lower()}" for member in kind)
    return f"- {kind.__name__.lower()}: {values}. {inspect.cleandoc(kind.__doc__ or '')}"


def _bytes(vectors: list[dict[str, Any]]) -> str:
    lines = ["", "| golden message | bytes |", "|---|---|"]
    return "\n".join([*lines, *(f"| {v['name']} | `{v['hex']}` |" for v in vectors), ""])


def _errors() -> str:
    lines = [
        "## Errors\n",
        'Over HTTP the body is `{"error": {"message", "type", "param", "code", "request_id"}}`,',
        "over a WebSocket an event `error` with the same object. 429 and 503 carry `Retry-After` where trying again",
        "makes sense. A WebSocket goes on after errors about one message or one answer, and closes with the code after",
        "the others; a missing or wrong key and a foreign origin are refused in the handshake with the HTTP status.\n",
        "| code | HTTP status | type | close code |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| `{n}` | {k.status} | `{k.type}` | {k.close} |" for n, k in KINDS.items()), ""])


def _limits() -> str:
    source = inspect.getsource(Limits)
    comments = dict(re.findall(r"^    (\w+): .*?#\s*(.*)$", source, re.MULTILINE))
    lines = ["## Limits\n", "| setting | default | |", "|---|---|---|"]
    for name, field in Limits.model_fields.items():
        lines.append(f"| `limits.{name}` | {field.default:,} | {comments.get(name, '')} |")
    return "\n".join([*lines, ""])


def main(folder: str) -> None:
    """Writes the page to standard output."""
    sys.stdout.write(protocol_page(read_vectors(Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1])
