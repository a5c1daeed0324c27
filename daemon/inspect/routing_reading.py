"""Reads routes and refused events for an operator, with the daemon up or down. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Final

from daemon.config.models import Config
from daemon.config.routes import RouteTable, route_faults, stored_route
from daemon.core.routing import Directory, EventKind, PlaceEvent, decide
from daemon.core.shadowed_routes import shadowed_routes
from daemon.core.user_commands import is_command, rules
from daemon.inspect.central_reading import check_data_folder
from daemon.inspect.trusted_files import open_current
from daemon.store import routes as store
from daemon.store.data_layout import Layout
from schema.errors import UnusableFileError
from schema.frozen import frozen

_DEFAULTS: Final[Mapping[str, Any]] = {
    name: one.default for name, one in RouteTable.model_fields.items() if not one.is_required()
}


@frozen
class Routes:
    """Every route with its origin, and the faults of routes as (route name, fault)."""

    directory: Directory
    listed: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    faults: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    shadowed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (route, the one that decides)
    stored: frozenset[str] = frozenset()  # names of routes that were added by command


def read_routes(config: Config) -> Routes:
    """Read the routes of the configuration and of central.db. Raise DataFolderError or what opening the file raises."""
    configured = [one.route() for one in config.routes]
    path = central_file(config.data_dir)
    if path is None:
        found, stored, unusable = Directory(), [], list[str]()
    else:
        with open_current(path) as reader:
            found, unusable = store.read_directory(reader, configured, stored_route)
            stored = store.stored_routes(reader)
    if path is None:
        found = store.directory_of(configured)
    listed = [_row(one.model_dump(), "config") for one in config.routes]
    listed += [
        {**_row({**_DEFAULTS, **one.keys}, "command"), "added_at": one.added_at, "added_by": one.added_by}
        for one in stored
    ]
    usable = [stored_route(one.keys) for one in stored if one.name not in unusable]
    faults = [*route_faults([*configured, *usable], config.agents, ("local", *config.channels))]
    faults += [(name, "was added by another version of clawbus, and cannot be read") for name in unusable]
    shadowed = [(one.name, by.name) for one, by in shadowed_routes(found.table.routes.values())]
    told, hidden, names = dict(faults), dict(shadowed), {one.name for one in configured}
    for one in listed:
        name, by_command = one["name"], one["source"] == "command"
        # Of two routes with one name the file's counts: the fault is the other's.
        one["fault"] = told.get(name) if by_command or name not in names or name not in _names(stored) else None
        one["shadowed_by"] = hidden.get(name)
        one["state"] = "broken" if one["fault"] else "unreachable" if one["shadowed_by"] else "ok"
    ordered = sorted(listed, key=lambda one: (one["channel"], one["place"], -one["priority"]))
    return Routes(found, ordered, faults, shadowed, _names(stored))


def _names(stored: Sequence[store.StoredRoute]) -> frozenset[str]:
    return frozenset(one.name for one in stored)


def _row(keys: Mapping[str, Any], source: str) -> dict[str, Any]:
    return {**keys, "source": source}


def explain(config: Config, event: PlaceEvent) -> dict[str, Any]:
    """Return where an event would be routed now, and why. Store nothing."""
    routes = read_routes(config)
    covering = routes.directory.table.covering(event.channel, event.place)
    if is_command(event, rules({name: table.rule() for name, table in config.commands.items()})):
        event = replace(event, kind=EventKind.COMMAND)
    decision = decide(routes.directory, event, config.agents)
    return {
        "routes": [one.name for one in covering],
        "targets": [
            {
                "agent": one.agent, "session": one.session, "route": one.route, "wakes": one.trigger, "user": one.user,
                "why": one.why,
            }
            for one in decision.targets
        ],
        "refusals": [
            {"agent": one.agent or None, "route": one.route or None, "reason": one.reason.value, "why": one.why}
            for one in decision.refusals
        ],
    }  # fmt: skip


def stored_route_names(data_dir: Path) -> list[str]:
    """Return the names of the routes that were added by command."""
    path = central_file(data_dir)
    if path is None:
        return []
    with open_current(path) as reader:
        return [one.name for one in store.stored_routes(reader)]


def read_refused(data_dir: Path, limit: int) -> list[dict[str, Any]]:
    """Return the refusals that happened last, newest first."""
    path = central_file(data_dir)
    if path is None:
        return []
    with open_current(path) as reader:
        return [dict(one) for one in store.refused_events(reader, limit)]


def central_file(data_dir: Path) -> Path | None:
    """Return central.db's path; None for a data folder that no daemon has used yet."""
    check_data_folder(data_dir)
    path = Layout(data_dir).central_db
    if not path.is_file() and Layout(data_dir).sessions_dir.is_dir() and any(Layout(data_dir).sessions_dir.iterdir()):
        raise UnusableFileError.of(path.name, f"{path} is missing.")
    return path if path.is_file() else None
