"""OpenTelemetry spans when it is installed and asked for; nothing at all otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ...errors import MissingExtra


class Tracing:
    """`with tracing.span("speech", model="default") as span:`; attributes are figures and names, never text."""

    def __init__(self, enabled: bool) -> None:
        self._tracer: Any = None
        if enabled:
            try:
                from opentelemetry import trace
            except ImportError:
                raise MissingExtra("tracing needs OpenTelemetry: pip install 'quaver[otel]'") from None
            self._tracer = trace.get_tracer("quaver.server")

    def span(self, name: str, headers: dict[str, str] | None = None, **attributes: Any) -> AbstractContextManager[Any]:
        """A span (None when tracing is off), a child of the one that `traceparent` in `headers` names."""
        if self._tracer is None:
            return nullcontext()
        from opentelemetry.propagate import extract

        return self._tracer.start_as_current_span(name, context=extract(headers or {}), attributes=attributes)
