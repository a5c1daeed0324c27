"""Lists an agent's destinations: where it may write besides the place that a message came from. Pure.

The destinations that the operator configured come first. After them, each route to this agent adds its place under the
route's name. A route whose place ends in `*` adds none: it names many places, and its sessions answer where they were asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

from daemon.core.routing import ANYWHERE, Route
from schema.frozen import frozen

AGENT_CHANNEL: Final = "agent"  # the channel name of addresses that are agents; no channel may be configured with it
OWN_PLACE: Final = "here"  # the name of the session's own place: no other destination may have it
MAX_DESTINATIONS: Final = 500  # for one agent: each of its sessions stores the whole list


class DestinationSource(StrEnum):
    """What put a destination on the list."""

    CONFIG = "config"
    ROUTE = "route"
    OWN = "own"  # the place whose messages a route sends to this session


@frozen
class NamedPlace:
    """A destination: a place of a channel, or another agent (`channel` is AGENT_CHANNEL, `place` is its name)."""

    name: str
    channel: str
    place: str
    display_name: str
    source: DestinationSource

    @property
    def address(self) -> tuple[str, str]:
        """The channel and the place in it."""
        return self.channel, self.place


def destinations_of(
    agent: str, listed: Sequence[NamedPlace], routes: Iterable[Route], *, from_routes: bool = True
) -> tuple[NamedPlace, ...]:
    """Return the agent's destinations, at most MAX_DESTINATIONS, with no name twice. A route to a listed address adds nothing.

    `listed`: what the operator configured. Without `from_routes`, routes add nothing.
    """
    found = {one.name: one for one in listed[:MAX_DESTINATIONS]}
    there = {one.address for one in listed}
    own = (one for one in routes if one.agent == agent and not one.place.endswith(ANYWHERE))
    for route in sorted(own, key=lambda one: one.name) if from_routes else ():
        if len(found) >= MAX_DESTINATIONS:
            break
        if (route.channel, route.place) in there:
            continue
        there.add((route.channel, route.place))
        name = _free(route.name, (*found, OWN_PLACE))
        found[name] = NamedPlace(name, route.channel, route.place, route.name, DestinationSource.ROUTE)
    return tuple(found.values())


def _free(name: str, taken: Iterable[str]) -> str:
    """Return the name, or the first of NAME-2, NAME-3 and so on that is free."""
    used = set(taken)
    candidate, number = name, 1
    while candidate in used:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
