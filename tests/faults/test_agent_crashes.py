"""SIGKILL between every two durable steps of a question from one agent to another and its answer: each arrives once.

The steps are those of any message (tests/faults/test_crash_points.py); those between the asker's intent and the receipt of
the answer are enumerated here, from a life without a crash. CLAWBUS_CRASH_POINTS=all takes every one of them; without it
the daemon dies after each step of the hand-over itself.
"""

from __future__ import annotations

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.faults.scenario import Driver
from tests.support.agents import obedient
from tests.support.daemon import RealDaemon
from tests.support.invariants import data_folder_violations

pytestmark = [pytest.mark.faults]

TABLES: Final = f'{obedient("a")}{obedient("b")}[agents.a.destinations.b]\nagent = "b"\n'
EVERY: Final = os.environ.get("CLAWBUS_CRASH_POINTS") == "all"
HAND_OVER: Final = frozenset({"AgentChannel.deliver", "ingress.store", "outcome_steps.record_outcomes"})
# Between the question's intent and the answer's receipt, these are the steps that make something durable.
STEPS: Final = frozenset(
    {"AgentChannel.deliver", "ingress.store", "delivery_steps.collect", "outcome_steps.record_outcomes",
     "SessionFiles.create", "registry.activate", "registry.begin_incarnation"}
)  # fmt: skip


@dataclass
class Life:
    """What came of one run: the daemon's points, the messages of each side, and what is wrong."""

    point: str | None
    fired: bool = False
    points: list[str] = field(default_factory=list[str])
    texts: list[str] = field(default_factory=list[str])
    asked: int = 0
    answered: int = 0

    def check(self) -> list[str]:
        found: list[str] = []
        if (self.asked, self.answered) != (1, 1):
            found.append(f"asked {self.asked} times, answered {self.answered} times")
        if sorted(self.texts) != ["hi", "sent"]:
            found.append(f"the person reads {self.texts}")
        return [f"{self.point or 'no crash'}: {one}" for one in found]


def live(point: str | None) -> Life:
    life = Life(point)
    with contextlib.closing(RealDaemon(TABLES)) as daemon:
        plan = daemon.root / "plan"
        plan.mkdir()
        if point is not None:
            told = {"party": "daemon", "point": point, "both": False, "data": str(daemon.data)}
            (plan / "plan.json").write_text(json.dumps(told))
        driver = Driver(daemon, plan)
        driver.insist("accepted", lambda: daemon.post("to b say hi", agent="a", session="s", id="m1"))
        driver.insist("the answer through a", lambda: "hi" in [one["content"]["text"] for one in daemon.entries()])
        driver.insist("settled", lambda: not data_folder_violations(daemon.data, at_rest=True))
        life.texts = [one["content"]["text"] for one in driver.insist("the mailbox", daemon.entries)]
        driver.stop()
        life.fired = (plan / "fired.json").exists()
        life.points = (plan / "daemon.points").read_text().splitlines()
        life.asked = len(daemon.rows("b", "agent:a:s", "SELECT 1 FROM messages_in"))
        life.answered = len(daemon.rows("a", "s", "SELECT 1 FROM messages_in WHERE relay IS NOT NULL"))
    return life


@pytest.fixture(scope="module")
def recorded() -> Life:
    life = live(None)
    assert life.check() == []
    return life


def chosen(points: list[str]) -> list[str]:
    """The points from the question's hand-over to the end of the answer's, before and after each durable step."""
    own = [one for one in dict.fromkeys(points) if one.partition("#")[0] in STEPS]
    begin, end = own.index("AgentChannel.deliver#1:before"), own.index("AgentChannel.deliver#2:after")
    return own[begin : end + 3]


def test_the_enumeration_sees_every_step_of_a_hand_over(recorded: Life) -> None:
    seen = {one.partition("#")[0] for one in chosen(recorded.points)}
    assert seen >= STEPS - {"registry.activate"}, seen


def test_a_death_between_any_two_steps_loses_nothing_and_doubles_nothing(recorded: Life) -> None:
    points = chosen(recorded.points)
    if not EVERY:
        points = [one for one in points if one.partition("#")[0] in HAND_OVER and one.endswith(":after")]
        points.insert(0, "AgentChannel.deliver#1:before")
    with ThreadPoolExecutor(2) as pool:
        lives = list(pool.map(live, points))
    problems = [problem for life in lives for problem in life.check()]
    assert not problems, "\n".join(problems)
    missed = [life.point for life in lives if not life.fired]
    assert len(missed) <= len(lives) // 4, missed
