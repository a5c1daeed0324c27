"""Faults that only show between tables of the configuration, or between a table and the host's folders.

Reads the host's file system only to resolve the links in paths of mounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from daemon.config.agents import agent_table_faults
from daemon.config.egress import egress_faults
from daemon.config.models import Config
from daemon.config.mounts import HostPlaces, agent_faults
from daemon.config.routes import route_faults
from daemon.config.schedules import schedule_faults
from daemon.config.user_commands import command_faults


def table_faults(config: Config) -> Iterator[str]:
    """Yield the faults that the tables' own types cannot see."""
    channels = {"local", *config.channels}
    yield from schedule_faults(config.schedules, config.timezone, config.agents, channels)
    for name, agent in config.agents.items():
        yield from agent_table_faults(name, agent, config.sweep.claim_max_s, channels, config.agents)
    yield from egress_faults(config.egress, config.agents)
    yield from _contradictions(config)
    for name, fault in route_faults((one.route() for one in config.routes), config.agents, channels):
        yield f"routes.{name}: {fault}"
    yield from command_faults(config.commands)
    for key in ("messages_s", "mailbox_s", "idle_sessions_s"):
        age = float(getattr(config.retention, key))
        if 0 < age < config.delivery.retry_for_s:
            # A send may be repeated within this time, so the record that identifies the repetition must be kept as long.
            yield f"retention.{key}: must be 0 (never) or at least delivery.retry_for_s, {config.delivery.retry_for_s:g}"


def path_faults(config: Config, data_dir: Path) -> Iterator[str]:
    """Yield the faults of paths of the host that agents' tables name."""
    for name, agent in config.agents.items():
        yield from agent_faults(name, agent, host_places(config, data_dir), mountable=config.runtime.kind != "process")


def host_places(config: Config, data_dir: Path) -> HostPlaces:
    """Return the host paths that no mount of an agent may contain. `data_dir` is the folder in use, which may differ from the file's."""
    podman = config.podman.host
    named = (config.control.socket, podman.removeprefix("unix://") if podman.startswith("unix://") else "")
    return HostPlaces(data_dir, config.docker.host, tuple(Path(one) for one in named if one))


def _contradictions(config: Config) -> Iterator[str]:
    """Return pairs that contradict each other: a first wait that is longer than the longest."""
    for table, first, longest in (
        ("runtime", "spawn_backoff_s", "spawn_backoff_max_s"),
        ("delivery", "retry_base_s", "retry_max_s"),
    ):
        values = getattr(config, table)
        if getattr(values, first) > getattr(values, longest):
            yield f"{table}.{first}: must be at most {table}.{longest}, {getattr(values, longest):g}"
    if config.deploy.warm_s >= config.deploy.warm_limit_s:
        limit = f"{config.deploy.warm_limit_s:g}"
        yield f"deploy.warm_s: must be less than deploy.warm_limit_s, {limit}; otherwise no deploy passes the gate"
