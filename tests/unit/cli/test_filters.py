"""Lists of one agent or one state: all of it, nothing else, and a name that nobody has is an error."""

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from daemon.core.session_key import SessionKey
from daemon.core.session_state import SESSION_STATES
from daemon.store.registry import Registry
from schema.connect import open_owner
from schema.instants import to_text
from schema.migrate import Role
from tests.support.command_line import CommandLine
from tests.support.fake_operations import NOW
from tests.support.session_world import NOW as ACCEPTED
from tests.support.session_world import SessionWorld

LISTS = (("session", "list"), ("run", "list"), ("dead", "list"), ("delivery", "list"), ("message", "list"))


@pytest.fixture(autouse=True)
def two_agents(home: Path) -> None:
    """Each has a session `s` with a message `m`, a dead letter `d` and a failing answer `a`. `shout` is in no table any more."""
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    for agent in ("echo", "shout"):
        registry.activate(SessionKey(agent, "s"), 1)
        session = SessionWorld(home / "data" / "sessions" / agent / "s")
        session.accept(f"{agent}-m")
        session.accept(f"{agent}-d")
        with open_owner(session.files.folder.inbound_db, Role.INBOUND) as db, db.transaction():
            db.execute("UPDATE messages_in SET status = 'failed', tries = 5 WHERE id = ?", (f"{agent}-d",))
            db.execute(
                "INSERT INTO message_history(message_id, event, at, detail) VALUES (?, 'failed', ?, ?)",
                (f"{agent}-d", NOW, json.dumps({"code": "TRIES_EXHAUSTED", "reason": "x"})),
            )
            db.execute(
                "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, last_error,"
                " last_error_code, next_attempt_at) VALUES (?, 3, 'webhook\x1fx\x1f', 'retrying', 3, ?, 'x', 'x', ?)",
                (f"{agent}-a", NOW, NOW),
            )


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_a_list_of_one_agent_has_all_of_it_and_nothing_else(cli: CommandLine, command: tuple[str, ...]) -> None:
    def rows(*options: str) -> list[dict[str, object]]:
        result = cli(*command, *options).result
        return next(value for value in result.values() if isinstance(value, list))

    every = rows()
    assert {one["agent"] for one in every} == {"echo", "shout"}
    for agent in ("echo", "shout"):
        assert rows("--agent", agent) == [one for one in every if one["agent"] == agent]
    assert rows("-a", "echo") == rows("--agent", "echo")


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_an_agent_that_nobody_knows_is_an_error_with_a_suggestion(cli: CommandLine, command: tuple[str, ...]) -> None:
    error = cli(*command, "--agent", "ehco").envelope["error"]
    assert error["code"] == "UNKNOWN_AGENT"
    assert "echo" in error["message"]


def test_sessions_of_one_state(cli: CommandLine) -> None:
    every = cli("session", "list").result["sessions"]
    states = {one["state"] for one in every}
    for state in SESSION_STATES:
        found = cli("session", "list", "--state", state).result["sessions"]
        assert found == [one for one in every if one["state"] == state]
        states.discard(state)
    assert not states, "every state can be asked for"
    assert cli("session", "list", "--state", "lost").envelope["error"]["code"] == "USAGE"


def test_runs_of_one_state(cli: CommandLine) -> None:
    assert cli("run", "list", "--state", "waiting").result == cli("run", "list", "--status", "waiting").result


def ids(cli: CommandLine, *words: str) -> list[str]:
    result = cli(*words).result
    return sorted(one["id"] for one in next(value for value in result.values() if isinstance(value, list)))


def test_since_takes_an_instant_or_an_age_in_every_list(cli: CommandLine, home: Path) -> None:
    """What the fixture made is dated NOW, but for the files' own times."""
    for command in (("dead", "list"), ("delivery", "list"), ("message", "list")):
        every = ids(cli, *command)
        assert every
        assert ids(cli, *command, "--since", to_text(min(NOW, ACCEPTED))) == every
        assert ids(cli, *command, "--since", to_text(max(NOW, ACCEPTED) + 3_600_000)) == []
        assert ids(cli, *command, "--since", "3650d") == every
    for agent, age in (("echo", 7200), ("shout", 60)):
        for file in (home / "data" / "sessions" / agent / "s").glob("*/*.db"):
            os.utime(file, (time.time() - age, time.time() - age))
    assert [one["agent"] for one in cli("session", "list", "--since", "1h").result["sessions"]] == ["shout"]
    for command in (*LISTS, ("logs",)):
        error = cli(*command, "--since", "yesterday").envelope["error"]
        assert (error["code"], "90s" in error["message"]) == ("USAGE", True), command


def test_messages_of_one_status(cli: CommandLine) -> None:
    assert ids(cli, "message", "list", "--state", "failed") == ["echo-d", "shout-d"]
    assert ids(cli, "message", "list", "--status", "pending", "-a", "echo") == ["echo-m"]
    assert cli("message", "list", "--limit", "1").result["total"] == 4
    assert cli("message", "list", "-s", "echo/nosuch").envelope["error"]["code"] == "UNKNOWN_SESSION"


def test_a_message_s_life_is_found_by_its_id_alone(cli: CommandLine) -> None:
    shown = cli("message", "show", "echo-m").result
    assert shown == cli("session", "show", "echo/s", "--message", "echo-m").result
    assert cli("message", "show", "nosuch").envelope["error"]["code"] == "UNKNOWN_MESSAGE"


def test_answers_of_one_state(cli: CommandLine, home: Path) -> None:
    with (
        open_owner(home / "data" / "sessions" / "echo" / "s" / "in" / "inbound.db", Role.INBOUND) as db,
        db.transaction(),
    ):
        for seq, (answer, due) in enumerate((("later", 4_000_000_000_000), ("now", None))):
            db.execute(
                "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, next_attempt_at)"
                " VALUES (?, ?, 'webhook\x1fy\x1f', 'queued', 0, ?, ?)",
                (answer, 11 + 2 * seq, NOW, due),
            )
    for state, wanted in (
        ("scheduled", ["later"]),
        ("queued", ["now"]),
        ("retrying", ["echo-a", "shout-a"]),
        ("intended", []),
    ):
        assert ids(cli, "delivery", "list", "--state", state) == wanted


def test_dead_letters_of_one_code(cli: CommandLine) -> None:
    assert ids(cli, "dead", "list", "--code", "TRIES_EXHAUSTED") == ["echo-d", "shout-d"]
    assert ids(cli, "dead", "list", "--code", "OTHER", "--since", "3650d") == []


def test_logs_of_one_agent_and_time(cli: CommandLine, home: Path) -> None:
    path = home / "data" / "logs" / "clawbus.log"
    path.parent.mkdir()
    events = [
        {"event": "a", "agent": "echo", "timestamp": to_text(NOW), "level": "info"},
        {"event": "b", "agent": "shout", "timestamp": to_text(NOW), "level": "info"},
        {"event": "c", "agent": "echo", "timestamp": to_text(NOW + 5000), "level": "info"},
        {"event": "d"},
    ]
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events), encoding="utf-8")

    def shown(*options: str) -> list[str]:
        return [event["event"] for event in cli("logs", *options).result["events"]]

    assert shown("--agent", "echo") == ["a", "c"]
    assert shown("--since", to_text(NOW + 1)) == ["c"]
    assert shown("--since", to_text(NOW), "--agent", "shout") == ["b"]
    assert cli("logs", "--agent", "ehco").envelope["error"]["code"] == "UNKNOWN_AGENT"


@pytest.mark.parametrize("choice", [0, 1])
def test_dead_letters_of_one_cause_are_one_finding_and_its_repair_ends_it(cli: CommandLine, choice: int) -> None:
    def finding() -> dict[str, Any] | None:
        found = cli("doctor").envelope["result"]["findings"]
        return next((one for one in found if one["code"] == "DEAD_LETTERS"), None)

    found = finding()
    assert found is not None
    assert [one["agent"] for one in found["sessions"]] == ["echo", "shout"]
    assert (found["died_of"], found["number"]) == ("TRIES_EXHAUSTED", 2)
    for command in (found["command"], found["choices"][choice]["command"]):
        assert cli(*shlex.split(command)[1:]).envelope["ok"]
    assert finding() is None
