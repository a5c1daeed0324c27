"""What each agent may write to now, by the configuration and the routes. Called in the event loop and in worker threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from daemon.config.agents import Agent
from daemon.core.destinations import AGENT_CHANNEL, DestinationSource, NamedPlace, destinations_of
from daemon.core.routing import Route, RoutingTable
from schema.frozen import frozen


@frozen
class _Granted:
    """What an agent may write to, and what it was derived from."""

    agent: Agent
    table: RoutingTable
    places: tuple[NamedPlace, ...]
    addresses: frozenset[tuple[str, str]]


class Grants:
    """Derives destinations when the routes or the agent have changed. `table` returns None until routes were read."""

    def __init__(self, agents: Mapping[str, Agent], table: Callable[[], RoutingTable | None]) -> None:
        self._agents = agents
        self._table = table
        self._known: dict[str, _Granted] = {}
        self._by_agent: tuple[RoutingTable, Mapping[str, Sequence[Route]]] | None = None

    def places(self, agent: str) -> tuple[NamedPlace, ...]:
        """Return where the agent may write, by name."""
        found = self._granted(agent)
        return found.places if found is not None else ()

    def addresses(self, agent: str) -> frozenset[tuple[str, str]] | None:
        """Return (channel, place) of each destination; None while that is not known, or the agent is not configured."""
        found = self._granted(agent)
        return found.addresses if found is not None else None

    def _granted(self, name: str) -> _Granted | None:
        agent, table = self._agents.get(name), self._table()
        if agent is None or table is None:
            return None
        known = self._known.get(name)
        if known is None or known.agent is not agent or known.table is not table:
            routes = self._routes(table).get(name, ())
            places = destinations_of(name, listed(agent), routes, from_routes=agent.destinations_from_routes)
            known = _Granted(agent, table, places, frozenset(one.address for one in places))
            self._known[name] = known
        return known

    def _routes(self, table: RoutingTable) -> Mapping[str, Sequence[Route]]:
        kept = self._by_agent
        if kept is None or kept[0] is not table:
            found: dict[str, list[Route]] = {}
            for route in table.routes.values():
                found.setdefault(route.agent, []).append(route)
            self._by_agent = kept = (table, found)
        return kept[1]


def listed(agent: Agent) -> list[NamedPlace]:
    """Return the destinations of the agent's own tables."""
    return [
        NamedPlace(
            name,
            one.channel or AGENT_CHANNEL,
            one.place or one.agent,
            one.display_name or name,
            DestinationSource.CONFIG,
        )
        for name, one in (agent.destinations or {}).items()
    ]
