"""A session's kept container output: one file in logs/, rotated by size. Never follows a link."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 5 * 1024**2
KEEP: Final = 3

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def open_for_append(path: Path, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> int:
    """Open `path` for appending; make its folder, and rotate it first if it is over `max_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rotate(path, max_bytes=max_bytes, keep=keep)
    return os.open(path, _APPEND, 0o640)


def rotate(path: Path, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> None:
    """Rename `log` to `log.1`, `log.1` to `log.2`, up to `keep` old ones, if `log` is over `max_bytes`."""
    try:
        if path.lstat().st_size <= max_bytes:
            return
    except FileNotFoundError:
        return
    _move_up(path, keep)
    path.replace(_numbered(path, 1))


def cut(path: Path, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> bool:
    """Rotate a log to which a process still appends: copy `log` to `log.1`, then empty it. Return whether that was needed.

    What is written between the two is lost. Raise OSError, and then nothing was emptied.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with os.fdopen(handle, "r+b") as log:
        if os.fstat(log.fileno()).st_size <= max_bytes:
            return False
        _move_up(path, keep)
        copy = os.open(_numbered(path, 1), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        with os.fdopen(copy, "wb") as old:
            shutil.copyfileobj(log, old)
        log.truncate(0)
    return True


def _move_up(path: Path, keep: int) -> None:
    for number in range(keep - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            _numbered(path, number).replace(_numbered(path, number + 1))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def append(path: Path, data: bytes) -> None:
    """Add to an existing folder's log; a session whose folder is gone keeps nothing."""
    if not path.parent.is_dir():
        return
    handle = open_for_append(path)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def tail(path: Path, *, start: int, max_bytes: int) -> str:
    """Return the last `max_bytes` of what was written after offset `start`; empty without such a file.

    A log that is shorter than `start` was cut since: all of it was written after.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        size = os.fstat(handle).st_size
        begin = max(start if start <= size else 0, size - max_bytes)
        return os.pread(handle, max(0, size - begin), begin).decode("utf-8", "replace")
    finally:
        os.close(handle)
