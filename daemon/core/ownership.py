"""Divides one configuration between two kinds of daemons: which role owns which agents and channels. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Final, Literal

from daemon.core.deploy_errors import DuplicateOwnershipError
from daemon.core.errors import ConfigError
from schema.frozen import frozen

HOST: Final = "host"
CLUSTER: Final = "cluster"
ROLES: Final = (HOST, CLUSTER)
Role = Literal["", "host", "cluster"]
AGENT: Final = "agent"
CHANNEL: Final = "channel"
_HINT: Final = "Correct [ownership] or role in clawbus.toml (docs/deploys.md#roles)."


@frozen
class Group:
    """The content of [ownership.ROLE]."""

    agents: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


@frozen
class Ownership:
    """The role of each agent and channel. Both are empty without roles: then the daemon owns everything."""

    role: Role = ""
    agents: Mapping[str, str] = field(default_factory=dict[str, str])
    channels: Mapping[str, str] = field(default_factory=dict[str, str])

    def owns_agent(self, name: str) -> bool:
        """Return whether this daemon's role owns the agent."""
        return not self.role or self.agents.get(name) == self.role

    def owns_channel(self, name: str) -> bool:
        """Return whether this daemon's role owns the channel. A channel in no group is each daemon's own (`local`)."""
        return not self.role or self.channels.get(name, self.role) == self.role

    @property
    def elsewhere(self) -> dict[str, str]:
        """The agents that another role owns, with that role."""
        return {name: role for name, role in self.agents.items() if not self.owns_agent(name)}


def divide(
    role: Role, groups: Mapping[str, Group], needs: Mapping[str, str | None], channels: Iterable[str]
) -> Ownership:
    """Return the ownership of a configuration.

    `needs` has every agent, and why it needs the host, or None: such an agent is the host's, whatever a group says. An
    agent without a group is in the one that it needs; a channel has to be in one. Raise DuplicateOwnershipError or
    ConfigError.
    """
    named = {one: group for one, group in groups.items() if group.agents or group.channels}
    if not role and not named:
        return Ownership()
    if not role:
        raise ConfigError(
            "[ownership] divides the agents, and role is not set, so it is unclear which of them are this daemon's.",
            hint='Set role = "host" or role = "cluster" (or CLAWBUS_ROLE); docs/deploys.md#roles.',
        )
    doubles = [*_doubles(AGENT, {one: group.agents for one, group in groups.items()}),
               *_doubles(CHANNEL, {one: group.channels for one, group in groups.items()})]  # fmt: skip
    if doubles:
        raise DuplicateOwnershipError("; ".join(doubles) + ".")
    found = Ownership(role, _agents(groups, needs), _listed({one: group.channels for one, group in groups.items()}))
    known = tuple(channels)
    faults = [
        *(f"ownership: there is no agent {name!r}" for name in found.agents if name not in needs),
        *(f"ownership: there is no channel {name!r}" for name in found.channels if name not in known),
        *(
            f"ownership.cluster.agents: {name!r} needs the host: {needs[name]}"
            for name in groups.get(CLUSTER, Group()).agents
            if needs.get(name) is not None
        ),
        *(f"ownership: channel {name!r} is in no group" for name in known if name not in found.channels),
    ]
    if faults:
        raise ConfigError("; ".join(faults) + ".", hint=_HINT)
    return found


def _agents(groups: Mapping[str, Group], needs: Mapping[str, str | None]) -> dict[str, str]:
    by_need = {name: CLUSTER if need is None else HOST for name, need in needs.items()}
    return by_need | _listed({one: group.agents for one, group in groups.items()})


def _listed(names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: role for role, some in names.items() for name in some}


def _doubles(kind: str, names: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield a sentence for each name that is listed more than once."""
    places: dict[str, list[str]] = {}
    for role, some in names.items():
        for name in some:
            places.setdefault(name, []).append(role)
    for name, roles in sorted(places.items()):
        if len(roles) > 1:
            yield f"{kind} {name!r} is in {' and '.join(f'ownership.{one}' for one in roles)}"


def crossing_faults(found: Ownership, links: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield a sentence for each link between an agent of one role and a channel of another. `links` are (key, agent, channel).

    An agent's sessions lie in its own daemon's data folder, so the other role's channel cannot reach them.
    """
    for key, agent, channel in links:
        one, other = found.agents.get(agent), found.channels.get(channel)
        if one is not None and other is not None and one != other:
            yield f"{key}: agent {agent!r} is {one}'s, and channel {channel!r} is {other}'s"
