"""Signals at a real daemon, from its first moment to its last, with a service manager that listens and with a terminal."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.agents import ECHO
from tests.support.daemon import CLAWBUS, RealDaemon, eventually

_IN_TERMINAL: Final = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    made = RealDaemon(ECHO)
    try:
        yield made
    finally:
        made.close()


class Manager:
    """A service manager: the socket that NOTIFY_SOCKET names."""

    def __init__(self, daemon: RealDaemon) -> None:
        path = daemon.root / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(120)
        daemon.environment = {"NOTIFY_SOCKET": str(path)}

    def await_line(self, wanted: str) -> None:
        while wanted not in self._socket.recv(65536).decode().splitlines():
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(daemon: RealDaemon) -> Iterator[Manager]:
    made = Manager(daemon)
    yield made
    made.close()


def begin(daemon: RealDaemon, *, terminal: int | None = None) -> subprocess.Popen[bytes]:
    """`clawbus serve` as it is, without waiting for anything."""
    command = [CLAWBUS, "--config", str(daemon.config), "serve"]
    if terminal is not None:
        command = [sys.executable, "-c", _IN_TERMINAL, *command]
    with (daemon.root / "run.log").open("ab") as output:
        process = subprocess.Popen(
            command, stdin=terminal if terminal is not None else subprocess.DEVNULL, stdout=output, stderr=output,
            env=daemon._environ(),
        )  # fmt: skip
    daemon.process = process
    daemon._started.append(process)
    return process


def catches(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGIO) -> bool:
    """Whether the process has its handlers (proc(5), SigCgt); SIGIO, because Python itself catches SIGINT earlier."""
    assert process.poll() is None, f"it ended with {process.returncode}"
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_a_reload_at_the_moment_of_readiness_is_done(daemon: RealDaemon, manager: Manager) -> None:
    for count in range(1, 4):
        process = begin(daemon)
        manager.await_line("READY=1")
        process.send_signal(signal.SIGHUP)
        manager.await_line("READY=1")
        assert len(daemon.events("config_reloaded")) == count
        assert daemon.stop() == 0


def test_a_reload_during_start_up_waits_for_its_end(daemon: RealDaemon, manager: Manager) -> None:
    process = begin(daemon)
    eventually("a handler", lambda: catches(process))
    assert daemon.events("daemon_ready") == []
    for _ in range(20):
        process.send_signal(signal.SIGHUP)
    manager.await_line("READY=1")
    manager.await_line("READY=1")
    eventually("reloaded", lambda: daemon.events("config_reloaded"))
    assert daemon.stop() == 0


def holds(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process holds SIGHUP back (proc(5), SigBlk): Python runs, and little of it is imported."""
    assert process.poll() is None, f"it ended with {process.returncode}"
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:"))
    return bool(int(blocked.split()[1], 16) >> (signal.SIGHUP - 1) & 1)


def test_a_signal_during_the_imports_is_held_back(daemon: RealDaemon, manager: Manager) -> None:
    process = begin(daemon)
    eventually("held back", lambda: holds(process))
    for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGHUP):
        process.send_signal(number)
    manager.await_line("READY=1")
    eventually("reloaded", lambda: daemon.events("config_reloaded"))
    assert not holds(process)
    assert daemon.stop() == 0
    process = begin(daemon)
    eventually("held back", lambda: holds(process))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_another_command_is_interrupted_as_ever(daemon: RealDaemon) -> None:
    daemon.start()
    for arguments in (("mailbox", "serve", "--follow"), ("logs", "--follow", "-m", "serve")):
        process = daemon.begin_stream(*arguments)
        eventually("it can be interrupted", lambda process=process: catches_interrupts(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        process.communicate()


def catches_interrupts(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    masks = {
        line.split(":")[0]: int(line.split()[1], 16) for line in lines if line.startswith("Sig") and "/" not in line
    }
    bit = 1 << (signal.SIGINT - 1)
    # Held, then released: the command is at work. Released alone would be true before Python has begun, too.
    resident = next(line for line in lines if line.startswith("VmRSS"))
    return bool(masks["SigCgt"] & bit) and not masks["SigBlk"] & bit and int(resident.split()[1]) > 30_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_start_up_ends_in_order(daemon: RealDaemon, number: signal.Signals) -> None:
    process = begin(daemon)
    eventually("a handler", lambda: catches(process))
    assert daemon.events("daemon_ready") == []
    process.send_signal(number)
    assert process.wait(60) == 0
    assert len(daemon.events("daemon_stopped")) == 1
    assert not daemon.socket.exists()


def test_however_often_it_is_told_to_stop_it_is_one_orderly_end(daemon: RealDaemon) -> None:
    for count in range(1, 4):
        daemon.start()
        assert daemon.process is not None
        while daemon.process.poll() is None:  # to the last moment: also while Python itself ends
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.returncode == 0
        assert len(daemon.events("daemon_stopped")) == count


def test_the_signals_of_log_rotation_end_nothing(daemon: RealDaemon) -> None:
    process = begin(daemon)
    eventually("a handler", lambda: catches(process))
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        process.send_signal(number)
    daemon.wait_ready()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        process.send_signal(number)
        assert daemon.ask("hello", agent="echo", session="main")["text"] == "hello"
    assert daemon.events("config_reloaded") == []
    assert daemon.stop() == 0


def test_an_agent_inherits_no_ignored_signal(daemon: RealDaemon) -> None:
    daemon.start()
    daemon.ask("hello", agent="echo", session="main")
    status = Path(f"/proc/{daemon.leader('echo', 'main')}/status").read_text(encoding="utf-8")
    lines = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Sig"))
    unwanted = sum(1 << number - 1 for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM))
    assert int(lines["SigIgn"], 16) & unwanted == 0
    assert int(lines["SigBlk"], 16) & unwanted == 0


def test_a_closed_terminal_ends_the_daemon_in_order(daemon: RealDaemon) -> None:
    master, slave = os.openpty()
    process = begin(daemon, terminal=slave)
    os.close(slave)
    daemon.wait_ready()
    process.send_signal(signal.SIGHUP)  # the terminal is there: somebody asks for a reload
    eventually("reloaded", lambda: daemon.events("config_reloaded"))
    assert process.poll() is None
    os.close(master)
    assert process.wait(60) == 0
    assert len(daemon.events("terminal_closed")) == 1
    assert len(daemon.events("daemon_stopped")) == 1


def test_a_reload_that_needs_a_restart_is_a_warning(daemon: RealDaemon) -> None:
    daemon.start()
    daemon.config.write_text(
        daemon.config.read_text(encoding="utf-8").replace("retry_max_s = 0.5", "retry_max_s = 9.0")
    )
    daemon.reload()
    event = eventually("reloaded", lambda: daemon.events("config_reloaded"))[0]
    assert (event["level"], event["restart_needed_for"]) == ("warning", ["delivery"])
