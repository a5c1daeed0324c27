"""Users, the platform identities bound to them, and their roles: a snapshot that the router reads. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from schema.frozen import frozen


class UserRole(StrEnum):
    """What a user may do. Each may do what the ones before it may."""

    MEMBER = "member"  # talks to the agent
    ADMIN = "admin"  # also lets others in
    OWNER = "owner"  # also makes admins


class RoleScope(StrEnum):
    """Where a role counts. A permission given in a direct chat does not count in a group."""

    ANY = "any"
    DIRECT = "direct"
    GROUP = "group"


RANK: Final[Mapping[str, int]] = MappingProxyType({role: number for number, role in enumerate(UserRole, start=1)})
ANY_AGENT: Final = ""


@frozen
class Grant:
    """A role of one user: for one agent or ANY_AGENT, in some places or everywhere."""

    role: UserRole
    agent: str = ANY_AGENT
    scope: RoleScope = RoleScope.ANY


@frozen
class People:
    """The people known now. `identities` maps (channel, sender) to a user; revoked users stay in `revoked`."""

    identities: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    grants: Mapping[str, Sequence[Grant]] = field(default_factory=dict[str, Sequence[Grant]])
    revoked: frozenset[str] = frozenset()

    def user_of(self, channel: str, sender: str | None) -> str | None:
        """Return the user behind an identity, or None for a stranger."""
        return self.identities.get((channel, sender)) if sender is not None else None

    def rank(self, user: str | None, agent: str, *, direct: bool) -> int:
        """Return the rank of the user's highest role for this agent in this kind of place; 0 for none."""
        if user is None or user in self.revoked:
            return 0
        here = (RoleScope.ANY, RoleScope.DIRECT if direct else RoleScope.GROUP)
        return max(
            (
                RANK[grant.role]
                for grant in self.grants.get(user, ())
                if grant.agent in (ANY_AGENT, agent) and grant.scope in here
            ),
            default=0,
        )
