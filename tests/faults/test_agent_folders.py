"""An agent's folder that is away for a while: its messages wait, no folder is made in its place, and other agents work on."""

import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.agents import ECHO, PROGRAM, command_agent
from tests.support.daemon import RealDaemon, eventually
from tests.support.mounts import SmallDisk, small_disk

pytestmark = [pytest.mark.faults]

# It reads a file of its folder at the end of the turn only, by the folder's path.
_LATE = 'touch "$1"; until [ -e "$1.go" ]; do sleep 0.02; done; cat "$PWD/words"'
Make = Callable[..., RealDaemon]


@pytest.fixture
def daemon(make_daemon: Make) -> RealDaemon:
    """The agent `prog` has its program in its folder."""
    made = make_daemon()
    late = command_agent("late", ("/bin/sh", "-c", _LATE, "late", str(made.root / "mark")))
    prog = command_agent("prog", (sys.executable, "-I", "-S", PROGRAM.name))
    made.configure(made.config.read_text().partition("\n")[2] + prog + late + ECHO)
    for name in ("prog", "late"):
        folder_of(made, name).mkdir(parents=True)
    for folder in (made.data, made.data / "agents"):
        folder.chmod(0o700)
    return made


def folder_of(daemon: RealDaemon, agent: str = "prog") -> Path:
    return daemon.data / "agents" / agent


def begin(daemon: RealDaemon) -> None:
    """Have the agent answer a message."""
    shutil.copy(PROGRAM, folder_of(daemon))
    daemon.start()
    assert daemon.ask("say one", agent="prog", session="s")["text"] == "one"


def away(daemon: RealDaemon, agent: str = "prog") -> Callable[[], object]:
    """Move the agent's folder away; what puts it back."""
    folder, elsewhere = folder_of(daemon, agent), daemon.root / "away"
    folder.rename(elsewhere)
    return lambda: elsewhere.rename(folder)


def refusal(daemon: RealDaemon) -> str:
    """The log's line about a start that was refused for the agent's folder, once there is one."""
    log = daemon.data / "logs" / "clawbus.log"

    def found() -> str | None:
        lines = log.read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if "spawn_failed" in line and "AGENT_FILE" in line), None)

    return eventually("a start was refused", found)


def waits(daemon: RealDaemon, message: str, agent: str = "prog") -> None:
    """The message waits for the folder and loses no try; others go on."""
    assert str(folder_of(daemon, agent)) in refusal(daemon)
    assert daemon.ask("hello", agent="echo", session="s")["text"] == "hello"
    row = daemon.message(agent, "s", message)
    assert (row["status"], row["tries"]) == ("pending", 0)


def test_a_folder_that_is_moved_away_below_a_container(daemon: RealDaemon) -> None:
    begin(daemon)
    put_back = away(daemon)
    message = daemon.post("say two", agent="prog", session="s")
    waits(daemon, message)
    lacking = daemon.cli("backup", str(daemon.root / "lacking")).result["left_out"]
    assert lacking == ["agents/prog (its folder is away, or its disk is not mounted)"]
    put_back()
    assert daemon.answer(message, agent="prog", session="s")["text"] == "two"
    assert daemon.cli("backup", str(daemon.root / "whole")).result["left_out"] == []


def test_a_turn_that_fails_because_its_folder_is_gone_does_not_count(daemon: RealDaemon) -> None:
    (folder_of(daemon, "late") / "words").write_text("done")
    daemon.start()
    message = daemon.post("go", agent="late", session="s")
    eventually("at work", (daemon.root / "mark").exists)
    put_back = away(daemon, "late")
    (daemon.root / "mark.go").touch()
    waits(daemon, message, "late")
    put_back()
    assert daemon.answer(message, agent="late", session="s")["text"] == "done"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_folder_that_is_gone_before_a_start_is_not_made_anew(daemon: RealDaemon, restarted: bool) -> None:
    begin(daemon)
    assert daemon.cli("session", "stop", "prog/s").ok
    if restarted:
        daemon.stop()
    put_back = away(daemon)
    if restarted:
        daemon.start()
    message = daemon.post("say two", agent="prog", session="s")
    waits(daemon, message)
    put_back()
    assert daemon.answer(message, agent="prog", session="s")["text"] == "two"


def disk_of(daemon: RealDaemon) -> AbstractContextManager[SmallDisk]:
    return small_disk(folder_of(daemon), 1024)


@pytest.mark.parametrize("warm", [False, True])
def test_a_folder_whose_disk_is_not_mounted_is_not_taken_for_an_empty_one(daemon: RealDaemon, warm: bool) -> None:
    with disk_of(daemon):
        begin(daemon)
        if not warm:
            assert daemon.cli("session", "stop", "prog/s").ok
            daemon.stop()
    if not warm:
        daemon.start()
    message = daemon.post("say two", agent="prog", session="s")
    waits(daemon, message)
    assert "is not mounted" in refusal(daemon)
    with disk_of(daemon):
        shutil.copy(PROGRAM, folder_of(daemon))
        assert daemon.answer(message, agent="prog", session="s")["text"] == "two"
        daemon.end_quietly()


def test_a_link_that_leads_nowhere_holds_up_its_own_agent_alone(daemon: RealDaemon) -> None:
    target = daemon.root / "disk" / "prog"
    folder_of(daemon).rmdir()
    folder_of(daemon).symlink_to(target)
    daemon.start()
    message = daemon.post("say two", agent="prog", session="s")
    waits(daemon, message)
    target.mkdir(parents=True)
    shutil.copy(PROGRAM, target)
    assert daemon.answer(message, agent="prog", session="s")["text"] == "two"
