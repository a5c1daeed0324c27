"""One message's life as spans: which there are, what they are called and what they say. Pure: facts in, records out.

A trace is accept -> wait (with the container's spawn) -> turn -> deliver; every span but the first is the child of `accept`,
whose identity is in the message's row. So each can be told when its end is known, by whichever daemon runs then.
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
    """OpenTelemetry's span kinds, as far as we have them."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    CLIENT = "client"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Event:
    """Something at an instant of a span. Epoch milliseconds."""

    name: str
    at: int
    attributes: Attributes = field(default_factory=dict[str, str | int | bool])


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span. Epoch milliseconds; `error` is its status' text, None for a good one."""

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
    """Return the attributes of every span; messaging names are those of OpenTelemetry's semantic conventions."""
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
    """Return the identity for a row without one (a repeating message, one from before tracing): always the same."""
    digest = sha256(f"{SYSTEM}\0{agent}\0{session}\0{message_id}".encode("utf-8", "surrogatepass")).hexdigest()
    trace_id = digest[:32]
    return TraceContext(trace_id, digest[32:48], decide(trace_id, ratio))
