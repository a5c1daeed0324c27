"""Says on which mount a folder lies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_MOUNT_POINT: Final = 4  # the field of mountinfo, from 0


def mount_of(folder: Path) -> str | None:
    """Return the mount point of a folder, or None if unknown. A bind mount has its parent's device number."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    path = folder.resolve()
    points = [Path(_unescaped(fields[_MOUNT_POINT])) for line in lines if len(fields := line.split()) > _MOUNT_POINT]
    found = [point for point in points if path.is_relative_to(point)]
    return str(max(found, key=lambda point: len(point.parts))) if found else None


def _unescaped(text: str) -> str:
    """Return the path that proc(5) writes with octal escapes for white space and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text)
