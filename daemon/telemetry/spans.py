"""The spans of one message's life: their names, attributes and identities. Pure: facts in, records out.

A trace is accept -> wait (with the container's spawn) -> turn -> deliver. A tool's span is a child of its turn's, every other
one but the first a child of `accept`, whose identity is stored in the message's row. So each span can be reported as soon as
its end is known, even by a daemon that was restarted meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from hashlib import sha256
from typing import Final

from daemon.core.trace import TraceContext
from daemon.telemetry.context import decide
from schema.frozen import frozen
from schema.rows import TurnUsage

Attributes = Mapping[str, str | int | bool]

SYSTEM: Final = "clawbus"
EXECUTE_TOOL: Final = "execute_tool"  # the operation's name in the conventions for generative AI


class Role(StrEnum):
    """The OpenTelemetry span kinds that clawbus uses."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    CLIENT = "client"
    INTERNAL = "internal"


@frozen
class Event:
    """Something that happened at one instant of a span. `at` is epoch milliseconds."""

    name: str
    at: int
    attributes: Attributes = field(default_factory=dict[str, str | int | bool])


@frozen
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


def turn_facts(agent: str, session: str, usage: TurnUsage | None) -> dict[str, str | int | bool]:
    """Return what OpenTelemetry's conventions for generative AI name of an agent's turn."""
    known = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": agent,
        "gen_ai.conversation.id": f"{agent}/{session}",
        "gen_ai.usage.input_tokens": usage.input_tokens if usage is not None else None,
        "gen_ai.usage.output_tokens": usage.output_tokens if usage is not None else None,
    }
    return {name: value for name, value in known.items() if value is not None}


def tool_facts(agent: str, session: str, tool: str) -> dict[str, str | int | bool]:
    """Return what the same conventions name of one use of a tool."""
    return turn_facts(agent, session, None) | {"gen_ai.operation.name": EXECUTE_TOOL, "gen_ai.tool.name": tool}


def context_of_row(agent: str, session: str, message_id: str, ratio: float) -> TraceContext:
    """Return the trace identity for a row that stores none: a repeating message, or one from before tracing.

    The same row always gets the same identity.
    """
    digest = sha256(f"{SYSTEM}\0{agent}\0{session}\0{message_id}".encode("utf-8", "surrogatepass")).hexdigest()
    trace_id = digest[:32]
    return TraceContext(trace_id, digest[32:48], decide(trace_id, ratio))
