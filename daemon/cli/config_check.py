"""`clawbus config check`: whether the configuration can be used, before a restart finds out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.config.sources import service_links
from daemon.core.clock import SystemClock
from daemon.core.errors import SecretFileError, SocketPathError
from schema.errors import ClawbusError

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.config.models import Config
    from daemon.core.ownership import Ownership


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Check the configuration.\n\n\b\nExample:\n  clawbus config check", rich_markup_mode=None)
    add(group, "check", check, path="config")
    add_group(app, group, "config")


def _route_faults(config: Config) -> list[dict[str, str]]:
    """Return what is wrong with routes that were added by command: an agent that is gone, say."""
    from daemon.inspect.routing_reading import read_routes  # noqa: PLC0415

    try:
        return [{"name": name, "fault": fault} for name, fault in read_routes(config).faults]
    except ClawbusError:  # no data folder yet, or one that cannot be read, which `doctor` explains
        return []


def check(invocation: Invocation) -> Outcome:
    """Read the configuration as the daemon would, and name every wrong key with its fix.

    Use it after an edit, before the daemon is restarted. It shows no secrets.

    \b
    Example:
      clawbus config check --config /etc/clawbus/clawbus.toml
    """
    config, file = invocation.strict_config, invocation.config_file
    from daemon.config.ownership import ownership_of  # noqa: PLC0415

    ownership = ownership_of(config)
    _check_parts(config, ownership)
    from daemon.channels.registry import cautions  # noqa: PLC0415

    faults = _route_faults(config)
    result = {
        "file": str(file) if file is not None else None,
        "data_dir": str(config.data_dir),
        "data_dir_exists": config.data_dir.is_dir(),
        "control_socket": str(config.control_socket),
        "runtime": config.runtime.kind,
        "role": config.role,
        "ownership": {"agents": dict(ownership.agents), "channels": dict(ownership.channels)},
        "agents": {name: agent.provider for name, agent in sorted(config.agents.items())},
        "channels": sorted(config.channels),
        "route_faults": faults,
        "cautions": cautions(config),
        "ignored_variables": service_links(os.environ),
    }
    if faults:
        said = "; ".join(f"route {one['name']}: {one['fault']}" for one in faults)
        problem = Problem(
            "ROUTE_FAULT", f"{said}.", f"`clawbus route remove {faults[0]['name']}`, or correct what it names."
        )
        return Outcome(result, problem=problem, next_actions=(NextAction("clawbus route list", "all routes"),))
    steps: tuple[NextAction, ...] = ()
    if not config.agents and (file is None or file.is_file()):  # not for /dev/null, which nobody can write into
        steps = (NextAction("clawbus init --help", "no agent is configured: add an [agents.NAME] table"),)
    return Outcome(result, lambda console: _show(console, result), steps)


def _check_parts(config: Config, ownership: Ownership) -> None:
    """Check what only the daemon's parts can check. Opens and starts nothing. Raise ClawbusError."""
    from daemon.api.server import check_path  # noqa: PLC0415
    from daemon.channels.registry import build_channels  # noqa: PLC0415 - every configured channel's own imports
    from daemon.config.ownership import owned  # noqa: PLC0415
    from daemon.inspect.egress_reading import unusable_secrets  # noqa: PLC0415
    from daemon.runtimes.agent_files import environment_of, secret_mounts, secret_variables  # noqa: PLC0415
    from daemon.runtimes.users import container_uid_gid  # noqa: PLC0415
    from daemon.telemetry.tracing import check_extra  # noqa: PLC0415

    check_extra(config.telemetry.otlp_endpoint)
    ours = owned(config, ownership)
    build_channels(ours, SystemClock())  # checks their tables and reads their secrets
    user = container_uid_gid(config.docker.user)
    for name, agent in sorted(ours.agents.items()):
        environment_of(name, agent)
        if config.runtime.kind == "process":
            secret_variables(name, agent, mounted=False)
        else:
            secret_mounts(name, agent, user)
    unusable = unusable_secrets(ours)
    for name, route in sorted(ours.egress.routes.items()):
        if str(route.secret_file) in unusable:
            raise SecretFileError(f"egress.routes.{name}.secret_file: {unusable[str(route.secret_file)]}")
    socket = config.control_socket
    check_path(socket)
    # Its default folder is the data folder, which the first start makes.
    if config.control.socket and not socket.parent.is_dir():
        raise SocketPathError(f"control.socket: {socket.parent} is not a folder.")


def _named(file: str | None) -> str:
    if file is None:
        return "none (defaults and environment)"
    return file if Path(file).is_file() else f"{file} (no regular file)"


def _show(console: Console, result: Mapping[str, Any]) -> None:
    from daemon.cli.present import pairs, say  # noqa: PLC0415

    pairs(
        console,
        {
            "file": _named(result["file"]),
            "data": result["data_dir"],
            "socket": result["control_socket"],
            "runtime": result["runtime"],
            **({"role": result["role"]} if result["role"] else {}),
            "agents": ", ".join(f"{name} ({provider})" for name, provider in result["agents"].items()) or "none",
            "channels": ", ".join(result["channels"]) or "none but local",
        },
    )
    say(console, *(f"note: {one}" for one in result["cautions"]))
    if result["ignored_variables"]:
        links = ", ".join(result["ignored_variables"])
        say(console, f"ignored: {links} (set by Kubernetes or Docker for a service of that name)")
