"""Ctrl-C and SIGTERM end a command that waits, and it says what is accepted by then."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.fake_operations import FakeOperations

COMMAND = [sys.executable, "-m", "daemon.cli"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("json_wanted", [True, False])
def test_a_send_that_waits_says_what_is_accepted(
    home: Path, operations: FakeOperations, json_wanted: bool, number: signal.Signals
) -> None:
    arguments = [*COMMAND, "send", "x", "-a", "mute", "-s", "s", "--wait", "60", "--id", "m1", "--mailbox", "mine"]
    arguments.append("--json" if json_wanted else "--pretty")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # The first wait is in the call that accepts, and may begin before the client has read that it is accepted.
        assert operations.polling_again.wait(60)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    if json_wanted:
        envelope = json.loads(out)
        assert (envelope["error"]["code"], envelope["result"]["message_id"]) == ("INTERRUPTED", "m1")
        assert envelope["result"]["mailbox"] == "mine"
    else:
        assert "message m1 is accepted" in err
        assert "clawbus mailbox mine" in err


def test_a_chat_says_what_is_accepted(home: Path, operations: FakeOperations) -> None:
    arguments = [*COMMAND, "chat", "-a", "echo", "-s", "s", "--mailbox", "mine", "--json"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not operations.received and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    envelope = json.loads(out)
    assert (process.returncode, envelope["error"]["code"]) == (130, "INTERRUPTED")
    assert envelope["result"]["mailbox"] == "mine"
    assert envelope["result"]["exchanges"][0]["message_id"] == operations.received[0].message_id
