"""Destinations that nobody listed: an agent writes to the places that routes send to it, and to no other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from tests.integration.conftest import Make
from tests.support.agents import command_agent, obedient
from tests.support.daemon import RealDaemon, eventually

ROUTE: Final = """
[[routes]]
name = "team"
channel = "local"
place = "kitchen"
agent = "prog"
senders = "anyone"
"""


@pytest.fixture
def daemon(make_daemon: Make) -> RealDaemon:
    made = make_daemon(obedient() + ROUTE, runtime="process")
    made.start()
    return made


def texts(daemon: RealDaemon, place: str) -> list[str]:
    return [entry["content"]["text"] for entry in daemon.entries(place)]


def dead(daemon: RealDaemon) -> list[dict[str, object]]:
    found: list[dict[str, object]] = daemon.cli("dead", "list").result["letters"]
    return found


def test_an_agent_learns_its_places_from_the_routes(daemon: RealDaemon) -> None:
    assert daemon.cli("route", "add", "hall", "--channel", "local", "--place", "hall", "--agent", "prog").ok
    assert daemon.ask("places", agent="prog", session="s")["text"] == "hall here team"
    assert daemon.ask("to hall hello", agent="prog", session="s")["text"] == "sent"
    eventually("it is there", lambda: texts(daemon, "hall") == ["hello"])
    assert "hall (local:hall), here (local:cli), team (local:kitchen)" in daemon.people("session", "show", "prog", "s")


LONG_LIVED: Final = """
import json, sys
print(json.dumps({"type": "ready"}), flush=True)
for line in sys.stdin:
    turn = json.loads(line)
    if turn["type"] == "turn":
        print(json.dumps({"type": "message", "text": " ".join(one["name"] for one in turn["destinations"])}), flush=True)
        print(json.dumps({"type": "end"}), flush=True)
"""


def test_an_agent_that_runs_learns_of_a_changed_route_in_its_next_turn(make_daemon: Make) -> None:
    """By command, by a reload, and after a restart of the daemon, whose predecessor started the container."""
    table = command_agent("prog", (sys.executable, "-I", "-c", LONG_LIVED)) + 'lifetime = "container"\n'
    daemon = make_daemon(table + ROUTE, runtime="process")
    daemon.start()

    def places() -> str:
        return str(daemon.ask("places", agent="prog", session="s")["text"])

    assert places() == "here team"
    first = daemon.container("prog", "s")["container_id"]
    assert daemon.cli("route", "add", "hall", "--channel", "local", "--place", "hall", "--agent", "prog").ok
    assert places() == "hall here team"
    assert daemon.cli("route", "remove", "hall").ok
    assert places() == "here team"
    daemon.config.write_text(daemon.config.read_text().replace('place = "kitchen"', 'place = "attic*"'))
    assert daemon.cli("reload").ok
    eventually("taken over", lambda: places() == "")
    daemon.stop()
    daemon.config.write_text(daemon.config.read_text().replace('place = "attic*"', 'place = "cellar"'))
    daemon.start()
    eventually("taken over", lambda: places() == "here team")
    assert daemon.container("prog", "s")["container_id"] == first, "no new container was needed"


def test_a_place_that_is_taken_away_in_mid_turn_is_refused_and_can_be_given_back(
    daemon: RealDaemon, tmp_path: Path
) -> None:
    add = ("route", "add", "hall", "--channel", "local", "--place", "hall", "--agent", "prog")
    mark = tmp_path / "mark"
    assert daemon.cli(*add).ok
    asked = daemon.post(f"wait {mark} hall hello", agent="prog", session="s")
    eventually("the turn is under way", mark.exists)
    assert daemon.cli("route", "remove", "hall").ok
    mark.with_name("mark.go").touch()
    assert daemon.answer(asked, agent="prog", session="s")["text"] == "sent", "its own place stays"
    (letter,) = eventually("the dead letter", lambda: dead(daemon))
    assert letter["code"] == "DESTINATION_REVOKED", letter
    assert "local:hall is no longer a destination of this agent" in str(letter["reason"]), letter
    assert texts(daemon, "hall") == []
    assert daemon.cli(*add).ok
    assert daemon.cli("dead", "requeue", str(letter["id"])).ok
    eventually("it is there after all", lambda: texts(daemon, "hall") == ["hello"])
    assert dead(daemon) == []
