"""Tells whether a path still names the file that was opened first. Reads file metadata only."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from schema.os_faults import host_error


class FileAnchor:
    """Keeps a file open, so that its inode number cannot be reused by a file that replaces it.

    The descriptor is O_PATH: closing an ordinary one would drop SQLite's locks on the file (open(2), fcntl(2)).
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise host_error(error, f"{path.name} cannot be opened") from error
        weakref.finalize(self, os.close, self._descriptor)

    def holds(self, path: Path) -> bool:
        """Return whether `path` is still this same file and not empty. Raise StorageError."""
        try:
            there, here = path.stat(), os.fstat(self._descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise host_error(error, str(path)) from error
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) and there.st_size > 0
