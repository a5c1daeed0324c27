"""Finds problems of routes and pairings for `doctor`, from the configuration and central.db. Changes nothing."""

from __future__ import annotations

from daemon.config.models import Config
from daemon.core.diagnosis import Diagnosis
from daemon.core.route_rules import bounded, diagnose_pairings, diagnose_routes
from daemon.inspect.people_reading import read_pairings
from daemon.inspect.routing_reading import read_routes
from schema.errors import ClawbusError

_MAX_PAIRINGS = 1_000


def route_findings(config: Config, now: int) -> list[Diagnosis]:
    """Return the findings. `now` is epoch milliseconds. Return none if central.db cannot be read: `doctor` reports that itself."""
    try:
        routes = read_routes(config)
        waiting = read_pairings(config.data_dir, now, _MAX_PAIRINGS, every=False)
    except ClawbusError:
        return []
    asked = [(str(one["code"]), str(one["sender"]), str(one["agent"])) for one in waiting]
    return bounded(
        [
            *diagnose_routes(routes.faults, routes.shadowed, routes.stored),
            *diagnose_pairings(asked, frozenset(config.agents)),
        ]
    )
