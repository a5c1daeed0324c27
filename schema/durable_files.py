"""Write files and folders with the rights that are meant, and so that they survive a power cut: the data and the folder entry are synced before the caller goes on.

Every function blocks and raises OSError; the caller knows whose folder it is and which typed error that means.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_new_file(path: Path, data: bytes, mode: int) -> None:
    """Create the file with exactly this mode, whatever the umask, and sync its data. Raise FileExistsError if it exists."""
    with os.fdopen(os.open(path, _NEW_FILE, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def make_folder(path: Path, mode: int) -> None:
    """Make the folder with exactly this mode, whatever the umask. A folder that exists keeps its own."""
    try:
        path.mkdir(mode=mode, parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries (files created, renamed or removed in it) are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_any(path: Path) -> None:
    """Remove a folder with all that is in it, or whatever else has this name. Do nothing if nothing has it.

    `shutil.rmtree` alone opens what it is given: of a fifo, it waits for a writer for ever.
    """
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
