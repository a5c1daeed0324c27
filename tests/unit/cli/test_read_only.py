"""status, sessions, session show, mailbox and logs: from the daemon, and from the files when it is down."""

import json
import shlex
from pathlib import Path

import pytest

from daemon.cli.operator import user
from daemon.store.mailbox import Mailbox, NewEntry
from schema.connect import open_owner
from schema.layout import SessionFolder
from schema.migrate import Role
from tests.support.command_line import CommandLine
from tests.support.fake_operations import NOW, FakeOperations


@pytest.fixture
def files(home: Path) -> Path:
    """A data folder with one session whose message failed, its text full of control bytes."""
    data = home / "data"
    with open_owner(data / "central.db", Role.CENTRAL) as db, db.transaction():
        db.execute("INSERT INTO install VALUES (1, 'install', ?)", (NOW,))
        db.execute("INSERT INTO sessions(agent, session, created_at, active) VALUES ('echo', 'demo', ?, 0)", (NOW,))
        db.execute(
            "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, created_at, ended_at, exit_code, end_reason)"
            " VALUES ('inc-1', 'echo', 'demo', 'process', 'f', ?, ?, 3, 'exited')",
            (NOW, NOW + 5),
        )
    folder = SessionFolder(data / "sessions" / "echo" / "demo")
    folder.inbox.mkdir(parents=True)
    folder.outbox.mkdir()
    with open_owner(folder.inbound_db, Role.INBOUND) as db, db.transaction():
        db.execute(
            "INSERT INTO messages_in(id, seq, kind, timestamp, status, tries, content)"
            " VALUES ('m1', 2, 'chat', '2025-11-13T02:13:20.000Z', 'failed', 5, ?)",
            (json.dumps({"text": "\x1b[2Jevil\x07"}),),
        )
        db.execute("INSERT INTO message_history(message_id, event, at) VALUES ('m1', 'accepted', ?)", (NOW,))
        db.execute(
            "INSERT INTO message_history(message_id, event, at, detail) VALUES ('m1', 'failed', ?, ?)",
            (NOW + 9, json.dumps({"reason": "tries_exhausted"})),
        )
    Mailbox(data / "mailbox.db").put_many(
        [
            NewEntry(
                "cli",
                f"out-{number}",
                "echo",
                "demo",
                f"m{number}",
                "chat",
                None,
                '{"text": "\\u001b]0;x\\u0007hi"}',
                NOW,
            )
            for number in (1, 2, 3)
        ]
    )
    return data


class TestFromTheFiles:
    def test_status(self, cli: CommandLine, files: Path) -> None:
        result = cli("status").result
        assert result["source"] == "files"
        assert result["sessions"] == {"total": 1, "idle": 1}
        assert result["queues"]["dead_letters"] == 1
        explanation = result["attention"][0]["explanation"]
        assert explanation.startswith("1 open dead letter waits for an operator.")
        assert "The newest: m1: tries_exhausted: `clawbus dead show m1" in explanation
        assert "down (read from the files)" in cli("status", "--pretty").out

    def test_sessions(self, cli: CommandLine, files: Path) -> None:
        result = cli("session", "list").result
        assert (result["source"], result["sessions"][0]["failed"]) == ("files", 1)
        assert "echo/demo" in cli("session", "list", "--pretty").out

    @pytest.mark.parametrize("named", [("echo", "demo"), ("echo/demo",)])
    def test_session_show(self, cli: CommandLine, files: Path, named: tuple[str, ...]) -> None:
        result = cli("session", "show", *named).result
        assert (result["source"], result["state"], result["messages"][0]["id"]) == ("files", "idle", "m1")
        assert result["incarnations"][0]["exit_code"] == 3

    def test_session_show_for_people_has_no_raw_control_byte(self, cli: CommandLine, files: Path) -> None:
        answer = cli("session", "show", "echo/demo", "--pretty")
        assert answer.code == 0
        assert "evil\\x07" in answer.out
        assert not {character for character in answer.out if ord(character) < 32} - {"\n"}

    def test_the_life_of_a_message(self, cli: CommandLine, files: Path) -> None:
        life = cli("session", "show", "echo/demo", "--message", "m1").result["life"]
        assert [event["event"] for event in life] == ["accepted", "failed"]
        assert "tries_exhausted" in cli("session", "show", "echo", "demo", "-m", "m1", "--pretty").out
        unknown = cli("session", "show", "echo", "demo", "-m", "m9")
        assert unknown.envelope["error"]["code"] == "UNKNOWN_MESSAGE"

    def test_mailbox(self, cli: CommandLine, files: Path) -> None:
        result = cli("mailbox", "--limit", "2").result
        assert (result["source"], [entry["cursor"] for entry in result["entries"]]) == ("files", [1, 2])
        rest = cli("mailbox", "cli", "--after", str(result["next_after"])).result
        assert [entry["message_out_id"] for entry in rest["entries"]] == ["out-3"]
        assert cli("mailbox", "other").result["entries"] == []

    @pytest.mark.parametrize(("count", "cursors"), [(1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (900, [1, 2, 3])])
    def test_the_newest_of_a_mailbox(self, cli: CommandLine, files: Path, count: int, cursors: list[int]) -> None:
        Mailbox(files / "mailbox.db").put_many([NewEntry("a", "o", "echo", "demo", "m1", "chat", None, "{}", NOW)])
        result = cli("mailbox", "--last", str(count)).result
        assert [entry["cursor"] for entry in result["entries"]] == cursors

    def test_the_newest_are_not_counted_from_a_cursor(self, cli: CommandLine, files: Path) -> None:
        assert cli("mailbox", "--last", "1", "--after", "1").envelope["error"]["code"] == "USAGE"

    def test_an_empty_mailbox_names_those_that_hold_something(self, cli: CommandLine, files: Path) -> None:
        Mailbox(files / "mailbox.db").put_many([NewEntry("a", "o", "echo", "demo", "m1", "chat", None, "{}", NOW)])
        assert "mailbox clo holds nothing. Mailboxes with entries: a, cli." in cli("mailbox", "clo", "--pretty").out

    def test_a_mailbox_that_begins_with_a_dash_is_named_so_that_the_command_takes_it(
        self, cli: CommandLine, files: Path
    ) -> None:
        entry = NewEntry("-100123", "out", "echo", "demo", "m1", "chat", None, '{"text": "hello"}', NOW)
        Mailbox(files / "mailbox.db").put_many([entry])
        hint = cli("mailbox", "--", "-100123").envelope["next_actions"][0]["command"]
        assert cli(*shlex.split(hint)[1:]).result["mailbox"] == "-100123"

    def test_mailbox_for_people_has_no_raw_control_byte(self, cli: CommandLine, files: Path) -> None:
        answer = cli("mailbox", "--pretty")
        assert "\x1b" not in answer.out
        assert "hi" in answer.out

    def test_an_unknown_session(self, cli: CommandLine, files: Path) -> None:
        answer = cli("session", "show", "echo", "nothing")
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "UNKNOWN_SESSION")

    def test_no_data_folder_at_all(self, cli: CommandLine) -> None:
        for command in ("status", "sessions"):
            assert cli(command).envelope["error"]["code"] == "DATA_FOLDER"


class TestFromTheDaemon:
    def test_status(self, cli: CommandLine, operations: FakeOperations) -> None:
        assert cli("status").result["source"] == "daemon"
        shown = cli("status", "--pretty")
        assert "degraded: docker" in shown.out
        assert "3 waiting" in shown.out
        assert "Message m1 was given up." in shown.out  # and its escape sequence is gone
        assert "\x1b" not in shown.out

    def test_sessions(self, cli: CommandLine, operations: FakeOperations) -> None:
        assert cli("session", "list").result["sessions"][0]["state"] == "working"

    def test_acting_on_a_session(self, cli: CommandLine, operations: FakeOperations) -> None:
        assert cli("session", "stop", "echo/s").result["stopping"] is True
        assert cli("session", "kill", "echo", "s", "--reason", "why").result["exit_code"] == 137
        assert cli("session", "release", "echo", "s").result["released"] is False
        assert operations.actions == [
            ("stop", "echo", "s"),
            ("kill", "echo", "s", "why", user()),
            ("release", "echo", "s", "", user()),
        ]
        assert "not in quarantine" in cli("session", "release", "echo", "s", "--pretty").out
        assert cli("session", "kill", "echo", "stuck").envelope["error"]["code"] == "EXIT_NOT_CONFIRMED"

    def test_acting_needs_the_daemon(self, cli: CommandLine) -> None:
        for action in ("stop", "kill", "release"):
            assert cli("session", action, "echo", "s").envelope["error"]["code"] == "DAEMON_DOWN"

    def test_a_question_is_marked_and_says_how_it_is_answered(
        self, cli: CommandLine, operations: FakeOperations
    ) -> None:
        options = [{"label": "yes"}, {"label": "no\x1b[2J"}]
        content = {"type": "question", "question": "q-6jbnqwzr5vkbi5xd", "text": "Deploy?", "options": options}
        assert cli("send", json.dumps(content), "-s", "echo/s", "--json-content").code == 0
        lines = cli("mailbox", "cli", "--pretty").out.splitlines()
        assert [one.strip() for one in lines[1:]] == [
            "? Deploy?", "1 yes", "2 no", "(clawbus question answer q-6jbnqwzr5vkbi5xd TEXT)",
        ]  # fmt: skip
