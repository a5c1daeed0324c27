"""Reads Linux's process table for the process runtime: which process has a pid, and which processes a container has.

It uses only /proc and pidfds. Linux reuses pids, so a pid identifies a process only together with the process's start
time and the id of the machine's boot.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import anyio

from schema.frozen import frozen

# Every process of a container inherits this variable, even one that the runner starts without any CLAWBUS_* variable.
ENV_MARK: Final = "CONTAINER_INCARNATION"

_PROC: Final = Path("/proc")
_MACHINE_IDS: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_DEAD: Final = frozenset("ZXx")  # states of proc(5): zombie, dead


@frozen
class ProcessStat:
    """One process. `session` is its Linux session, not a clawbus session. `start_ticks`: its start, in clock ticks since boot."""

    pid: int
    state: str
    parent: int
    session: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        """False for a zombie, too: it runs nothing and writes nothing."""
        return self.state not in _DEAD


@frozen
class Leader:
    """The first process of a container. It leads a Linux session and process group of its own."""

    pid: int
    start_ticks: int
    boot_id: str
    incarnation: str


def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def machine_id() -> str:
    """Return the machine's id, or an empty text where it has none, as in many containers."""
    for path in _MACHINE_IDS:
        with contextlib.suppress(OSError):
            if text := path.read_text(encoding="ascii", errors="replace").strip():
                return text
    return ""


def is_incarnation_alive(incarnation: str) -> bool:
    """Return whether a living process has this incarnation's mark. A process that we may not inspect does not count."""
    mark = f"{ENV_MARK}={incarnation}".encode()
    return any(stat.alive and _is_marked(stat.pid, mark) for stat in _all_stats())


def read_stat(pid: int) -> ProcessStat | None:
    """Return the process with this pid, or None."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name, in parentheses, may itself hold spaces and parentheses
    return ProcessStat(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def leader_stat(leader: Leader) -> ProcessStat | None:
    """Return the leader's process, perhaps a zombie. None when it is gone or another process has its pid now."""
    stat = read_stat(leader.pid)
    if stat is None or stat.start_ticks != leader.start_ticks or leader.boot_id != boot_id():
        return None
    return stat


def living_members(leader: Leader) -> list[ProcessStat]:
    """Return the container's living processes, sorted by pid. Return none after a reboot.

    A process belongs to the container if it is in the leader's Linux session, or if its environment marks it (ENV_MARK).
    Descendants of such processes belong to it, too. The mark finds one that left the session and whose parent has died.
    """
    if leader.boot_id != boot_id():
        return []
    table = {stat.pid: stat for stat in _all_stats()}
    reused = leader.pid in table and table[leader.pid].start_ticks != leader.start_ticks
    mark = f"{ENV_MARK}={leader.incarnation}".encode()
    inside = {
        stat.pid
        for stat in table.values()
        if stat.start_ticks >= leader.start_ticks
        and ((stat.session == leader.pid and not reused) or _is_marked(stat.pid, mark))
    }
    _add_descendants(inside, table)
    return [table[pid] for pid in sorted(inside) if table[pid].alive]


def child_program(shell: ProcessStat) -> ProcessStat | None:
    """Return the shell's living child once it has executed its own program; None before.

    Until then the child is a copy of the shell, and the program does not get a signal that is sent to it.
    """
    own = _program(shell.pid)
    for stat in _all_stats():
        if stat.parent == shell.pid and stat.alive and _program(stat.pid) not in {own, None}:
            return stat
    return None


def send_signal(stat: ProcessStat, number: signal.Signals) -> None:
    """Send a signal to exactly this process. Do nothing if it is gone. Raise PermissionError if we may not signal it."""
    with _pidfd(stat.pid, stat.start_ticks) as handle:
        if handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)


async def ended(pid: int, start_ticks: int) -> None:
    """Wait until this process has ended. It may still be a zombie then, until its parent reaps it."""
    with _pidfd(pid, start_ticks) as handle:
        if handle is not None:
            await anyio.wait_readable(handle)


@contextlib.contextmanager
def _pidfd(pid: int, start_ticks: int) -> Generator[int | None]:
    """Open a descriptor of this process, or give None if it is gone or its pid was reused."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # The open descriptor stays with its process. Check that this is the wanted one, and not a later one with its pid.
        stat = read_stat(pid)
        yield handle if stat is not None and stat.start_ticks == start_ticks else None
    finally:
        os.close(handle)


def _all_stats() -> Iterator[ProcessStat]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            stat = read_stat(int(entry.name))
            if stat is not None:
                yield stat


def _program(pid: int) -> str | None:
    try:
        return str((_PROC / str(pid) / "exe").readlink())
    except OSError:
        return None


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or another user's, and so not ours
        return False
    return mark in environment.split(b"\0")


def _add_descendants(inside: set[int], table: dict[int, ProcessStat]) -> None:
    """Add to `inside` the pids of all descendants of its processes."""
    grown = True
    while grown:
        children = {stat.pid for stat in table.values() if stat.parent in inside} - inside
        inside |= children
        grown = bool(children)
