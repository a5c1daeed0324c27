"""The whole table of what may follow what, written out by hand, so that a change of the table is a change of this."""

from __future__ import annotations

import itertools

import pytest

from schema.rows import MessageStatus
from schema.states import TRANSITIONS, IllegalTransitionError, check_transition

LEGAL = {
    "pending": {"pending", "completed", "failed", "paused", "cancelled"},
    "paused": {"pending", "completed", "cancelled"},
    "failed": set(),
    "completed": set(),
    "cancelled": set(),
}


@pytest.mark.parametrize(("current", "target"), list(itertools.product(MessageStatus, MessageStatus)))
def test_every_pair(current: MessageStatus, target: MessageStatus) -> None:
    if target.value in LEGAL[current.value]:
        check_transition("m", current, target)
        return
    with pytest.raises(IllegalTransitionError, match=rf"message m is {current.value} and cannot become {target.value}"):
        check_transition("m", current, target)


def test_every_status_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(MessageStatus)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[MessageStatus.COMPLETED] = frozenset(MessageStatus)  # pyright: ignore[reportIndexIssue]
