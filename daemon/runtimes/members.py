"""Finds the processes of a container, and those that lock a file, from /proc alone.

Synchronous, bounded by the process table. A container in a virtual machine or on another host has no process here, and
then nothing is known: None, never "none".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from daemon.core.errors import RuntimeUnavailableError
from daemon.runtimes import process_table
from daemon.runtimes.process_records import RecordStore

_PROC: Final = Path("/proc")
_LOCKS: Final = _PROC / "locks"
_MAX_LOCK_LINES: Final = 100_000
_FIELDS: Final = 6

Members = Callable[[str], frozenset[int] | None]


def member_finder(kind: str, records: Path) -> Members:
    """Return a function from a container's id to its pids, for this kind of runtime. `records` are the process runtime's."""
    if kind == "process":
        return lambda container_id: _of_record(RecordStore(records), container_id)
    return _of_cgroup


def lock_holders(path: Path, *, writing: bool = False) -> frozenset[int]:
    """Return the processes with a POSIX lock on the file, as far as they are visible, without opening the file.

    With `writing` only those that keep others from writing it.

    Opening and closing it would drop this process's own locks (fcntl(2)).
    """
    try:
        status = path.stat()
        lines = _LOCKS.read_text(encoding="ascii", errors="replace").splitlines()[:_MAX_LOCK_LINES]
    except OSError:
        return frozenset()
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found: set[int] = set()
    for line in lines:
        fields = line.replace("-> ", "").split()
        if len(fields) < _FIELDS or fields[1] != "POSIX" or (writing and fields[3] != "WRITE"):
            continue
        if fields[5] == wanted and fields[4].isdigit():
            found.add(int(fields[4]))
    return frozenset(found - {os.getpid()})


def name_of(pid: int) -> str:
    """Return `1234 (python3)`, or only the number."""
    try:
        name = (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return str(pid)
    return f"{pid} ({''.join(letter for letter in name if letter.isprintable())})"


def _of_record(records: RecordStore, container_id: str) -> frozenset[int] | None:
    try:
        record = records.read(container_id)
    except RuntimeUnavailableError:
        return None
    if record is None:
        return None
    return frozenset(stat.pid for stat in process_table.living_members(record.leader)) or None


def _of_cgroup(container_id: str) -> frozenset[int] | None:
    """Find the pids by cgroup: Docker names it after the container's id, with every driver and version of cgroups."""
    wanted, found = container_id.encode("ascii", "replace"), set[int]()
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "cgroup").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return frozenset(found) or None
