"""What a turn leaves running, and a machine that starts no program: with real processes, in and under a real runner."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner.providers.command import CommandProvider
from container_runner.providers.protocol import ProviderContext
from container_runner.shared import errors
from container_runner.shared.children import Children
from daemon.runtimes.process_table import read_stat
from schema.layout import CANNOT_START_CODE
from schema.rows import RunnerSettings
from tests.integration.runner.test_command import TURN, Recorder
from tests.integration.runner.test_process import Runners
from tests.support.session_kit import SessionKit, eventually

# A daemon as the textbook has it: fork, a session of its own, fork again; the middle one ends.
DAEMON = (
    "import os, time\n"
    "if os.fork(): os.wait(); raise SystemExit\n"
    "os.setsid()\n"
    "if os.fork(): os._exit(0)\n"
    "for name in (0, 1, 2): os.close(name)\n"
    "open('pid', 'w').write(str(os.getpid()))\n"
    "time.sleep(300)\n"
)
LEFT = {
    "a session of its own": "setsid sh -c 'echo $$ > pid; exec sleep 300' & while [ ! -s pid ]; do :; done; echo hi",
    "one that ignores signals": "setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > pid; while :; do sleep 1; done' &"
    " while [ ! -s pid ]; do :; done; echo hi",
    "a daemon": 'python3 -c "$DAEMON"; while [ ! -s pid ]; do :; done; echo hi',
    "another environment": "env -i setsid sh -c 'echo $$ > pid; exec sleep 300' >/dev/null 2>&1 &"
    " while [ ! -s pid ]; do :; done; echo hi",
    "one that starts others": "setsid sh -c 'echo $$ > pid; while :; do setsid sleep 0.01 & done' >/dev/null 2>&1 &"
    " while [ ! -s pid ]; do :; done; echo hi",
}


@pytest.fixture
def kit(tmp_path: Path) -> SessionKit:
    return SessionKit(tmp_path)


@pytest.fixture
def runners(kit: SessionKit) -> Iterator[Runners]:
    made = Runners(kit)
    yield made
    made.close()
    kit.check()


def left_by(runner: subprocess.Popen[bytes]) -> list[int]:
    """The living processes below a runner, zombies included: nobody else would reap them."""
    stats = [read_stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [stat.pid for stat in stats if stat is not None and stat.parent == runner.pid]


@pytest.mark.parametrize("script", LEFT.values(), ids=LEFT.keys())
@pytest.mark.anyio
async def test_nothing_that_a_turn_started_outlives_it(
    kit: SessionKit, runners: Runners, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAEMON", DAEMON)
    kit.add("m1")
    runner = runners.command(script)
    await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert kit.contents() == [{"text": "hi"}]
    pid = int((kit.agent / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists(), "it is ended and reaped before its turn is committed"
    await eventually(lambda: left_by(runner) == [])
    (ended,) = [line for line in runners.log() if line["event"] == "leftovers_ended"]
    assert ended["remain"] == 0
    assert ended["count"] >= 1


@pytest.mark.anyio
async def test_a_setting_lets_what_left_the_group_live(kit: SessionKit, runners: Runners) -> None:
    kit.add("m1")
    runners.command(LEFT["a session of its own"], leftovers="keep")
    await eventually(lambda: kit.acks() == {"m1": "completed"})
    pid = int((kit.agent / "pid").read_text())
    os.kill(pid, signal.SIGKILL)  # raises, if it were gone


@pytest.mark.anyio
async def test_orphans_that_end_during_a_turn_are_reaped_at_once(kit: SessionKit, runners: Runners) -> None:
    kit.add("m1")
    runner = runners.command(
        "for n in 1 2 3 4 5; do sh -c 'sh -c exit &'; done; touch began; while [ ! -e go ]; do sleep 0.01; done; echo hi"
    )
    await eventually((kit.agent / "began").exists)
    await eventually(lambda: len(left_by(runner)) == 1)
    (kit.agent / "go").touch()
    await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert kit.contents() == [{"text": "hi"}]


def test_an_orphan_that_ends_while_a_program_is_started_is_reaped_after_the_start() -> None:
    children = Children()
    with children.starting():
        orphan = os.posix_spawn("/bin/true", ["true"], {})  # nobody here waits for it
        os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
        children.reap()  # on its SIGCHLD
        assert Path(f"/proc/{orphan}").exists(), "the one that is started could be it"
    assert not Path(f"/proc/{orphan}").exists()


@pytest.mark.anyio
async def test_leftovers_of_many_turns_do_not_pile_up(kit: SessionKit, runners: Runners) -> None:
    runner = runners.command("setsid sleep 300 >/dev/null 2>&1 & echo hi", max_batch=1)
    for number in range(10):
        kit.add(f"m{number}")
    await eventually(lambda: list(kit.acks().values()) == ["completed"] * 10)
    await eventually(lambda: left_by(runner) == [])


@pytest.mark.anyio
async def test_what_was_there_before_is_spared() -> None:
    before = start_sleeping()
    try:
        children = Children()
        after = start_sleeping()
        ended = await children.end_leftovers()
        assert (ended.names, ended.count, ended.remain) == (("sleep",), 1, 0)
        assert before.poll() is None
    finally:
        before.kill()
        before.wait(60)
    after.wait(60)


def start_sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "300"], start_new_session=True)


NO_ROOM = [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ESTALE]


@pytest.mark.faults
@pytest.mark.parametrize("number", NO_ROOM, ids=errno.errorcode.get)
@pytest.mark.anyio
async def test_a_start_that_the_machine_refuses_is_not_the_messages_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with pytest.raises(errors.CannotStartError):
        await refused(tmp_path, monkeypatch, OSError(number, os.strerror(number)))


@pytest.mark.faults
@pytest.mark.anyio
async def test_no_room_for_the_thread_that_waits_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.CannotStartError):
        await refused(tmp_path, monkeypatch, RuntimeError("can't start new thread"))


@pytest.mark.faults
@pytest.mark.parametrize(
    "number", [errno.E2BIG, errno.ETXTBSY, errno.ELOOP, errno.ENAMETOOLONG], ids=errno.errorcode.get
)
@pytest.mark.anyio
async def test_a_program_that_is_wrong_fails_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with pytest.raises(errors.TurnFailedError):
        await refused(tmp_path, monkeypatch, OSError(number, os.strerror(number)))


async def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(anyio, "open_process", refuse)
    settings = RunnerSettings(provider="command", command=("sh", "-c", "echo hi"))
    await CommandProvider(ProviderContext(settings, folder, os.environ)).run(TURN, Recorder())


@pytest.mark.faults
def test_a_runner_that_can_start_nothing_gives_its_claims_back_and_ends_with_a_code_of_its_own(
    kit: SessionKit,
) -> None:
    kit.add("m1")
    kit.add("m2")
    limited = (
        "import runpy, sys\n"
        "import anyio\n"
        "async def refuse(*_, **__): raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "anyio.open_process = refuse\n"
        "sys.argv = ['container_runner']\n"
        "runpy.run_module('container_runner', run_name='__main__')\n"
    )
    environment = kit.environment("I1", provider="command", command=["sh", "-c", "echo hi"], poll_s=0.1)
    done = subprocess.run(
        [sys.executable, "-c", limited], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == CANNOT_START_CODE, done.stderr
    assert kit.acks() == {}, "given back: no ack, no claim, no try"
    assert kit.out() == []
    assert kit.tool()["current_tool"] is None
    assert "runner_cannot_start_programs" in done.stderr
