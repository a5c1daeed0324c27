"""Measures deleted files that processes still hold: they are in no folder, and use disk space until they are closed.

It reads only /proc: a process's descriptors and memory maps. Synchronous and bounded.
"""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_BLOCK: Final = 512
_MAX_DESCRIPTORS: Final = 100_000  # limit for all processes together
_MAP_FIELDS: Final = 5
_MAPS_S: Final = 2.0


def deleted_bytes(pids: Iterable[int], device: int, *, clock: Callable[[], float] = time.monotonic) -> int | None:
    """Return the bytes, on this device, of deleted files that the processes have open or mapped.

    Return None when no process could be inspected. A process that exits during the check holds nothing; one that may not be
    inspected is left out. All descriptors are counted; the maps only for `_MAPS_S` seconds, because reading those of a process
    waits for its forks, which take long in a container that has used up its processor time. So the order of the processes is
    another one each time: no file stays hidden behind a storm of forks.
    """
    found: dict[int, int] = {}  # bytes by inode
    looked: list[int] = []
    left = _MAX_DESCRIPTORS
    for pid in pids:
        try:
            with os.scandir(_PROC / str(pid) / "fd") as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return sum(found.values())
                    _note_descriptor(entry.path, device, found)
        except OSError:
            continue
        looked.append(pid)
    ends = clock() + _MAPS_S
    for pid in random.sample(looked, len(looked)):
        if clock() >= ends:
            break
        with suppress(OSError):
            _note_maps(_PROC / str(pid) / "maps", device, found)
    return sum(found.values()) if looked else None


def _note_descriptor(path: str, device: int, found: dict[int, int]) -> None:
    try:
        status = os.stat(path)  # noqa: PTH116 - stat the open file, whatever its name was
    except OSError:
        return
    if status.st_nlink == 0 and status.st_dev == device and stat.S_ISREG(status.st_mode):
        found[status.st_ino] = max(found.get(status.st_ino, 0), status.st_blocks * _BLOCK)


def _note_maps(path: Path, device: int, found: dict[int, int]) -> None:
    """Add mapped ranges of deleted files to `found`. The mapped size is a lower bound for the file's size."""
    wanted, sizes = f"{os.major(device):02x}:{os.minor(device):02x}", dict[int, int]()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if line.endswith(" (deleted)") and len(fields) > _MAP_FIELDS and fields[3] == wanted and fields[4].isdigit():
            begin, _, end = fields[0].partition("-")
            sizes[int(fields[4])] = sizes.get(int(fields[4]), 0) + int(end, 16) - int(begin, 16)
    for inode, size in sizes.items():
        found[inode] = max(found.get(inode, 0), size)
