"""The wire as data: golden messages, the page that is written from them, and frames of any content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from quaver.app.server.problems import KINDS, Problem
from quaver.app.server.protocol import binary, moshi, realtime, speech, stream
from quaver.app.server.protocol.base import parse_json, validated
from quaver.app.server.protocol.document import protocol_page, read_vectors

ROOT = Path(__file__).parents[3]
VECTORS = read_vectors(ROOT / "tests" / "vectors")
ADAPTERS: dict[tuple[str, str], TypeAdapter[Any]] = {
    ("speech", "client"): TypeAdapter(speech.SpeechBody),
    ("speech", "server"): TypeAdapter(speech.SseEvent),
    ("stream", "client"): stream.CLIENT,
    ("stream", "server"): stream.SERVER,
    ("realtime", "client"): realtime.CLIENT,
    ("realtime", "server"): realtime.SERVER,
}
JSON_VECTORS = [(name, v) for name in ("speech", "stream", "realtime") for v in VECTORS[name]]


@pytest.mark.parametrize(("surface", "vector"), JSON_VECTORS, ids=lambda v: v if isinstance(v, str) else v["name"])
def test_golden_messages_are_read_and_written_back(surface: str, vector: dict[str, Any]) -> None:
    adapter, message = ADAPTERS[surface, vector["from"]], vector["message"]
    typed = validated(adapter, parse_json(json.dumps(message)))
    assert adapter.dump_python(typed, mode="json", exclude_unset=True) == message


@pytest.mark.parametrize("surface", ["stream", "realtime"])
def test_every_message_has_a_golden_one(surface: str) -> None:
    from typing import get_args

    for side, union in (
        ("client", stream.ClientMessage if surface == "stream" else realtime.ClientMessage),
        ("server", stream.ServerMessage if surface == "stream" else realtime.ServerMessage),
    ):
        golden = {v["message"]["type"] for v in VECTORS[surface] if v["from"] == side}
        for model in get_args(get_args(union)[0]):
            assert golden & set(get_args(model.model_fields["type"].annotation)), model.__name__


@pytest.mark.parametrize("vector", VECTORS["binary"], ids=lambda v: v["name"])
def test_golden_frames(vector: dict[str, Any]) -> None:
    fields = dict(vector["fields"])
    frame = binary.Frame.unpack(bytes.fromhex(vector["hex"]))
    assert frame.payload.hex() == fields.pop("payload")
    assert str(frame.pts) == fields.pop("pts")
    assert {name: getattr(frame, name) for name in fields} == fields
    assert frame.pack().hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS["moshi"], ids=lambda v: v["name"])
def test_golden_moshi_messages(vector: dict[str, Any]) -> None:
    message, fields = moshi.MoshiMessage.unpack(bytes.fromhex(vector["hex"])), vector["fields"]
    assert (message.kind, message.payload.hex(), message.known) == (fields["kind"], fields["payload"], fields["known"])
    assert message.pack().hex() == vector["hex"]


U32 = st.integers(0, 2**32 - 1)


@given(
    st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), U32, U32, U32, st.integers(0, 2**64 - 1), st.binary()
)
@settings(max_examples=50, deadline=None)
def test_frames_round_trip(kind: int, codec: int, flags: int, a: int, b: int, c: int, pts: int, data: bytes) -> None:
    frame = binary.Frame(kind, codec, flags, a, b, c, pts, data)
    assert binary.Frame.unpack(frame.pack()) == frame


def refused(action: Callable[[], Any]) -> tuple[str, Any]:
    """The code of the problem that an action raised ("": none), and what it gave."""
    try:
        return "", action()
    except Problem as problem:
        assert problem.body("req")["type"] == KINDS[problem.code].type  # noqa: PT017
        return problem.code, None


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_message_or_a_problem(data: bytes) -> None:
    for unpack in (binary.Frame.unpack, moshi.MoshiMessage.unpack):
        refusal, back = refused(lambda unpack=unpack: unpack(data).pack())
        assert refusal == "invalid_value" or back == data


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from([v["message"] for _, v in JSON_VECTORS]),
    st.dictionaries(st.sampled_from(["type", "text", "session", "item", "x"]), JSON),
)
@settings(max_examples=100, deadline=None)
def test_any_json_is_a_message_or_a_typed_problem(base: dict[str, Any], changes: dict[str, Any]) -> None:
    adapters: list[TypeAdapter[Any]] = [stream.CLIENT, realtime.CLIENT]
    for adapter in adapters:
        refusal, _ = refused(lambda adapter=adapter: validated(adapter, {**base, **changes}))
        assert refusal in ("", "unknown_event", "invalid_value")


def test_deep_json_is_refused() -> None:
    with pytest.raises(Problem):
        parse_json('{"a":' * 100_000)


def test_the_page_is_what_the_models_say() -> None:
    """Write it anew: python -m quaver.app.server.protocol.document tests/vectors > docs/protocol.md"""
    assert (ROOT / "docs" / "protocol.md").read_text() == protocol_page(VECTORS)
