"""The operator's verbs about people: users, their roles, and strangers who ask to be let in."""

from __future__ import annotations

from typing import ClassVar

from daemon.core.verb import HostVerb
from schema.frozen import frozen
from schema.ids import check_name


@frozen
class UserVerb(HostVerb):
    """A verb about one user."""

    name: str = ""

    def __post_init__(self) -> None:
        """Check the name as well."""
        HostVerb.__post_init__(self)
        check_name("user", self.name)


@frozen
class AddUser(UserVerb):
    """Add a user: {name}."""

    route: ClassVar[str] = "/v1/users/add"


@frozen
class BindUser(UserVerb):
    """Bind a platform's id of a person to a user: {name, channel, sender}."""

    route: ClassVar[str] = "/v1/users/bind"

    channel: str = ""
    sender: str = ""


@frozen
class SetRole(UserVerb):
    """Give a user a role for an agent (empty: all) in a scope, or take it (`role` None): {name, role, agent, scope}."""

    route: ClassVar[str] = "/v1/users/role"

    role: str | None = None
    agent: str = ""
    scope: str = "any"


@frozen
class RevokeUser(UserVerb):
    """Refuse all that a user says from now on: {name, revoked}."""

    route: ClassVar[str] = "/v1/users/revoke"


@frozen
class RestoreUser(UserVerb):
    """Take a revocation back: {name, revoked}."""

    route: ClassVar[str] = "/v1/users/restore"


@frozen
class DecidePairing(HostVerb):
    """Let a stranger in, or not: {name, code, outcome, agent, scope}.

    `user`: who it is, None for a new user. `approver`: the user who decides; None for the operator of this host.
    """

    route: ClassVar[str] = "/v1/pairings/decide"

    code: str = ""
    approve: bool = False
    user: str | None = None
    approver: str | None = None
