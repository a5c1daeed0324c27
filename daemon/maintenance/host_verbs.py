"""Carries out the verbs about the whole installation, on central.db: routes and people. Both executors call it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from daemon.config.faults import fault_text
from daemon.config.models import Config
from daemon.config.routes import RouteTable, route_faults, stored_route
from daemon.core.agent_verbs import AddRoute, RefillBudget, RemoveRoute
from daemon.core.egress_usage import day_of
from daemon.core.errors import RouteRefusedError, UnknownAgentError, UnknownRouteError
from daemon.core.people_verbs import DecidePairing, UserVerb
from daemon.core.verb import HostVerb
from daemon.core.zones import zone
from daemon.maintenance import people_verbs
from daemon.store import agent_usage, routes
from daemon.store.routes import StoredRoute
from schema.frozen import frozen
from schema.handles import Writer


@frozen
class Configured:
    """The parts of the configuration that a verb must agree with."""

    routes: tuple[RouteTable, ...]
    agents: frozenset[str]
    channels: frozenset[str]
    day: str  # today in its time zone

    @classmethod
    def of(cls, config: Config, now_ms: int) -> Configured:
        """Return it, as the configuration has it."""
        return cls(
            config.routes,
            frozenset(config.agents),
            frozenset(("local", *config.channels)),
            day_of(now_ms, zone(config.timezone)),
        )


def execute(db: Writer, verb: HostVerb, configured: Configured, now_ms: int) -> dict[str, Any]:
    """Carry out one verb and return its result. Raise a ClawbusError that says why not; then nothing has changed."""
    match verb:
        case AddRoute():
            return _add_route(db, verb, configured, now_ms)
        case RemoveRoute():
            return _remove_route(db, verb, configured)
        case RefillBudget():
            return _refill(db, verb, configured, now_ms)
        case UserVerb():
            return people_verbs.change_user(db, verb, configured.agents, configured.channels, now_ms)
        case DecidePairing():
            return people_verbs.decide_pairing(db, verb, now_ms)
        case _:
            raise NotImplementedError(type(verb).__name__)


def _refill(db: Writer, verb: RefillBudget, configured: Configured, now_ms: int) -> dict[str, Any]:
    if verb.agent not in configured.agents:
        raise UnknownAgentError(f"there is no agent {verb.agent!r}.")
    with db.transaction():
        used = agent_usage.refill(db, configured.day, verb.agent, now_ms, verb.by, verb.reason)
    return {"name": verb.agent, "day": used.day, "turns": used.turns, "tokens": used.tokens, "cost": used.cost}


def _add_route(db: Writer, verb: AddRoute, configured: Configured, now_ms: int) -> dict[str, Any]:
    try:
        table = RouteTable.model_validate(dict(verb.keys))
    except ValidationError as error:
        raise RouteRefusedError(f"{_faults(error)}.") from error
    there = [one.route() for one in configured.routes]
    for one in routes.stored_routes(db):
        try:
            there.append(stored_route(one.keys))
        except ValueError:
            continue  # `doctor` names it
    new = table.route(stored=True)
    for name, fault in route_faults([*there, new], configured.agents, configured.channels):
        if name == table.name:
            raise RouteRefusedError(f"route {name}: {fault}.")
    keys = table.model_dump(exclude_defaults=True)
    routes.add_route(db, StoredRoute(table.name, keys, now_ms, verb.by, verb.reason))
    return {"name": table.name, "keys": keys}


def _remove_route(db: Writer, verb: RemoveRoute, configured: Configured) -> dict[str, Any]:
    if not routes.remove_route(db, verb.name):
        if any(one.name == verb.name for one in configured.routes):
            raise RouteRefusedError(
                f"route {verb.name} is in the configuration.",
                hint="Remove its [[routes]] table from clawbus.toml, then `clawbus reload`.",
            )
        raise UnknownRouteError(f"there is no route {verb.name!r}.")
    return {"name": verb.name}


def _faults(error: ValidationError) -> str:
    lines: list[str] = []
    for item in error.errors(include_url=False):
        key = ".".join(map(str, item["loc"])) or "route"
        text = "unknown key" if item["type"] == "extra_forbidden" else fault_text(cast("Mapping[str, Any]", item))
        lines.append(f"{key}: {text}")
    return "; ".join(lines).rstrip(".")
