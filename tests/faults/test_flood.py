"""A session that floods a receiver that hangs, in short; `python -m tests.faults.flood` is the whole of it, with times."""

import pytest

from tests.faults.flood import flood

pytestmark = pytest.mark.faults


def test_a_flood_to_a_receiver_that_hangs_stops_no_other_hook_or_session_and_arrives_without_a_restart() -> None:
    report = flood("process", "unused", 200, hang_s=0.0, samples=5)
    assert len(report.mailbox) >= 5
    assert len(report.hook) >= 5
    assert report.missing == []
    assert 1 <= report.most_at_once <= 8
