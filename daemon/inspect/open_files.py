"""Reads the limits of another process: a daemon without descriptors or memory cannot always report that itself."""

from __future__ import annotations

import contextlib
import resource
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from daemon.core.facts import Limit, UsedUp

_PROC: Final = Path("/proc")
_OPTIONS: Final[Mapping[str, int]] = {
    "nofile": resource.RLIMIT_NOFILE,
    "as": resource.RLIMIT_AS,
    "data": resource.RLIMIT_DATA,
    "nproc": resource.RLIMIT_NPROC,
}


def open_files_used_up(pid: int) -> UsedUp | None:
    """Return the limit that the process has reached; None if it has reached none, is gone, or cannot be inspected."""
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return None
    # The limit is on the number of a new descriptor, not on how many there are (getrlimit(2)).
    if soft == resource.RLIM_INFINITY or any(number not in taken for number in range(soft)):
        return None
    return UsedUp(pid, soft, hard)


def limits_of(pid: int) -> tuple[Limit, ...]:
    """Return the limits of a process and what it uses of them; empty if it is gone or cannot be inspected."""
    found: list[Limit] = []
    for option, number in _OPTIONS.items():
        try:
            soft, hard = resource.prlimit(pid, number)
        except OSError:
            return ()
        found.append(Limit(option, soft, hard, _used(pid, option) if soft >= 0 else None))
    return tuple(found)


def machine_files() -> int:
    """Return how many files all processes together may have open; 0 when the kernel does not say."""
    try:
        return int((_PROC / "sys/fs/file-max").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def access_repair(folder: Path, pid: int) -> str | None:
    """Return the command that lets the process's user write into the folder again; None when it may already, or if unknown."""
    try:
        uid, status = (_PROC / str(pid)).stat().st_uid, folder.stat()
    except OSError:
        return None
    if uid == 0:
        return None
    if status.st_uid != uid:
        return f"chown -R {uid} {shlex.quote(str(folder))}"
    if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        return f"chmod u+rwx {shlex.quote(str(folder))}"
    return None


def _used(pid: int, option: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        if option == "nofile":
            return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        if option == "nproc":
            return _threads_of((_PROC / str(pid)).stat().st_uid)
        return _status(pid)["VmSize" if option == "as" else "VmData"] * 1024
    return None


def _threads_of(uid: int) -> int:
    """Count the threads of a user: that is what RLIMIT_NPROC limits."""
    count = 0
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, KeyError):
                count += _status(int(entry.name))["Threads"] if entry.stat().st_uid == uid else 0
    return count


def _status(pid: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in (_PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found
