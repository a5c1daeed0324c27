"""What the machine does to a running daemon: a full disk, a read-only one, a locked file, a file that is gone or corrupt.

After each the bus heals without a human, or holds the one session in quarantine with a reason and a next step while the
others go on. In no case does the daemon end, and nothing that was accepted is lost.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from daemon.core.errors import RemoteError
from tests.integration.conftest import check
from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.mounts import SmallDisk, read_only, small_disk

pytestmark = [pytest.mark.faults]

Make = Callable[..., RealDaemon]
QUIET_LOG = ('[logs]\nlevel = "debug"', '[logs]\nlevel = "info"\nfile_bytes = 65536\nfile_count = 1')
_HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


def made(make_daemon: Make) -> RealDaemon:
    """A daemon that logs little, so that the log is not what fills the disk."""
    daemon = make_daemon(obedient() + ECHO)
    daemon.configure(daemon.config.read_text().partition("\n")[2].replace(*QUIET_LOG))
    return daemon


@pytest.fixture
def on_disk() -> Iterator[tuple[RealDaemon, SmallDisk]]:
    """A daemon whose data folder is a small disk of its own; ended and checked while the disk is there."""
    with ExitStack() as stack:
        daemon = made(RealDaemon)
        stack.callback(daemon.close)
        disk = stack.enter_context(small_disk(daemon.data, 4096))
        stack.callback(daemon.end_agents)
        stack.callback(daemon.end_daemons)
        yield daemon, disk
        daemon.end_quietly()
        check(daemon)


def in_mid_turn(daemon: RealDaemon, session: str) -> tuple[str, Callable[[], None]]:
    """A message whose program is at work, and what lets it end."""
    mark = daemon.root / f"mark-{session}"
    message_id = daemon.post(f"hang {mark}", agent="prog", session=session)
    eventually("in mid-turn", mark.exists)
    return message_id, lambda: mark.with_name(mark.name + ".go").touch()


def refused(daemon: RealDaemon, session: str, agent: str = "echo") -> str:
    """The code of the refusal of a message, with its next step."""
    with pytest.raises(RemoteError) as found:
        daemon.post("not now", agent=agent, session=session)
    assert found.value.hint
    return found.value.remote_code


def alive(daemon: RealDaemon) -> None:
    assert daemon.process is not None
    assert daemon.process.poll() is None, daemon.log_tail()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process has the database locked for as long as the block runs."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.communicate(timeout=60)


@pytest.mark.parametrize("agent_dies", [False, True], ids=["agent-lives", "agent-dies"])
def test_a_full_disk_refuses_what_is_new_and_finishes_what_is_old_once_there_is_room(
    on_disk: tuple[RealDaemon, SmallDisk], agent_dies: bool
) -> None:
    daemon, disk = on_disk
    daemon.start()
    daemon.ask("hello", agent="echo", session="old")
    message_id, finish = in_mid_turn(daemon, "work")
    disk.fill()
    assert {refused(daemon, "old"), refused(daemon, "new")} == {"STORAGE"}
    if agent_dies:
        os.killpg(daemon.leader("prog", "work"), signal.SIGKILL)
    finish()
    eventually("it was told", lambda: "full" in daemon.log_tail())
    alive(daemon)
    disk.make_room()
    assert daemon.answer(message_id, agent="prog", session="work") == {"text": "done"}
    assert daemon.ask("hello", agent="echo", session="old")["text"] == "hello"
    assert daemon.ask("hello", agent="echo", session="new")["text"] == "hello"
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    assert daemon.message("prog", "work", message_id)["tries"] == int(agent_dies)
    daemon.at_rest = True


def test_a_daemon_that_starts_on_a_full_disk_adopts_what_runs_and_goes_on_once_there_is_room(
    on_disk: tuple[RealDaemon, SmallDisk],
) -> None:
    daemon, disk = on_disk
    daemon.start()
    message_id, finish = in_mid_turn(daemon, "work")
    daemon.kill()
    disk.fill()
    daemon.start()
    assert refused(daemon, "new") == "STORAGE"
    disk.make_room()
    finish()
    assert daemon.answer(message_id, agent="prog", session="work") == {"text": "done"}
    assert daemon.ask("hello", agent="echo", session="new")["text"] == "hello"  # its folder was left half made


def test_a_disk_that_becomes_read_only_and_writable_again(on_disk: tuple[RealDaemon, SmallDisk]) -> None:
    daemon, _ = on_disk
    daemon.start()
    daemon.ask("hello", agent="echo", session="old")
    message_id, finish = in_mid_turn(daemon, "work")
    with read_only(daemon.data):
        assert refused(daemon, "old") == "STORAGE"
        assert refused(daemon, "new") == "STORAGE"
        finish()
        eventually("the agent's answer waits", lambda: "commit_failed" in daemon.log_tail())
        alive(daemon)
    assert daemon.answer(message_id, agent="prog", session="work") == {"text": "done"}
    assert daemon.ask("hello", agent="echo", session="new")["text"] == "hello"
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    assert daemon.message("prog", "work", message_id)["tries"] == 0
    daemon.at_rest = True


def test_locked_session_files_delay_their_own_session_alone(make_daemon: Make) -> None:
    daemon = made(make_daemon)
    daemon.start()
    daemon.ask("hello", agent="echo", session="in")
    daemon.ask("hello", agent="echo", session="out")
    daemon.ask("hello", agent="echo", session="free")
    with (
        held(daemon.folder("echo", "in") / "in" / "inbound.db"),
        held(daemon.folder("echo", "out") / "out" / "outbound.db"),
    ):
        waiting = daemon.post("hello", agent="echo", session="out")
        assert refused(daemon, "in") == "FILE_BUSY"
        assert daemon.ask("hello", agent="echo", session="free")["text"] == "hello"
        alive(daemon)
    assert daemon.answer(waiting, agent="echo", session="out")["text"] == "hello"
    assert daemon.ask("hello", agent="echo", session="in")["text"] == "hello"
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    daemon.at_rest = True


def test_a_locked_registry_delays_what_needs_it_and_heals(make_daemon: Make) -> None:
    daemon = made(make_daemon)
    daemon.start()
    daemon.ask("hello", agent="echo", session="known")
    message_id, finish = in_mid_turn(daemon, "work")
    with held(daemon.data / "central.db"):
        finish()
        os.killpg(daemon.leader("echo", "known"), signal.SIGKILL)  # its end is to be recorded, and cannot be
        assert refused(daemon, "new") == "FILE_BUSY"
        assert daemon.answer(message_id, agent="prog", session="work") == {"text": "done"}
        eventually("the end waits to be recorded", lambda: daemon.events("registry_not_written"))
        alive(daemon)
    assert daemon.ask("hello", agent="echo", session="known")["text"] == "hello"
    assert daemon.ask("hello", agent="echo", session="new")["text"] == "hello"
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    daemon.at_rest = True


def test_a_daemon_without_a_descriptor_to_spare_blames_nobody_names_it_and_heals(make_daemon: Make) -> None:
    daemon = made(make_daemon)
    daemon.start()
    for session in ("one", "two"):
        daemon.ask("hello", agent="echo", session=session)
    assert daemon.process is not None
    pid = daemon.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        eventually("it is named", lambda: "HOST_TROUBLE" in daemon.log_tail())
        eventually("doctor names it", lambda: "HOST_TROUBLE" in str(daemon.cli("doctor").envelope))
        alive(daemon)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    for session in ("one", "two", "new"):
        assert daemon.ask("hello", agent="echo", session=session)["text"] == "hello"
    eventually("it is quiet again", lambda: daemon.cli("doctor").ok)
    assert daemon.status()["attention"] == []
    assert daemon.events("session_quarantined") == []
    assert daemon.events("message_retry_scheduled") == []
    assert "INTERNAL" not in daemon.log_tail()
    daemon.at_rest = True


def delete_folder(folder: Path) -> None:
    # Out of the data folder first, in one step: the agent that runs touches its heartbeat in there all the while.
    shutil.rmtree(folder.rename(folder.parents[3] / "deleted"))


def delete_inbound(folder: Path) -> None:
    (folder / "in" / "inbound.db").unlink()


def noise_inbound(folder: Path) -> None:
    _overwrite(folder / "in" / "inbound.db", 0)


def torn_inbound(folder: Path) -> None:
    """Everything after the first page is noise: it opens, and fails on the first look at a table."""
    _overwrite(folder / "in" / "inbound.db", 4096)


def noise_outbound(folder: Path) -> None:
    _overwrite(folder / "out" / "outbound.db", 0)


def torn_outbound(folder: Path) -> None:
    _overwrite(folder / "out" / "outbound.db", 4096)


UNUSABLE = (delete_folder, delete_inbound, noise_inbound, torn_inbound)


def _overwrite(path: Path, start: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(path.stat().st_size - start))


@pytest.mark.parametrize("running", [True, False], ids=["running", "idle"])
@pytest.mark.parametrize(
    "spoil",
    [delete_folder, delete_inbound, noise_inbound, torn_inbound, noise_outbound, torn_outbound],
    ids=lambda spoil: spoil.__name__,
)
def test_a_spoiled_session_is_held_with_a_reason_and_a_next_step_and_others_go_on(
    make_daemon: Make, spoil: Callable[[Path], None], running: bool
) -> None:
    daemon = made(make_daemon)
    daemon.start()
    daemon.ask("hello", agent="echo", session="good")
    daemon.ask("hello", agent="echo", session="bad")
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    if not running:
        assert daemon.cli("session", "stop", "echo", "bad").ok
        eventually("stopped", lambda: daemon.running("echo", "bad") is None)
    kept = daemon.root / "kept"
    daemon.pause()  # so that it meets the spoiled file, and not our work on it
    shutil.copytree(daemon.folder("echo", "bad"), kept)
    spoil(daemon.folder("echo", "bad"))
    daemon.resume()
    if spoil in UNUSABLE:
        assert refused(daemon, "bad") == "FILE_UNUSABLE"
    else:
        daemon.post("are you there", agent="echo", session="bad")

    report = eventually("held", lambda: (one := daemon.show("echo", "bad"))["state"] == "quarantined" and one)
    assert report["registry"]["quarantine_reason"]
    ways = ("`clawbus session release echo bad`", "`clawbus session reset echo bad --discard`")
    assert any(one in report["explanation"] for one in ways)
    assert daemon.ask("hello", agent="echo", session="good")["text"] == "hello"
    assert [one["session"] for one in daemon.status()["attention"]] == ["bad"]
    assert daemon.cli("session", "show", "echo", "bad").code in (0, 1)
    eventually("its container is ended", lambda: daemon.running("echo", "bad") is None)
    alive(daemon)

    shutil.rmtree(daemon.folder("echo", "bad"), ignore_errors=True)
    shutil.copytree(kept, daemon.folder("echo", "bad"))
    assert daemon.cli("session", "release", "echo", "bad").ok
    assert daemon.ask("hello", agent="echo", session="bad")["text"] == "hello"
    daemon.hostile = (
        True  # what was accepted after the copy was made went with the files; the checker must not ask for it
    )
