"""Tells a hard link that a container made from one that somebody made outside of its folder, such as `cp -al` of a live folder.

The kernel refuses a hard link from one mount into another, so what a container links has both names in its own folder. A
name elsewhere on the host is an operator's or a backup program's, and is no evidence against the container.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from schema.os_faults import Fault, fault_of, host_error

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What cannot be counted within these counts as a second name: a container decides how much lies in its folder.
_MAX_ENTRIES: Final = 10_000
_MAX_DEPTH: Final = 32


class _UncountedError(Exception):
    """There is more than may be counted, or a folder is closed to this process."""


def has_second_name_below(root: Path, status: os.stat_result) -> bool:
    """Return whether a file has two names in the container's folder `root`, or may have: not all of the folder can be seen.

    Raise StorageError for what this host cannot do now.
    """
    if status.st_nlink < 2:
        return False
    try:
        return _Names(status.st_dev, status.st_ino).below(str(root), None, 0) > 1
    except _UncountedError:
        return True
    except PermissionError:
        return True
    except OSError as error:
        raise host_error(error, f"{root.name}/ cannot be looked through") from error


class _Names:
    def __init__(self, device: int, inode: int) -> None:
        self._wanted = device, inode
        self._entries = 0

    def below(self, name: str, parent: int | None, depth: int) -> int:
        """Return how many names the file has in this folder and below. Raise OSError."""
        try:
            descriptor = os.open(name, _FOLDER, dir_fd=parent)
        except OSError as error:
            if fault_of(error) in (Fault.ABSENT, Fault.THEIRS):
                return 0  # it was moved or replaced in this moment
            raise
        try:
            return self._in(descriptor, depth)
        finally:
            os.close(descriptor)

    def _in(self, descriptor: int, depth: int) -> int:
        found, folders = 0, list[str]()
        with os.scandir(descriptor) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > _MAX_ENTRIES or depth > _MAX_DEPTH:
                    raise _UncountedError
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found += (status.st_dev, status.st_ino) == self._wanted
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
        return found + sum(self.below(name, descriptor, depth + 1) for name in folders)
