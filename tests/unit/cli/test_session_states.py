"""The words for states that `session show` uses are those of the lists."""

from __future__ import annotations

import pytest

from daemon.cli.session import _sent


@pytest.mark.parametrize(
    ("state", "next_attempt_at", "shown"),
    [
        ("queued", 2000, "scheduled"),
        ("queued", 500, "queued"),
        ("queued", None, "queued"),
        ("retrying", 2000, "retrying"),
    ],
)
def test_an_answer_for_later_is_scheduled(state: str, next_attempt_at: int | None, shown: str) -> None:
    assert _sent({"state": state, "next_attempt_at": next_attempt_at}, 1000) == shown
