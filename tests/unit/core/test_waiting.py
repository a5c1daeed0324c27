"""Why a message has no answer yet: every state that an operator can wait in has a sentence."""

from typing import Any

import pytest

from daemon.core.waiting import what_it_waits_for

NOW = 1_795_849_343_000


def row(**values: Any) -> dict[str, Any]:
    return {
        "id": "m",
        "status": "pending",
        "tries": 0,
        "deferrals": 0,
        "process_after": None,
        "last_event": None,
        **values,
    }


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"deferrals": 2, "process_after": NOW + 5000}, 'its agent said "later" (2 times so far); the next try is at'),
        ({"deferrals": 1, "process_after": NOW + 5000}, 'its agent said "later" (1 time so far); the next try is at'),
        ({"tries": 3, "process_after": NOW + 60_000}, "3 tries failed; the next try is at"),
        (
            {"process_after": NOW + 3_600_000},
            "it is scheduled for 2026-11-28T08:02:23.000Z (in 60 min)",
        ),
        ({"status": "paused"}, "it is paused"),
        (
            {"last_event": {"event": "claimed", "at": NOW - 90_000, "detail": None}},
            "its agent has worked on it for 90 s",
        ),
    ],
)
def test_each_wait_has_its_sentence(values: dict[str, Any], sentence: str) -> None:
    said = what_it_waits_for([row(id="other"), row(**values)], "m", NOW)
    assert said is not None
    assert said.startswith(sentence)


@pytest.mark.parametrize("values", [{}, {"process_after": NOW - 1}, {"status": "completed"}, {"id": "another"}])
def test_what_is_due_or_unknown_says_nothing(values: dict[str, Any]) -> None:
    assert what_it_waits_for([row(**values)], "m", NOW) is None
