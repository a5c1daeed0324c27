"""The real processes and containers that a fault may strike: found by the install's own records and labels, never by name.

A process is signalled through a pidfd that was opened before its identity was checked, so that no stranger that got the
same number is ever hit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.faults import hands
from tests.support.daemon import RealDaemon

# The engine is the machine's own: these commands take no DOCKER_HOST.
HANDS: Final[Mapping[str, Callable[[str], None]]] = {
    "restart": hands.restart,
    "kill and start": hands.kill_and_start,
    "rename": hands.rename,
    "remove": hands.remove,
    "restart policy": hands.policy_and_kill,
    "prune": hands.kill_and_prune,
    "made again": hands.make_again,
}


@dataclass(frozen=True, slots=True)
class Agent:
    """One container of the process runtime: its shell, and when that began."""

    agent: str
    session: str
    pid: int
    start_ticks: int


class Victims(Protocol):
    """What can be struck. Each method says how many it struck."""

    def agents(self) -> list[str]:
        """Ids of all that live."""
        ...

    def strike(self, identity: str, how: str) -> int:
        """`how`: runner, container, program or freeze; with Docker also one of HANDS. 0 when there was nothing to strike."""
        ...


class ProcessVictims:
    """Agents of the process runtime."""

    def __init__(self, daemon: RealDaemon) -> None:
        self._folder = daemon.data / "run" / "process"

    def agents(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def strike(self, identity: str, how: str) -> int:
        try:
            record = json.loads((self._folder / f"{identity}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        with _pidfd(record["pid"]) as shell:
            stat = _stat(record["pid"])
            if shell is None or stat is None or stat.start_ticks != record["start_ticks"]:
                return 0
            if how == "container":
                return sum(_send(pid, record["pid"], signal.SIGKILL) for pid in _children(record["pid"])) + _signal(
                    shell, signal.SIGKILL
                )
            for runner in _children(record["pid"]):
                if how == "program":
                    return sum(_send(pid, runner, signal.SIGKILL) for pid in _children(runner))
                return _send(runner, record["pid"], signal.SIGSTOP if how == "freeze" else signal.SIGKILL)
        return 0


class DockerVictims:
    """Containers of one install. `docker kill` strikes the whole container at once, as the kernel would."""

    def __init__(self, daemon: RealDaemon, environ: dict[str, str]) -> None:
        self._daemon = daemon
        self._environ = environ
        self._install: str | None = None

    def agents(self) -> list[str]:
        self._install = self._install or self._daemon.install_id()
        done = self._docker("ps", "-q", "--no-trunc", "--filter", f"label=clawbus.install={self._install}")
        return sorted(done.stdout.split()) if done.returncode == 0 else []

    def strike(self, identity: str, how: str) -> int:
        if how == "program":
            return 0
        if how in HANDS:
            HANDS[how](identity)
            return 1
        # The freezer stops every process of a container, as SIGSTOP to each would.
        verb = ("pause", identity) if how == "freeze" else ("kill", "--signal", "KILL", identity)
        return int(self._docker(*verb).returncode == 0)

    def _docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=120, check=False, env=self._environ
        )


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return _Stat(int(fields[1]), int(fields[19]))


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


@contextlib.contextmanager
def _pidfd(pid: int):
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _send(pid: int, parent: int, number: signal.Signals) -> int:
    with _pidfd(pid) as descriptor:
        stat = _stat(pid)
        if descriptor is None or stat is None or stat.parent != parent:
            return 0
        return _signal(descriptor, number)


def _signal(descriptor: int, number: signal.Signals) -> int:
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return 0
    return 1
