"""The room that is left on a file system, and when it is too little."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from daemon.core.printable import room
from schema.frozen import frozen

LOW_BYTES: Final = 64 * 1024**2  # less free space than this is reported as trouble, before writing fails
LOW_INODES: Final = 1000  # fewer free inodes than this are reported; a new session needs about ten
_SHARE: Final = 10  # of a small disk, less than a tenth: it could never have as much free


@frozen
class FreeRoom:
    """The room that this user has left on a file system. `inodes` is None where the file system does not count them.

    Less than `low_bytes` and `low_inodes` is too little.
    """

    bytes: int
    inodes: int | None
    read_only: bool
    low_bytes: int = LOW_BYTES
    low_inodes: int = LOW_INODES

    @property
    def few_inodes(self) -> bool:
        """Whether new files will soon be refused, however many bytes are free."""
        return self.inodes is not None and self.inodes < self.low_inodes

    @property
    def is_low(self) -> bool:
        """Whether writing will soon fail."""
        return self.bytes < self.low_bytes or self.few_inodes

    def __str__(self) -> str:
        """Return the text for people, which names what is short."""
        if self.few_inodes:
            return f"{self.inodes} inodes (new files; `df -i`) and {room(self.bytes)} are free"
        return f"{room(self.bytes)} are free"


def free_room(folder: Path) -> FreeRoom | None:
    """Return the free room on a folder's file system; None if it does not report it."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return FreeRoom(
        bytes=status.f_bavail * status.f_frsize,
        inodes=status.f_favail if status.f_files else None,
        read_only=bool(status.f_flag & os.ST_RDONLY),
        low_bytes=min(LOW_BYTES, status.f_blocks * status.f_frsize // _SHARE),
        low_inodes=min(LOW_INODES, status.f_files // _SHARE),
    )
