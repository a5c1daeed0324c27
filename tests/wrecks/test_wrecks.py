"""Ten prepared wrecks on real daemons: each is found by `doctor`, explained by `run`, and repaired by the command it names."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.conftest import Make, check
from tests.support.ageing import HOUR_MS, age_central, age_session, change
from tests.support.agent_image import agent_image
from tests.support.agents import ECHO, command_agent, obedient
from tests.support.daemon import QUICK, RealDaemon, eventually
from tests.support.hot_journal import strand_journal
from tests.support.mounts import small_disk
from tests.support.socket_proxy import SocketProxy
from tests.support.wreck import (
    codes,
    evict,
    explained,
    findings,
    found,
    gone,
    healthy,
    history,
    kill_container,
    mid_turn,
    repair,
)

pytestmark = pytest.mark.faults

DOCKER_SOCKET = Path("/var/run/docker.sock")


@pytest.fixture
def daemon(make_daemon: Make) -> RealDaemon:
    made = make_daemon(ECHO + obedient())
    made.start()
    healthy(made)
    return made


def test_stuck_claim(make_daemon: Make) -> None:
    """A container lives, holds a message and makes no progress; the sweep is not due for an hour."""
    daemon = make_daemon()
    quick = QUICK.format(
        runtime="process", runtime_keys="", sweep_keys="claim_stuck_s = 1.0\nceiling_s = 1.0\nmax_declared_s = 1.0"
    )
    daemon.configure(quick.replace("interval_s = 1.0", "interval_s = 3600.0") + ECHO + obedient())
    daemon.start()
    message_id, mark = mid_turn(daemon)
    one = found(daemon, "STUCK_CLAIM")
    assert one["message_id"] == message_id
    told = explained(daemon, message_id)
    assert told["status"] == "running"
    assert "STUCK_CLAIM" in codes(told)
    repair(daemon, one["command"])
    evict(mark)
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    assert "session_killed" in history(daemon, message_id)
    gone(daemon, "STUCK_CLAIM")


def test_ghost_running(daemon: RealDaemon) -> None:
    """Daemon and container were killed an hour ago; the list still shows the run as running."""
    message_id, mark = mid_turn(daemon)
    daemon.kill()
    kill_container(daemon, mark)
    age_session(daemon.folder("prog", "s"))
    age_central(daemon.data)
    one = found(daemon, "GHOST_RUN")
    assert one["message_id"] == message_id
    told = explained(daemon, message_id)
    assert (told["stale"], told["listed"], told["status"]) == (True, "running", "orphaned")
    assert one["cause"] == "DAEMON_DOWN"
    evict(mark)
    repair(daemon, one["command"])  # a start tries it again: nothing is cancelled
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    told_of = history(daemon, message_id)
    assert "retry_scheduled" in told_of
    assert "cancelled" not in told_of
    healthy(daemon)


def test_lost_ack(daemon: RealDaemon) -> None:
    """The agent finished while no daemon ran: its answer and its ack are written, and nobody took note."""
    message_id, mark = mid_turn(daemon)
    daemon.kill()
    evict(mark)
    box = daemon.folder("prog", "s") / "out" / "outbound.db"
    eventually("acked", lambda: _acked(box, message_id))
    kill_container(daemon)
    age_session(daemon.folder("prog", "s"))
    one = found(daemon, "LOST_ACK")
    told = explained(daemon, message_id)
    assert (told["stale"], told["status"]) == (True, "completed")
    assert one["cause"] == "DAEMON_DOWN"
    repair(daemon, one["command"])
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    gone(daemon, "LOST_ACK", "STALE_RUN")
    assert daemon.rows("prog", "s", "SELECT status FROM messages_in") == [{"status": "completed"}]
    assert history(daemon, message_id)[-1] == "completed"
    healthy(daemon)


def test_orphaned_container(daemon: RealDaemon) -> None:
    """A container runs that the registry has ended: nobody supervises it."""
    message_id, mark = mid_turn(daemon)
    stray = daemon.container("prog", "s")["incarnation"]
    daemon.stop()
    change(daemon.data / "central.db", "UPDATE incarnations SET ended_at = 1, end_reason = 'lost'")
    one = found(daemon, "ORPHANED_CONTAINER")
    assert one["incarnation"] == stray
    told = explained(daemon, message_id)
    assert told["status"] == "running", "it is worked on, and nobody takes note"
    assert "ORPHANED_CONTAINER" in codes(told)
    repair(daemon, one["command"])
    eventually("ended", lambda: stray not in [item["incarnation"] for item in daemon.status()["live"]["running"]])
    evict(mark)
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    assert daemon.ask("say again", agent="prog", session="s") == {"text": "again"}
    assert daemon.container("prog", "s")["incarnation"] != stray
    healthy(daemon)


def test_hot_journal(daemon: RealDaemon) -> None:
    """A container died in mid-commit, and so did the daemon: its file cannot be read before the journal is rolled back."""
    message_id, mark = mid_turn(daemon)
    daemon.kill()
    kill_container(daemon, mark)
    box = daemon.folder("prog", "s") / "out" / "outbound.db"
    strand_journal(box, "INSERT INTO session_state(key, value, updated_at) VALUES ('k' || ?, hex(zeroblob(500)), 'x')")
    # Its exit is recorded: a container that is taken for living and is gone would be the first thing to name.
    change(daemon.data / "central.db", "UPDATE incarnations SET ended_at = created_at, end_reason = 'crashed'")
    one = found(daemon, "HOT_JOURNAL")
    told = explained(daemon, message_id)
    assert (told["stale"], told["status"]) == (True, "orphaned")
    assert "HOT_JOURNAL" in codes(told)
    evict(mark)
    repair(daemon, one["command"])
    eventually("recovered", lambda: not box.with_name("outbound.db-journal").exists())
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    assert daemon.ask("say again", agent="prog", session="s") == {"text": "again"}
    healthy(daemon)


def test_dead_letters(make_daemon: Make) -> None:
    """A message was given up: the agent answered with an error, because something that it needs was not there."""
    flaky = command_agent("prog", ("/bin/sh", "-c", "read -r turn; test -e needed && echo done"))
    daemon = make_daemon(ECHO + flaky)
    daemon.start()
    message_id = daemon.post("work", agent="prog", session="s")
    one = found(daemon, "DEAD_LETTERS")
    told = explained(daemon, message_id)
    assert told["status"] == "failed"
    assert "DEAD_LETTERS" in codes(told)
    (daemon.data / "agents" / "prog" / "needed").touch()
    shown = repair(daemon, one["command"])  # tells the cause and, next, what sends it on its way again
    assert shown is not None
    steps = [step["command"] for step in shown.envelope["next_actions"]]
    repair(daemon, next(step for step in steps if " dead requeue " in step))
    assert daemon.answer(f"{message_id}+r1", agent="prog", session="s") == {"text": "done"}
    assert "requeued" in history(daemon, message_id)
    healthy(daemon)


@pytest.fixture(scope="module")
def image(base_image: str) -> Iterator[str]:
    with agent_image(base_image) as tag:
        yield tag


@pytest.fixture
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SocketProxy]:
    """Docker, for one daemon: cut off and back without touching it. Open until the daemon's containers are removed."""
    made = SocketProxy(tmp_path_factory.mktemp("p") / "docker.sock", DOCKER_SOCKET)
    made.open()
    yield made
    made.close()


@pytest.mark.docker
def test_docker_down(proxy: SocketProxy, make_daemon: Make, image: str) -> None:
    """Docker is away: what is accepted waits."""
    daemon = make_daemon(f'{ECHO}\n[docker]\nimage = "{image}"\n', runtime="docker")
    daemon.environment["DOCKER_HOST"] = f"unix://{proxy.path}"
    daemon.start()
    assert daemon.ask("hello", agent="echo", session="s", wait_s=60) == {"text": "hello"}
    healthy(daemon)
    proxy.close()
    waiting = daemon.post("and this", agent="echo", session="other")
    one = found(daemon, "RUNTIME_UNAVAILABLE", 60)
    told = explained(daemon, waiting, "echo/other")
    assert "RUNTIME_UNAVAILABLE" in codes(told)
    repair(daemon, one["command"], {"systemctl start docker": proxy.open})
    assert daemon.answer(waiting, agent="echo", session="other", wait_s=60) == {"text": "and this"}
    healthy(daemon)


def test_full_disk() -> None:
    """The data folder's disk has no room left."""
    with ExitStack() as stack:
        daemon = RealDaemon(ECHO + obedient())
        stack.callback(daemon.close)
        disk = stack.enter_context(small_disk(daemon.data, 160 * 1024))
        stack.callback(daemon.end_agents)
        stack.callback(daemon.end_daemons)
        daemon.start()
        assert daemon.ask("hello", agent="echo", session="s") == {"text": "hello"}
        healthy(daemon)
        message_id, mark = mid_turn(daemon)
        disk.fill()
        one = found(daemon, "DISK_FULL")
        told = explained(daemon, message_id)
        assert told["status"] == "running"
        assert "DISK_FULL" in codes(told)
        assert daemon.cli("send", "x", "--agent", "echo", "--session", "s").error == "STORAGE"
        repair(daemon, one["command"], {"df ": disk.make_room})
        said = eventually("accepted again", lambda: _sent(daemon), 30)
        assert daemon.answer(said, agent="echo", session="s") == {"text": "again"}
        evict(mark)
        assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
        healthy(daemon, 60)
        daemon.end_quietly()
        check(daemon)


def put_off_for_a_day(daemon: RealDaemon) -> str:
    """The clock was a day ahead for a while, and the daemon died: a retry is put off to a time that is only then."""
    daemon.ask("say up", agent="prog", session="s")
    message_id, mark = mid_turn(daemon)
    daemon.kill()
    kill_container(daemon, mark)
    day = 24 * HOUR_MS
    inbound = daemon.folder("prog", "s") / "in" / "inbound.db"
    change(
        inbound,
        f"UPDATE attempts SET ended_at = claimed_at + {day}, outcome = 'orphaned' WHERE outcome IS NULL",
        "INSERT INTO message_history(message_id, event, incarnation, at, detail) SELECT message_id, 'retry_scheduled',"
        f" incarnation, ended_at, '{{\"tries\": 1}}' FROM attempts WHERE message_id = '{message_id}'",
        "UPDATE messages_in SET tries = 1, process_after = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 day')"
        f" WHERE id = '{message_id}'",
    )
    evict(mark)
    return message_id


def test_clock_jump(daemon: RealDaemon) -> None:
    message_id = put_off_for_a_day(daemon)
    one = found(daemon, "CLOCK_JUMP")
    assert one["message_id"] == message_id
    told = explained(daemon, message_id)
    assert told["status"] == "waiting"
    assert "CLOCK_JUMP" in codes(told)
    repair(daemon, one["command"])
    daemon.start()
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    assert "retry_requested" in history(daemon, message_id)
    left = findings(daemon).get("CLOCK_JUMP")
    assert left is None or left["message_id"] is None, "nothing waits for the other time any more"


def test_a_clock_jump_heals_with_the_daemon(daemon: RealDaemon) -> None:
    message_id = put_off_for_a_day(daemon)
    daemon.start()
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    assert "retry_requested" not in history(daemon, message_id)


def test_quarantined_session(daemon: RealDaemon) -> None:
    """A container wrote what no runner writes; its session is held, and what is sent to it is kept."""
    daemon.hostile = True
    daemon.ask("say up", agent="prog", session="s")
    daemon.cli("session", "stop", "prog", "s")
    eventually("stopped", lambda: daemon.running("prog", "s") is None)
    box = daemon.folder("prog", "s") / "out" / "outbound.db"
    kept = box.read_bytes()
    box.write_bytes(b"\xa5" * 9000)
    message_id = daemon.post("say anew", agent="prog", session="s")
    assert "--discard" in found(daemon, "QUARANTINED")["command"], "released as it is, it would be back at once"
    told = explained(daemon, message_id)
    assert told["status"] == "waiting"
    assert "QUARANTINED" in codes(told)
    box.write_bytes(kept)  # mended, as the finding's reason asks for
    one = found(daemon, "QUARANTINED")
    assert one["command"].endswith(" session release prog s")
    repair(daemon, one["command"])
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "anew"}
    healthy(daemon)


def test_a_quarantined_session_whose_file_cannot_be_mended_is_reset(daemon: RealDaemon) -> None:
    daemon.hostile = True
    daemon.ask("say up", agent="prog", session="s")
    daemon.cli("session", "stop", "prog", "s")
    eventually("stopped", lambda: daemon.running("prog", "s") is None)
    (daemon.folder("prog", "s") / "out" / "outbound.db").write_bytes(b"\xa5" * 9000)
    message_id = daemon.post("say anew", agent="prog", session="s")
    repair(daemon, found(daemon, "QUARANTINED")["command"])
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "anew"}
    healthy(daemon)


def test_an_agent_that_stamps_its_file_with_a_later_version(daemon: RealDaemon) -> None:
    daemon.hostile = True
    daemon.ask("say up", agent="prog", session="s")
    daemon.cli("session", "stop", "prog", "s")
    eventually("stopped", lambda: daemon.running("prog", "s") is None)
    change(daemon.folder("prog", "s") / "out" / "outbound.db", "PRAGMA user_version = 99")
    message_id = daemon.post("say anew", agent="prog", session="s")
    eventually("refused by its runner", lambda: "SPAWN_FAILING" in findings(daemon))
    repair(daemon, found(daemon, "SCHEMA_TOO_NEW")["command"])
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "anew"}
    healthy(daemon)


def _sent(daemon: RealDaemon) -> str | None:
    said = daemon.cli("send", "again", "--agent", "echo", "--session", "s")
    return said.envelope["result"]["message_id"] if said.ok else None


def _acked(box: Path, message_id: str) -> bool:
    with contextlib.closing(sqlite3.connect(f"file:{box}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT status FROM processing_ack WHERE message_id = ?", (message_id,)).fetchall()
    return rows == [("completed",)]


@pytest.mark.docker
@pytest.mark.parametrize("taken", [False, True], ids=["missing", "foreign"])
def test_an_agent_s_own_image_cannot_be_used(make_daemon: Make, base_image: str, taken: bool) -> None:
    """The named command builds that image and no other; the daemon's status is clear without a message to the agent."""
    tag = f"clawbus-wreck-{'foreign' if taken else 'missing'}:{os.getpid()}"
    daemon = make_daemon(f'[agents.badimg]\nprovider = "echo"\nimage = "{tag}"\n', runtime="docker")
    try:
        if taken:
            subprocess.run(["docker", "tag", base_image, tag], check=True, timeout=120)
        daemon.start()
        assert [one["what"] for one in daemon.status()["live"]["degraded"]] == ["image"]
        one = found(daemon, "IMAGE_UNUSABLE")
        assert f'agents.badimg.image = "{tag}" (used by agent badimg)' in one["evidence"][0]
        assert any("takes the name away" in line for line in one["evidence"]) == taken
        repair(daemon, f"{one['command']} --base {base_image}")  # the default base may not be here
        healthy(daemon)
        eventually("no longer degraded", lambda: daemon.status()["live"]["degraded"] == [], 30)
    finally:
        subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False, timeout=120)
