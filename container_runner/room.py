"""Checks whether turns have filled the container's memory file systems, which all turns share.

Files that a turn leaves in /tmp stay in memory for as long as the container lives. Once these are full, one turn after the
other fails; a fresh container has room again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

SHARED: Final = ("/tmp", "/dev/shm")  # noqa: S108 - only checked, never written
_LEAST: Final = 0.05


def used_up(folders: Sequence[str] = SHARED) -> str | None:
    """Return the first of these folders whose file system lacks room for another turn, or None if all have room."""
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
