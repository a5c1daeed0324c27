"""Completed turns against a schedule: one interval may be under way, a whole one missed is behind."""

import pytest

from daemon.core.cadence import due_by, is_behind
from daemon.core.schedules import Times

MINUTE = 60_000


def every(milliseconds: int | None = None, at: int | None = None) -> Times:
    return Times(every_ms=milliseconds, at=at, timezone="UTC", start=0)


@pytest.mark.parametrize(
    ("now", "behind"), [(10 * MINUTE, False), (20 * MINUTE - 1, False), (20 * MINUTE, True), (90 * MINUTE, True)]
)
def test_an_agent_is_behind_when_a_whole_interval_brought_no_completed_turn(now: int, behind: bool) -> None:
    assert is_behind(every(10 * MINUTE), 0, now) is behind


def test_what_happens_once_has_no_cadence() -> None:
    assert due_by(every(at=5 * MINUTE), 0) is None
    assert not is_behind(every(at=5 * MINUTE), 0, 10**12)
