"""A small client of the server: `python -m quaver.app.client "Hello world."`, or a few lines of your own.

for message in Client("http://127.0.0.1:8600").stream("Hello world."):
    if isinstance(message, bytes):
        play(message)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ..errors import MissingExtra, QuaverError
from .server.protocol import stream as protocol
from .server.protocol.base import parse_json, validated

DEFAULT_URL = "http://127.0.0.1:8600"
_CONFIG = TypeAdapter(protocol.SessionConfig)


class ServerError(QuaverError):
    """The server refused or failed; `code` is its stable name for why."""

    kind = "server"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Speaks with `WS /v1/audio/speech/stream`. Without a key it uses the variable QUAVER_API_KEY, if there is one."""

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None) -> None:
        self.url = url.rstrip("/").replace("http", "ws", 1) + "/v1/audio/speech/stream"
        self.key = key or os.environ.get("QUAVER_API_KEY")

    def stream(self, text: str | Iterable[str], **config: Any) -> Iterator[bytes | protocol.ServerMessage]:
        """Speaks a text, or pieces of text as they come, and gives what the server sends until it is done.

        Args:
            config: fields of `session.config`: voice, speed, seed, response_format, word_timestamps and so on.

        Raises:
            ServerError: a refusal or failure. MissingExtra: no `websockets`. OSError: nobody listens.
        """
        try:
            from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
            from websockets.sync.client import connect
        except ImportError:
            raise MissingExtra("the client needs the package websockets: pip install 'quaver[serve]'") from None
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        first = _CONFIG.validate_python({"type": "session.config", **config})
        try:
            with connect(self.url, additional_headers=headers, max_size=None, compression=None) as socket:
                socket.send(first.model_dump_json(exclude_none=True))
                sender = threading.Thread(target=_send_text, args=(socket, text), daemon=True)
                sender.start()
                yield from _messages(socket)
        except InvalidStatus as error:
            raise _refusal(error.response.status_code, bytes(error.response.body or b"")) from None
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else 1006
            raise ServerError(f"the server closed the connection ({code})", str(code)) from None
        except InvalidHandshake as error:
            raise ServerError(f"this is no quaver server: {error}", "handshake") from None


def _messages(socket: Any) -> Iterator[bytes | protocol.ServerMessage]:
    for data in socket:
        if isinstance(data, bytes):
            yield data
            continue
        message = validated(protocol.SERVER, parse_json(data))
        if isinstance(message, protocol.StreamError):
            raise ServerError(message.error.message, message.error.code or "error")
        yield message
        if isinstance(message, protocol.SessionDone):
            return


def _send_text(socket: Any, text: str | Iterable[str]) -> None:
    with contextlib.suppress(Exception):  # a closed socket: the reader tells why
        for piece in [text] if isinstance(text, str) else text:
            if piece:
                socket.send(protocol.InputText(type="input.text", text=piece).model_dump_json())
        socket.send('{"type": "input.done"}')


def _refusal(status: int, body: bytes) -> ServerError:
    try:
        error = parse_json(body)["error"]
        return ServerError(str(error["message"]), str(error["code"]))
    except Exception:
        return ServerError(f"the server refused the connection ({status})", str(status))


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m quaver.app.client", description="Have a quaver server speak a text.")
    parser.add_argument("text", nargs="*", help="what to say; nothing: standard input, line by line")
    parser.add_argument("--url", default=DEFAULT_URL)
    parser.add_argument("--key", help="API key (default: the variable QUAVER_API_KEY)")
    parser.add_argument("-o", "--output", default="speech.wav", help='audio file, or "-" for standard output')
    parser.add_argument("--play", action="store_true", help="play it while it is made")
    for name, kind in (("voice", str), ("model", str), ("speed", float), ("seed", int), ("pause", float)):
        parser.add_argument(f"--{name}", type=kind)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from .audio import AudioWriter
    from .playback import Player

    given = _arguments(words)
    config = {
        k: getattr(given, k) for k in ("voice", "model", "speed", "seed", "pause") if getattr(given, k) is not None
    }
    text: str | Iterable[str] = " ".join(given.text) if given.text else sys.stdin
    started, first, samples, rate = time.perf_counter(), 0.0, 0, 24_000
    try:
        with contextlib.ExitStack() as stack:
            sinks: list[Any] = []
            for message in Client(given.url, given.key).stream(text, response_format="pcm", **config):
                if isinstance(message, protocol.AudioStart) and not sinks:
                    rate = message.sample_rate
                    sinks.append(stack.enter_context(AudioWriter(given.output, rate)))
                    sinks += [stack.enter_context(Player(rate))] if given.play else []
                elif isinstance(message, bytes):
                    first = first or time.perf_counter() - started
                    block = np.frombuffer(message, "<i2").astype(np.float32) / 32767
                    samples += len(block)
                    for sink in sinks:
                        sink.write(block)
    except (QuaverError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    spent = time.perf_counter() - started
    line = f"{samples / rate:.2f} s of speech in {spent:.2f} s, first audio after {1000 * first:.0f} ms"
    sys.stderr.write(f"{given.output}: {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
