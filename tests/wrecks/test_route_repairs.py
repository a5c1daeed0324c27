"""Findings about routes and pairings: the printed command ends each of them, with the daemon up."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Make
from tests.support.agents import ECHO, obedient
from tests.support.wreck import findings, found, gone, healthy, repair

pytestmark = pytest.mark.faults

WIDE = '[[routes]]\nname = "every"\nchannel = "local"\nplace = "*"\nagent = "echo"\npriority = 5\n'
CLAIM = '[[routes]]\nname = "same"\nchannel = "local"\nplace = "twice"\nagent = "echo"\npriority = 9\n'


def test_routes_that_cannot_work_and_a_stranger_who_waits_for_an_agent_that_is_gone(make_daemon: Make) -> None:
    daemon = make_daemon(ECHO + obedient(), runtime="process")
    daemon.start()

    def add(name: str, place: str, agent: str, *more: str) -> None:
        done = daemon.cli("route", "add", name, "--channel", "local", "--place", place, "--agent", agent, *more)
        assert done.ok, done.envelope

    add("old", "old-room", "prog", "--unknown", "ask")
    add("twice", "twice", "echo", "--priority", "9")
    add("hidden", "corner", "echo")
    daemon.cli("send", "let me in", "--place", "old-room", "--sender", "eve")
    assert len(daemon.cli("pairing", "list").result["pairings"]) == 1
    healthy(daemon)

    before = daemon.config.read_text().partition("\n")[2]
    daemon.configure(before.replace(obedient(), "") + WIDE + CLAIM)
    daemon.stop()
    daemon.start()
    listed = {one["name"]: one["state"] for one in daemon.cli("route", "list").result["routes"]}
    assert listed == {"old": "broken", "twice": "broken", "hidden": "unreachable", "every": "ok", "same": "ok"}
    assert set(findings(daemon)) == {"ROUTE_BROKEN", "ROUTE_UNREACHABLE", "PAIRING_WITHOUT_AGENT"}
    for code in ("PAIRING_WITHOUT_AGENT", "ROUTE_UNREACHABLE", "ROUTE_BROKEN", "ROUTE_BROKEN"):
        one = found(daemon, code)
        repair(daemon, one["command"])
    gone(daemon, "ROUTE_BROKEN")
    healthy(daemon)
    left = {one["name"]: one["state"] for one in daemon.cli("route", "list").result["routes"]}
    assert left == {"every": "ok", "same": "ok"}


def test_what_is_scheduled_for_an_agent_that_is_gone_is_found_before_it_is_due(make_daemon: Make) -> None:
    daemon = make_daemon(ECHO + obedient(), runtime="process")
    daemon.start()
    daemon.cli("send", "later", "-s", "prog/later", "--at", "in 2h")
    daemon.cli("schedule", "add", "rep", "write", "--agent", "prog", "--every", "1h")
    daemon.cli("send", "later", "-s", "echo/later", "--at", "in 2h")
    healthy(daemon)
    before = daemon.config.read_text().partition("\n")[2]
    daemon.configure(before.replace(obedient(), ""))
    assert daemon.cli("reload").ok
    for _ in range(2):
        one = found(daemon, "WORK_WITHOUT_AGENT")
        assert "no table [agents.prog]" in one["evidence"][0]
        repair(daemon, one["choices"][1]["command"])
    gone(daemon, "WORK_WITHOUT_AGENT")
    healthy(daemon)
    assert {(one["agent"], one["session"]) for one in daemon.cli("session", "list").result["sessions"]} == {
        ("echo", "later")
    }
