"""Decides when a stranger may ask to be admitted, and who may approve it. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from daemon.core.people import RANK, People, RoleScope, UserRole
from schema.frozen import frozen

ASK_FOR_MS: Final = 24 * 3600 * 1000  # how long a code can be approved
REFUSED_FOR_MS: Final = 7 * ASK_FOR_MS  # how long approvers are not asked again about a sender whom one refused
MAX_WAITING: Final = 200  # open requests of one channel
_CODE_LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_CODE_LENGTH: Final = 8


class PairingOutcome(StrEnum):
    """An approver's decision."""

    APPROVED = "approved"
    REFUSED = "refused"


@frozen
class Pairing:
    """A stranger's request to talk to an agent. Times are epoch milliseconds."""

    code: str
    channel: str
    sender: str
    agent: str
    scope: RoleScope
    place: str
    asked_at: int
    expires_at: int
    outcome: PairingOutcome | None = None
    decided_at: int | None = None
    decided_by: str | None = None
    user: str | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What is asked for: of two requests with the same key, only the first is kept."""
        return self.channel, self.sender, self.agent, self.scope.value

    def waits(self, now: int) -> bool:
        """Return whether it can still be decided."""
        return self.outcome is None and now < self.expires_at

    def is_refused(self, now: int) -> bool:
        """Return whether an approver refused it recently, so that no approver is asked again."""
        refused = self.outcome is PairingOutcome.REFUSED
        return refused and self.decided_at is not None and now < self.decided_at + REFUSED_FOR_MS


def pairing_code(random: bytes) -> str:
    """Return a code that a person can read out, from 5 random bytes."""
    number = int.from_bytes(random[:5], "big")
    return "".join(_CODE_LETTERS[(number >> shift) & 31] for shift in range(5 * (_CODE_LENGTH - 1), -1, -5))


def may_approve(people: People, approver: str, agent: str, role: UserRole) -> bool:
    """Return whether `approver` may give `role` for this agent: an admin may add members, an owner anyone.

    `people` must be read now: a role that the approver has lost does not count. One for direct chats or groups only does.
    """
    wanted = RANK[UserRole.ADMIN] if role is UserRole.MEMBER else RANK[UserRole.OWNER]
    return max(people.rank(approver, agent, direct=True), people.rank(approver, agent, direct=False)) >= wanted
