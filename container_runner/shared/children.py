"""The runner's child processes, its own and inherited ones: ends the processes that a turn left running.

The runner is a subreaper (prctl(2)): a process whose parent has died becomes the runner's child, whatever session or group it
created. So every process that a turn started stays a descendant of the runner and can be found as such. Linux only; elsewhere,
and where the kernel refuses, only the program's process group is ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio

from schema.frozen import frozen

_PR_SET_CHILD_SUBREAPER: Final = 36
_PROC: Final = Path("/proc")
_GIVE_UP_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.002
_NAMES: Final = 5


def become_subreaper() -> bool:
    """Make this process the new parent of its descendants' orphans. Return False where the kernel does not support that."""
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    return prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@frozen
class Ended:
    """A turn's leftover processes: the names of the first ones, how many there were, and how many are still running."""

    names: tuple[str, ...] = ()
    count: int = 0
    remain: int = 0


class Children:
    """Tracks the children that a task here waits for; they must not be reaped elsewhere.

    Processes older than this object are never ended.
    """

    def __init__(self) -> None:
        self._awaited: set[int] = set()
        self._starting = 0
        self._reap_put_off = False
        self._spared = frozenset(_children(os.getpid()))

    @contextmanager
    def starting(self) -> Generator[None]:
        """Put off reaping: a program that is just being started is not registered yet."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            if self._reap_put_off and not self._starting:
                self.reap()  # no signal comes a second time

    def await_(self, pid: int) -> None:
        """Register a child that a task waits for and whose exit code it collects."""
        self._awaited.add(pid)

    def forget(self, pid: int) -> None:
        """Unregister a child that no task waits for any longer."""
        self._awaited.discard(pid)

    def reap(self) -> None:
        """Reap inherited children that have exited: until then each occupies a slot in the process table."""
        self._reap_put_off = bool(self._starting)
        if self._starting or not _has_children():
            return
        for pid in self._inherited():
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    async def end_leftovers(self) -> Ended:
        """End every descendant that no task here waits for. Call it when no turn runs."""
        found: dict[int, str] = {}
        stopped: set[int] = set()
        deadline = anyio.current_time() + _GIVE_UP_S
        while left := self._leftovers():
            for pid in left - found.keys():
                found[pid] = _name(pid)
            if fresh := left - stopped:
                # Stop it before killing: a process that forks as fast as it is killed would never be caught.
                _signal_each(fresh, signal.SIGSTOP, left)
                stopped |= fresh
            else:
                _signal_each(left, signal.SIGKILL, left)
            if anyio.current_time() > deadline:
                break
            await anyio.sleep(_LOOK_AGAIN_S)
        self.reap()
        return Ended(tuple(list(found.values())[:_NAMES]), len(found), len(left))

    def _leftovers(self) -> set[int]:
        if not _has_children():
            return set()
        self.reap()
        found: set[int] = set()
        fresh = set(self._inherited())
        while fresh:
            found |= fresh
            fresh = {child for pid in fresh for child in _children(pid)} - found
        return {pid for pid in found if not _is_dead(pid)}

    def _inherited(self) -> list[int]:
        return [pid for pid in _children(os.getpid()) if pid not in self._awaited and pid not in self._spared]


def _has_children() -> bool:
    """Return whether there are children, reliably in one call: a list of children may miss one while another exits."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children(pid: int) -> Iterator[int]:
    """Yield the running and unreaped children of a process."""
    try:
        tasks = [task.name for task in (_PROC / str(pid) / "task").iterdir()]
        for task in tasks:
            text = (_PROC / str(pid) / "task" / task / "children").read_text(encoding="ascii")
            yield from (int(word) for word in text.split())
    except FileNotFoundError:
        if pid != os.getpid():
            return  # it has just exited (or the kernel lacks this file, and `_scan` has found all descendants at once)
        yield from _scan(pid)
    except (ProcessLookupError, PermissionError):
        return


def _scan(ancestor: int) -> set[int]:
    """Return all descendants, on a kernel without lists of children."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    fresh = {ancestor}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields after the name (state, parent, ...), or nothing if there is no such process (proc(5))."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _is_dead(pid: int) -> bool:
    fields = _stat(pid)
    return not fields or fields[0] in "ZXx"


def _name(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "?"


def _signal_each(pids: set[int], number: signal.Signals, family: set[int]) -> None:
    parents = {str(pid) for pid in (*family, os.getpid())}
    for pid in pids:
        # We may not end another user's process (sudo): it counts as still running.
        with suppress(ProcessLookupError, PermissionError), _handle(pid) as handle:
            # Check again while holding the handle: the pid may have been reused by a process that is not ours.
            if (fields := _stat(pid)) and fields[1] in parents:
                if handle is None:
                    os.kill(pid, number)
                else:
                    signal.pidfd_send_signal(handle, number)


@contextmanager
def _handle(pid: int) -> Generator[int | None]:
    """Yield a descriptor of exactly this process, or None where the kernel or a seccomp filter does not allow it."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)
