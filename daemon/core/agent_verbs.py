"""The operator's verbs about agents: the routes that lead to them, and their budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar

from daemon.core.verb import HostVerb
from schema.frozen import frozen
from schema.ids import check_name


@frozen
class AddRoute(HostVerb):
    """Add a route: {name, where}. `keys` are those of a [[routes]] table."""

    route: ClassVar[str] = "/v1/routes/add"

    keys: Mapping[str, Any] = field(default_factory=dict[str, Any])


@frozen
class RemoveRoute(HostVerb):
    """Remove a route that was added by command: {name}."""

    route: ClassVar[str] = "/v1/routes/remove"

    name: str = ""


@frozen
class RefillBudget(HostVerb):
    """Let an agent's daily budget begin again: {name, day, turns, tokens, cost}, with what had been used."""

    route: ClassVar[str] = "/v1/budgets/refill"

    agent: str = ""

    def __post_init__(self) -> None:
        """Check the name as well."""
        HostVerb.__post_init__(self)
        check_name("agent", self.agent)
