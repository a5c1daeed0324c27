"""Decides who may answer an agent's question, by the person who answers and not by the button. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from daemon.core.people import RANK, UserRole


class AnswersFrom(StrEnum):
    """agents.NAME.answers_from."""

    ANYONE = "anyone"  # whoever may write where it was asked
    ASKER = "asker"  # who sent the message that the agent works on, and admins
    KNOWN = "known"  # who has a role for the agent
    ADMIN = "admin"
    OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at a place: the platform's id as its channel has verified it, the user it is bound to, and that user's rank."""

    sender: str | None = None
    user: str | None = None
    rank: int = 0


_RANK: Final[Mapping[AnswersFrom, int]] = MappingProxyType(
    {
        AnswersFrom.KNOWN: RANK[UserRole.MEMBER],
        AnswersFrom.ASKER: RANK[UserRole.ADMIN],  # besides the asker
        AnswersFrom.ADMIN: RANK[UserRole.ADMIN],
        AnswersFrom.OWNER: RANK[UserRole.OWNER],
    }
)


def may_answer(rule: AnswersFrom, asker: Person, answerer: Person) -> bool:
    """Return whether `answerer` may answer a question about a message of `asker`.

    Where a message came without a sender, as from a command or a hook for one agent, its place is the person.
    """
    if rule is AnswersFrom.ANYONE or answerer.rank >= _RANK[rule]:
        return True
    if rule is not AnswersFrom.ASKER:
        return False
    if asker.sender is None and asker.user is None:
        return True
    same_user = asker.user is not None and asker.user == answerer.user
    return same_user or (asker.sender is not None and asker.sender == answerer.sender)
