"""Reads another program's database in WAL mode while no process has it open, and leaves no file beside it.

SQLite makes a `-wal` and a `-shm` even for a connection that only reads, and such a connection does not remove them.
They would belong to our user; the program, as another user, could then not open its own database for writing.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from schema.connect import open_foreign_reader
from schema.copy_folder import copy_folder
from schema.errors import FileBusyError, StorageError
from schema.handles import Reader
from schema.lockfree import Patience, read_unlocked
from schema.os_faults import host_error, in_own_folder
from schema.stamp import FileMovedError

T = TypeVar("T")

_AT_ONCE: Final = Patience(seconds=0.5)


def read_closed(path: Path, work: Callable[[Reader], T]) -> T | None:
    """Return what `work` reads from the database; None if a process has it open, or opened it meanwhile.

    `work` may run several times, must only read and must not return None. Raise StorageError and what `work` raises.
    """
    path = Path(os.path.realpath(path))  # SQLite keeps -wal and -shm beside the link's target
    if not _is_closed(path):
        return None

    def checked(reader: Reader) -> T:
        found = work(reader)
        if not _is_closed(path):
            raise FileMovedError(f"{path.name} was opened by another process.")
        return found

    try:
        return _read_copies(path, checked) if _has_wal(path) else read_unlocked(path, checked, _AT_ONCE)
    except (FileBusyError, FileMovedError):
        return None


def _read_copies(path: Path, work: Callable[[Reader], T]) -> T:
    """Read a database whose program died, with what its `-wal` holds, from copies of both."""
    pair = [path, path.with_name(f"{path.name}-wal")]
    with copy_folder() as folder:
        try:
            before = [_mark(one) for one in pair]
            if shutil.disk_usage(folder).free < sum(size for size, _ in before) * 2:
                raise StorageError(
                    f"{path.name} and its -wal must be copied, and {tempfile.gettempdir()} has no room for it.",
                    hint="Set TMPDIR to a folder with room for twice their size.",
                )
            for one in pair:
                shutil.copyfile(one, folder / one.name)
            if [_mark(one) for one in pair] != before:
                raise FileMovedError(f"{path.name} was written to while it was copied.")
        except FileNotFoundError as error:
            raise FileMovedError(f"{path.name} or its -wal was removed while it was copied.") from error
        except OSError as error:
            raise host_error(error, f"{path.name} cannot be copied") from error
        with open_foreign_reader(folder / path.name) as reader:
            return work(reader)


def _is_closed(path: Path) -> bool:
    """Return whether no process has the database open: there is no `-shm`, which each would make. A `-wal` must be a file."""
    wal = _status(path.with_name(f"{path.name}-wal"))
    return _status(path.with_name(f"{path.name}-shm")) is None and (wal is None or stat.S_ISREG(wal.st_mode))


def _has_wal(path: Path) -> bool:
    wal = _status(path.with_name(f"{path.name}-wal"))
    return wal is not None and wal.st_size > 0


def _status(path: Path) -> os.stat_result | None:
    """Return a file's status, or None if it is not there. Raise StorageError if that is unknown.

    `Path.exists` returns False on any error from Python 3.14 on, and raises OSError before.
    """
    try:
        with in_own_folder(f"{path.name} cannot be looked at"):
            return path.lstat()
    except FileNotFoundError:
        return None


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
