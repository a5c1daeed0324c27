"""The identity of a trace's spans, as the engine carries it: into a message's row, and on to a channel. Pure.

What makes identities and exports spans is `daemon/telemetry`; the engine sees it only as `Tracing`.
"""

from __future__ import annotations

from typing import Protocol

from schema.frozen import frozen
from schema.rows import Cause


@frozen
class TraceContext:
    """One span's identity: lower-case hex of 32 and 16 digits, and whether it is recorded."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def header(self) -> str:
        """The value of a `traceparent` header, version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


@frozen
class SpanStart:
    """The start of an operation, in epoch milliseconds, and the span that will describe it.

    `parent` is the context that the operation was asked for in; `context` is its own span's, None without tracing.
    """

    at: int
    parent: TraceContext | None
    context: TraceContext | None

    @property
    def traceparent(self) -> str | None:
        """The header to pass on: our own span's where we trace, otherwise the one that came from outside, unchanged."""
        known = self.context or self.parent
        return known.header if known is not None else None


class Tracing(Protocol):
    """Starts spans. Both methods may be called from any thread; neither waits or raises."""

    def begin(self, traceparent: str | None) -> SpanStart:
        """Start the span of an incoming message, which may bring a `traceparent` header."""
        ...

    def sending(self, agent: str, session: str, cause: Cause | None) -> SpanStart:
        """Start the span of a send. `cause` is the message that it answers, if it answers one."""
        ...
