"""A small client of the server: `python -m quaver.app.client "Hello world."`, or `--talk question.wav` for a
conversation with a duplex model, or a few lines of your own.

for message in Client("http://127.0.0.1:8600").stream("Hello world."):
    if isinstance(message, bytes):
        play(message)
for piece in Client().talk(microphone()):
    if isinstance(piece, Heard):
        play(piece.samples)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from ..errors import MissingExtra, QuaverError
from .server.protocol import realtime
from .server.protocol import stream as protocol
from .server.protocol.base import parse_json, validated

if TYPE_CHECKING:
    from .client_talk import Heard

DEFAULT_URL = "http://127.0.0.1:8600"
_CONFIG = TypeAdapter(protocol.SessionConfig)


class ServerError(QuaverError):
    """The server refused or failed; `code` is its stable name for why."""

    kind = "server"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Speaks with `WS /v1/audio/speech/stream` and `WS /v1/realtime`. Without a key it uses the variable
    QUAVER_API_KEY, if there is one."""

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None) -> None:
        self.url, self.key = url, key or os.environ.get("QUAVER_API_KEY")

    def stream(self, text: str | Iterable[str], **config: Any) -> Iterator[bytes | protocol.ServerMessage]:
        """Speaks a text, or pieces of text as they come, and gives what the server sends until it is done.

        Args:
            config: fields of `session.config`: voice, speed, seed, response_format, word_timestamps and so on.

        Raises:
            ServerError: a refusal or failure. MissingExtra: no `websockets`. OSError: nobody listens.
        """
        first = _CONFIG.validate_python({"type": "session.config", **config})
        with connected(self.url, "/v1/audio/speech/stream", self.key) as socket:
            socket.send(first.model_dump_json(exclude_none=True))
            sender = threading.Thread(target=_send_text, args=(socket, text), daemon=True)
            sender.start()
            yield from _messages(socket)

    def talk(self, blocks: Iterable[np.ndarray], **options: Any) -> Iterator[Heard | realtime.ServerMessage]:
        """Converses with a duplex model; see `client_talk.talk` for the options."""
        from .client_talk import talk

        return talk(self.url, blocks, key=self.key, **options)


@contextlib.contextmanager
def connected(url: str, path: str, key: str | None, **options: Any) -> Iterator[Any]:
    """A socket to a server's `path`.

    Raises:
        ServerError: a refusal, or the connection was closed. MissingExtra: no `websockets`. OSError: nobody listens.
    """
    try:
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect
    except ImportError:
        raise MissingExtra("the client needs the package websockets: pip install 'quaver[serve]'") from None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    place = url.rstrip("/").replace("http", "ws", 1) + path
    try:
        with connect(place, additional_headers=headers, max_size=None, compression=None, **options) as socket:
            yield socket
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
    parser.add_argument(
        "--talk",
        metavar="IN",
        help='converse: what the user says, an audio file, or "-" for bare '
        "16-bit mono samples at 24 kHz from standard input as they come; in real time",
    )
    parser.add_argument("--tail", type=float, default=3.0, help="seconds to go on listening after it (3)")
    parser.add_argument("--url", default=DEFAULT_URL)
    parser.add_argument("--key", help="API key (default: the variable QUAVER_API_KEY)")
    parser.add_argument("-o", "--output", default="speech.wav", help='audio file, or "-" for standard output')
    parser.add_argument("--play", action="store_true", help="play it while it is made")
    for name, kind in (("voice", str), ("model", str), ("speed", float), ("seed", int), ("pause", float)):
        parser.add_argument(f"--{name}", type=kind)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = _arguments(words)
    if given.talk:
        return _guarded(lambda: converse(given))
    return _guarded(lambda: speak(given))


def _guarded(run: Callable[[], str]) -> int:
    try:
        line = run()
    except (QuaverError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    sys.stderr.write(line + "\n")
    return 0


def speak(given: argparse.Namespace) -> str:
    """Has a text spoken; returns what to tell of it."""
    from .audio import AudioWriter
    from .playback import Player

    config = {
        k: getattr(given, k) for k in ("voice", "model", "speed", "seed", "pause") if getattr(given, k) is not None
    }
    text: str | Iterable[str] = " ".join(given.text) if given.text else sys.stdin
    started, first, samples, rate = time.perf_counter(), 0.0, 0, 24_000
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
    spent = time.perf_counter() - started
    line = f"{samples / rate:.2f} s of speech in {spent:.2f} s, first audio after {1000 * first:.0f} ms"
    return f"{given.output}: {line}"


def converse(given: argparse.Namespace) -> str:
    """Lets a duplex model hear a file or a pipe; its reply, laid beside it in time, is written, both sides' words go to
    standard error. Returns what to tell of it."""
    from .audio import AudioWriter, check_format, open_audio
    from .client_talk import RATE, Heard, Timeline
    from .playback import Player

    check_format(given.output)
    line, turns, rate = Timeline(), 0, RATE
    with contextlib.ExitStack() as stack:
        if given.talk == "-":
            source = _samples_of_stdin()
        else:
            source = (block.mean(0) for block in stack.enter_context(open_audio(given.talk)).blocks(RATE))
        sent: list[int] = []
        blocks = (block for block in source if sent.append(len(block)) is None)
        sinks: list[Any] = []
        options = {"model": given.model, "seed": given.seed, "tail": given.tail}
        for piece in Client(given.url, given.key).talk(blocks, **options):
            if isinstance(piece, Heard):
                block = line.place(piece)
                for sink in sinks:
                    sink.write(block)
            elif isinstance(piece, realtime.SessionEvent) and not sinks:
                rate = int(piece.session["audio"]["output"]["format"]["rate"])
                line = Timeline(rate)
                sinks.append(stack.enter_context(AudioWriter(given.output, rate)))
                sinks += [stack.enter_context(Player(rate))] if given.play else []
            elif isinstance(piece, realtime.InputTranscriptDone) and piece.transcript:
                sys.stderr.write(f"you: {piece.transcript}\n")
            elif isinstance(piece, realtime.ResponseEvent) and piece.type == "response.done":
                turns += 1
                said = piece.response.output[0].content if piece.response.output else []
                sys.stderr.write(f"model: {' '.join((said[0].transcript or '').split()) if said else ''}\n")
        for sink in sinks[:1]:
            sink.write(line.rest(sum(sent) / RATE + given.tail))
    return f"{given.output}: {turns} turns in {sum(sent) / RATE + given.tail:.2f} s"


def _samples_of_stdin() -> Iterator[np.ndarray]:
    """Bare 16-bit mono samples, as they come."""
    rest = b""
    source: Any = sys.stdin.buffer
    while data := source.read1(1 << 12):
        data = rest + data
        rest = data[len(data) & ~1 :]
        yield np.frombuffer(data[: len(data) & ~1], "<i2").astype(np.float32) / 32768


if __name__ == "__main__":
    sys.exit(main())
