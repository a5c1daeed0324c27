"""The spans of one message's life: their names, attributes and identities. Pure: facts in, records out.

A trace is accept -> wait (with the container's spawn) -> turn -> deliver. Every span but the first is a child of `accept`,
whose identity is stored in the message's row. So each span can be reported as soon as its end is known, even by a daemon
that was restarted meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final

from daemon.core.trace import TraceContext
from daemon.telemetry.context import decide

Attributes = Mapping[str, str | int | bool]

SYSTEM: Final = "clawbus"


class Role(StrEnum):
    """The OpenTelemetry span kinds that clawbus uses."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    CLIENT = "client"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at one instant of a span. `at` is epoch milliseconds."""

    name: str
    at: int
    attributes: Attributes = field(default_factory=dict[str, str | int | bool])


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span. `start` and `end` are epoch milliseconds. `error` is the status text, None for success."""

    name: str
    context: TraceContext
    parent: TraceContext | None
    start: int
    end: int
    role: Role = Role.INTERNAL
    attributes: Attributes = field(default_factory=dict[str, str | int | bool])
    events: tuple[Event, ...] = ()
    error: str | None = None


def about(
    agent: str, session: str, message_id: str | None, **more: str | int | bool | None
) -> dict[str, str | int | bool]:
    """Return the attributes that every span has. `messaging.*` names follow OpenTelemetry's semantic conventions."""
    known: dict[str, str | int | bool | None] = {
        "messaging.system": SYSTEM,
        "messaging.destination.name": f"{agent}/{session}",
        "messaging.message.id": message_id,
        "clawbus.agent": agent,
        "clawbus.session": session,
        **{f"clawbus.{name}": value for name, value in more.items()},
    }
    return {name: value for name, value in known.items() if value is not None}


def context_of_row(agent: str, session: str, message_id: str, ratio: float) -> TraceContext:
    """Return the trace identity for a row that stores none: a repeating message, or one from before tracing.

    The same row always gets the same identity.
    """
    digest = sha256(f"{SYSTEM}\0{agent}\0{session}\0{message_id}".encode("utf-8", "surrogatepass")).hexdigest()
    trace_id = digest[:32]
    return TraceContext(trace_id, digest[32:48], decide(trace_id, ratio))
