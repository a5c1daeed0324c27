"""Who has a database open: a server that is up keeps its queue elsewhere, and may revive a run that is swept.

Looks, and touches nothing: a lock is asked for with F_GETLK, which takes none, and open files are read from /proc. Must be
asked before this process opens the file with SQLite: closing a descriptor of a file drops this process's locks on it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schema.stamp import lock_owner


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has the file open. `pid` is None for one of another pid namespace (a container's, seen from a pod)."""

    pid: int | None
    command: str

    def report(self) -> dict[str, object]:
        """For people and the envelope."""
        return {"pid": self.pid, "command": self.command}


def find_holders(path: Path) -> tuple[Holder, ...]:
    """Every process but this one that has the database or its WAL open, as far as this user may see."""
    found = {holder.pid: holder for holder in _open_files(path)}
    pid = _lock_holder(path)
    if pid is not None and pid not in found:
        seen = pid > 0
        found[pid] = Holder(pid if seen else None, _command(pid) if seen else "(a process of another container)")
    return tuple(found[key] for key in sorted(found, key=lambda one: one or 0))


def _lock_holder(path: Path) -> int | None:
    """The pid of a process that holds one of SQLite's locks on the file; 0 when it cannot be seen from here."""
    if not path.is_file():  # a FIFO would wait for a writer, and a device may act on being opened
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # Every open connection to a WAL file holds a shared lock there for as long as it lives.
        return lock_owner(descriptor, fcntl.F_WRLCK)
    finally:
        os.close(descriptor)


def _open_files(path: Path) -> Iterator[Holder]:
    wanted = {_identity(path.with_name(path.name + suffix)) for suffix in ("", "-wal", "-shm")} - {None}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        try:
            held = any(_identity(entry) in wanted for entry in (process / "fd").iterdir())
        except OSError:  # another user's, or gone
            continue
        if held:
            yield Holder(int(process.name), _command(int(process.name)))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _command(pid: int) -> str:
    try:
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode("utf-8", "replace").strip()[:200]
