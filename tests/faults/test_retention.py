"""SIGKILL in the middle of retention, on a real daemon and a real runner with an age of one second: nothing is lost or doubled.

Three messages are answered and grow old; a fourth wakes a new runner, which prunes its file, and the daemon follows. Whoever
dies where: in the end the old ones are gone, everything was answered once, and what comes next is answered too.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from daemon.core.clock import SystemClock
from daemon.core.session_verbs import StopSession
from schema.connect import open_reader
from schema.errors import ClawbusError
from schema.instants import from_text
from tests.faults.scenario import Crash, Driver
from tests.support.agents import ECHO
from tests.support.daemon import RealDaemon
from tests.support.invariants import data_folder_violations

pytestmark = [pytest.mark.faults]

PARALLEL: Final = 2
SHORT: Final = """
[retention]
messages_s = 1
incarnations_s = 1
mailbox_s = 0
interval_s = 0.2
batch = 2
"""
OLD: Final = ("m1", "m2", "m3")
ACKS: Final = ("out", "processing_ack", "message_id")
OTHERS: Final = (
    ("out", "messages_out", "in_reply_to"), ("in", "messages_in", "id"), ("in", "message_history", "message_id"),
    ("in", "attempts", "message_id"),
)  # fmt: skip
CRASHES: Final = (
    *(Crash("daemon", f"pruning.prune_messages#{number}:{phase}")
      for number, phase in ((1, "before"), (1, "torn"), (1, "after"), (2, "after"))),
    *(Crash("daemon", f"pruning.prune_receipts#1:{phase}") for phase in ("torn", "after")),
    Crash("daemon", "incarnations.prune#1:torn"),
    *(Crash("runner", f"retention.{step}#1:{phase}") for step in ("_answers", "_acks") for phase in ("torn", "after")),
    Crash("runner", "retention._answers#1:after", both=True),
)  # fmt: skip


@dataclass(slots=True)
class Life:
    """What came of one run."""

    crash: Crash | None
    fired: bool = False
    problems: tuple[str, ...] = ()


def live(crash: Crash | None) -> Life:
    """The whole story over a fresh data folder."""
    life = Life(crash)
    with _daemon() as (daemon, plan):
        if crash is not None:
            told = {"party": crash.party, "point": crash.point, "both": crash.both, "data": str(daemon.data)}
            (plan / "plan.json").write_text(json.dumps(told))
        try:
            _play(daemon, Driver(daemon, plan))
            life.problems = tuple(_look(daemon))
        except (AssertionError, TimeoutError, RuntimeError, ClawbusError) as error:
            life.problems = (f"{type(error).__name__}: {error}",)
        life.fired = (plan / "fired.json").exists()
    return life


@contextlib.contextmanager
def _daemon() -> Iterator[tuple[RealDaemon, Path]]:
    daemon = RealDaemon(ECHO + SHORT)
    daemon.environment["CLAWBUS_DELIVERY__RETRY_FOR_S"] = "1.0"  # no age may be shorter
    try:
        plan = daemon.root / "plan"
        plan.mkdir()
        yield daemon, plan
    finally:
        daemon.close()


def _play(daemon: RealDaemon, driver: Driver) -> None:
    for message_id in OLD:
        _ask(daemon, driver, message_id)
    driver.insist("old", lambda: _is_old(daemon))
    driver.insist("stopped", lambda: _stopped(daemon))
    _ask(daemon, driver, "m4")
    # A runner that died of it is followed by one that prunes; one that did not die rests, and this is one message more.
    driver.insist("pruned or dead", lambda: _gone(daemon, ACKS) or daemon.running("echo", "s") is None)
    _ask(daemon, driver, "m5")
    driver.insist("pruned", lambda: _gone(daemon, ACKS, *OTHERS) and _all_told(daemon) and _ended_are_gone(daemon))
    driver.insist("stopped", lambda: _stopped(daemon))
    driver.stop()


def _ask(daemon: RealDaemon, driver: Driver, message_id: str) -> None:
    driver.insist("accepted", lambda: daemon.post("hello", agent="echo", session="s", id=message_id))

    def answered() -> bool:
        with daemon.client() as client:
            return client.wait_reply("echo", "s", message_id, 1.0) is not None

    driver.insist("answered", answered)


def _is_old(daemon: RealDaemon) -> bool:
    try:
        rows = daemon.rows("echo", "s", "SELECT * FROM delivered")
    except sqlite3.OperationalError:  # a death has left a journal, which the next daemon rolls back
        return False
    stamps = [from_text(row["delivered_at"]) or 0 for row in rows]
    return len(stamps) == len(OLD) and max(stamps) + 1_100 < SystemClock().now_ms()


def _stopped(daemon: RealDaemon) -> bool:
    with daemon.client() as client:
        client.execute(StopSession("echo", "s"))
    return daemon.running("echo", "s") is None


def _gone(daemon: RealDaemon, *tables: tuple[str, str, str]) -> bool:
    """Whether none of these tables speaks of an old message. Not while a death has left a journal: it is rolled back first."""
    for side, table, key in tables:
        try:
            with open_reader(daemon.folder("echo", "s") / side / f"{side}bound.db") as db:
                if any(row["id"] in OLD for row in db.all(f"SELECT {key} AS id FROM {table}")):
                    return False
        except ClawbusError:
            return False
    return True


def _ended_are_gone(daemon: RealDaemon) -> bool:
    """Whether central.db says that the first container's incarnation was pruned."""
    try:
        with open_reader(daemon.data / "central.db") as db:
            return db.one("SELECT 1 FROM pruned WHERE what = 'incarnations'") is not None
    except ClawbusError:
        return False


def _look(daemon: RealDaemon) -> Iterator[str]:
    """With everything ended, from the files."""
    daemon.end_agents()
    with open_reader(daemon.data / "mailbox.db") as db:
        answers = Counter(row["in_reply_to"] for row in db.all("SELECT in_reply_to FROM mailbox"))
    if answers != Counter([*OLD, "m4", "m5"]):
        yield f"the mailbox has {dict(answers)}"
    yield from data_folder_violations(daemon.data, at_rest=True, pruned=True)
    if not _all_told(daemon):
        yield f"inbound.db tells of {_told(daemon)}"


def _all_told(daemon: RealDaemon) -> bool:
    told = _told(daemon)
    return min(told.get("messages", 0), told.get("receipts", 0)) >= len(OLD)


def _told(daemon: RealDaemon) -> dict[str, int]:
    """What inbound.db says was pruned of it: as often as it went, a death in between or not."""
    try:
        with open_reader(daemon.folder("echo", "s") / "in" / "inbound.db") as db:
            return {row["what"]: row["rows"] for row in db.all("SELECT * FROM pruned")}
    except ClawbusError:
        return {}


def lived(crashes: Sequence[Crash | None]) -> list[Life]:
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(live, crashes))


def test_a_death_in_the_middle_of_pruning_heals_and_nothing_is_lost_or_doubled() -> None:
    lives = lived([None, *CRASHES])
    problems = [f"{life.crash or 'no crash'}: {problem}" for life in lives for problem in life.problems]
    assert not problems, "\n".join(problems)
    missed = [str(life.crash) for life in lives if life.crash is not None and not life.fired]
    assert not missed, missed
