"""Reads a file that somebody else may have put there: in one piece, without following a link, within a limit."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from schema.os_faults import Fault, fault_of, host_error
from schema.second_names import has_second_name_below

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_STEP_BYTES: Final = 1024**2


class FileRefusedError(Exception):
    """The file is not taken. The text is the end of a sentence that begins with its name."""


class FileAbsentError(FileRefusedError):
    """There is no file of that name."""


def read_below(folder: Path, parts: Sequence[str], limit: int) -> bytes:
    """Return the bytes of the plain file that `parts` name below `folder`, component by component.

    Raise FileRefusedError for what is not a plain file with one name there, what is larger than `limit` bytes, and what changes
    while it is read; StorageError for what this machine cannot do now.
    """
    opened: list[int] = []
    try:
        opened.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for part in parts[:-1]:
            opened.append(os.open(part, _FOLDER, dir_fd=opened[-1]))
        # Look before opening: opening a device may already have an effect.
        _check_plain(folder, os.stat(parts[-1], dir_fd=opened[-1], follow_symlinks=False))
        opened.append(os.open(parts[-1], _FILE, dir_fd=opened[-1]))
        return _read(folder, opened[-1], limit)
    except OSError as error:
        fault = fault_of(error)
        if fault is Fault.ABSENT:
            raise FileAbsentError("is not there") from error
        if fault is Fault.THEIRS:
            raise FileRefusedError("is behind a link, or is not in a folder") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise FileRefusedError("may not be read") from error
        raise host_error(error, "a file to send cannot be read") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _check_plain(folder: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise FileRefusedError("is a link")
    if stat.S_ISDIR(status.st_mode):
        raise FileRefusedError("is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise FileRefusedError("is a fifo, a socket or a device")
    if has_second_name_below(folder, status):
        raise FileRefusedError("has a second name (a hard link)")


def _read(folder: Path, descriptor: int, limit: int) -> bytes:
    before = os.fstat(descriptor)
    _check_plain(folder, before)
    if before.st_size > limit:
        raise FileRefusedError(f"has {before.st_size} bytes, of which {max(limit, 0)} are left")
    data = bytearray()
    while len(data) <= limit and (chunk := os.read(descriptor, _STEP_BYTES)):
        data += chunk
    after = os.fstat(descriptor)
    if len(data) != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FileRefusedError("changes while it is read")
    return bytes(data)
