"""Measures a container's use of the host's disk: a bounded scan of out/ or home/ that follows no link and opens no file.

Both folders are on the host's disk, and no container limit bounds what is written there. A folder that cannot be counted
(its owner closed it to the daemon) counts as over the limit: otherwise a container could hide files there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from daemon.store.open_files import deleted_bytes
from schema.errors import HostileFileError
from schema.frozen import frozen
from schema.os_faults import host_error

_BLOCK: Final = 512  # the unit of st_blocks, whatever the file system's own is (stat(2))
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK_AT: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM})
# The entry vanished, or something else took its name: the container is working, and the next sweep counts again.
_MOVED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@frozen
class UseLimits:
    """Limits of one folder of a session: bytes on disk (holes are free), and the number of files and folders together.

    `name` and `key` are the folder's name and the start of its configuration keys, for messages.
    """

    max_bytes: int = 2 * 1024**3
    max_files: int = 100_000
    name: str = "out/"
    key: str = "limits.max_out_folder"
    max_depth: int = 32


@frozen
class SessionLimits:
    """The limits of both folders that a session's container writes. Programs nest their caches deep, so home/ may be deeper."""

    out: UseLimits = UseLimits()
    home: UseLimits = UseLimits(name="home/", key="limits.max_home_folder", max_depth=100)


@frozen
class FolderUse:
    """What was counted.

    `deleted_bytes` is the size of deleted files that the container's processes keep open; None when those processes cannot
    be seen or inspected from here.
    """

    bytes: int
    files: int
    deleted_bytes: int | None = None

    def near(self, limits: UseLimits) -> str | None:
        """Return a sentence when four fifths of a limit are used, else None."""
        held = self.bytes + (self.deleted_bytes or 0)
        if held * 5 >= limits.max_bytes * 4:
            return f"{limits.name} holds {held} of {limits.max_bytes} bytes ({limits.key}_bytes)."
        if self.files * 5 >= limits.max_files * 4:
            return f"{limits.name} holds {self.files} of {limits.max_files} files ({limits.key}_files)."
        return None


def check_folder(folder: Path, limits: UseLimits, pids: Iterable[int] | None = None) -> FolderUse:
    """Count what a container keeps on disk. Raise HostileFileError as soon as a limit is exceeded; nothing more is counted.

    `pids` are the container's processes. Entries that vanish during the count are ignored: the container may be working.
    Raise StorageError when this host cannot count now.
    """
    count = _Count(limits)
    device = count.add(folder)
    deleted = deleted_bytes(pids, device) if pids is not None and device is not None else None
    if deleted is not None and count.bytes + deleted > limits.max_bytes:
        raise HostileFileError(
            f"{limits.name} and the deleted files that its container keeps open hold more than {limits.max_bytes} bytes"
            f" ({count.bytes} and {deleted}; {limits.key}_bytes)."
        )
    return FolderUse(count.bytes, count.files, deleted)


class _Count:
    def __init__(self, limits: UseLimits) -> None:
        self._limits = limits
        self._twice: set[tuple[int, int]] = set()  # files with several hard links that were already counted
        self.bytes = 0
        self.files = 0

    def add(self, folder: Path) -> int | None:
        """Count everything in the folder. Return its device number, or None when there is no such folder."""
        descriptor = _open(str(folder), None, self._limits.name, self._limits)
        if descriptor is None:
            return None
        try:
            device = os.fstat(descriptor).st_dev
            self._walk(descriptor, 0)
        finally:
            os.close(descriptor)
        return device

    def _walk(self, descriptor: int, depth: int) -> None:
        limits = self._limits
        if depth > limits.max_depth:
            raise HostileFileError(f"{limits.name} is nested deeper than {limits.max_depth} folders.")
        folders: list[str] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                status = _status(entry.name, descriptor, limits)
                if status is None:
                    continue
                self._note(status)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
        for name in folders:
            inner = _open(name, descriptor, f"a folder in {limits.name}", limits)
            if inner is None:
                continue
            try:
                self._walk(inner, depth + 1)
            finally:
                os.close(inner)

    def _note(self, status: os.stat_result) -> None:
        self.files += 1
        if not self._counted(status):
            self.bytes += status.st_blocks * _BLOCK
        limits = self._limits
        if self.files > limits.max_files:
            raise HostileFileError(f"{limits.name} holds more than {limits.max_files} files ({limits.key}_files).")
        if self.bytes > limits.max_bytes:
            raise HostileFileError(f"{limits.name} holds more than {limits.max_bytes} bytes ({limits.key}_bytes).")

    def _counted(self, status: os.stat_result) -> bool:
        """Return whether this file was already counted under another hard link: it is on the disk only once."""
        if stat.S_ISDIR(status.st_mode) or status.st_nlink < 2:
            return False
        identity = status.st_dev, status.st_ino
        known = identity in self._twice
        self._twice.add(identity)
        return known


def _open(name: str, parent: int | None, what: str, limits: UseLimits) -> int | None:
    """Open a folder and return its descriptor; None when it is gone or not a folder. Make it readable first if needed."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in _MOVED:
            return None
        if error.errno not in _CLOSED:
            raise host_error(error, f"{what} cannot be looked into") from error
    return _open_up(name, parent, what, limits)


def _open_up(name: str, parent: int | None, what: str, limits: UseLimits) -> int | None:
    """Restore our right to list a folder that we own, and open it. Raise HostileFileError when we do not own it."""
    try:
        handle = os.open(name, _LOOK_AT, dir_fd=parent)
    except OSError as error:
        if error.errno in _MOVED:
            return None
        raise HostileFileError(_closed(what, limits)) from error
    try:
        # Use a descriptor, so that a link that replaces the name in the meantime is not followed.
        Path(f"/proc/self/fd/{handle}").chmod(stat.S_IMODE(os.fstat(handle).st_mode) | stat.S_IRWXU)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _CLOSED:
            raise HostileFileError(_closed(what, limits)) from error
        raise host_error(error, f"{what} cannot be looked into") from error
    finally:
        os.close(handle)


def _status(name: str, parent: int, limits: UseLimits) -> os.stat_result | None:
    """Return the entry's stat result, or None when it is gone. Make the parent folder searchable first if needed."""
    for last in (False, True):
        try:
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno in _MOVED:
                return None
            if error.errno not in _CLOSED:
                raise host_error(error, f"a file in {limits.name} cannot be examined") from error
            if last:
                raise HostileFileError(_closed(f"a folder in {limits.name}", limits)) from error
        try:
            os.fchmod(parent, stat.S_IMODE(os.fstat(parent).st_mode) | stat.S_IRWXU)
        except OSError as error:
            raise HostileFileError(_closed(f"a folder in {limits.name}", limits)) from error
    return None


def _closed(what: str, limits: UseLimits) -> str:
    return f"{what} is closed to the daemon; what cannot be counted counts as over {limits.key}_bytes."
