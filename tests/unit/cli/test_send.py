"""`clawbus send` and `clawbus chat` against a daemon on a real socket."""

import io
import json

import pytest

from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations

TO_ECHO = ("--agent", "echo", "--session", "s")


def test_a_text_is_accepted(cli: CommandLine, operations: FakeOperations) -> None:
    result = cli("send", "hello", *TO_ECHO, "--id", "m1").result
    assert result == {
        "message_id": "m1",
        "agent": "echo",
        "session": "s",
        "seq": 2,
        "duplicate": False,
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
    answer = cli("send", "hello", *TO_ECHO, "--wait", "5").result["answer"]
    assert (answer["text"], answer["content"], answer["mailbox"]) == ("hello", {"text": "hello"}, "cli")


def test_people_see_the_answer_alone(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", "hello [bold]you", *TO_ECHO, "--wait", "5", "--pretty")
    assert (answer.code, answer.out) == (0, "hello [bold]you\n")


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
    answer = cli("send", "hello", "--agent", "broken", "--session", "s", "--wait", "5")
    assert (answer.code, answer.envelope["error"]) == (1, {"code": "AGENT_FAILED", "message": "exit code 3"})
    assert answer.envelope["result"]["answer"]["content"] == {"error": "exit code 3"}


def test_standard_input_is_a_text(
    cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    assert cli("send", "-", *TO_ECHO).code == 0
    assert operations.received[0].content == {"text": "two\nlines\n"}


def test_json_content_goes_as_it_is(cli: CommandLine, operations: FakeOperations) -> None:
    assert cli("send", "[1, 2]", *TO_ECHO, "--json-content").code == 0
    assert operations.received[0].content == [1, 2]
    refused = cli("send", "{", *TO_ECHO, "--json-content")
    assert (refused.code, refused.envelope["error"]["code"]) == (1, "CONTENT_INVALID")


def test_context_wakes_nobody_and_waits_for_nothing(cli: CommandLine, operations: FakeOperations) -> None:
    assert "answer" not in cli("send", "by the way", *TO_ECHO, "--context", "--wait", "30").result
    assert operations.received[0].trigger is False


def test_the_mailbox_is_chosen(cli: CommandLine, operations: FakeOperations) -> None:
    assert cli("send", "hello", *TO_ECHO, "--mailbox", "mine", "--wait", "5").result["answer"]["mailbox"] == "mine"


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
    assert answer.envelope["next_actions"][0]["command"] == "clawbus run"


def test_text_that_utf8_cannot_hold_survives(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", '{"text": "\\ud800\x9b[31m"}', *TO_ECHO, "--json-content", "--wait", "5")
    assert answer.result["answer"]["text"] == "\ud800\x9b[31m"
    assert "\x9b" not in answer.out


class TestChat:
    def test_lines_of_a_pipe_are_answered(
        self, cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo"))
        result = cli("chat", *TO_ECHO, "--wait", "10").result
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
        result = cli("chat", "--agent", "mute", "--session", "s", "--wait", "10").result
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
