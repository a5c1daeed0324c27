"""Every command that takes an id finds its session alike: one code for an id of two sessions, and one for an id of none."""

from pathlib import Path

import pytest

from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from tests.support.command_line import CommandLine
from tests.support.session_world import NOW, SessionWorld

OF_MESSAGES = (("run", "show"), ("message", "retry"), ("message", "cancel"))
OF_ANSWERS = (("delivery", "retry"), ("delivery", "drop"))
OF_LETTERS = (("dead", "requeue"), ("dead", "drop"))
EVERY = tuple(
    (command, identity)
    for commands, identity in ((OF_MESSAGES, "m"), (OF_ANSWERS, "a"), (OF_LETTERS, "d"))
    for command in commands
)


@pytest.fixture
def folder(home: Path) -> Path:
    """Two sessions; each has the message `m`, the failing answer `a` and the dead letter `d`. No daemon runs."""
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    for name in ("one", "two"):
        registry.activate(SessionKey("echo", name), 1)
        session = SessionWorld(home / "data" / "sessions" / "echo" / name)
        session.accept("m")
        session.say("d", in_reply_to="m", seq=3)
        for answer, state in (("a", "retrying"), ("d", "dead")):
            session.change(
                "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, source)"
                " VALUES (?, ?, 'local\x1fx\x1f', ?, 3, ?, 'agent')",
                (answer, 1 if answer == "a" else 3, state, NOW),
            )
    return home / "data"


@pytest.mark.parametrize(("command", "identity"), EVERY, ids="-".join)
def test_an_id_of_two_sessions_is_ambiguous(
    cli: CommandLine, folder: Path, command: tuple[str, ...], identity: str
) -> None:
    error = cli(*command, identity).envelope["error"]
    assert error["code"] == "AMBIGUOUS_ID"
    assert "echo/one, echo/two" in error["message"]


@pytest.mark.parametrize(("command", "identity"), EVERY, ids="-".join)
def test_an_id_of_no_session_names_the_sessions_that_could_not_be_read(
    cli: CommandLine, folder: Path, command: tuple[str, ...], identity: str
) -> None:
    (folder / "sessions" / "echo" / "two" / "in" / "inbound.db").write_bytes(b"not a database" * 100)
    error = cli(*command, "nothing").envelope["error"]
    assert error["code"] == "UNKNOWN_MESSAGE"
    assert "1 sessions could not be read" in error["message"]


@pytest.mark.parametrize(("command", "identity"), EVERY[3:], ids="-".join)
def test_a_named_session_is_not_ambiguous(
    cli: CommandLine, folder: Path, command: tuple[str, ...], identity: str
) -> None:
    done = cli(*command, identity, "--session", "echo/two").result["done"]
    assert [(one["agent"], one["session"], one["id"]) for one in done] == [("echo", "two", identity)]


def test_all_failing_answers_are_not_all_where_a_session_cannot_be_read(cli: CommandLine, folder: Path) -> None:
    (folder / "sessions" / "echo" / "two" / "in" / "inbound.db").write_bytes(b"not a database" * 100)
    answer = cli("delivery", "retry", "--all")
    assert (answer.code, answer.envelope["error"]["code"]) == (1, "ANSWERS_NOT_EXAMINED")
    assert "echo/two could not be read" in answer.envelope["error"]["message"]
    assert [one["session"] for one in answer.envelope["result"]["done"]] == ["one"]


def test_a_name_that_is_no_text_keeps_nobody_from_a_repair(
    cli: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "ren\udce9")
    assert cli("delivery", "drop", "a", "--session", "echo/one").code == 0
    [event] = SessionWorld(folder / "sessions" / "echo" / "one").read(
        "SELECT detail FROM message_history WHERE message_id = 'a' ORDER BY id DESC LIMIT 1"
    )
    assert "(sudo by ren\\\\udce9)" in event["detail"]


def test_all_failing_answers_are_all_however_many(cli: CommandLine, folder: Path) -> None:
    session = SessionWorld(folder / "sessions" / "echo" / "one")
    session.change(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1100)"
        " INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, source)"
        " SELECT 'more-' || i, 10 + 2 * i, 'local\x1fx' || i || '\x1f', 'retrying', 3, ?, 'agent' FROM n",
        (NOW,),
    )
    answer = cli("delivery", "retry", "--all", "--session", "echo/one")
    assert (answer.code, len(answer.result["done"])) == (0, 1101)
