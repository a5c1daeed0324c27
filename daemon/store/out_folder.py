"""How much a container keeps of the host's disk: a bounded look into its out/ folder that follows no link and opens no file.

The folder lies on the host's disk, and no limit of a container bounds what it writes there. What cannot be counted (a
folder that its owner has closed to the daemon) counts as over the limit: otherwise it would be the place to hide in.
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
# It vanished, or another thing took its name: the container is at work, and the next sweep counts again.
_MOVED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class OutLimits:
    """What a session's out/ folder may hold: bytes on disk (a hole costs none), and files and folders together."""

    max_bytes: int = 2 * 1024**3
    max_files: int = 100_000


@dataclass(frozen=True, slots=True)
class OutUse:
    """What was counted.

    `deleted_bytes` are of files without a name that the container's processes keep open; None when its processes are
    not visible here, or may not be looked into.
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
    """Count what a container keeps. Raise HostileFileError when that is more than it may. It looks no further than the limit.

    `pids` are the container's processes. What vanishes meanwhile counts nothing: the container may be at work.
    Raises StorageError when this host cannot look now.
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
        self._twice: set[tuple[int, int]] = set()  # files with several names that were counted
        self.bytes = 0
        self.files = 0

    def add(self, folder: Path) -> int | None:
        """Count all that the folder holds; the number of its device, None when there is no such folder."""
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
        """Whether this file was found under another name: it is on the disk once."""
        if stat.S_ISDIR(status.st_mode) or status.st_nlink < 2:
            return False
        identity = status.st_dev, status.st_ino
        known = identity in self._twice
        self._twice.add(identity)
        return known


def _open(name: str, parent: int | None, what: str) -> int | None:
    """Return a folder's descriptor, or None when it is gone or not a folder. Make one readable that is closed to us."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in _MOVED:
            return None
        if error.errno not in _CLOSED:
            raise host_error(error, f"{what} cannot be looked into") from error
    return _open_up(name, parent, what)


def _open_up(name: str, parent: int | None, what: str) -> int | None:
    """Give the folder's owner, who is us, the right to list it back. Raises HostileFileError when it is somebody else's."""
    try:
        handle = os.open(name, _LOOK_AT, dir_fd=parent)
    except OSError as error:
        if error.errno in _MOVED:
            return None
        raise HostileFileError(_closed(what)) from error
    try:
        # By descriptor: a link that takes the name's place meanwhile is not followed.
        Path(f"/proc/self/fd/{handle}").chmod(stat.S_IMODE(os.fstat(handle).st_mode) | stat.S_IRWXU)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _CLOSED:
            raise HostileFileError(_closed(what)) from error
        raise host_error(error, f"{what} cannot be looked into") from error
    finally:
        os.close(handle)


def _status(name: str, parent: int) -> os.stat_result | None:
    """Return the status of the entry, or None when it is gone. Make a folder searchable that lists without access."""
    for last in (False, True):
        try:
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno in _MOVED:
                return None
            if error.errno not in _CLOSED:
                raise host_error(error, "a file in out/ cannot be looked at") from error
            if last:
                raise HostileFileError(_closed("a folder in out/")) from error
        try:
            os.fchmod(parent, stat.S_IMODE(os.fstat(parent).st_mode) | stat.S_IRWXU)
        except OSError as error:
            raise HostileFileError(_closed("a folder in out/")) from error
    return None


def _closed(what: str) -> str:
    return f"{what} is closed to the daemon; what cannot be counted counts as over limits.max_out_folder_bytes."
