"""Folders for copies of files that are too large for memory. What a killed process left there goes with the next copy."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "clawbus-copy-"
_YOUNG_S: Final = 60.0  # a folder this young may not be locked yet


@contextmanager
def copy_folder() -> Generator[Path]:
    """Give an empty folder below TMPDIR for the block, and remove it at the end. Raise OSError.

    The process holds a lock on it, which ends with the process: a folder that nobody holds is a dead process's.
    """
    _remove_left()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    held = None
    try:
        with suppress(OSError):  # a file system without locks: nobody removes the folder there
            held = _hold(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # before the lock goes
        if held is not None:
            os.close(held)


def _hold(folder: Path) -> int:
    """Lock the folder and return what holds the lock. Raise BlockingIOError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_left() -> None:
    """Remove our own user's folders that no process holds. What cannot be removed stays."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                found = folder.lstat()
                if found.st_uid == os.getuid() and time.time() - found.st_mtime > _YOUNG_S:
                    held = _hold(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(held)
