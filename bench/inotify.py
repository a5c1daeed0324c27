"""Raw inotify through libc: what the floor waits with. No thread, no queue, no filter but a name.

It must stay this small: whatever it did more would not be floor.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_EVENT: Final = struct.Struct("iIII")
_BUFFER: Final = 4096


class DeleteWatch:
    """Wakes when a file of one name is deleted in a folder: a DELETE-mode commit ends with its journal's deletion.

    It asks for creations too and ignores them. The kernel merges two identical events that nobody has read in between
    (inotify(7)), so two quick commits would count as one; a creation between their deletions keeps them apart.
    """

    def __init__(self, folder: Path, name: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.inotify_init1(os.O_CLOEXEC))
        if self._fd < 0 or int(libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_CREATE | _IN_DELETE)) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._name = os.fsencode(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def wait(self, timeout_s: float = 10.0, *, deletions: int = 1) -> None:
        """Return after so many more deletions of the file. Raises TimeoutError."""
        if not self.heard(timeout_s, deletions=deletions):
            raise TimeoutError("no file event")

    def heard(self, timeout_s: float, *, deletions: int = 1) -> bool:
        """Wait for so many more deletions of the file. Return False when none came for `timeout_s` seconds."""
        while deletions > 0:
            if not select.select([self._fd], [], [], timeout_s)[0]:
                return False
            deletions -= _deleted(os.read(self._fd, _BUFFER)).count(self._name)
        return True


def _deleted(events: bytes) -> list[bytes]:
    """Return the names of the deleted files, in order."""
    found: list[bytes] = []
    place = 0
    while place < len(events):
        _, mask, _, length = _EVENT.unpack_from(events, place)
        place += _EVENT.size
        if mask & _IN_DELETE:
            found.append(events[place : place + length].rstrip(b"\0"))
        place += length
    return found
