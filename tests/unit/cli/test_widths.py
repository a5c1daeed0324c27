"""Every list and report in a pipe of 80 columns: no line is wider, apart from commands that people copy."""

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from daemon.store.registry import Registry, SessionKey
from schema.connect import open_owner
from schema.ids import session_path
from schema.migrate import Role
from tests.support.command_line import CommandLine
from tests.support.fake_operations import NOW
from tests.support.session_world import SessionWorld

AGENT = "an-agent-with-a-long-name"
SESSION = "telegram:-1001234567890123:a-topic-with-a-name"
MESSAGE = "01M8FHSNAY52PJVXWFNW2C10N7"
TEXT = "a text that goes on and on, far beyond the edge of the screen, and still says something at its end"
COMMANDS = ("repair: ", "or, ")  # one line each, so that they can be copied


@pytest.fixture
def long_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with (home / "clawbus.toml").open("a") as file:
        file.write(f"[agents.{AGENT}]\n")
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    registry.activate(SessionKey(AGENT, SESSION), 1)
    session = SessionWorld(session_path(home / "data" / "sessions", AGENT, SESSION))
    session.accept("m1", content=json.dumps({"text": TEXT}))
    session.accept(MESSAGE, content=json.dumps({"text": TEXT}))
    with open_owner(session.files.folder.inbound_db, Role.INBOUND) as db, db.transaction():
        db.execute("UPDATE messages_in SET status = 'failed', tries = 5 WHERE id = ?", (MESSAGE,))
        db.execute(
            "INSERT INTO message_history(message_id, event, at, detail) VALUES (?, 'failed', ?, ?)",
            (MESSAGE, NOW, json.dumps({"code": "TRIES_EXHAUSTED", "reason": TEXT})),
        )
        for answer, state in (("o1", "dead"), ("o2", "retrying")):
            db.execute(
                "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, last_error,"
                " last_error_code, next_attempt_at) VALUES (?, ?, 'webhook\x1fhttps://example.org/hooks/of-a-bot\x1f', ?, 3,"
                " ?, ?, 'DELIVERY_PERMANENT', ?)",
                (answer, int(answer[1:]) * 2 + 1, state, NOW, TEXT, NOW),
            )


@pytest.mark.usefixtures("long_names")
@pytest.mark.parametrize(
    "command",
    [
        ("status",), ("session", "list"), ("run", "list"), ("dead", "list"), ("dead", "show", MESSAGE), ("delivery", "list"), ("doctor",),
        ("session", "show", AGENT, SESSION),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_line_is_wider_than_the_pipe(cli: CommandLine, command: tuple[str, ...]) -> None:
    said = cli(*command, "--pretty").out
    wide = [line for line in said.splitlines() if cell_len(line) > 80]
    assert not [line for line in wide if not line.strip().startswith(COMMANDS) and " " in line.strip()], (
        "a path stays whole"
    )
    assert f"{AGENT}/{SESSION}" in said, "a name stays whole"


@pytest.mark.usefixtures("long_names")
@pytest.mark.parametrize("command", [("dead", "list"), ("run", "list")], ids=" ".join)
def test_a_wide_row_is_one_line_with_everything_in_it(cli: CommandLine, command: tuple[str, ...]) -> None:
    lines = cli(*command, "-o", "wide").out.splitlines()
    (row,) = [line for line in lines if MESSAGE in line]
    assert f"{AGENT}/{SESSION}" in row
    assert TEXT in row


@pytest.mark.usefixtures("long_names")
def test_a_list_shows_short_ids_and_every_command_takes_them(cli: CommandLine) -> None:
    short = MESSAGE[-8:]
    for command in (("dead", "list"), ("run", "list")):
        text = cli(*command, "--pretty").out
        assert short in text
        assert MESSAGE not in text.partition("next:")[0], command
    for part in (short, MESSAGE[:10]):
        assert cli("run", "show", part).result["message_id"] == MESSAGE
        assert cli("dead", "show", part).result["id"] == MESSAGE
        assert cli("session", "show", f"{AGENT}/{SESSION}", "--message", part).result["message_id"] == MESSAGE
    assert cli("run", "show", short.lower()).envelope["error"]["code"] == "UNKNOWN_MESSAGE"
    assert cli("message", "retry", short, "--reason", "x").result["retried_as"].startswith(MESSAGE)


@pytest.mark.usefixtures("long_names")
def test_a_part_of_several_ids_is_ambiguous_in_every_command(cli: CommandLine, home: Path) -> None:
    session = SessionWorld(session_path(home / "data" / "sessions", AGENT, SESSION))
    other = MESSAGE[:10] + "0" * 16
    session.accept(other)
    for command in (
        ("run", "show"), ("dead", "show"), ("dead", "requeue"), ("dead", "drop"), ("delivery", "retry"), ("delivery", "drop"),
        ("message", "retry"), ("message", "cancel"), ("session", "show", f"{AGENT}/{SESSION}", "--message"), ("logs", "--message"),
    ):  # fmt: skip
        error = cli(*command, MESSAGE[:10]).envelope["error"]
        assert error["code"] == "AMBIGUOUS_ID", command
        assert MESSAGE in error["message"]
        assert other in error["message"]


@pytest.mark.usefixtures("long_names")
def test_a_part_never_means_an_id_that_a_sender_chose(cli: CommandLine, home: Path) -> None:
    session = SessionWorld(session_path(home / "data" / "sessions", AGENT, SESSION))
    session.accept("ABCDEF-4711")
    assert cli("run", "show", "ABCDEF").envelope["error"]["code"] == "UNKNOWN_MESSAGE"
    session.accept("2C10N7")
    assert cli("run", "show", "2C10N7").result["message_id"] == "2C10N7", "a whole id goes before a part of another"
