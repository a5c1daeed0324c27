"""Linux's process table for the process runtime: which process a pid is, and what lives in a container.

Only /proc and pidfds. A pid alone is never trusted: numbers are reused, so it counts together with its start time
and the machine's boot.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

# Every process of a container inherits it, also those that the runner starts without any CLAWBUS_* variable.
ENV_MARK: Final = "CONTAINER_INCARNATION"

_PROC: Final = Path("/proc")
_MACHINE_IDS: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_DEAD: Final = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of the table. `start_ticks` is clock ticks since boot and never changes in a process's life."""

    pid: int
    state: str
    parent: int
    session: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        """A zombie is dead: it runs nothing and writes nothing."""
        return self.state not in _DEAD


@dataclass(frozen=True, slots=True)
class Leader:
    """The first process of a container: leader of its own session and group."""

    pid: int
    start_ticks: int
    boot_id: str
    incarnation: str


def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def machine_id() -> str:
    """Return the machine's own id; empty where it has none, as in many containers."""
    for path in _MACHINE_IDS:
        with contextlib.suppress(OSError):
            if text := path.read_text(encoding="ascii", errors="replace").strip():
                return text
    return ""


def is_anybody_marked(incarnation: str) -> bool:
    """Return whether a living process that we may inspect belongs to a container of this incarnation."""
    mark = f"{ENV_MARK}={incarnation}".encode()
    return any(stat.alive and _is_marked(stat.pid, mark) for stat in _all_stats())


def read_stat(pid: int) -> ProcessStat | None:
    """Return the process of this number, or None. In proc(5) the name is in parentheses and may hold anything."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return ProcessStat(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def leader_stat(leader: Leader) -> ProcessStat | None:
    """Return the leader's entry (perhaps a zombie's), or None when it is gone or its number was reused."""
    stat = read_stat(leader.pid)
    if stat is None or stat.start_ticks != leader.start_ticks or leader.boot_id != boot_id():
        return None
    return stat


def living_members(leader: Leader) -> list[ProcessStat]:
    """Return every living process of the container: of its session, marked with its incarnation, or descended from one.

    The mark (ENV_MARK in its environment) finds a process that has left the session and whose parent died.
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
    """Return the living child of a shell that has executed its program by now, or None.

    A child that is still the forked shell does not count: it forgets the signals that come before it has become another.
    """
    own = _program(shell.pid)
    for stat in _all_stats():
        if stat.parent == shell.pid and stat.alive and _program(stat.pid) not in {own, None}:
            return stat
    return None


def send_signal(stat: ProcessStat, number: signal.Signals) -> None:
    """Signal exactly this process; one that is gone is not an error."""
    with _pidfd(stat.pid, stat.start_ticks) as handle:
        if handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)


async def ended(pid: int, start_ticks: int) -> None:
    """Return when this process runs no more (it may stay a zombie until its parent reaps it)."""
    with _pidfd(pid, start_ticks) as handle:
        if handle is not None:
            await anyio.wait_readable(handle)


@contextlib.contextmanager
def _pidfd(pid: int, start_ticks: int) -> Generator[int | None]:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Check while the descriptor is open: the pid cannot be reused now.
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
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or another user's: not ours then
        return False
    return mark in environment.split(b"\0")


def _add_descendants(inside: set[int], table: dict[int, ProcessStat]) -> None:
    grown = True
    while grown:
        children = {stat.pid for stat in table.values() if stat.parent in inside} - inside
        inside |= children
        grown = bool(children)
