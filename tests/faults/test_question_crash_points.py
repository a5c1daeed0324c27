"""SIGKILL between the durable steps of a question: asked once, its answer neither lost nor given twice, whoever dies.

The steps, in order: the runner writes the question's row; the daemon records the question with the intent of its delivery,
hands it over, records the receipt; a person's answer is recorded; the runner reads it, and commits the turn's end. A run without a
death lists the points that are passed; each other run dies at one of them. CLAWBUS_CRASH_POINTS=all takes every one.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from schema.connect import open_reader
from tests.faults.scenario import Crash, Driver
from tests.faults.test_crash_points import EVERY, PARALLEL
from tests.support.agents import obedient
from tests.support.daemon import RealDaemon
from tests.support.invariants import data_folder_violations

pytestmark = [pytest.mark.faults]

ASK: Final = 'ask {"text": "Go on?", "options": ["yes", "no"], "free_text": false}'
# The steps of a question among all that the processes pass.
STEPS: Final = {
    "daemon": ("delivery_steps.collect", "mailbox.put_many", "replies.record_reply"),
    "runner": ("outbox.add", "store.finish"),
}


@dataclass(slots=True)
class Asked:
    """What came of one run."""

    crash: Crash | None
    fired: bool = False
    points: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    problems: list[str] = field(default_factory=list[str])

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.problems.append(f"{self.crash or 'no crash'}: {what}: {found!r}, not {wanted!r}")


def live(crash: Crash | None) -> Asked:
    """Send, read the question, answer it, read the answer: each as a client that tries again."""
    asked, daemon = Asked(crash), RealDaemon(obedient())
    try:
        plan = daemon.root / "plan"
        plan.mkdir()
        if crash is not None:
            told = {"party": crash.party, "point": crash.point, "both": crash.both, "data": str(daemon.data)}
            (plan / "plan.json").write_text(json.dumps(told))
        driver = Driver(daemon, plan)
        driver.insist("accepted", lambda: daemon.post(ASK, agent="prog", session="s", id="m1"))
        question = driver.insist("asked", lambda: questions(daemon))[0]
        driver.insist("answered", lambda: answer(daemon, question))
        driver.insist(
            "done", lambda: [one for one in daemon.entries() if one["content"].get("text") == "answered yes yes"]
        )
        driver.insist("settled", lambda: daemon.message("prog", "s", "m1")["status"] == "completed")
        driver.insist("at rest", lambda: not data_folder_violations(daemon.data, at_rest=True))
        driver.stop()
        look(asked, daemon)
        asked.fired = (plan / "fired.json").exists()
        for party in STEPS:
            asked.points[party] = (plan / f"{party}.points").read_text().splitlines()
    except (AssertionError, TimeoutError, RuntimeError) as error:
        asked.problems.append(f"{crash}: {type(error).__name__}: {error}")
    finally:
        daemon.close()
    return asked


def questions(daemon: RealDaemon) -> list[str]:
    return [one["content"]["question"] for one in daemon.entries() if one["content"].get("type") == "question"]


def answer(daemon: RealDaemon, question: str) -> dict[str, Any]:
    with daemon.client() as client:
        return client.accept(
            {"agent": "prog", "session": "s", "id": "a1", "content": {"answer_to": question, "text": "yes"},
             "address": {"channel_type": "local", "platform_id": "cli"}}
        )  # fmt: skip


def look(asked: Asked, daemon: RealDaemon) -> None:
    """With the daemon ended, from the files."""
    with open_reader(daemon.data / "mailbox.db") as db:
        entries = [json.loads(one["content"]) for one in db.all("SELECT content FROM mailbox ORDER BY cursor")]
    asked.expect("mailbox", [one["text"] for one in entries], ["Go on?", "answered yes yes"])
    rows = daemon.rows("prog", "s", "SELECT outcome, answer_id FROM questions")
    asked.expect("questions", [(one["outcome"], one["answer_id"]) for one in rows], [("answered", "a1")])
    events = daemon.rows("prog", "s", "SELECT event FROM message_history WHERE event LIKE 'question_%' ORDER BY id")
    asked.expect("history", [one["event"] for one in events], ["question_asked", "question_decided"])
    (message,) = daemon.rows("prog", "s", "SELECT tries FROM messages_in")
    asked.expect("tries", message["tries"] <= (1 if asked.crash else 0), True)
    asked.problems += data_folder_violations(daemon.data, at_rest=True)


@pytest.fixture(scope="module")
def recorded() -> Asked:
    asked = live(None)
    assert asked.problems == []
    return asked


def chosen(recorded: Asked) -> list[Crash]:
    """Each step's points before and after it, and in the middle of its transaction."""
    crashes: list[Crash] = []
    for party, labels in STEPS.items():
        points = [one for one in dict.fromkeys(recorded.points[party]) if one.partition("#")[0] in labels]
        assert {one.partition("#")[0] for one in points} == set(labels), points
        torn = [one.removesuffix(":before") + ":torn" for one in points if one.endswith(":before") and one[0].islower()]
        own = [one for one in torn if "record_reply" in one or "outbox" in one]  # what only a question does
        wanted = points + torn if EVERY else [one for one in points if one.endswith(":after") and "#3" not in one] + own
        crashes += [Crash(party, one) for one in wanted]
        crashes += [Crash(party, one, both=True) for one in (wanted if EVERY else own)]
    return crashes


def test_a_question_survives_a_death_at_each_of_its_steps(recorded: Asked) -> None:
    crashes = chosen(recorded)
    with ThreadPoolExecutor(PARALLEL) as pool:
        lives = list(pool.map(live, crashes))
    problems = [problem for one in lives for problem in one.problems]
    assert not problems, "\n".join(problems)
    missed = [str(one.crash) for one in lives if not one.fired]
    assert len(missed) <= len(lives) // 4, missed
