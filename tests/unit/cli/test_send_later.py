"""`send --at` and `send --every`: what the daemon is asked for, and what is refused before anything is sent."""

from __future__ import annotations

import pytest

from daemon.core.schedules import local_instant
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations

TO_ECHO = ("--agent", "echo", "--session", "s")


def test_the_message_is_due_then_and_expires_counted_from_then(cli: CommandLine, operations: FakeOperations) -> None:
    due = local_instant("2099-01-01T09:00", "Europe/Vienna")
    options = ("--at", "2099-01-01T09:00", "--timezone", "Europe/Vienna", "--expires-in", "1h")
    result = cli("send", "hello", *TO_ECHO, *options).result
    assert result["due_at"] == due
    (message,) = operations.received
    assert (message.process_after, message.not_after) == (due, due + 3_600_000)
    assert "; due 20" in cli("send", "hello", *TO_ECHO, "--at", "in 2h", "--pretty").out
    assert "due_at" not in cli("send", "hello", *TO_ECHO).result


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--at", "yesterday"), "is not a time"),
        (("--at", "2020-01-01"), "is past"),
        (("--at", "9:00", "--timezone", "Mars/Olympus"), "Mars/Olympus"),
        (("--timezone", "UTC"), "--at and --every"),
        (("--every", "often"), "neither a duration"),
        (("--every", "1h", "--wait", "1"), "--wait"),
        (("--every", "1h", "--at", "9:00"), "--at"),
        (("--every", "1h", "--not-after", "2099-01-01"), "--not-after"),
        (("--every", "1h", "--context"), "--context"),
        (("--every", "1h", "--id", "a b"), "cannot name a schedule"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    cli: CommandLine, operations: FakeOperations, options: tuple[str, ...], words: str
) -> None:
    answer = cli("send", "hello", *TO_ECHO, *options)
    assert words in answer.envelope["error"]["message"]
    assert operations.received == []


def test_a_place_takes_no_time(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", "hello", "--place", "kitchen", "--at", "in 2h")
    assert (answer.code, "--session" in answer.envelope["error"]["message"]) == (2, True)
