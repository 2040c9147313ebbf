"""Who may use the server: hashed API keys, single-use tickets for browsers, and the check of web origins."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ...errors import BadInput, CorruptFile
from ..files import replacing
from .settings import is_loopback

KEY_PREFIX, TICKET_PREFIX = "qv-", "ek_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class StoredKey(BaseModel):
    """One key of the file: its name, the SHA-256 of the secret, when it was made, and its own rate (None: default).

    The secret has 256 random bits, so a plain hash is enough: there is nothing to guess that a slow hash would slow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    created: float
    requests_per_minute: int | None = None


_KEYS = TypeAdapter(list[StoredKey])


class KeyStore:
    """The file of API keys, readable by its owner only. Secrets are shown once, when they are made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._keys: list[StoredKey] = []

    def keys(self) -> list[StoredKey]:
        """The stored keys; the file is read again when it has changed.

        Raises:
            CorruptFile: the file is not one that this class wrote.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, []
            return []
        if self._seen != (stat.st_mtime_ns, stat.st_size):
            try:
                self._keys = _KEYS.validate_json(self.path.read_bytes())
            except ValidationError:
                raise CorruptFile(f"{self.path} is not a file of API keys; move it away and add keys anew") from None
            self._seen = (stat.st_mtime_ns, stat.st_size)
        return self._keys

    def add(self, name: str, requests_per_minute: int | None = None) -> str:
        """Makes a key and returns its secret.

        Raises:
            BadInput: a name that is taken, or is not made of letters, digits, dot, dash and underscore.
        """
        if not _NAME.fullmatch(name):
            raise BadInput(f"{name!r} is no name for a key; use letters, digits, dot, dash, underscore (up to 64)")
        if any(key.name == name for key in self.keys()):
            raise BadInput(f"there is a key named {name} already; revoke it first or choose another name")
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        new = StoredKey(name=name, sha256=_digest(secret), created=time.time(), requests_per_minute=requests_per_minute)
        self._write([*self.keys(), new])
        return secret

    def revoke(self, name: str) -> None:
        """Removes a key; a running server stops accepting it at once. Raises BadInput when there is none."""
        left = [key for key in self.keys() if key.name != name]
        if len(left) == len(self.keys()):
            raise BadInput(f"there is no key named {name}; `quaver serve keys list` shows all")
        self._write(left)

    def find(self, secret: str) -> StoredKey | None:
        """The key with that secret. Compares with every key in constant time."""
        digest, found = _digest(secret), None
        for key in self.keys():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def named(self, name: str) -> StoredKey | None:
        """The key of that name, unless it has been revoked."""
        return next((key for key in self.keys() if key.name == name), None)

    def _write(self, keys: list[StoredKey]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mask = os.umask(0o077)
        try:
            with replacing(self.path) as file:
                file.write(json.dumps([key.model_dump() for key in keys], indent=1).encode())
        finally:
            os.umask(mask)
        self._seen = None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class Tickets:
    """Short-lived, single-use tickets that stand for a key where a browser would have to show it.

    `ek_<key name>.<expiry>.<nonce>.<signature>`, signed by a secret of this process: a restart voids all of them.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._seconds, self._clock = secrets.token_bytes(32), seconds, clock
        self._used: dict[str, float] = {}

    def issue(self, owner: str) -> tuple[str, float]:
        """A ticket for the key of that name, and when it expires (seconds since 1970)."""
        expires = self._clock() + self._seconds
        head = f"{owner}~{int(expires * 1000)}~{secrets.token_urlsafe(12)}"
        return f"{TICKET_PREFIX}{head}~{self._sign(head)}", expires

    def redeem(self, ticket: str) -> str | None:
        """The owner's name, once; None for a ticket that is forged, too old, or used."""
        head, _, signature = ticket.removeprefix(TICKET_PREFIX).rpartition("~")
        if not hmac.compare_digest(self._sign(head).encode(), signature.encode("utf-8", "replace")):
            return None
        owner, milliseconds, nonce = head.split("~")
        now, expires = self._clock(), int(milliseconds) / 1000
        self._used = {n: t for n, t in self._used.items() if t > now}
        if expires <= now or nonce in self._used:
            return None
        self._used[nonce] = expires
        return owner

    def _sign(self, head: str) -> str:
        return hmac.new(self._secret, head.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def bearer(authorization: str, subprotocols: Iterable[str], query_ticket: str) -> str:
    """The secret that a client shows: header first, then OpenAI's browser sub-protocol, then `?ticket=` (no keys)."""
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    for protocol in subprotocols:
        if protocol.startswith("openai-insecure-api-key."):
            return protocol.removeprefix("openai-insecure-api-key.")
    return query_ticket if query_ticket.startswith(TICKET_PREFIX) else ""


def origin_allowed(origin: str | None, host: str, allowed: Iterable[str]) -> bool:
    """Whether a request with this Origin header may pass: none (no browser), the server's own, or an allowed one."""
    if origin is None:
        return True
    if origin.lower().rstrip("/") in allowed:
        return True
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def host_allowed(host: str, extra: Iterable[str]) -> bool:
    """Whether an open (keyless) server may answer to this Host: loopback's names and `extra` (no DNS rebinding)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or name in {e.lower() for e in extra}
