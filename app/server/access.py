"""Who calls, and how much they may: authentication, rates and concurrent sessions, decided before any work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, QueryParams

from .auth import TICKET_PREFIX, KeyStore, Tickets, bearer, host_allowed, origin_allowed
from .problems import Problem
from .settings import ServerSettings

ANONYMOUS = "anonymous"


@dataclass(frozen=True)
class Caller:
    """One client: the name of its key, or of its address where there are no keys."""

    name: str
    requests_per_minute: int


class Access:
    """Decides on every request and handshake. With no key in the file the server is open, but only to this machine."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.store = KeyStore(settings.keys)
        self.tickets = Tickets(settings.limits.ticket_seconds)
        self.sessions: Counter[str] = Counter()
        self._rates = MovingWindowRateLimiter(MemoryStorage())
        self._refused = RateLimitItemPerMinute(settings.limits.refused_per_minute)
        # A server that started with keys stays closed when the last one is revoked.
        self.closed = bool(self.store.keys())

    def check_origin(self, headers: Headers) -> None:
        """No foreign web page, and no foreign name for an open server.

        Raises:
            Problem: `origin_not_allowed`.
        """
        host = headers.get("host", "")
        if not self.closed and not host_allowed(host, self.settings.hosts):
            raise Problem("origin_not_allowed", "this server answers to loopback names only; see the setting `hosts`")
        if not origin_allowed(headers.get("origin"), host, self.settings.origins):
            raise Problem("origin_not_allowed", "this web origin may not use the server; see the setting `origins`")

    def authenticate(self, scope: Any) -> Caller:
        """Who sent this request.

        Raises:
            Problem: `invalid_api_key`; `rate_limited` after too many wrong keys from one address.
        """
        address = (scope.get("client") or ("unknown", 0))[0]
        default = self.limits.requests_per_minute
        self.closed = self.closed or bool(self.store.keys())
        if not self.closed:
            return Caller(f"{ANONYMOUS}:{address}", default)
        if not self._rates.test(self._refused, "refused", address):
            raise Problem("rate_limited", "too many wrong API keys from this address", retry_after=60)
        headers = Headers(scope=scope)
        query = QueryParams(scope.get("query_string", b""))
        secret = bearer(headers.get("authorization", ""), scope.get("subprotocols", ()), query.get("ticket", ""))
        name = self.tickets.redeem(secret) if secret.startswith(TICKET_PREFIX) else None
        key = self.store.named(name) if name else self.store.find(secret)
        if key is None:
            self._rates.hit(self._refused, "refused", address)
            why = "this API key is not valid" if secret else "an API key is needed: Authorization: Bearer qv-..."
            raise Problem("invalid_api_key", why)
        return Caller(key.name, key.requests_per_minute or default)

    def count(self, caller: Caller) -> None:
        """Counts a request against the caller's rate.

        Raises:
            Problem: `rate_limited`.
        """
        item = RateLimitItemPerMinute(caller.requests_per_minute)
        if not self._rates.hit(item, "caller", caller.name):
            window = self._rates.get_window_stats(item, "caller", caller.name)
            wait = max(1.0, window.reset_time - time.time())
            raise Problem("rate_limited", f"more than {caller.requests_per_minute} requests a minute", retry_after=wait)

    @contextmanager
    def session(self, caller: Caller) -> Iterator[None]:
        """Holds one of the caller's sessions.

        Raises:
            Problem: `too_many_sessions`.
        """
        if self.sessions[caller.name] >= self.limits.sessions_per_key:
            limit = self.limits.sessions_per_key
            raise Problem("too_many_sessions", f"more than {limit} sessions at the same time", retry_after=1)
        self.sessions[caller.name] += 1
        try:
            yield
        finally:
            self.sessions[caller.name] -= 1
            if not self.sessions[caller.name]:
                del self.sessions[caller.name]
