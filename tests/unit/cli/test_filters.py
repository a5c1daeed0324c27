"""Lists of one agent or one state: all of it, nothing else, and a name that nobody has is an error."""

import json
from pathlib import Path

import pytest

from daemon.core.session_state import SESSION_STATES
from daemon.store.registry import Registry, SessionKey
from schema.connect import open_owner
from schema.migrate import Role
from tests.support.command_line import CommandLine
from tests.support.fake_operations import NOW
from tests.support.session_world import SessionWorld

LISTS = (("session", "list"), ("run", "list"), ("dead", "list"), ("delivery", "list"))


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
