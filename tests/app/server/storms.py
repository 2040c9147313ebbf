"""Clients that behave badly at random, over every surface."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection

from quaver.app.server.protocol.binary import SUBPROTOCOL, Codec, Frame, Kind

from .conftest import Running, until

SPEECH = "/v1/audio/speech"
TEXT = "One day, two cats sat there. "
LONG = {"input": TEXT * 130, "response_format": "pcm"}


def raw_socket(running: Running, buffer: int = 0) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    raw = socket.socket()
    if buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    raw.connect((host, int(port)))
    return raw


def post(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {SPEECH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


Move = Callable[[Running, random.Random], None]


def storm(running: Running, rounds: int, seed: int, more: tuple[Move, ...] = (), pause: float = 0.0) -> None:
    """Random connects, cancels and kills over all surfaces."""
    chance = random.Random(seed)
    moves: list[Move] = [kill_http, kill_ws, cancel_ws, kill_realtime, *more]
    for _ in range(rounds):
        with contextlib.suppress(OSError, WebSocketException, TimeoutError):
            chance.choice(moves)(running, chance)
        time.sleep(pause)


def vanish(ws: ClientConnection) -> None:
    """No goodbye; the shutdown wakes the client's own threads, which would stay for its ping's twenty seconds."""
    with contextlib.suppress(OSError):
        ws.socket.shutdown(socket.SHUT_RDWR)
    ws.socket.close()


def kill_http(running: Running, chance: random.Random) -> None:
    with raw_socket(running) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, no goodbye
        raw.sendall(post(LONG)[: chance.choice([20, None])])
        raw.settimeout(2)
        if chance.random() < 0.7:
            raw.recv(chance.choice([1, 4000]))


def kill_ws(running: Running, chance: random.Random) -> None:
    ws = running.ws()
    ws.send('{"type": "session.config"}')
    ws.send(json.dumps({"type": "input.text", "text": TEXT * chance.choice([1, 40])}))
    if chance.random() < 0.7:
        ws.recv(2)
    vanish(ws)


def cancel_ws(running: Running, chance: random.Random) -> None:
    with running.ws() as ws:
        ws.send('{"type": "session.config"}')
        ws.send(json.dumps({"type": "input.text", "text": TEXT * 10}))
        ws.send('{"type": "input.cancel"}')
        until(ws, "session.done", 5)


def kill_realtime(running: Running, chance: random.Random) -> None:
    ws = running.ws("/v1/realtime")
    ws.send(json.dumps({"type": "response.create", "response": {"instructions": TEXT * 20}}))
    if chance.random() < 0.5:
        ws.recv(2)
    vanish(ws)


def microphone(running: Running, chance: random.Random) -> None:
    """A conversation in real time that is interrupted, and ends well or badly."""
    noise = np.random.default_rng(chance.randrange(99))
    with running.ws("/v1/realtime?model=talk", subprotocols=[SUBPROTOCOL]) as ws:
        for seq in range(chance.randrange(4, 25)):
            samples = (0.2 * noise.standard_normal(1920)).astype("<f4")
            ws.send(Frame(Kind.AUDIO_IN, Codec.F32LE, 0, seq, 0, 0, 0, samples.tobytes()).pack())
            if chance.random() < 0.1:
                ws.send('{"type": "response.cancel"}')
            time.sleep(0.08)
        if chance.random() < 0.5:
            vanish(ws)
