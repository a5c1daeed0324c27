"""Findings whose cause is the host, another process, a copy or another version: the printed command ends each of them."""

from __future__ import annotations

import resource
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Make
from tests.integration.test_delivery_http import tables
from tests.support.ageing import change
from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.http_receiver import place
from tests.support.lock_holder import locked
from tests.support.mounts import read_only
from tests.support.webhooks import receiving
from tests.support.wreck import Finding, findings, found, gone, healthy, repair

pytestmark = pytest.mark.faults


@pytest.fixture
def daemon(make_daemon: Make) -> RealDaemon:
    made = make_daemon(ECHO + obedient())
    made.start()
    assert made.ask("hello", agent="echo", session="s") == {"text": "hello"}
    return made


def run_literally(command: str) -> str:
    """Run a command that is no command of clawbus, as an operator does who copies it into a shell."""
    assert not command.startswith("clawbus")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def offered(one: Finding, words: str) -> str:
    return next(choice["command"] for choice in one["choices"] if words in choice["command"])


def names(one: Finding, pid: int) -> bool:
    return any(f"Process {pid} (python" in line and "End it, or wait" in line for line in one["evidence"])


@pytest.mark.parametrize(
    ("file", "code"),
    [("central.db", "REGISTRY_UNREADABLE"), ("mailbox.db", "DATA_UNREADABLE")],
)
def test_a_file_of_the_host_s_that_another_process_locks(daemon: RealDaemon, file: str, code: str) -> None:
    with locked(daemon.data / file) as holder:
        one = found(daemon, code, 30)
        assert names(one, holder.pid), one
        assert one["command"] == f"kill {holder.pid}"
        run_literally(one["command"])
        holder.wait(timeout=60)
        healthy(daemon)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_a_registry_that_can_be_read_and_not_written(daemon: RealDaemon) -> None:
    """Every sender to a new session is refused, although each read succeeds: doctor sees the lock itself."""
    with locked(daemon.data / "central.db", "IMMEDIATE") as holder:
        assert not daemon.cli("send", "x", "--agent", "echo", "--session", "new").ok
        one = found(daemon, "FILE_LOCKED", 30)
        assert names(one, holder.pid), one
        assert one["command"] == f"kill {holder.pid}"
        run_literally(one["command"])
        holder.wait(timeout=60)
        gone(daemon, "FILE_LOCKED")
        assert daemon.ask("again", agent="echo", session="new") == {"text": "again"}
        healthy(daemon)


def test_a_session_s_file_that_another_process_locks(daemon: RealDaemon) -> None:
    with locked(daemon.folder("echo", "s") / "in" / "inbound.db") as holder:
        daemon.cli("send", "x", "--agent", "echo", "--session", "s")

        def named() -> Finding | None:
            seen = findings(daemon)
            return seen.get("SESSION_FAILING") or seen.get("FILES_UNREADABLE")

        one = eventually("named", named, 30)
        assert names(one, holder.pid), one
        assert one["command"] == f"kill {holder.pid}", "its container is not to blame"
        run_literally(one["command"])
        holder.wait(timeout=60)
        healthy(daemon)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_open_files_have_run_out(daemon: RealDaemon) -> None:
    assert daemon.process is not None
    pid = daemon.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        one = found(daemon, "HOST_TROUBLE", 60)
        assert one["command"].startswith(f"prlimit --pid {pid} --nofile="), one
        of_session = findings(daemon).get("SESSION_FAILING")
        assert of_session is None or (of_session["cause"], of_session["command"]) == ("HOST_TROUBLE", one["command"])
        run_literally(one["command"])
        healthy(daemon, 60)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_memory_has_run_out(daemon: RealDaemon) -> None:
    """An address space without room for another thread's stack: the daemon says so, and the limit is raised."""
    assert daemon.process is not None
    pid = daemon.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    used = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize:"))
    resource.prlimit(pid, resource.RLIMIT_AS, (used, before[1]))
    waiting: list[subprocess.Popen[str]] = []
    try:
        # More at once than it has threads for.
        waiting += [daemon.begin_cli("send", "x", "-a", "echo", "-s", f"m{number}") for number in range(12)]
        one = found(daemon, "HOST_TROUBLE", 60)
        assert one["command"] == f"prlimit --pid {pid} --as=unlimited:", one
        run_literally(one["command"])
        healthy(daemon, 60)
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        for process in waiting:
            daemon.end_cli(process)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_a_data_folder_that_is_mounted_read_only(daemon: RealDaemon) -> None:
    daemon.stop()  # while a file there is open for writing, the mount cannot become read-only
    daemon.end_agents()
    with read_only(daemon.data):
        one = found(daemon, "STORAGE_FAILING", 60)
        assert one["command"] == f"mount -o remount,rw {daemon.data}"
        run_literally(one["command"])
        gone(daemon, "STORAGE_FAILING")
        daemon.start()
        healthy(daemon, 60)
        assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}
        daemon.end_quietly()


def test_an_out_folder_near_its_limit(make_daemon: Make) -> None:
    daemon = make_daemon(ECHO + "\n[limits]\nmax_out_folder_bytes = 4194304\n")
    daemon.start()
    assert daemon.ask("hello", agent="echo", session="s") == {"text": "hello"}
    (daemon.folder("echo", "s") / "out" / "cache").write_bytes(b"x" * 3_700_000)
    daemon.ask("more", agent="echo", session="s")
    one = found(daemon, "OUT_NEARLY_FULL", 30)
    assert "limits.max_out_folder_bytes" in one["evidence"][0]
    needing = daemon.status()["attention"]
    assert [(entry["session"], entry["state"]) for entry in needing] == [("s", "near_limit")]
    assert "cache" in run_literally(one["command"]), "the command shows what fills it"
    daemon.hostile = True  # the runner's own records are put aside with out/
    repair(daemon, offered(one, " session reset "))
    gone(daemon, "OUT_NEARLY_FULL")
    assert daemon.status()["attention"] == []
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_a_home_folder_near_its_limit_and_over_it(make_daemon: Make) -> None:
    daemon = make_daemon(ECHO + "\n[limits]\nmax_home_folder_bytes = 4194304\n")
    daemon.start()
    assert daemon.ask("hello", agent="echo", session="s") == {"text": "hello"}
    home = daemon.folder("echo", "s") / "home"
    (home / "cache").write_bytes(b"x" * 3_700_000)
    one = found(daemon, "HOME_NEARLY_FULL", 30)
    assert "limits.max_home_folder_bytes" in one["evidence"][0]
    assert "cache" in run_literally(one["command"]), "the command shows what fills it"
    (home / "more").write_bytes(b"x" * 1_000_000)
    over = found(daemon, "QUARANTINED", 30)
    assert "cache" in run_literally(over["command"])
    (home / "cache").unlink()
    assert "clawbus session release echo s" in over["evidence"][1]
    assert daemon.cli("session", "release", "echo", "s").ok
    gone(daemon, "QUARANTINED")
    gone(daemon, "HOME_NEARLY_FULL")
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_a_copied_folder(daemon: RealDaemon, make_daemon: Make) -> None:
    daemon.stop()
    daemon.end_agents()
    copy = make_daemon(ECHO + obedient())
    shutil.copytree(daemon.data, copy.data, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    one = found(copy, "COPIED_FOLDER")
    repair(copy, one["command"])
    healthy(copy)
    assert copy.ask("again", agent="echo", session="s") == {"text": "again"}


def test_files_of_a_newer_clawbus_are_ended_by_a_backup_of_before(daemon: RealDaemon) -> None:
    backup = daemon.root / "backup-of-before"
    assert daemon.cli("backup", str(backup)).ok
    daemon.cli("session", "kill", "echo", "s")
    daemon.stop()
    change(daemon.data / "central.db", "PRAGMA user_version = 99")
    one = found(daemon, "SCHEMA_TOO_NEW")
    assert one["command"] == "pip install --upgrade clawbus"
    listed = run_literally(offered(one, "manifest.json").replace("find / ", f"find {daemon.root} ")).split("\n")
    assert str(backup) in listed
    assert str(daemon.data) not in listed, "no backup"
    repair(daemon, f"clawbus restore {shlex.quote(str(backup))} --replace")
    daemon.start()
    healthy(daemon)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


def test_a_registry_that_the_running_daemon_cannot_use(daemon: RealDaemon) -> None:
    """The daemon says so itself, and goes on with what it has; another process's lock is the reason."""
    with locked(daemon.data / "central.db") as holder:
        assert not daemon.cli("send", "x", "--agent", "echo", "--session", "new").ok

        def named() -> Finding | None:
            # Doctor meets the same lock, and then names the file itself; the daemon's own word counts while it does not.
            seen = findings(daemon)
            return seen.get("DEGRADED") or seen.get("REGISTRY_UNREADABLE")

        one = eventually("named", named, 30)
        assert any("central.db" in line for line in one["evidence"]), one
        assert one["command"] == f"kill {holder.pid}"
        run_literally(one["command"])
        holder.wait(timeout=60)
        gone(daemon, "DEGRADED", "REGISTRY_UNREADABLE")
        healthy(daemon)


def test_a_runtime_that_was_changed_under_living_containers(daemon: RealDaemon) -> None:
    daemon.kill()
    text = daemon.config.read_text(encoding="utf-8")
    changed = text.replace('kind = "process"', 'kind = "docker"')
    assert changed != text
    daemon.config.write_text(changed, encoding="utf-8")
    one = found(daemon, "RUNTIME_CHANGED")
    end, _, start = one["command"].partition(" && ")
    repair(daemon, end)
    daemon.config.write_text(text, encoding="utf-8")  # Docker need not be here; nothing of the old runtime lives now
    repair(daemon, start)
    healthy(daemon, 60)
    assert daemon.ask("again", agent="echo", session="s") == {"text": "again"}


@pytest.mark.parametrize("way", ["retry", "drop"])
def test_as_many_answers_as_a_session_may_have_open(make_daemon: Make, way: str) -> None:
    with receiving(failures=10**6) as receiver:
        daemon = make_daemon(tables(work=receiver.url))
        text = daemon.config.read_text(encoding="utf-8")
        slow = "retry_base_s = 3600.0\nretry_max_s = 3600.0\nmax_open_answers = 1"
        daemon.config.write_text(text.replace("retry_base_s = 0.1\nretry_max_s = 0.5", slow), encoding="utf-8")
        daemon.start()
        daemon.post("say answer", agent="prog", session="s", address=place("work"))
        one = found(daemon, "ANSWERS_HELD_BACK", 30)
        if way == "retry":
            receiver.failures = 0
            assert " delivery retry --all " in one["command"]
            repair(daemon, one["command"])
        else:
            repair(daemon, offered(one, " delivery drop "))
        gone(daemon, "ANSWERS_HELD_BACK")
        receiver.failures = 0
        daemon.at_rest = False
