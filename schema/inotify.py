"""Linux file events straight from the kernel: a wake costs what the kernel takes, and nothing while nothing happens.

A thin layer over inotify(7) through the C library. It interprets nothing, never blocks, and never follows what an event names.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

IN_ATTRIB: Final = 0x0000_0004
IN_MOVED_TO: Final = 0x0000_0080
IN_CREATE: Final = 0x0000_0100
IN_DELETE: Final = 0x0000_0200
IN_Q_OVERFLOW: Final = 0x0000_4000
IN_IGNORED: Final = 0x0000_8000
_IN_ONLYDIR: Final = 0x0100_0000
_IN_DONT_FOLLOW: Final = 0x0200_0000
_HEADER: Final = struct.Struct("iIII")
_READ_BYTES: Final = 64 * 1024


class FileEvent(NamedTuple):
    """One event: of which watch (-1: the queue ran over), its mask, and the name in the folder."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify instance; its descriptor becomes readable when there is something to `read`. Close it at the end."""

    def __init__(self) -> None:
        """Start watching. Raise OSError without inotify (ENOSYS) or without an instance left (EMFILE)."""
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            init, self._add, self._remove = libc.inotify_init1, libc.inotify_add_watch, libc.inotify_rm_watch
        except AttributeError as error:
            raise OSError(errno.ENOSYS, "the C library has no inotify") from error
        self._descriptor = _checked(init(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Return the descriptor, to be polled for readability."""
        return self._descriptor

    def watch(self, folder: Path, mask: int) -> int:
        """Watch a folder, not a link to one; the number that its events carry. Raise OSError."""
        return _checked(self._add(self._descriptor, os.fsencode(folder), mask | _IN_ONLYDIR | _IN_DONT_FOLLOW))

    def unwatch(self, watch: int) -> None:
        """Stop watching. One that is gone already (with its folder) is not an error."""
        self._remove(self._descriptor, watch)

    def read(self) -> list[FileEvent]:
        """Return the events that are available now. Do not wait."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        found: list[FileEvent] = []
        at = 0
        while at < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            found.append(FileEvent(watch, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
            at += length
        return found

    def close(self) -> None:
        """Give the instance back. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
