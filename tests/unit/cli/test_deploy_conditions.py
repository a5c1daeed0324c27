"""What must hold always, as `deploy verify-runtime` judges it from what the daemon says of itself."""

from typing import Any

import pytest

from daemon.cli.verify_runtime import _owners


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
