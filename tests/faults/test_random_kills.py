"""SIGKILL and SIGSTOP of real daemons and agents at random times under constant load: nothing lost, nothing doubled.

The run goes on until enough was accepted and struck, however slow the machine is. `make soak` runs the same for as long
as it is told.
"""

import pytest

from tests.faults.chaos import Goal
from tests.faults.soak import process_chaos

pytestmark = [pytest.mark.faults]


def test_random_deaths_under_load_lose_and_double_nothing() -> None:
    goal = Goal(accepted=50, killed=20, victims=frozenset({"daemon", "runner"}))
    report = process_chaos(seed=20, seconds=15.0, sessions=6, per_second=15.0, goal=goal)
    assert not report.failures(), "\n".join(report.failures())
    assert report.account.answered > 0
