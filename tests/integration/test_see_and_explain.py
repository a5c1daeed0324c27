"""What an operator sees of a real daemon that is up, silent or killed: doctor, runs, status, top, logs and the event stream."""

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.core.clock import SystemClock
from daemon.store import messages
from daemon.store.registry import Registry
from schema.connect import open_owner
from schema.errors import ClawbusError
from schema.instants import to_text
from schema.migrate import Role
from schema.outbound_file import open_outbound_reader
from schema.plain_file import ReadLimits
from schema.rows import MessageIn, MessageStatus
from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.wreck import lives

AGENTS: Final = ECHO + obedient()
Make = Callable[..., RealDaemon]


def codes(daemon: RealDaemon, *arguments: str) -> list[str]:
    said = daemon.cli("doctor", *arguments)
    assert said.ok == (not said.envelope["result"]["diagnoses"])
    return [one["code"] for one in said.envelope["result"]["diagnoses"]]


def hanging(daemon: RealDaemon, session: str = "night") -> str:
    """Send a message on which the agent hangs. Return its id once the message is claimed."""
    message_id = daemon.post(f"hang {daemon.root / 'mark'}", agent="prog", session=session)
    eventually("at work", (daemon.root / "mark").exists)
    eventually("claimed", lambda: "claimed" in daemon.life("prog", session, message_id))
    return message_id


def pause_between_commits(daemon: RealDaemon, agent: str, session: str) -> None:
    """Stop the daemon (SIGSTOP) while it holds no lock on either file: stopped in a transaction, it would keep its lock."""
    folder = daemon.folder(agent, session)

    def paused() -> bool:
        daemon.pause()
        if all(_unlocked(path) for path in (folder / "in" / "inbound.db", folder / "out" / "outbound.db")):
            return True
        daemon.resume()
        return False

    eventually("stopped between two transactions", paused)


def _unlocked(path: Path) -> bool:
    connection = sqlite3.connect(path, timeout=0.2, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


def test_one_night(make_daemon: Make) -> None:
    """A run is shown while it works, explained when daemon and agent are dead, and finished by the next daemon."""
    daemon = make_daemon(AGENTS)
    daemon.start()
    daemon.ask("hello", agent="echo", session="first")
    message_id = hanging(daemon)
    assert codes(daemon) == []

    (running,) = daemon.cli("run", "list", "--status", "running").result["runs"]
    incarnation = daemon.container("prog", "night")["incarnation"]
    assert running["run_id"] == f"{message_id}@{incarnation}"
    assert (running["stale"], running["confidence"]) == (False, "high")
    one = daemon.cli("run", "show", message_id).result
    told = [event["event"] for event in one["events"]]
    for name in ("accepted", "woken", "spawned", "claimed", "turn_started"):
        assert name in told, told
    assert one["container_lives"] == "alive"
    assert any("turn_started" in line for line in one["container_log"])

    runner, program = daemon.leader("prog", "night"), int((daemon.root / "mark").read_text().split()[0])
    daemon.kill()
    os.killpg(runner, signal.SIGKILL)
    assert "GHOST_RUN" not in codes(daemon), "a process of it lives"
    os.kill(program, signal.SIGKILL)
    eventually("the agent is gone", lambda: not lives(program))
    found = daemon.cli("doctor").envelope["result"]["diagnoses"]
    by_code = {item["code"]: item for item in found}
    assert {"DAEMON_DOWN", "GHOST_RUN", "GHOST_CONTAINER"} <= set(by_code)
    assert by_code["GHOST_RUN"]["message_id"] == message_id
    one = daemon.cli("run", "show", message_id).result
    assert (one["status"], one["listed"], one["stale"], one["daemon"]) == ("orphaned", "running", True, "down")
    assert "GHOST_RUN" in [item["code"] for item in one["diagnoses"]]

    (daemon.root / "mark.go").touch()
    daemon.start()
    daemon.answer(message_id, agent="prog", session="night")
    assert daemon.cli("run", "show", message_id).result["run_id"] != running["run_id"]
    eventually("healthy", lambda: codes(daemon) == [])
    first = daemon.cli("run", "show", running["run_id"]).result
    assert (first["status"], first["stale"]) == ("orphaned", False)
    told = [event["event"] for event in first["events"]]
    assert told.index("claimed") < told.index("exited") < told.index("retry_scheduled")
    assert first["other_runs"]


def test_a_daemon_that_hangs_is_seen_from_the_files(make_daemon: Make) -> None:
    daemon = make_daemon(AGENTS)
    daemon.start()
    daemon.ask("hello", agent="echo", session="first")
    status_of_all = "SELECT DISTINCT status FROM messages_in"
    eventually(
        "settled", lambda: [row["status"] for row in daemon.rows("echo", "first", status_of_all)] == ["completed"]
    )
    pause_between_commits(daemon, "echo", "first")
    try:
        assert "DAEMON_SILENT" in codes(daemon)
        status = daemon.cli("status").result
        assert (status["source"], status["sessions"]["total"]) == ("files", 1)
        assert status["silent"]
        assert daemon.cli("run", "list").result["runs"][0]["status"] == "completed"
    finally:
        daemon.resume()
    eventually("healthy", lambda: codes(daemon) == [])


def test_an_answer_that_the_daemon_never_saw(make_daemon: Make) -> None:
    daemon = make_daemon(AGENTS)
    daemon.start()
    daemon.ask("hello", agent="echo", session="first")
    pause_between_commits(daemon, "echo", "first")
    # The runner works on without the daemon: it answers the message, and no daemon records the answer.
    status_of_lost = "SELECT status FROM messages_in WHERE id = 'lost'"
    _insert(daemon, "echo", "first", "lost")
    eventually("answered", lambda: _acked(daemon, "echo", "first", "lost"))
    daemon.kill()  # while it is stopped: it must neither read the answer nor die in a transaction
    assert daemon.rows("echo", "first", status_of_lost) == [{"status": "pending"}]
    found = {one["code"]: one for one in daemon.cli("doctor").envelope["result"]["diagnoses"]}
    assert found["LOST_ACK"]["message_id"] == "lost"
    one = daemon.cli("run", "show", "lost").result
    assert (one["status"], one["stale"], one["verdict"]["decided_by"]) == ("completed", True, "trace")
    assert one["verdict"]["lacks"] == ["history", "list"]
    daemon.start()
    eventually("healthy", lambda: codes(daemon) == [])
    assert daemon.cli("run", "show", "lost").result["stale"] is False


def test_one_screen_and_its_live_form(make_daemon: Make) -> None:
    daemon = make_daemon(AGENTS)
    daemon.start()
    daemon.ask("hello", agent="echo", session="first")
    text = daemon.people("status")
    for word in ("daemon", "version", "schema", "runtime", "sessions", "answers", "dead letters", "last sweep"):
        assert word in text
    frame = daemon.cli("top", "--once").result
    assert [one["session"] for one in frame["sessions"]] == ["first"]
    assert "echo/first" in daemon.people("top", "--once")
    daemon.kill()
    assert "down (read from the files)" in daemon.people("top", "--once")
    registry, aside = daemon.data / "central.db", daemon.root / "central.db"
    registry.rename(aside)
    status = daemon.cli("status").result
    assert status["sessions"] == {"total": 1}
    assert "central.db" in status["registry_error"]
    assert "REGISTRY_GONE" in codes(daemon)
    aside.rename(registry)


def test_the_event_stream(make_daemon: Make) -> None:
    daemon = make_daemon(AGENTS)
    daemon.start()
    with watching(daemon, "--session", "echo/first", "--level", "info") as lines:
        assert next(lines) == {"event": "watching"}
        daemon.ask("elsewhere", agent="echo", session="second")
        message_id = daemon.post("hello", agent="echo", session="first", id="m1")
        seen: list[dict[str, Any]] = []
        while not any(event["event"] == "message_delivered" for event in seen):
            seen.append(next(lines))
        assert {event["session"] for event in seen} == {"first"}
        assert seen[0]["event"] == "message_accepted"
        assert seen[0]["message"] == message_id
        daemon.stop()
        assert list(lines) == []
    assert daemon.cli("watch").error == "DAEMON_DOWN"


def test_the_log_of_one_message(make_daemon: Make) -> None:
    daemon = make_daemon(AGENTS)
    daemon.start()
    daemon.ask("one", agent="echo", session="first", id="m1")
    daemon.ask("two", agent="echo", session="first", id="m2")
    daemon.stop()
    events = daemon.cli("logs", "--message", "m1", "--level", "info").result["events"]
    assert {event.get("message", event.get("in_reply_to")) for event in events} == {"m1"}
    assert {"message_accepted", "message_completed", "message_delivered"} <= {event["event"] for event in events}


@contextmanager
def watching(daemon: RealDaemon, *options: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the lines of `clawbus watch` in the background. It must have ended with the daemon when the block ends."""
    process = daemon.begin_stream("watch", "--json", *options)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield (json.loads(line) for line in process.stdout)
        assert process.wait(timeout=60) == 1
        assert "the daemon ended" in process.stderr.read()
    finally:
        process.kill()
        process.wait(timeout=60)
        process.stdout.close()
        process.stderr.close()


def _insert(daemon: RealDaemon, agent: str, session: str, message_id: str) -> None:
    """Insert a message as the host would: the host is stopped."""
    now = SystemClock().now_ms()
    with open_owner(daemon.folder(agent, session) / "in" / "inbound.db", Role.INBOUND) as db, db.transaction():
        row = MessageIn(
            message_id, messages.next_even_seq(db), "chat", to_text(now), MessageStatus.PENDING, '{"text": "lost"}',
            series_id=message_id, channel_type="local", platform_id="cli",
        )  # fmt: skip
        messages.insert(db, row, now)


def _acked(daemon: RealDaemon, agent: str, session: str, message_id: str) -> bool:
    try:
        reader = open_outbound_reader(daemon.folder(agent, session) / "out", ReadLimits())
        if reader is None:
            return False
        with reader:
            sql = "SELECT 1 FROM processing_ack WHERE message_id = ? AND status = 'completed'"
            return reader.one(sql, (message_id,)) is not None
    except ClawbusError:
        return False


@pytest.mark.docker
def test_a_container_that_docker_runs_and_nobody_supervises(make_daemon: Make, base_image: str) -> None:
    # Name an image that does not exist, because this machine may have one under the default name.
    daemon = make_daemon(f'{AGENTS}\n[docker]\nimage = "clawbus-none:never-built"\n', runtime="docker")
    install = "01jd00000000000000000000wz"
    daemon.data.mkdir(mode=0o700)
    (daemon.data / "install-id").write_text(install)
    (daemon.data / "clawbus.version").write_text("2\n")
    labels = {"install": install, "agent": "echo", "session": "x", "incarnation": "I9", "fingerprint": "f"}
    options = [part for name, value in labels.items() for part in ("--label", f"clawbus.{name}={value}")]
    started = subprocess.run(
        ["docker", "run", "-d", "--network", "none", *options, base_image, "sleep", "600"],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout.strip()  # fmt: skip
    try:
        _registry(daemon, install)
        found = {one["code"]: one for one in daemon.cli("doctor").envelope["result"]["diagnoses"]}
        assert found["ORPHANED_CONTAINER"]["incarnation"] == "I9"
        assert started[:12] in found["ORPHANED_CONTAINER"]["evidence"][0]
        assert "IMAGE_UNUSABLE" in found
        daemon.environment["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
        assert "RUNTIME_UNAVAILABLE" in codes(daemon)
    finally:
        subprocess.run(["docker", "rm", "-f", started], capture_output=True, check=False, timeout=120)


def _registry(daemon: RealDaemon, install: str) -> None:
    Registry(daemon.data / "central.db").install_id(1, install)
