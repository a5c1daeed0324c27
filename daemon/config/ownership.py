"""`role` and [ownership]: which agents and channels of a shared configuration belong to this daemon."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from daemon.config.agents import Agent
from daemon.config.egress import Egress, is_for
from daemon.config.models import Config
from daemon.core.errors import ConfigError
from daemon.core.ownership import Group, Ownership, crossing_faults, divide


def ownership_of(config: Config) -> Ownership:
    """Return what each role owns. Raise DuplicateOwnershipError or ConfigError."""
    tables = config.ownership
    groups = {
        "host": Group(tables.host.agents, tables.host.channels),
        "cluster": Group(tables.cluster.agents, tables.cluster.channels),
    }
    needs = {name: host_need(config, agent) for name, agent in config.agents.items()}
    found = divide(config.role, groups, needs, config.channels)
    crossing = list(crossing_faults(found, _links(config)))
    if crossing:
        raise ConfigError("; ".join(crossing) + ".", hint="Move one of them in [ownership] (docs/deploys.md#roles).")
    return found


def owned(config: Config, found: Ownership) -> Config:
    """Return the configuration without other roles' agents, channels, routes, schedules and egress tables.

    A daemon so never reads a secret that only agents of another role use.
    """
    if not found.role:
        return config
    agents = {name: one for name, one in config.agents.items() if found.owns_agent(name)}
    return config.model_copy(
        update={
            "agents": agents,
            "egress": _egress_for(config.egress, agents),
            "channels": {name: one for name, one in config.channels.items() if found.owns_channel(name)},
            "routes": tuple(one for one in config.routes if found.owns_agent(one.agent)),
            "schedules": {key: one for key, one in config.schedules.items() if found.owns_agent(one.agent)},
        }
    )


def _egress_for(egress: Egress, agents: Collection[str]) -> Egress:
    def used(names: Collection[str]) -> bool:
        return any(is_for(names, agent) for agent in agents)

    return egress.model_copy(
        update={
            "routes": {name: one for name, one in egress.routes.items() if used(one.agents)},
            "connect": {name: one for name, one in egress.connect.items() if used(one.agents)},
        }
    )


def host_need(config: Config, agent: Agent) -> str | None:
    """Return why an agent's configuration ties it to the host, or None if it can run anywhere."""
    if config.runtime.kind == "process":
        return "the runtime `process` starts it on the host"
    if agent.mounts:
        return f"it mounts {agent.mounts[0].source}"
    if (agent.network or config.docker.network) == "host":
        return "it uses the host's network"
    return None


def _links(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield (configuration key, agent, channel) for each key that ties an agent to a channel."""
    for route in config.routes:
        yield f"routes.{route.name}", route.agent, route.channel
    for key, schedule in config.schedules.items():
        yield f"schedules.{key}", schedule.agent, schedule.channel
    for name, agent in config.agents.items():
        for place, target in (agent.destinations or {}).items():
            if target.channel:
                yield f"agents.{name}.destinations.{place}", name, target.channel
