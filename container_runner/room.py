"""Whether turns have used up what their container has no more of: the memory file systems that all of them share.

What a turn leaves in /tmp stays there, in memory, for as long as the container lives. A container without room fails one turn
after the other; a fresh one has room.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

SHARED: Final = ("/tmp", "/dev/shm")  # noqa: S108 - looked at, not written
_LEAST: Final = 0.05


def used_up(folders: Sequence[str] = SHARED) -> str | None:
    """Return the first of these file systems without room for another turn, or None if all have room."""
    for folder in folders:
        try:
            room = os.statvfs(folder)
        except OSError:
            continue
        no_bytes = room.f_blocks > 0 and room.f_bavail < room.f_blocks * _LEAST
        no_files = room.f_files > 0 and room.f_favail < room.f_files * _LEAST
        if no_bytes or no_files:
            return folder
    return None
