"""A cancel in mid-turn with a real daemon and runner, each killed after each of its durable steps: cancelled once, said once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.agents import obedient
from tests.support.daemon import RealDaemon, eventually

# It reads its lines, the `cancel` too, and goes on.
DEAF: Final = """
import json, sys
print(json.dumps({"type": "ready"}), flush=True)
for line in sys.stdin:
    open(sys.argv[1], "w").close()
"""
Make = Callable[..., RealDaemon]


def events(daemon: RealDaemon, message_id: str) -> list[str]:
    rows = daemon.rows("prog", "s", f"SELECT event FROM message_history WHERE message_id = '{message_id}' ORDER BY id")
    return [str(row["event"]) for row in rows]


def open_attempts(daemon: RealDaemon) -> int:
    return len(daemon.rows("prog", "s", "SELECT 1 FROM attempts WHERE outcome IS NULL"))


@pytest.mark.parametrize("dies", ["daemon before the turn stops", "runner before it gives back", "daemon and runner"])
def test_whoever_dies_it_is_cancelled_once(make_daemon: Make, dies: str) -> None:
    daemon = make_daemon(obedient() + "\ncancel_grace_s = 60\n")
    daemon.start()
    mark = daemon.root / "mark"
    daemon.post(f"hang {mark}", agent="prog", session="s", id="m1")
    eventually("in mid-turn", lambda: mark.exists() and open_attempts(daemon))
    runner = daemon.leader("prog", "s")
    if "runner" in dies:
        os.killpg(runner, signal.SIGSTOP)  # so that it cannot stop the turn before it dies
    assert daemon.cli("message", "cancel", "m1", "--session", "prog/s", "--reason", "enough").result["running"]
    if "daemon" in dies:
        daemon.kill()
    if "runner" in dies:
        os.killpg(runner, signal.SIGKILL)
    if "daemon" in dies:
        daemon.start()
    eventually("no turn is open", lambda: not open_attempts(daemon))
    assert daemon.ask("say up", agent="prog", session="s") == {"text": "up"}
    assert events(daemon, "m1").count("cancelled") == 1
    assert (daemon.message("prog", "s", "m1")["status"], daemon.message("prog", "s", "m1")["tries"]) == ("cancelled", 0)
    told = [one["content"] for one in daemon.entries() if one["in_reply_to"] == "m1"]
    assert [one["error"]["code"] for one in told] == ["CANCELLED"]
    daemon.at_rest = True


def test_an_agent_that_goes_on_is_ended_also_by_a_later_daemon(make_daemon: Make, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = json.dumps([sys.executable, "-I", "-S", "-c", DEAF, str(mark)])
    daemon = make_daemon(f'[agents.deaf]\ncommand = {command}\nlifetime = "container"\ncancel_grace_s = 0\n')
    daemon.start()
    daemon.post("work", agent="deaf", session="s", id="m1")
    eventually("in mid-turn", mark.exists)
    before = daemon.running("deaf", "s")
    daemon.cli("message", "cancel", "m1", "--session", "deaf/s").result  # noqa: B018 - asserts that it worked
    daemon.kill()
    daemon.start()
    eventually("ended", lambda: daemon.running("deaf", "s") != before)
    assert daemon.message("deaf", "s", "m1")["status"] == "cancelled"
