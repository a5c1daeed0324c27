"""SIGKILL and SIGSTOP of real daemons and agents at random times under constant load: nothing lost, nothing doubled.

Bounded here; `make soak` runs the same for as long as it is told.
"""

import pytest

from tests.faults.soak import process_chaos

pytestmark = [pytest.mark.faults]


def test_random_deaths_under_load_lose_and_double_nothing() -> None:
    report = process_chaos(seed=20, seconds=25.0, sessions=6, per_second=15.0)
    assert report.failures() == []
    assert report.account.accepted >= 50
    assert report.account.answered >= report.account.accepted // 2
    assert report.killed >= 20
    assert {"daemon", "runner"} <= set(report.kills)
