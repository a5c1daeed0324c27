"""Reads the mounts that this process sees, as proc_pid_mountinfo(5) describes their table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from schema.frozen import frozen

_TABLE: Final = Path("/proc/self/mountinfo")
_ROOT: Final = 3  # fields of a line, from 0
_POINT: Final = 4
_REMOVED: Final = "//deleted"


@frozen
class MountPoint:
    """A folder or file that is mounted at `path`. `removed`: what is mounted there was removed from its file system."""

    path: Path
    removed: bool


def mount_points() -> list[MountPoint]:
    """Return every mount; none where the table cannot be read."""
    try:
        lines = _TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    rows = [fields for fields in map(str.split, lines) if len(fields) > _POINT]
    return [MountPoint(Path(_unescaped(row[_POINT])), row[_ROOT].endswith(_REMOVED)) for row in rows]


def _unescaped(text: str) -> str:
    """Return the path that the table has with octal escapes for white space and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text)
