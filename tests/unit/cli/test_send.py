"""`clawbus send` and `clawbus chat` against a daemon on a real socket."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.api import api
from daemon.channels.protocol import Accepted, Incoming
from daemon.cli import patience
from daemon.core.clock import SystemClock
from daemon.core.errors import DaemonSilentError
from schema.errors import StorageError
from schema.instants import from_text
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations, serving

COMMAND = [sys.executable, "-m", "daemon.cli"]
TO_ECHO = ("--agent", "echo", "--session", "s")


def test_a_text_is_accepted(cli: CommandLine, operations: FakeOperations) -> None:
    result = cli("send", "hello", *TO_ECHO, "--id", "m1").result
    assert result == {
        "message_id": "m1",
        "agent": "echo",
        "session": "s",
        "seq": 2,
        "duplicate": False,
        "address": {"channel_type": "local", "platform_id": "cli", "thread_id": None},
        "state": "pending",
        "previous": None,
        "requeued_as": None,
        "accepted": True,
        "mailbox": "cli",
    }
    (message,) = operations.received
    assert (message.content, message.trigger) == ({"text": "hello"}, True)
    assert message.address is not None
    assert (message.address.channel_type, message.address.platform_id) == ("local", "cli")


def test_the_id_is_chosen_before_sending(cli: CommandLine, operations: FakeOperations) -> None:
    result = cli("send", "hello", *TO_ECHO).result
    assert len(result["message_id"]) == 26
    assert operations.received[0].message_id == result["message_id"]


def test_the_answer_is_waited_for(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", "hello", *TO_ECHO, "--wait", "30").result["answer"]
    assert (answer["text"], answer["content"], answer["mailbox"]) == ("hello", {"text": "hello"}, "cli")


def test_people_see_the_answer_alone(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", "hello [bold]you", *TO_ECHO, "--wait", "30", "--pretty")
    assert (answer.code, answer.out) == (0, "hello [bold]you\n")


def test_an_answer_of_several_messages_is_shown_whole(cli: CommandLine, operations: FakeOperations) -> None:
    cli("send", "one", *TO_ECHO, "--id", "m1")
    for text in ("two", "three"):
        operations.answer(operations.received[0], {"text": text})
    again = ("send", "one", *TO_ECHO, "--id", "m1", "--wait", "30")
    assert cli(*again, "--pretty").out == "one\ntwo\nthree\n"
    result = cli(*again).result
    assert (result["answer"]["text"], [one["text"] for one in result["more"]]) == ("one", ["two", "three"])


def test_an_answer_is_shown_though_the_daemon_ends_before_it_says_whether_there_is_more(
    cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = operations.wait_reply

    async def wait_reply(
        agent: str, session: str, message_id: str, wait_s: float, after: int | None, *rest: int | None
    ) -> object:
        if after:
            raise StorageError("the disk is away")
        return await whole(agent, session, message_id, wait_s, after, *rest)

    monkeypatch.setattr(operations, "wait_reply", wait_reply)
    assert cli("send", "hello", *TO_ECHO, "--wait", "30", "--pretty").out == "hello\n"


def test_no_answer_in_time_is_not_ok_but_accepted(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", "hello", "--agent", "mute", "--session", "s", "--wait", "0.05", "--id", "m1")
    envelope = answer.envelope
    assert (answer.code, envelope["error"]["code"]) == (1, "NO_ANSWER_YET")
    assert envelope["result"]["message_id"] == "m1"
    assert "m1" in envelope["error"]["message"]
    assert [action["command"] for action in envelope["next_actions"]] == [
        "clawbus mailbox cli",
        "clawbus session show mute s --message m1",
    ]


def test_an_agent_s_failure_is_not_ok(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", "hello", "--agent", "broken", "--session", "s", "--wait", "30")
    assert (answer.code, answer.envelope["error"]) == (1, {"code": "AGENT_FAILED", "message": "exit code 3"})
    assert answer.envelope["result"]["answer"]["content"] == {"error": "exit code 3"}


def test_standard_input_is_a_text(
    cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    assert cli("send", "-", *TO_ECHO).code == 0
    assert operations.received[0].content == {"text": "two\nlines\n"}


@pytest.mark.parametrize("where", [("-s", "echo/s"), ("--place", "kitchen")])
def test_an_empty_text_is_refused(cli: CommandLine, operations: FakeOperations, where: tuple[str, str]) -> None:
    refused = cli("send", " \n", *where)
    assert (refused.code, refused.envelope["error"]["code"]) == (1, "CONTENT_INVALID")
    assert "standard input" in refused.envelope["fix"]
    assert not operations.received


def test_json_content_goes_as_it_is(cli: CommandLine, operations: FakeOperations) -> None:
    assert cli("send", "[1, 2]", *TO_ECHO, "--json-content").code == 0
    assert operations.received[0].content == [1, 2]
    refused = cli("send", "{", *TO_ECHO, "--json-content")
    assert (refused.code, refused.envelope["error"]["code"]) == (1, "CONTENT_INVALID")


def test_context_wakes_nobody_and_waits_for_nothing(cli: CommandLine, operations: FakeOperations) -> None:
    assert "answer" not in cli("send", "by the way", *TO_ECHO, "--context", "--wait", "30").result
    assert operations.received[0].trigger is False


def test_the_mailbox_is_chosen(cli: CommandLine, operations: FakeOperations) -> None:
    assert cli("send", "hello", *TO_ECHO, "--mailbox", "mine", "--wait", "30").result["answer"]["mailbox"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("send", "x", "--agent", "nobody", "--session", "s"), "UNKNOWN_AGENT"),
        (("send", "x", *TO_ECHO, "--no-create"), "UNKNOWN_SESSION"),
    ],
)
def test_the_daemon_s_refusal_keeps_its_code(
    cli: CommandLine, operations: FakeOperations, arguments: tuple[str, ...], code: str
) -> None:
    answer = cli(*arguments)
    assert (answer.code, answer.envelope["error"]["code"]) == (1, code)


def test_the_same_id_with_other_content_is_refused(cli: CommandLine, operations: FakeOperations) -> None:
    assert cli("send", "one", *TO_ECHO, "--id", "m1").result["duplicate"] is False
    assert cli("send", "one", *TO_ECHO, "--id", "m1").result["duplicate"] is True
    assert cli("send", "two", *TO_ECHO, "--id", "m1").envelope["error"]["code"] == "ID_CONFLICT"


def test_without_a_daemon_it_says_how_to_start_one(cli: CommandLine) -> None:
    answer = cli("send", "hello", *TO_ECHO)
    assert (answer.code, answer.envelope["error"]["code"]) == (1, "DAEMON_DOWN")
    assert answer.envelope["next_actions"][0]["command"] == "clawbus serve"


def test_text_that_utf8_cannot_hold_survives(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", '{"text": "\\ud800\x9b[31m"}', *TO_ECHO, "--json-content", "--wait", "30")
    assert answer.result["answer"]["text"] == "\ud800\x9b[31m"
    assert "\x9b" not in answer.out


@pytest.mark.parametrize("wrong", ["a/b", "x" * 201])
def test_an_id_that_is_none_is_refused_before_anything_is_sent(
    cli: CommandLine, operations: FakeOperations, wrong: str
) -> None:
    answer = cli("send", "hello", *TO_ECHO, "--id", wrong)
    assert (answer.code, answer.envelope["error"]["code"]) == (1, "INVALID_NAME")
    assert operations.received == []


def test_a_duplicate_tells_where_the_first_one_s_answer_goes(cli: CommandLine, operations: FakeOperations) -> None:
    cli("send", "hello", *TO_ECHO, "--id", "m1", "--mailbox", "first")
    again = cli("send", "hello", *TO_ECHO, "--id", "m1", "--mailbox", "second").envelope
    assert (again["result"]["duplicate"], again["result"]["mailbox"]) == (True, "first")
    assert again["next_actions"][0]["command"] == "clawbus mailbox first"


class TestAfterTheAcceptance:
    """Whatever happens while it waits: the envelope says which message is accepted, so that nobody sends it anew."""

    def test_a_wait_that_the_daemon_fails_at(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(*_: object) -> None:
            raise StorageError("mailbox.db: the disk image is malformed.")

        monkeypatch.setattr(operations, "wait_reply", broken)
        answer = cli("send", "hello", *TO_ECHO, "--wait", "30", "--id", "m1", "--mailbox", "mine")
        envelope = answer.envelope
        assert (answer.code, envelope["error"]["code"]) == (1, "STORAGE")
        assert "message m1 is accepted" in envelope["error"]["message"]
        wanted = {"message_id": "m1", "agent": "echo", "session": "s", "mailbox": "mine", "accepted": True}
        assert wanted.items() <= envelope["result"].items()
        assert [one["command"] for one in envelope["next_actions"]] == [
            "clawbus mailbox mine",
            "clawbus session show echo s --message m1",
        ]

    def test_an_answer_that_got_lost_may_have_been_accepted(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def silent(*_: object) -> None:
            raise DaemonSilentError("the daemon did not answer in time.")

        monkeypatch.setattr("daemon.api.client.ControlClient.accept", silent)
        envelope = cli("send", "hello", *TO_ECHO, "--id", "m1").envelope
        assert envelope["error"]["code"] == "DAEMON_SILENT"
        assert (envelope["result"]["message_id"], envelope["result"]["accepted"]) == ("m1", None)

    def test_no_answer_yet_says_what_the_session_waits_for(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def waiting(*_: object) -> dict[str, object]:
            return {"state": "quarantined", "held_up": "The session is in quarantine. Since 12:00: a fifo."}

        monkeypatch.setattr(operations, "session", waiting)
        error = cli("send", "x", "-a", "mute", "-s", "s", "--wait", "0.05").envelope["error"]
        assert error["code"] == "NO_ANSWER_YET"
        assert error["message"].endswith(" The session is in quarantine. Since 12:00: a fifo.")

    def test_no_answer_yet_blames_no_dead_letter_of_another_message(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def running(*_: object) -> dict[str, object]:
            return {"state": "resting", "explanation": "Message m0 was given up after 3 tries: x.", "held_up": None}

        monkeypatch.setattr(operations, "session", running)
        error = cli("send", "x", "-a", "mute", "-s", "s", "--wait", "0.05").envelope["error"]
        assert error["message"].endswith("is accepted and stays so.")

    @pytest.mark.parametrize("closed", [False, True])
    def test_output_that_cannot_be_written(self, home: Path, operations: FakeOperations, closed: bool) -> None:
        line = shlex.join([*COMMAND, "send", "x", *TO_ECHO, "--id", "m1", "--json"])
        done = subprocess.run(
            ["/bin/sh", "-c", f"{line} {'>&-' if closed else '> /dev/full'}"],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 74
        assert len(done.stderr.splitlines()) == 1
        assert "standard output cannot be written" in done.stderr
        assert '"message_id": "m1"' in done.stderr


def test_input_that_is_not_utf8_is_refused(
    cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"good\nb\xffd\n")))
    envelope = cli("send", "-", *TO_ECHO).envelope
    assert envelope["error"]["code"] == "CONTENT_INVALID"
    assert "line 2" in envelope["error"]["message"]
    assert operations.received == []


class TestChat:
    def test_lines_before_a_bad_one_are_sent_and_told(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"good\nb\xffd\n")))
        envelope = cli("chat", "--agent", "mute", "--session", "s", "--mailbox", "mine").envelope
        assert envelope["error"]["code"] == "CONTENT_INVALID"
        (said,) = envelope["result"]["exchanges"]
        assert (said["message_id"], said["accepted"]) == (operations.received[0].message_id, True)
        assert envelope["result"]["mailbox"] == "mine"
        assert envelope["next_actions"][0]["command"] == "clawbus mailbox mine"

    def test_lines_of_a_pipe_are_answered(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo"))
        result = cli("chat", *TO_ECHO, "--wait", "30").result
        assert [(turn["text"], [one["text"] for one in turn["answers"]]) for turn in result["exchanges"]] == [
            ("one", ["one"]),
            ("two", ["two"]),
        ]
        assert result["mailbox"].startswith("chat-")

    def test_people_see_the_answers(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
        answer = cli("chat", *TO_ECHO, "--pretty")
        assert (answer.code, answer.out) == (0, "< one\n")

    def test_what_stays_unanswered_is_told(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
        answer = cli("chat", "--agent", "mute", "--session", "s", "--wait", "0.05")
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "NO_ANSWER_YET")

    def test_one_answer_to_a_batch_answers_all(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", _Batch(operations))
        result = cli("chat", "--agent", "mute", "--session", "s", "--wait", "30").result
        assert [turn["answers"][0]["text"] for turn in result["exchanges"]] == ["both", "both"]

    def test_a_refusal_ends_it(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
        answer = cli("chat", "--agent", "nobody", "--session", "s")
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "UNKNOWN_AGENT")


class _Batch(io.StringIO):
    """Two lines, and at the end of the input one answer to both."""

    def __init__(self, operations: FakeOperations) -> None:
        super().__init__("one\ntwo\n")
        self._operations = operations

    def readline(self, size: int | None = -1, /) -> str:
        line = super().readline()
        if not line:
            first, second = self._operations.received
            self._operations.answer(first, {"text": "both", "answers": [second.message_id]})
        return line


def test_json_is_the_default_when_nobody_watches(cli: CommandLine, operations: FakeOperations) -> None:
    assert json.loads(cli("send", "x", *TO_ECHO).out)["ok"] is True
    assert cli("send", "x", *TO_ECHO, "--id", "m2", "--no-json").out.startswith("accepted m2 ")


def test_an_expiry_is_sent_as_an_instant(cli: CommandLine, operations: FakeOperations) -> None:
    before = SystemClock().now_ms()
    assert cli("send", "hello", *TO_ECHO, "--expires-in", "15m").code == 0
    assert cli("send", "hello", *TO_ECHO, "--not-after", "2126-11-21T02:00Z").code == 0
    soon, named = [message.not_after for message in operations.received]
    assert soon is not None
    assert before + 900_000 <= soon <= SystemClock().now_ms() + 900_000
    assert named == from_text("2126-11-21T02:00Z")
    for wrong in (
        ("--expires-in", "soon"),
        ("--not-after", "soon"),
        ("--expires-in", "1h", "--not-after", "2126-01-01"),
    ):
        assert cli("send", "hello", *TO_ECHO, *wrong).code == 2


def test_the_answer_of_the_message_that_does_the_work_again_is_waited_for(
    cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def accept(incoming: Incoming) -> Accepted:
        return Accepted(str(incoming.message_id), "echo", "s", 2, True, incoming.address, "pending", "failed", "m1+r1")

    async def wait_reply(agent: str, session: str, message_id: str, *_: object) -> None:
        asked.append(message_id)

    monkeypatch.setattr(operations, "accept", accept)
    monkeypatch.setattr(operations, "wait_reply", wait_reply)
    result = cli("send", "hello", *TO_ECHO, "--id", "m1", "--wait", "0").envelope["result"]
    assert (result["duplicate"], result["previous"], result["requeued_as"]) == (True, "failed", "m1+r1")
    assert set(asked) == {"m1+r1"}
    assert "worked on again as m1+r1" in cli("send", "hello", *TO_ECHO, "--id", "m1", "--pretty").out


def test_the_answer_of_an_older_daemon_is_asked_for_apart(
    cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stores the message, says so, and knows nothing of a wait in the same call."""
    real = api.seconds
    monkeypatch.setattr(api, "seconds", lambda request, name: 0.0 if request.method == "POST" else real(request, name))
    result = cli("send", "hello", *TO_ECHO, "--id", "m1", "--wait", "30").envelope["result"]
    assert (result["message_id"], result["answer"]["text"]) == ("m1", "hello")


def test_files_go_with_the_message(cli: CommandLine, operations: FakeOperations, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.bin"
    first.write_text("first")
    second.write_bytes(b"\0\xff")
    cli("send", "look", *TO_ECHO, "--file", str(first), "--file", str(second))
    assert [(one.name, one.data) for one in operations.received[0].files] == [("a.txt", b"first"), ("b.bin", b"\0\xff")]


def test_what_cannot_be_attached_is_refused_before_anything_is_sent(
    cli: CommandLine, operations: FakeOperations, tmp_path: Path
) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    with large.open("wb") as file:
        file.truncate(9 * 1024**2)
    for path in (fifo, large, tmp_path, tmp_path / "missing"):
        answer = cli("send", "look", *TO_ECHO, "--file", str(path))
        assert (answer.code, answer.envelope["error"]["code"]) == (1, "ATTACHMENT_REFUSED"), path
        assert answer.envelope["fix"].startswith("Name a") == (path != large), path
    answer = cli("send", "look", "--place", "kitchen", "--file", str(large))
    assert (answer.code, answer.envelope["error"]["code"]) == (1, "ATTACHMENT_REFUSED")
    assert operations.received == []


def test_a_daemon_that_was_started_a_moment_ago_is_waited_for(
    cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeOperations()
    with contextlib.ExitStack() as started:

        def begin(_: float) -> None:
            started.enter_context(serving(fake, home / "data" / "control.sock"))

        monkeypatch.setattr(patience, "_BEGIN_S", 60.0)
        monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=begin))
        assert cli("send", "hello", *TO_ECHO, "--id", "m1").result["accepted"] is True
    assert [one.message_id for one in fake.received] == ["m1"]


def test_a_chat_waits_for_such_a_daemon_too(cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as started:

        def begin(_: float) -> None:
            started.enter_context(serving(FakeOperations(), home / "data" / "control.sock"))

        monkeypatch.setattr(patience, "_BEGIN_S", 60.0)
        monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=begin))
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
        (exchange,) = cli("chat", *TO_ECHO).result["exchanges"]
        assert "hello" in str(exchange["answers"])


@pytest.mark.parametrize("name", ["owner/repo#12", "/", "kit/../en", "a%2Fb"])
def test_a_mailbox_may_have_the_name_of_any_place(cli: CommandLine, operations: FakeOperations, name: str) -> None:
    cli("send", "hello", *TO_ECHO, "--mailbox", name)
    result = cli("mailbox", name).result
    assert (result["mailbox"], [one["text"] for one in result["entries"]]) == (name, ["hello"])
