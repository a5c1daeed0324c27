"""[[routes]] and [commands.NAME]: who talks to which agent, and what a slash command becomes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from daemon.core.patterns import Pattern, PatternError
from daemon.core.place_names import name_fault
from daemon.core.routing import (
    ANYWHERE,
    EVENT_VALUES,
    MAX_WILDCARDS,
    Engage,
    Otherwise,
    Route,
    Senders,
    SessionMode,
    Unknown,
)
from daemon.core.templates import Template, TemplateError, parse
from schema.errors import InvalidNameError
from schema.ids import check_name, check_session

MAX_SESSION_TEMPLATE: Final = 200
_MAX_PRIORITY: Final = 1_000_000


class RouteTable(BaseModel):
    """One [[routes]] table: events of a place go to an agent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    channel: str
    place: str
    agent: str
    engage: Literal["always", "mention", "mention-sticky", "pattern"] = "always"
    pattern: str | None = None
    otherwise: Literal["ignore", "context"] = "ignore"
    senders: Literal["anyone", "known", "admin", "owner"] = "known"
    unknown: Literal["refuse", "ask", "admit"] = "refuse"
    session: str = "per-thread"
    priority: int = Field(default=0, ge=-_MAX_PRIORITY, le=_MAX_PRIORITY)

    @field_validator("name", "channel", "agent")
    @classmethod
    def _name(cls, value: str) -> str:
        try:
            return check_name("name", value)
        except InvalidNameError as error:
            raise ValueError(f"{error} {error.hint}") from error

    @field_validator("place")
    @classmethod
    def _place(cls, value: str) -> str:
        fault = name_fault(value)
        if fault is not None:
            raise ValueError(fault)
        if ANYWHERE in value[:-1]:
            raise ValueError("may hold one `*`, at its end")
        return value

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                Pattern(value)
            except PatternError as error:
                raise ValueError(f"the pattern {error}") from error
        return value

    @field_validator("session")
    @classmethod
    def _session(cls, value: str) -> str:
        session_rule(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> RouteTable:
        if (self.engage == "pattern") != (self.pattern is not None):
            raise ValueError('engage = "pattern" needs a pattern, and nothing else has one')
        if self.senders == "anyone" and self.unknown != "refuse":
            raise ValueError('unknown says nothing where senders = "anyone": remove one of them')
        return self

    def route(self, *, stored: bool = False) -> Route:
        """Return the route as the router reads it."""
        return Route(
            name=self.name,
            channel=self.channel,
            place=self.place,
            agent=self.agent,
            engage=Engage(self.engage),
            pattern=_compiled(self.pattern) if self.pattern is not None else None,
            otherwise=Otherwise(self.otherwise),
            senders=Senders(self.senders),
            unknown=Unknown(self.unknown),
            session=session_rule(self.session),
            priority=self.priority,
            stored=stored,
        )


def stored_route(keys: Mapping[str, object]) -> Route:
    """Return a route that was added by command. Raise ValueError for keys that this version does not understand."""
    return RouteTable.model_validate(dict(keys)).route(stored=True)


@functools.lru_cache(maxsize=1_000)
def _compiled(text: str) -> Pattern:
    """Return a pattern that all routes with this text share, because its cache takes memory."""
    return Pattern(text)


@functools.lru_cache(maxsize=1_000)
def session_rule(text: str) -> SessionMode | Template:
    """Return a session mode or the template that names sessions. Raise ValueError."""
    if text in tuple(SessionMode):
        return SessionMode(text)
    return session_template(text, EVENT_VALUES)


def session_template(text: str, values: frozenset[str]) -> Template:
    """Return a template for sessions' names that may use these values. Raise ValueError."""
    if len(text) > MAX_SESSION_TEMPLATE:
        raise ValueError(f"has more than {MAX_SESSION_TEMPLATE} characters")
    try:
        found = parse(text)
    except TemplateError as error:
        raise ValueError(f"the template {error}") from error
    unknown = sorted(found.first_words - values)
    if unknown:
        raise ValueError(f"there is no field {{{unknown[0]}}}; the fields are {', '.join(sorted(values))}")
    if found.has_fields and any(sign in text for sign in "~%"):
        raise ValueError("a template may hold neither `~` nor `%`: they mark what was escaped or shortened")
    try:
        # With every field filled, so that the text around the fields is checked.
        check_session(text if not found.has_fields else "x".join(found.literals))
    except InvalidNameError as error:
        raise ValueError(f"{error} {error.hint}") from error
    return found


def route_faults(routes: Iterable[Route], agents: Iterable[str], channels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (route's name, fault) for routes that contradict each other or name what is not there."""
    by_claim: dict[tuple[str, str, str, int], str] = {}
    names: set[str] = set()
    wild: dict[str, int] = {}
    known_agents, known_channels = set(agents), set(channels)
    for route in routes:
        if route.name in names:
            yield route.name, "another route has this name"
            continue
        names.add(route.name)
        other = by_claim.setdefault(route.claim, route.name)
        if other != route.name:
            claims = f"claims {route.channel} {route.place} for agent {route.agent}, as route {other} does"
            yield route.name, f"{claims}; give one of them another priority"
        if route.agent not in known_agents:
            yield route.name, f"there is no agent {route.agent} (known: {', '.join(sorted(known_agents)) or 'none'})"
        if route.channel not in known_channels:
            there = ", ".join(sorted(known_channels))
            yield route.name, f"no channel {route.channel} is configured (known: {there})"
        if route.place.endswith(ANYWHERE):
            wild[route.channel] = wild.get(route.channel, 0) + 1
            if wild[route.channel] == MAX_WILDCARDS + 1:
                yield route.name, f"channel {route.channel} has more than {MAX_WILDCARDS} routes that end in `*`"
