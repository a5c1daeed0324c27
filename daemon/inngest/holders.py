"""Finds the processes that have a database open: a running server keeps its queue elsewhere and may revive a swept run.

Read-only: it asks for locks with F_GETLK, which takes none, and reads open files from /proc. Must be
asked before this process opens the file with SQLite: closing a descriptor of a file drops this process's locks on it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path, PurePath

from schema.frozen import frozen
from schema.stamp import lock_owner


class Queue(StrEnum):
    """Where a server keeps its queue."""

    MEMORY = "memory"
    REDIS = "redis"
    UNKNOWN = "unknown"


@frozen
class Holder:
    """A process that has the file open. `pid` is None for one of another pid namespace (a container's, seen from a pod).

    `queue` says where an Inngest server keeps its queue; None for a process that is not one. `started_at`: epoch milliseconds.
    """

    pid: int | None
    command: str
    queue: Queue | None = None
    started_at: int | None = None

    def report(self) -> dict[str, object]:
        """Return the values that the command line shows."""
        return {"pid": self.pid, "command": self.command, "queue": self.queue, "started_at": self.started_at}


def find_holders(path: Path) -> tuple[Holder, ...]:
    """Return every process but this one that has the database or its WAL open, as far as this user may see."""
    found = {holder.pid: holder for holder in _open_files(path)}
    pid = _lock_holder(path)
    if pid is not None and pid not in found:
        seen = pid > 0
        found[pid] = _holder(pid) if seen else Holder(None, "(a process of another container)")
    return tuple(found[key] for key in sorted(found, key=lambda one: one or 0))


def _lock_holder(path: Path) -> int | None:
    """Return the pid of a process that holds one of SQLite's locks on the file; 0 when it is not visible."""
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
    # Strings: a Path for each open file of the machine costs more than the rest.
    for process in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
        if int(process) == os.getpid():
            continue
        folder = f"/proc/{process}/fd"
        try:
            held = any(_identity(f"{folder}/{number}") in wanted for number in os.listdir(folder))  # noqa: PTH208
        except OSError:  # another user's, or gone
            continue
        if held:
            yield _holder(int(process))


def _identity(path: Path | str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _holder(pid: int) -> Holder:
    words = _words(pid, "cmdline")
    command = " ".join(words).strip()[:200]
    if not words or not PurePath(words[0]).name.startswith("inngest"):
        return Holder(pid, command)
    return Holder(pid, _without_secrets(words)[:200], _queue(pid, words), _started_at(pid))


def _queue(pid: int, words: list[str]) -> Queue:
    """Return the server's kind of queue, from its command line and environment. Unknown if they are unreadable or name a file."""
    settings = _words(pid, "environ")
    if any("redis-uri" in word for word in words) or any(one.startswith("INNGEST_REDIS_URI=") for one in settings):
        return Queue.REDIS
    try:
        files = [entry.name for entry in (Path("/proc") / str(pid) / "cwd").iterdir()]
    except OSError:
        return Queue.UNKNOWN
    configured = any("--config" in word for word in words) or any(one.startswith("INNGEST_CONFIG") for one in settings)
    configured = configured or any(name.startswith("inngest.") for name in files)
    return Queue.UNKNOWN if configured or not settings else Queue.MEMORY


def _started_at(pid: int) -> int | None:
    """Return the start in epoch milliseconds, rounded down by about a second, so that what seems older is older."""
    try:
        ticks = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
        lines = Path("/proc/stat").read_text().splitlines()
        booted = int(next(line for line in lines if line.startswith("btime ")).split()[1])
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return booted * 1000 + ticks * 1000 // os.sysconf("SC_CLK_TCK") - 1000


def _without_secrets(words: list[str]) -> str:
    """Return the words without keys and addresses that contain passwords."""
    secret = ("--signing-key", "--event-key", "--redis-uri", "--postgres-uri")
    shown: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        name, equals, _ = word.partition("=")
        hidden = before in secret or (name in secret and equals)
        shown.append(f"{name}=***" if hidden and equals else "***" if hidden else word)
    return " ".join(shown)


def _words(pid: int, name: str) -> list[str]:
    try:
        content = (Path("/proc") / str(pid) / name).read_bytes()
    except OSError:
        return []
    return [word.decode("utf-8", "replace") for word in content.split(b"\0") if word]
