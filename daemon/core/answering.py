"""Decides who may answer an agent's question, by the person who answers and not by the button. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from daemon.core.people import RANK, UserRole
from schema.frozen import frozen
from schema.questions import MAX_LABEL, Question, QuestionError, choose

_YES: Final = frozenset({"yes", "y"})
_NO: Final = frozenset({"no", "n"})
_MENTION: Final = re.compile(r"\A@\S+[:,]?\s+")  # a mention of the agent before the answer


class AnswersFrom(StrEnum):
    """agents.NAME.answers_from."""

    ANYONE = "anyone"  # everybody who may write at the place where it was asked
    ASKER = "asker"  # the sender of the message that the agent works on, and admins
    KNOWN = "known"  # everybody with a role for the agent
    ADMIN = "admin"
    OWNER = "owner"


@frozen
class Person:
    """Somebody at a place: the platform's id as its channel has verified it, the user it is bound to, and that user's rank."""

    sender: str | None = None
    user: str | None = None
    rank: int = 0


_RANK: Final[Mapping[AnswersFrom, int]] = MappingProxyType(
    {
        AnswersFrom.KNOWN: RANK[UserRole.MEMBER],
        AnswersFrom.ASKER: RANK[UserRole.ADMIN],  # who may answer besides the asker
        AnswersFrom.ADMIN: RANK[UserRole.ADMIN],
        AnswersFrom.OWNER: RANK[UserRole.OWNER],
    }
)


def rule_of(rule: AnswersFrom, question: Question) -> AnswersFrom:
    """Return who may answer this question of an agent with this rule.

    A change of the agent's environment needs at least an admin.
    """
    return AnswersFrom.ADMIN if question.asks_for is not None and rule is not AnswersFrom.OWNER else rule


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


@frozen
class PlainAnswer:
    """A text that answers a question without naming it. `text` is None for a no to a question that offers no such option."""

    text: str | None


def may_answer_plainly(rule: AnswersFrom, asker: Person, answerer: Person) -> bool:
    """Return whether a plain text of `answerer` counts as an answer. Everybody else who may answer has to name the question."""
    if not may_answer(rule, asker, answerer):
        return False
    if asker.user is not None and asker.user == answerer.user:
        return True
    return asker.sender == answerer.sender and asker.user is None


def plain_answer(question: Question, text: str) -> PlainAnswer | None:
    """Return the answer in a text as people write it, or None: then it is a message.

    An answer is one of the options, by its number, label or id; a yes or a no; or, where there are no options, a number.
    """
    said = _MENTION.sub("", text.strip())
    if not said or len(said) > MAX_LABEL:
        return None
    try:
        choose(replace(question, free_text=False) if question.options else question, said)
    except QuestionError:
        return PlainAnswer(None) if said.casefold() in _NO else None
    if question.options or said.casefold() in _YES | _NO or (said.isascii() and said.isdigit()):
        return PlainAnswer(said)
    return None
