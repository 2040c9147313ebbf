"""A WebSocket with our limits: typed messages in, ordered sends out, every close with its reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from . import logs
from .limits import Limits
from .problems import CLOSE_OK, Problem

ERRORS = 32  # refused messages of one session, after which it is closed


class Gone(Exception):
    """The client has closed the socket, or it broke. `clean`: it has said goodbye (close code 1000)."""

    def __init__(self, clean: bool = False) -> None:
        super().__init__()
        self.clean = clean


class Wire:
    """Sends are whole and in order whatever task they come from; a client that takes nothing is cut off."""

    def __init__(self, socket: WebSocket, limits: Limits) -> None:
        self.socket, self.limits = socket, limits
        self.closed = False
        self.errors = 0
        self._lock = asyncio.Lock()

    async def accept(self, subprotocol: str | None = None) -> None:
        """Completes the handshake."""
        await self._try(self.socket.accept(subprotocol=subprotocol))

    async def receive(self, seconds: float | None = None) -> str | bytes:
        """The next message.

        Raises:
            Gone; TimeoutError; Problem: `too_large`.
        """
        try:
            async with asyncio.timeout(seconds):
                message = await self.socket.receive()
        except (WebSocketDisconnect, RuntimeError):
            raise Gone from None
        if message["type"] == "websocket.disconnect":
            self.closed = True
            raise Gone(clean=message.get("code") == CLOSE_OK)
        text = message.get("text")
        data: str | bytes = text if text is not None else message.get("bytes") or b""
        if len(data) > self.limits.message_bytes:
            raise Problem("too_large", f"a message may have {self.limits.message_bytes} bytes")
        return data

    async def send(self, data: str | bytes) -> None:
        """Sends a message.

        Raises:
            Gone; Problem: `slow_consumer`.
        """
        async with self._lock:
            if self.closed:
                raise Gone
            what = self.socket.send_text(data) if isinstance(data, str) else self.socket.send_bytes(data)
            try:
                async with asyncio.timeout(self.limits.send_seconds):
                    await self._try(what)
            except TimeoutError:
                self.closed = True
                raise Problem("slow_consumer", "the client took nothing of what was sent to it") from None

    async def close(self, code: int = CLOSE_OK, reason: str = "") -> None:
        """Closes the socket, if it is open."""
        if self.closed or self.socket.application_state == WebSocketState.DISCONNECTED:
            return
        self.closed = True
        try:
            async with asyncio.timeout(self.limits.send_seconds):
                await self._try(self.socket.close(code, reason[:120]))
        except (Gone, TimeoutError):
            pass

    def refuse(self, problem: Problem) -> None:
        """Counts a message that was refused; raises the problem when there have been too many."""
        self.errors += 1
        if self.errors >= ERRORS:
            raise problem

    async def _try(self, action: Awaitable[Any]) -> None:
        try:
            await action
        except (WebSocketDisconnect, RuntimeError, OSError) as error:  # starlette's ways to say that it is closed
            self.closed = True
            if not isinstance(error, (WebSocketDisconnect, OSError)) and "close" not in str(error).lower():
                logs.event("websocket.send", logging.DEBUG, error=type(error).__name__)
            raise Gone from None


async def race(*work: Awaitable[Any], seconds: float | None = None) -> None:
    """Runs all until the first ends, stops the others and waits for them; raises what the first one raised.

    Raises:
        TimeoutError: none ended within `seconds`.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not done:
        raise TimeoutError
    for task in tasks:  # in the order given: a reader's reason comes before what it led to
        if task in done:
            task.result()
