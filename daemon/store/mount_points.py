"""Says on which mount a folder lies."""

from __future__ import annotations

from pathlib import Path

from schema.mounts import mount_points


def mount_of(folder: Path) -> str | None:
    """Return the mount point of a folder, or None if unknown. A bind mount has its parent's device number."""
    path = folder.resolve()
    found = [one.path for one in mount_points() if path.is_relative_to(one.path)]
    return str(max(found, key=lambda point: len(point.parts))) if found else None
