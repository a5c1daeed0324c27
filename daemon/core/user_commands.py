"""Commands that people write, such as /stop: which word is one, who may use it, and what the bus answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from daemon.core.people import RANK, UserRole
from daemon.core.place_names import fitted
from daemon.core.routing import EventKind, PlaceEvent, Senders
from daemon.core.templates import Template
from schema.frozen import frozen

_COMMAND: Final = re.compile(r"/([a-z][a-z0-9_-]{0,31})(?:@\S{1,64})?(?:\s+(.*))?\Z", re.DOTALL)
_MAX_ARGUMENTS: Final = 4_000


class BuiltIn(StrEnum):
    """The commands that the bus answers itself."""

    HELP = "help"
    STATUS = "status"
    STOP = "stop"
    NEW = "new"
    APPROVE = "approve"
    REFUSE = "refuse"


HELP: Final[Mapping[BuiltIn, str]] = MappingProxyType(
    {
        BuiltIn.HELP: "what you can write here",
        BuiltIn.STATUS: "what the agent does now",
        BuiltIn.STOP: "stop what the agent is working on",
        BuiltIn.NEW: "start over, without memory",
        BuiltIn.APPROVE: "CODE: let a stranger in",
        BuiltIn.REFUSE: "CODE: refuse a stranger",
    }
)
_DEFAULT: Final[Mapping[BuiltIn, Senders]] = MappingProxyType(
    {
        BuiltIn.HELP: Senders.ANYONE,
        BuiltIn.STATUS: Senders.ANYONE,
        BuiltIn.STOP: Senders.KNOWN,
        BuiltIn.NEW: Senders.KNOWN,
        BuiltIn.APPROVE: Senders.ADMIN,
        BuiltIn.REFUSE: Senders.ADMIN,
    }
)
_RANK: Final[Mapping[Senders, int]] = MappingProxyType(
    {
        Senders.ANYONE: 0,
        Senders.KNOWN: RANK[UserRole.MEMBER],
        Senders.ADMIN: RANK[UserRole.ADMIN],
        Senders.OWNER: RANK[UserRole.OWNER],
    }
)


@frozen
class CommandRule:
    """A command of the configuration: who may use it, and for one of the operator's the message that it becomes."""

    senders: Senders
    text: Template | None = None


@frozen
class Command:
    """A command that somebody wrote. `built_in` None: one of the operator's."""

    name: str
    arguments: str
    rule: CommandRule
    built_in: BuiltIn | None = None

    def allows(self, rank: int) -> bool:
        """Return whether somebody of this rank may use it."""
        return rank >= _RANK[self.rule.senders]


def rules(configured: Mapping[str, CommandRule]) -> dict[str, CommandRule]:
    """Return the rule of every command, by its name."""
    return {**{one.value: CommandRule(_DEFAULT[one]) for one in BuiltIn}, **configured}


def command_of(event: PlaceEvent, known: Mapping[str, CommandRule]) -> Command | None:
    """Return the command in an event's text. Return None if the text is for the agent, as with an unknown command."""
    found = _COMMAND.match(event.text.strip()) if event.text.lstrip().startswith("/") else None
    rule = known.get(found.group(1)) if found is not None else None
    if found is None or rule is None:
        return None
    name = found.group(1)
    built_in = BuiltIn(name) if name in tuple(BuiltIn) else None
    return Command(name, (found.group(2) or "").strip()[:_MAX_ARGUMENTS], rule, built_in)


def is_command(event: PlaceEvent, known: Mapping[str, CommandRule]) -> bool:
    """Return whether a message is a command, which wakes the agent whatever its route asks for."""
    return event.kind is EventKind.MESSAGE and command_of(event, known) is not None


def help_text(known: Mapping[str, CommandRule], rank: int) -> str:
    """Return what somebody of this rank can write."""
    lines: list[str] = []
    for name, rule in known.items():
        if rank >= _RANK[rule.senders]:
            lines.append(f"/{name}: {HELP[BuiltIn(name)]}" if name in tuple(BuiltIn) else f"/{name}")
    return "\n".join(lines)


def generation_name(session: str, generation: int) -> str:
    """Return the name of a session's generation: the first keeps the plain name."""
    return session if generation < 2 else fitted(f"{session}~{generation}")
