"""SIGKILL of a real daemon between every two durable steps of routing, pairing, approval, copying an event's files, a
schedule's firing and a refill.

As in test_crash_points.py: the scenario is lived once to learn its points, then once for each, with the death there, by a
client that repeats what it asked for. Each time a stranger is let in once, everything said is stored and answered once,
and the schedule fires once.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self

import pytest

from daemon.core.agent_verbs import RefillBudget
from daemon.core.errors import RemoteError
from daemon.core.people_verbs import AddUser, BindUser, DecidePairing, SetRole
from daemon.core.schedule_verbs import PutSchedule
from daemon.core.verb import AnyVerb
from schema.connect import open_reader
from schema.errors import ClawbusError
from tests.faults.scenario import Crash, Life, Trial
from tests.faults.test_crash_points import EVERY, PARALLEL
from tests.support.invariants import data_folder_violations

pytestmark = [pytest.mark.faults]

ROUTE: Final = """
[[routes]]
name = "kitchen"
channel = "local"
place = "kitchen"
agent = "echo"
engage = "mention-sticky"
session = "talk"
unknown = "ask"
senders = "known"
"""
# Steps of this scenario alone; those of delivery and containers are another test's.
STEPS: Final = frozenset(
    {
        "people_verbs.change_user", "people.ask", "people_verbs.decide_pairing", "routes.note_mentioned", "ingress.store",
        "Attachments.write_new_file", "Attachments.sync_folder", "Attachments.placed", "row_verbs.change_row", "schedule_steps.sweep", "host_verbs._refill", "routes.note_refused", "agent_usage.write",
    }
)  # fmt: skip
AT_ONCE_MS: Final = 1_500  # from the scenario's begin to its schedule's instant


MESSAGES: Final = 3
FILE: Final = ("plan.txt", b"bytes of a file")


class PeopleTrial(Trial):
    """Ann is a member and sends a file; Tom asks, is let in and speaks; a schedule fires; the budget is refilled."""

    def __enter__(self) -> Self:
        super().__enter__()
        config = self.daemon.config
        config.write_text(config.read_text() + ROUTE)
        self.due = 0
        self.code = ""
        return self

    def run(self) -> None:
        insist = self.driver.insist
        self.driver.ensure()
        self.due = time.time_ns() // 1_000_000 + AT_ONCE_MS
        insist("scheduled", self._schedule)
        for verb in (
            AddUser(name="ann"),
            BindUser(name="ann", channel="local", sender="ann"),
            SetRole(name="ann", role="member", agent="echo"),
        ):
            insist("changed", self._once(verb, "USER_REFUSED"))
        insist("said", lambda: self._say("ann", "e1")["messages"])
        insist("asked", self._ask)
        insist("decided", self._once(DecidePairing(code=self.code, approve=True), "PAIRING_CLOSED"))
        insist("said", lambda: self._say("tom", "e3")["messages"])
        insist("refilled", self._once(RefillBudget(agent="echo")))
        insist("answered", self._settled)
        self.driver.stop()

    def look(self) -> None:
        self.daemon.end_agents()
        self.life.fired = (self._plan / "fired.json").exists()
        path = self._plan / "daemon.points"
        self.life.points["daemon"] = path.read_text().splitlines() if path.exists() else []
        with open_reader(self.daemon.data / "central.db") as db:
            users = sorted((row["user"], row["sender"]) for row in db.all("SELECT user, sender FROM identities"))
            roles = sorted(row["user"] for row in db.all("SELECT user FROM user_roles"))
            pairings = [row["outcome"] for row in db.all("SELECT outcome FROM pairings")]
            mentioned = len(db.all("SELECT 1 FROM mentioned"))
            (refills,) = db.all("SELECT count(*) AS n FROM agent_refills")
        with open_reader(self.daemon.data / "mailbox.db") as db:
            answers = len(db.all("SELECT 1 FROM mailbox_replies"))  # of each message, also where a turn had two
        inbox = self.daemon.folder("echo", "talk") / "in" / "inbox"
        files = [(path.name, path.read_bytes()) for path in inbox.rglob("*") if path.is_file()]
        found: dict[str, Any] = {
            "files": files,
            "users": users, "roles": roles, "pairings": pairings, "mentioned": mentioned, "refills": refills["n"],
            "texts": sorted(self._texts("talk")), "fired": len(self._texts("timed")), "answers": answers,
        }  # fmt: skip
        wanted = {
            "files": [FILE],
            "users": [("ann", "ann"), ("tom", "tom")], "roles": ["ann", "tom"], "pairings": ["approved"], "mentioned": 1,
            "refills": 1, "texts": ["e1", "e3"], "fired": 1, "answers": MESSAGES,
        }  # fmt: skip
        self.life.problems += [
            f"{name}: {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]
        ]

    def _texts(self, session: str) -> list[str]:
        rows = self.daemon.rows("echo", session, "SELECT content, status FROM messages_in")
        assert {row["status"] for row in rows} <= {"completed"}, rows
        return [json.loads(row["content"])["text"] for row in rows]

    def _schedule(self) -> bool:
        verb = PutSchedule(
            "echo", "timed", id="once", text="tick", at=self.due, channel="local", place="kitchen", catch_up="all"
        )
        with contextlib.suppress(sqlite3.Error):
            if self.daemon.rows("echo", "timed", "SELECT 1 FROM schedules"):
                return True  # it was stored before the daemon died, and its instant may be over
        with self.daemon.client() as client:
            client.execute(verb)
        return True

    def _once(self, verb: AnyVerb, *done_before: str) -> Callable[[], bool]:
        def ask() -> bool:
            with self.daemon.client() as client:
                try:
                    client.execute(verb)
                except RemoteError as error:
                    if error.remote_code not in done_before:
                        raise
            return True

        return ask

    def _say(self, sender: str, key: str) -> dict[str, Any]:
        event = {"id": key, "place": "kitchen", "text": key, "sender": sender, "mention": sender == "ann"}
        if sender == "ann":
            event["files"] = [{"name": FILE[0], "data": base64.b64encode(FILE[1]).decode()}]
        with self.daemon.client() as client:
            return client.event(event)

    def _ask(self) -> bool:
        refused = self._say("tom", "e2")["refused"]
        self.code = next((one["code"] for one in refused if one["code"]), "")
        return bool(self.code)

    def _settled(self) -> bool:
        with open_reader(self.daemon.data / "mailbox.db") as db:
            answered = len(db.all("SELECT 1 FROM mailbox_replies"))
        return answered == MESSAGES and not data_folder_violations(self.daemon.data, at_rest=True)


def lived(crash: Crash | None) -> Life:
    with PeopleTrial(crash) as trial:
        try:
            trial.run()
            trial.look()
        except (AssertionError, TimeoutError, RuntimeError, ClawbusError) as error:
            trial.life.problems.append(f"{type(error).__name__}: {error}")
        return trial.life


def test_a_death_between_any_two_steps_lets_in_stores_and_fires_once() -> None:
    recorded = lived(None)
    assert recorded.problems == []
    points = list(dict.fromkeys(recorded.points["daemon"]))
    own = [point for point in points if point.partition("#")[0] in STEPS]
    assert {point.partition("#")[0] for point in own} == STEPS
    if not EVERY:  # before each step is after the one before it
        counts = ("routes.note_refused", "agent_usage.write")  # a lost one costs a figure
        own = [point for point in own if point.endswith("#1:after") and not point.startswith(counts)]
        own.append("people_verbs.decide_pairing#1:torn")
    with ThreadPoolExecutor(PARALLEL) as pool:
        lives = list(pool.map(lived, [Crash("daemon", point) for point in own]))
    problems = [f"{life.crash}: {problem}" for life in lives for problem in life.problems]
    assert not problems, "\n".join(problems)
    missed = [str(life.crash) for life in lives if not life.fired]
    assert len(missed) <= len(lives) // 5, missed
