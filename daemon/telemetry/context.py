"""W3C trace context: read and written as a `traceparent` header, and carried in a message's row. No OpenTelemetry here.

The header's form is that of https://www.w3.org/TR/trace-context/. A malformed header means no context, never an error: a
message must not be refused for its trace.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from daemon.core.trace import TraceContext

_SAMPLED: Final = 0x01
_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_MAX: Final = 512


def parse(header: str | None) -> TraceContext | None:
    """Parse a `traceparent`, or return None. A newer version is read as far as this one's fields go."""
    found = _FORM.fullmatch(header.strip()) if header is not None and len(header) <= _MAX else None
    if found is None:
        return None
    edition, trace_id, span_id, flags, more = found.groups()
    if edition == "ff" or (edition == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def new_context(parent: TraceContext | None, ratio: float) -> TraceContext:
    """Return a new span's identity: in its parent's trace with its decision, or at the head of a new trace.

    `ratio` of new traces are recorded, 0.0 to 1.0.
    """
    span_id = _not_zero(8)
    if parent is not None:
        return TraceContext(parent.trace_id, span_id, parent.sampled)
    trace_id = _not_zero(16)
    return TraceContext(trace_id, span_id, decide(trace_id, ratio))


def decide(trace_id: str, ratio: float) -> bool:
    """Return whether a trace is recorded: a function of its id's last 56 bits, so that every caller gets the same answer."""
    return int(trace_id[18:], 16) < ratio * 2**56


def _not_zero(size: int) -> str:
    while True:
        value = secrets.token_hex(size)
        if int(value, 16):
            return value
