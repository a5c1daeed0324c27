"""`clawbus dead`: what it lists and shows from the daemon and from the files, and what its repairs ask and report."""

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from daemon.store.transitions import change_status
from schema.connect import open_owner
from schema.layout import SessionFolder
from schema.migrate import Role
from schema.rows import MessageStatus
from tests.support.command_line import CommandLine
from tests.support.fake_operations import NOW, FakeOperations
from tests.support.session_world import SessionWorld

USER = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(autouse=True)
def _no_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)


@pytest.fixture
def files(home: Path) -> Path:
    """Two sessions; each has a dead answer `o1`, and `one` a failed message full of control bytes."""
    data = home / "data"
    with open_owner(data / "central.db", Role.CENTRAL) as db, db.transaction():
        db.execute("INSERT INTO install VALUES (1, 'install', ?)", (NOW,))
        for name in ("one", "two"):
            db.execute("INSERT INTO sessions(agent, session, created_at) VALUES ('echo', ?, ?)", (name, NOW))
    for name in ("one", "two"):
        folder = SessionFolder(data / "sessions" / "echo" / name)
        folder.inbox.mkdir(parents=True)
        folder.outbox.mkdir()
        with open_owner(folder.inbound_db, Role.INBOUND) as db, db.transaction():
            db.execute(
                "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, last_error,"
                " last_error_code) VALUES ('o1', 1, 'webhook\x1fhook\x1f', 'dead', 3, ?, 'answered 404', 'DELIVERY_PERMANENT')",
                (NOW,),
            )
            if name == "one":
                db.execute(
                    "INSERT INTO messages_in(id, seq, kind, timestamp, status, tries, content)"
                    " VALUES ('m1', 2, 'chat', '2025-11-13T02:13:20.000Z', 'failed', 5, ?)",
                    (json.dumps({"text": "\x1b[2Jevil\x07"}),),
                )
                db.execute(
                    "INSERT INTO message_history(message_id, event, at, detail) VALUES ('m1', 'failed', ?, ?)",
                    (NOW + 9, json.dumps({"code": "TRIES_EXHAUSTED", "reason": "gave \x1b[31mup"})),
                )
    return data


def letter(letter_id: str, session: str = "one", seq: int = 2) -> dict[str, Any]:
    return {
        "seq": seq, "arrived_at": NOW + seq,
        "agent": "echo", "session": session, "kind": "out", "id": letter_id, "at": NOW, "where": "webhook/hook",
        "code": "IN_DOUBT", "reason": "held", "attempts": 1,
    }  # fmt: skip


class TestFromTheFiles:
    def test_all_sessions_newest_first(self, cli: CommandLine, files: Path) -> None:
        result = cli("dead", "list").result
        assert (result["source"], result["total"]) == ("files", 3)
        first = result["letters"][0]
        assert (first["id"], first["code"]) == ("m1", "TRIES_EXHAUSTED")
        shown = cli("dead", "list", "--pretty").out
        assert "3 dead letters" in shown
        assert "read from the files" in shown
        assert "\x1b[31m" not in shown

    def test_one_session(self, cli: CommandLine, files: Path) -> None:
        result = cli("dead", "list", "--session", "echo/two").result
        assert [(one["session"], one["id"]) for one in result["letters"]] == [("two", "o1")]
        assert cli("dead", "list", "-s", "echo/three").envelope["error"]["code"] == "UNKNOWN_SESSION"

    def test_the_limit_says_that_there_is_more(self, cli: CommandLine, files: Path) -> None:
        result = cli("dead", "list", "--limit", "1").result
        assert (len(result["letters"]), result["total"]) == (1, 3)
        assert "and 2 more" in cli("dead", "list", "-n", "1", "--pretty").out

    def test_a_session_that_cannot_be_read_hides_no_other(self, cli: CommandLine, files: Path) -> None:
        (files / "sessions" / "echo" / "two" / "in" / "inbound.db").write_bytes(b"no database, " * 100)
        result = cli("dead", "list").result
        assert sorted(one["id"] for one in result["letters"]) == ["m1", "o1"]
        assert [(one["session"], one["error"].split(":")[0]) for one in result["errors"]] == [("two", "FILE_UNUSABLE")]

    def test_a_letter_is_found_by_its_id(self, cli: CommandLine, files: Path) -> None:
        answer = cli("dead", "show", "m1")
        assert answer.result["source"] == "files"
        assert (answer.result["session"], answer.result["open"], answer.result["attempts"]) == ("one", True, 5)
        assert [step["command"] for step in answer.envelope["next_actions"]] == [
            "clawbus run show m1 --session echo/one",
            "clawbus dead requeue m1 --session echo/one",
            "clawbus dead drop m1 --session echo/one",
        ]
        shown = cli("dead", "show", "m1", "--pretty").out
        assert "evil\\x07" in shown
        assert not {character for character in shown if ord(character) < 32} - {"\n"}

    def test_an_id_of_two_sessions_must_be_told_apart(self, cli: CommandLine, files: Path) -> None:
        refused = cli("dead", "show", "o1")
        assert "echo/one, echo/two" in refused.envelope["error"]["message"]
        assert "--session" in refused.envelope["fix"]
        assert cli("dead", "show", "o1", "--session", "echo/two").result["session"] == "two"

    def test_one_ambiguity_has_one_code(self, cli: CommandLine, files: Path) -> None:
        assert cli("dead", "show", "o1").envelope["error"]["code"] == "AMBIGUOUS_ID"

    def test_an_id_that_is_none(self, cli: CommandLine, files: Path) -> None:
        assert cli("dead", "show", "m9").envelope["error"]["code"] == "UNKNOWN_MESSAGE"
        assert cli("dead", "show", "m9", "-s", "echo/one").envelope["error"]["code"] == "UNKNOWN_MESSAGE"

    def test_one_that_was_dealt_with_is_found_too(self, cli: CommandLine, files: Path) -> None:
        with (
            open_owner(files / "sessions" / "echo" / "one" / "in" / "inbound.db", Role.INBOUND) as db,
            db.transaction(),
        ):
            db.execute("INSERT INTO dead_letters_closed VALUES ('m1', 'requeued', ?, 'ada', NULL, 'm1+r1')", (NOW,))
        shown = cli("dead", "show", "m1").result
        assert (shown["open"], shown["closed"]["requeued_as"]) == (False, "m1+r1")
        for action in ("requeue", "drop"):
            error = cli("dead", action, "m1").envelope["error"]
            assert "did you mean m1?" not in error["message"]

    def test_a_message_that_is_no_dead_letter_was_not_mistyped(self, cli: CommandLine, files: Path) -> None:
        with (
            open_owner(files / "sessions" / "echo" / "one" / "in" / "inbound.db", Role.INBOUND) as db,
            db.transaction(),
        ):
            db.execute("UPDATE messages_in SET status = 'completed' WHERE id = 'm1'")
        error = cli("dead", "show", "m1").envelope["error"]
        assert (error["code"], "did you mean" in error["message"]) == ("UNKNOWN_MESSAGE", False)

    @pytest.mark.parametrize("action", ["requeue", "drop"])
    def test_repairs_need_the_daemon(self, cli: CommandLine, files: Path, action: str) -> None:
        before = (files / "sessions" / "echo" / "one" / "in" / "inbound.db").read_bytes()
        assert cli("dead", action, "m1").envelope["error"]["code"] == "DAEMON_DOWN"
        assert (files / "sessions" / "echo" / "one" / "in" / "inbound.db").read_bytes() == before


class TestRepairs:
    def test_who_and_why_are_sent(self, cli: CommandLine, operations: FakeOperations) -> None:
        operations.letters = [letter("o1")]
        result = cli("dead", "requeue", "o1", "--reason", "up again").result
        assert result["done"] == [{"agent": "echo", "session": "one", "id": "o1", "kind": "out", "requeued_as": "o1"}]
        assert operations.actions == [("requeue", "echo", "one", "o1", USER, "up again")]

    def test_who_came_through_sudo(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUDO_USER", "ada")
        operations.letters = [letter("o1")]
        assert cli("dead", "drop", "o1").code == 0
        assert operations.actions == [("drop", "echo", "one", "o1", f"{USER} (sudo by ada)", "None")]

    def test_several_ids_each_for_itself(self, cli: CommandLine, operations: FakeOperations) -> None:
        operations.letters = [letter("o1"), letter("gone"), letter("o3", "two")]
        answer = cli("dead", "requeue", "o1", "gone", "nowhere", "o3", "o1")
        assert answer.code == 1
        assert answer.envelope["error"]["code"] == "ROW_GONE"
        result = answer.envelope["result"]
        assert [(one["session"], one["id"]) for one in result["done"]] == [("one", "o1"), ("two", "o3")]
        assert [(one["id"], one["error"]["code"]) for one in result["refused"]] == [
            ("gone", "ROW_GONE"), ("nowhere", "UNKNOWN_MESSAGE"),
        ]  # fmt: skip
        assert all(one["fix"] for one in result["refused"])
        shown = cli("dead", "requeue", "o1", "gone", "--pretty")
        assert "o1 of echo/one: requeued" in shown.out
        assert "gone: not requeued" in shown.out

    def test_all_of_a_session_or_of_a_code(self, cli: CommandLine, operations: FakeOperations) -> None:
        operations.letters = [letter("o1"), letter("o2", "two"), {**letter("o3"), "code": "DELIVERY_PERMANENT"}]
        assert cli("dead", "requeue", "--all", "--code", "DELIVERY_PERMANENT").code == 0
        assert cli("dead", "drop", "--all", "--session", "echo/two", "--code", "IN_DOUBT").code == 0
        assert [action[:4] for action in operations.actions] == [
            ("requeue", "echo", "one", "o3"), ("drop", "echo", "two", "o2"),
        ]  # fmt: skip

    @pytest.mark.parametrize("action", ["requeue", "drop"])
    def test_many_are_worked_on_in_the_order_of_their_arrival(
        self, cli: CommandLine, operations: FakeOperations, action: str
    ) -> None:
        operations.letters = [letter("c", seq=6), letter("a", seq=2), letter("b", seq=4)]
        assert cli("dead", action, "--all", "--session", "echo/one").code == 0
        assert cli("dead", action, "c", "b", "a", "--session", "echo/one").code == 0
        assert cli("dead", action, "c", "a").code == 0
        assert [one[3] for one in operations.actions] == ["a", "b", "c", "a", "b", "c", "a", "c"]

    @pytest.mark.parametrize("action", ["requeue", "drop"])
    def test_what_could_not_be_looked_at_makes_all_of_them_not_done(
        self, cli: CommandLine, operations: FakeOperations, action: str
    ) -> None:
        operations.letters, operations.not_examined = [letter("o1")], 4180
        operations.unreadable = [{"agent": "echo", "session": "two", "error": "FILE_UNUSABLE: no database"}]
        answer = cli("dead", action, "--all", "--code", "IN_DOUBT")
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "DEAD_LETTERS_NOT_EXAMINED")
        assert "4180 sessions were not examined" in answer.envelope["error"]["message"]
        assert "echo/two could not be read (FILE_UNUSABLE" in answer.envelope["error"]["message"]
        assert "--session" in answer.envelope["fix"]
        assert [one["id"] for one in answer.envelope["result"]["done"]] == ["o1"]
        assert (answer.envelope["result"]["not_examined"], len(answer.envelope["result"]["errors"])) == (4180, 1)

    @pytest.mark.parametrize(
        "arguments", [(), ("--all",), ("--all", "o1", "-s", "echo/one"), ("o1", "--code", "IN_DOUBT")]
    )
    def test_too_little_or_too_much_is_wrong_usage(
        self, cli: CommandLine, operations: FakeOperations, arguments: tuple[str, ...]
    ) -> None:
        assert cli("dead", "drop", *arguments).code == 2
        assert operations.actions == []

    def test_with_a_session_nothing_is_looked_for(self, cli: CommandLine, operations: FakeOperations) -> None:
        assert cli("dead", "drop", "o1", "o2", "--session", "echo/two").code == 0
        assert [action[:4] for action in operations.actions] == [
            ("drop", "echo", "two", "o1"), ("drop", "echo", "two", "o2"),
        ]  # fmt: skip


def test_what_the_daemon_had_no_time_for_is_read_from_the_files(
    cli: CommandLine, operations: FakeOperations, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the status counts it, and keeps what only the daemon knows."""
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    registry.activate(SessionKey("echo", "s"), 1)
    session = SessionWorld(home / "data" / "sessions" / "echo" / "s")
    session.accept("m1")
    with session.files.inbound() as db, db.transaction():
        change_status(db, "m1", MessageStatus.FAILED, "failed", 1)
    operations.letters, operations.not_examined = [], 4180
    listed = cli("dead", "list").result
    assert (listed["source"], listed["not_examined"]) == ("daemon", 0)
    assert [one["id"] for one in listed["letters"]] == ["m1"]
    whole = operations.status

    async def hurried() -> dict[str, Any]:
        return {**await whole(), "not_examined": 4180}

    monkeypatch.setattr(operations, "status", hurried)
    status = cli("status").result
    assert (status["source"], status["not_examined"], status["queues"]["dead_letters"]) == ("daemon", 0, 1)
    assert ("echo", "s") in [(one["agent"], one["session"]) for one in status["attention"]]
    assert status["live"]["pid"]
