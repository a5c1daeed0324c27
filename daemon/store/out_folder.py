"""Measures a container's use of the host's disk: a bounded scan of its out/ folder that follows no link and opens no file.

The folder is on the host's disk, and no container limit bounds what is written there. A folder that cannot be counted
(its owner closed it to the daemon) counts as over the limit: otherwise a container could hide files there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.store.open_files import deleted_bytes
from schema.errors import HostileFileError
from schema.os_faults import host_error

_MAX_DEPTH: Final = 32
_BLOCK: Final = 512  # the unit of st_blocks, whatever the file system's own is (stat(2))
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK_AT: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM})
# The entry vanished, or something else took its name: the container is working, and the next sweep counts again.
_MOVED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class OutLimits:
    """Limits of a session's out/ folder: bytes on disk (holes are free), and the number of files and folders together."""

    max_bytes: int = 2 * 1024**3
    max_files: int = 100_000


@dataclass(frozen=True, slots=True)
class OutUse:
    """What was counted.

    `deleted_bytes` is the size of deleted files that the container's processes keep open; None when those processes cannot
    be seen or inspected from here.
    """

    bytes: int
    files: int
    deleted_bytes: int | None = None

    def near(self, limits: OutLimits) -> str | None:
        """Return a sentence when four fifths of a limit are used, else None."""
        held = self.bytes + (self.deleted_bytes or 0)
        if held * 5 >= limits.max_bytes * 4:
            return f"out/ holds {held} of {limits.max_bytes} bytes (limits.max_out_folder_bytes)."
        if self.files * 5 >= limits.max_files * 4:
            return f"out/ holds {self.files} of {limits.max_files} files (limits.max_out_folder_files)."
        return None


def check_out_folder(folder: Path, limits: OutLimits, pids: Iterable[int] | None = None) -> OutUse:
    """Count what a container keeps on disk. Raise HostileFileError as soon as a limit is exceeded; nothing more is counted.

    `pids` are the container's processes. Entries that vanish during the count are ignored: the container may be working.
    Raise StorageError when this host cannot count now.
    """
    count = _Count(limits)
    device = count.add(folder)
    deleted = deleted_bytes(pids, device) if pids is not None and device is not None else None
    if deleted is not None and count.bytes + deleted > limits.max_bytes:
        raise HostileFileError(
            f"out/ and the deleted files that its container keeps open hold more than {limits.max_bytes} bytes"
            f" ({count.bytes} and {deleted}; limits.max_out_folder_bytes)."
        )
    return OutUse(count.bytes, count.files, deleted)


class _Count:
    def __init__(self, limits: OutLimits) -> None:
        self._limits = limits
        self._twice: set[tuple[int, int]] = set()  # files with several hard links that were already counted
        self.bytes = 0
        self.files = 0

    def add(self, folder: Path) -> int | None:
        """Count everything in the folder. Return its device number, or None when there is no such folder."""
        descriptor = _open(str(folder), None, "out/")
        if descriptor is None:
            return None
        try:
            device = os.fstat(descriptor).st_dev
            self._walk(descriptor, 0)
        finally:
            os.close(descriptor)
        return device

    def _walk(self, descriptor: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise HostileFileError(f"out/ is nested deeper than {_MAX_DEPTH} folders.")
        folders: list[str] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                status = _status(entry.name, descriptor)
                if status is None:
                    continue
                self._note(status)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
        for name in folders:
            inner = _open(name, descriptor, "a folder in out/")
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
        if self.files > self._limits.max_files:
            raise HostileFileError(
                f"out/ holds more than {self._limits.max_files} files (limits.max_out_folder_files)."
            )
        if self.bytes > self._limits.max_bytes:
            raise HostileFileError(
                f"out/ holds more than {self._limits.max_bytes} bytes (limits.max_out_folder_bytes)."
            )

    def _counted(self, status: os.stat_result) -> bool:
        """Return whether this file was already counted under another hard link: it is on the disk only once."""
        if stat.S_ISDIR(status.st_mode) or status.st_nlink < 2:
            return False
        identity = status.st_dev, status.st_ino
        known = identity in self._twice
        self._twice.add(identity)
        return known


def _open(name: str, parent: int | None, what: str) -> int | None:
    """Open a folder and return its descriptor; None when it is gone or not a folder. Make it readable first if needed."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in _MOVED:
            return None
        if error.errno not in _CLOSED:
            raise host_error(error, f"{what} cannot be looked into") from error
    return _open_up(name, parent, what)


def _open_up(name: str, parent: int | None, what: str) -> int | None:
    """Restore our right to list a folder that we own, and open it. Raise HostileFileError when we do not own it."""
    try:
        handle = os.open(name, _LOOK_AT, dir_fd=parent)
    except OSError as error:
        if error.errno in _MOVED:
            return None
        raise HostileFileError(_closed(what)) from error
    try:
        # Use a descriptor, so that a link that replaces the name in the meantime is not followed.
        Path(f"/proc/self/fd/{handle}").chmod(stat.S_IMODE(os.fstat(handle).st_mode) | stat.S_IRWXU)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _CLOSED:
            raise HostileFileError(_closed(what)) from error
        raise host_error(error, f"{what} cannot be looked into") from error
    finally:
        os.close(handle)


def _status(name: str, parent: int) -> os.stat_result | None:
    """Return the entry's stat result, or None when it is gone. Make the parent folder searchable first if needed."""
    for last in (False, True):
        try:
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno in _MOVED:
                return None
            if error.errno not in _CLOSED:
                raise host_error(error, "a file in out/ cannot be examined") from error
            if last:
                raise HostileFileError(_closed("a folder in out/")) from error
        try:
            os.fchmod(parent, stat.S_IMODE(os.fstat(parent).st_mode) | stat.S_IRWXU)
        except OSError as error:
            raise HostileFileError(_closed("a folder in out/")) from error
    return None


def _closed(what: str) -> str:
    return f"{what} is closed to the daemon; what cannot be counted counts as over limits.max_out_folder_bytes."
