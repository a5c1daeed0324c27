"""Files without a name that processes keep: no folder shows them, and they fill the disk until they are closed.

From /proc alone: the descriptors of a process, and what it has mapped. Synchronous and bounded.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_BLOCK: Final = 512
_MAX_DESCRIPTORS: Final = 100_000  # of all processes together
_MAP_FIELDS: Final = 5


def deleted_bytes(pids: Iterable[int], device: int) -> int | None:
    """Bytes on this device of deleted files that the processes have open or mapped; None when none could be looked into.

    A process that ends meanwhile keeps nothing. One that may not be looked into is left out.
    """
    found: dict[int, int] = {}  # inode -> bytes
    looked, left = False, _MAX_DESCRIPTORS
    for pid in pids:
        try:
            with os.scandir(_PROC / str(pid) / "fd") as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return sum(found.values())
                    _note_descriptor(entry.path, device, found)
            _note_maps(_PROC / str(pid) / "maps", device, found)
        except OSError:
            continue
        looked = True
    return sum(found.values()) if looked else None


def _note_descriptor(path: str, device: int, found: dict[int, int]) -> None:
    try:
        status = os.stat(path)  # noqa: PTH116 - of what is open, whatever its name was
    except OSError:
        return
    if status.st_nlink == 0 and status.st_dev == device and stat.S_ISREG(status.st_mode):
        found[status.st_ino] = max(found.get(status.st_ino, 0), status.st_blocks * _BLOCK)


def _note_maps(path: Path, device: int, found: dict[int, int]) -> None:
    """Ranges of deleted files; what is mapped of one is the least that it holds."""
    wanted, sizes = f"{os.major(device):02x}:{os.minor(device):02x}", dict[int, int]()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if line.endswith(" (deleted)") and len(fields) > _MAP_FIELDS and fields[3] == wanted and fields[4].isdigit():
            begin, _, end = fields[0].partition("-")
            sizes[int(fields[4])] = sizes.get(int(fields[4]), 0) + int(end, 16) - int(begin, 16)
    for inode, size in sizes.items():
        found[inode] = max(found.get(inode, 0), size)
