"""The repair of a finding, run as it is printed, ends it. Where a person must decide, each offered command does."""

from __future__ import annotations

import shlex
import signal
import subprocess
from functools import partial

import pytest

from tests.integration.conftest import Make
from tests.support.ageing import change
from tests.support.agents import ECHO, command_agent, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.http_receiver import misbehaving, status
from tests.support.webhooks import free_port
from tests.support.wreck import Finding, findings, found, healthy, repair

pytestmark = pytest.mark.faults

SECRET = "0123456789abcdef"
BROKEN = b"\xa5" * 9000


@pytest.fixture
def daemon(make_daemon: Make) -> RealDaemon:
    made = make_daemon(ECHO + obedient())
    made.start()
    return made


def offered(one: Finding, words: str) -> str:
    return next(choice["command"] for choice in one["choices"] if words in choice["command"])


def test_daemon_down_and_silent(daemon: RealDaemon) -> None:
    assert daemon.ask("hello", agent="echo", session="s") == {"text": "hello"}
    daemon.pause()
    command = found(daemon, "DAEMON_SILENT")["command"]
    assert command.startswith("kill -KILL ")
    subprocess.run(["sh", "-c", command], check=True, timeout=120)  # where procps is missing, only a shell has `kill`
    assert daemon.process is not None
    assert daemon.process.wait(timeout=60) == -signal.SIGKILL
    repair(daemon, found(daemon, "DAEMON_DOWN")["command"])
    healthy(daemon)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_a_folder_that_the_registry_does_not_know(daemon: RealDaemon, down: bool) -> None:
    daemon.ask("hello", agent="echo", session="s")
    daemon.cli("session", "kill", "echo", "s")
    daemon.stop()
    change(daemon.data / "central.db", "DELETE FROM sessions WHERE session = 's'")
    if down:
        one = found(daemon, "UNREGISTERED")
        assert daemon.cli("session", "show", "echo", "s").result["messages"], "shown without a daemon"
        repair(daemon, one["command"])
    else:
        kept = daemon.folder("echo", "s").rename(daemon.root / "kept")
        daemon.start()
        kept.rename(daemon.folder("echo", "s"))
        repair(daemon, "clawbus session release echo s")  # as the rule has it; a full pass may be quicker than doctor
    healthy(daemon)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_files_of_the_host_s_own_that_are_broken(daemon: RealDaemon) -> None:
    daemon.ask("hello", agent="echo", session="s")
    daemon.stop()
    daemon.end_agents()
    daemon.hostile = True  # its history is lost with the file
    (daemon.folder("echo", "s") / "in" / "inbound.db").write_bytes(BROKEN)
    mailbox = daemon.data / "mailbox.db"
    for path in (mailbox, *daemon.data.glob("mailbox.db-*")):
        path.unlink()
    mailbox.write_bytes(BROKEN)
    seen = findings(daemon)
    assert seen["DAEMON_DOWN"]["cause"] == "DATA_UNREADABLE", "no daemon starts over it"
    delete = offered(seen["FILES_UNREADABLE"], " delete ")
    move, _, start = seen["DATA_UNREADABLE"]["command"].partition(" && ")
    subprocess.run(shlex.split(move), check=True, timeout=120)
    repair(daemon, delete)
    repair(daemon, start)
    healthy(daemon)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


@pytest.mark.parametrize("way", ["gone", "broken"])
def test_a_session_in_quarantine_whose_own_file_is_lost(daemon: RealDaemon, way: str) -> None:
    daemon.ask("hello", agent="echo", session="s")
    daemon.hostile = True  # its history is lost with the file
    inbound = daemon.folder("echo", "s") / "in" / "inbound.db"
    if way == "gone":
        inbound.unlink()
    else:
        inbound.write_bytes(BROKEN)
    assert daemon.cli("send", "-a", "echo", "-s", "s", "lost").error == "FILE_UNUSABLE"
    one = found(daemon, "QUARANTINED")
    assert " release " not in one["command"], "it would be in quarantine again at once"
    repair(daemon, offered(one, " delete "))
    healthy(daemon)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_dead_letters_are_ended_by_either_choice(make_daemon: Make) -> None:
    flaky = command_agent("prog", ("/bin/sh", "-c", "read -r turn; test -e needed && echo done"))
    daemon = make_daemon(ECHO + flaky)
    daemon.start()
    first = daemon.post("work", agent="prog", session="s")
    one = found(daemon, "DEAD_LETTERS")
    (daemon.data / "agents" / "prog" / "needed").touch()
    repair(daemon, offered(one, " dead requeue "))
    assert daemon.answer(f"{first}+r1", agent="prog", session="s") == {"text": "done"}
    (daemon.data / "agents" / "prog" / "needed").unlink()
    daemon.post("more", agent="prog", session="s")
    repair(daemon, offered(found(daemon, "DEAD_LETTERS"), " dead drop "))
    eventually("healthy", lambda: not findings(daemon))


def _failed_attempts(daemon: RealDaemon, number: int) -> str | None:
    """The id of the answer that has failed so often."""
    answers = daemon.cli("delivery", "list").result["answers"]
    return next((one["id"] for one in answers if one["state"] == "retrying" and one["attempts"] == number), None)


def test_an_answer_that_its_receiver_refuses_again_and_again(make_daemon: Make) -> None:
    with misbehaving() as receiver:
        receiver.script["s"] = [status(500)] * 100
        hook = f'agent = "echo"\nsession = "s"\nsecret = "{SECRET}"\nreply_url = "{receiver.url}"\nreply_secret = "{SECRET[::-1]}"\n'
        daemon = make_daemon(
            f'{ECHO}\n[channels.webhook]\nlisten = "127.0.0.1:{free_port()}"\n[channels.webhook.hooks.h]\n{hook}'
        )
        daemon.start(environment={"CLAWBUS_DELIVERY__RETRY_BASE_S": "600", "CLAWBUS_DELIVERY__RETRY_MAX_S": "3600"})
        daemon.post("hello", agent="echo", session="s", address={"channel_type": "webhook", "platform_id": "h"})
        for number in (1, 2, 3):  # it waits for the operator, not for the next attempt
            failed = partial(_failed_attempts, daemon, number)
            answer = eventually(f"attempt {number} failed", failed, 60)
            if number < 3:
                assert daemon.cli("delivery", "retry", answer, "--reason", "again").ok
        one = found(daemon, "ANSWER_RETRYING", 60)
        assert any("answered 500" in line for line in one["evidence"])
        receiver.script["s"] = []
        repair(daemon, one["command"])
        healthy(daemon)


@pytest.mark.parametrize("way", ["retry", "cancel"])
def test_a_message_on_which_the_container_dies_again_and_again(make_daemon: Make, way: str) -> None:
    script = "cat >/dev/null; [ -e mended ] && echo done && exit; echo my heap is gone >&2; sleep 0.5; kill -9 $PPID"
    daemon = make_daemon(command_agent("frail", ["sh", "-c", script]))
    daemon.environment = {"CLAWBUS_SWEEP__BACKOFF_BASE_S": "600"}  # it waits for the operator, not for the next try
    daemon.start()
    message_id = daemon.post("hello", agent="frail", session="s")
    life = partial(daemon.life, "frail", "s", message_id)
    eventually("it died once", lambda: life().count("retry_scheduled") == 1, 60)
    assert "MESSAGE_RETRYING" not in findings(daemon), "one death may be anybody's"
    assert daemon.cli("message", "retry", message_id, "--reason", "again").ok
    eventually("it died twice", lambda: life().count("retry_scheduled") == 2, 60)
    one = found(daemon, "MESSAGE_RETRYING", 60)
    assert any("ended before the work was done" in line for line in one["evidence"]), one
    assert one["evidence"][-1] == "The agent's last words (stderr): my heap is gone"
    said = daemon.cli(*shlex.split(offered(one, "run show"))[1:])
    assert any("my heap is gone" in line for line in said.result["container_log"]), said.result["container_log"]
    (listed,) = daemon.cli("session", "list").result["sessions"]
    assert "before a message is done" in listed["explanation"]
    (daemon.data / "agents" / "frail" / "mended").touch()
    repair(daemon, one["command"] if way == "retry" else offered(one, "cancel"))
    if way == "retry":
        assert daemon.answer(message_id, agent="frail", session="s") == {"text": "done"}
    healthy(daemon)
