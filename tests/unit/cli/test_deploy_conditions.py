"""What must hold always, as `deploy verify-runtime` judges it from what the daemon says of itself."""

from typing import Any

import pytest

from daemon.cli.verify_runtime import _owners, _serving
from daemon.core.slots import SlotState


@pytest.mark.parametrize(
    ("live", "status", "reason"),
    [
        ({"worker": {"duplicate_ids": []}}, "pass", ""),
        ({"worker": {}}, "pass", ""),
        ({}, "pass", ""),
        (
            {"worker": {"duplicate_ids": ["agent a", "channel b"]}},
            "fail",
            "another daemon of this host owns agent a, channel b, too",
        ),
        ({"worker": {"duplicate_ids": None}}, "unknown", "what other daemons of this host own could not be read"),
    ],
)
def test_another_owner_fails_and_what_cannot_be_read_is_no_pass(live: dict[str, Any], status: str, reason: str) -> None:
    assert _owners(live) == (status, reason)


@pytest.mark.parametrize(
    ("slot", "release", "reason"),
    [
        ("blue", "a" * 64, ""),
        (
            "green",
            "a" * 64,
            "slot green with release aaaaaaaaaaaa answers, slot blue with release aaaaaaaaaaaa is recorded",
        ),
        (
            "blue",
            "b" * 64,
            "slot blue with release bbbbbbbbbbbb answers, slot blue with release aaaaaaaaaaaa is recorded",
        ),
        (
            None,
            None,
            "a daemon without a slot with no release answers, slot blue with release aaaaaaaaaaaa is recorded",
        ),
    ],
)
def test_the_daemon_that_answers_is_the_recorded_one(slot: str | None, release: str | None, reason: str) -> None:
    found = _serving(SlotState(1, "blue", "a" * 64), {"source": {"slot": slot, "release": release}})
    assert found == ("fail" if reason else "pass", reason)


def test_a_developer_s_slot_has_no_release_and_is_the_recorded_one() -> None:
    assert _serving(SlotState(1, "blue", ""), {"source": {"slot": "blue", "release": None}}) == ("pass", "")
