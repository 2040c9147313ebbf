"""What makes a realtime session survive an interruption and a dropped socket: pure state machines, no asyncio.

`Fence` counts interruptions, `Journal` numbers what is sent and keeps what may have to be sent again, `ResumeBook`
gives dropped sessions a grace period. Time comes from outside.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .problems import Problem

T = TypeVar("T")


class Fence:
    """The epoch of a session. Output is stamped with the epoch in which it was begun; older output is stale."""

    def __init__(self) -> None:
        self.epoch = 0

    def advance(self) -> int:
        """An interruption: everything before it is stale from now on."""
        self.epoch += 1
        return self.epoch

    def stale(self, epoch: int) -> bool:
        return epoch < self.epoch


@dataclass(frozen=True)
class Entry:
    """One numbered message, ready for the wire. `epoch` is None for what an interruption does not void."""

    seq: int
    data: str | bytes
    epoch: int | None

    @property
    def size(self) -> int:
        return len(self.data)


class Journal:
    """Messages in order: those not sent yet, and the latest sent ones for a resume. Both bounded in bytes.

    `append` always takes control messages (there are few and each ends something); a producer of audio asks `full`
    first and waits.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seq = 0
        self._sent: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        self._sent_bytes = self._waiting_bytes = 0
        self._forgotten = 0  # highest number that cannot be sent again

    @property
    def full(self) -> bool:
        """Whether more audio would have to wait."""
        return self._waiting_bytes >= self.limit

    def append(self, make: Callable[[int], str | bytes], epoch: int | None = None) -> Entry:
        """Numbers a message and queues it; `make` writes it, given its number."""
        self.seq += 1
        entry = Entry(self.seq, make(self.seq), epoch)
        self._waiting.append(entry)
        self._waiting_bytes += entry.size
        return entry

    def take(self) -> Entry | None:
        """The next message to send, or None. It counts as sent, and may be asked for again."""
        if not self._waiting:
            return None
        entry = self._waiting.popleft()
        self._waiting_bytes -= entry.size
        self._sent.append(entry)
        self._sent_bytes += entry.size
        while self._sent_bytes > self.limit:
            self._forget()
        return entry

    def fence(self, epoch: int) -> int:
        """Drops audio of older epochs, sent or not; returns how many messages were not sent and now never will be."""
        dropped = [e for e in self._waiting if e.epoch is not None and e.epoch < epoch]
        self._waiting = deque(e for e in self._waiting if e.epoch is None or e.epoch >= epoch)
        self._sent = deque(e for e in self._sent if e.epoch is None or e.epoch >= epoch)
        self._waiting_bytes = sum(e.size for e in self._waiting)
        self._sent_bytes = sum(e.size for e in self._sent)
        return len(dropped)

    def acknowledge(self, seq: int) -> None:
        """The client has everything up to `seq`.

        Raises:
            Problem: `invalid_value`: that number has not been sent.
        """
        if seq > self.seq:
            raise Problem("invalid_value", f"event {seq} does not exist yet; the last is {self.seq}")
        while self._sent and self._sent[0].seq <= seq:
            self._forget()
        self._forgotten = max(self._forgotten, min(seq, self._last_sent()))

    def rewind(self, seq: int) -> int:
        """Queues everything after `seq` again; returns how many messages. Fenced ones stay gone.

        Raises:
            Problem: `conflict`: something after `seq` has been forgotten, or was never sent.
        """
        if seq > self._last_sent() or seq < self._forgotten:
            raise Problem("conflict", f"events after {seq} cannot be sent again; begin a new session")
        again = [e for e in self._sent if e.seq > seq]
        for entry in reversed(again):
            self._waiting.appendleft(entry)
        size = sum(e.size for e in again)
        self._sent = deque(e for e in self._sent if e.seq <= seq)
        self._sent_bytes -= size
        self._waiting_bytes += size
        return len(again)

    def _forget(self) -> None:
        entry = self._sent.popleft()
        self._sent_bytes -= entry.size
        self._forgotten = max(self._forgotten, entry.seq)

    def _last_sent(self) -> int:
        return self._waiting[0].seq - 1 if self._waiting else self.seq


class ResumeBook(Generic[T]):
    """Sessions by resume token. A token works once; resuming gives the next. Tokens are kept hashed."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._sessions: dict[str, T] = {}
        self._owners: dict[str, str] = {}
        self._deadlines: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def dropped(self) -> int:
        """Sessions whose socket is gone and whose grace has not run out."""
        return len(self._deadlines)

    def open(self, session: T, owner: str) -> str:
        """Registers an attached session; returns its token. Only the same `owner` (API key) can resume it."""
        token = secrets.token_urlsafe(24)
        key = _hash(token)
        self._sessions[key], self._owners[key] = session, owner
        return token

    def drop(self, token: str, now: float) -> None:
        """The socket is gone: the grace period begins."""
        key = _hash(token)
        if key in self._sessions:
            self._deadlines[key] = now + self.grace
            self._deadlines.move_to_end(key)

    def resume(self, token: str, owner: str, now: float) -> tuple[T, str]:
        """The session, and its next token. An attached session may be resumed too: its old socket has gone quiet.

        Raises:
            Problem: `conflict`: an unknown, used or expired token, or another key's.
        """
        key = _hash(token)
        if key not in self._sessions or self._owners[key] != owner or self._deadlines.get(key, now) < now:
            raise Problem("conflict", "there is no session to resume with this token; begin a new one")
        session = self.close(token)
        assert session is not None
        return session, self.open(session, owner)

    def close(self, token: str) -> T | None:
        """The session has ended; its token is void."""
        key = _hash(token)
        self._deadlines.pop(key, None)
        self._owners.pop(key, None)
        return self._sessions.pop(key, None)

    def expired(self, now: float) -> list[T]:
        """Sessions whose grace has run out, taken from the book."""
        late = [key for key, deadline in self._deadlines.items() if deadline < now]
        for key in late:
            del self._deadlines[key], self._owners[key]
        return [self._sessions.pop(key) for key in late]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
