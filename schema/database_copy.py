"""Copies a whole database with SQLite's backup API: into a new file of ours, or over an existing one in one transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from schema import connect
from schema.errors import FileBusyError
from schema.handles import Reader, not_writable, translate

# Called with the number of copied pages and of all pages. If it raises, the copy ends there.
PageProgress = Callable[[int, int], None]
_PAGES_A_STEP: Final = 4096


def copy_database(source: Reader, target: Path, progress: PageProgress | None = None) -> None:
    """Copy a whole database into `target`, an empty file of ours, with SQLite's backup API. Not synced to disk.

    Raise FileBusyError when the source stays locked for the busy time-out, StorageError for the target.
    """
    # A copy that is not finished is thrown away, so it needs no journal; its maker syncs it.
    copy = connect.connected(target, "rw", pragmas=("journal_mode=MEMORY", "synchronous=OFF"))
    try:
        source.copy_pages(copy, _PAGES_A_STEP, _stepped(progress))
    except (sqlite3.Error, MemoryError) as error:
        raise translate(error, target, hostile=False) from error
    finally:
        copy.close()


def overwrite_database(target: Path, source: Reader, progress: PageProgress | None = None) -> None:
    """Replace `target`'s whole content by the source's, in one transaction: all of it or, after any error, nothing.

    The target stays the same file, so that its other users see the change as any other commit. The caller must
    own it. Raise FileBusyError when it stays locked for the busy time-out, StorageError, UnusableFileError.
    """
    connection = connect.connected(target, "rw", pragmas=("synchronous=EXTRA",))
    try:
        source.copy_pages(connection, _PAGES_A_STEP, _stepped(progress))
    except (sqlite3.Error, MemoryError) as error:
        raise (not_writable(error, target) or translate(error, target, hostile=False)) from error
    finally:
        connection.close()


def _stepped(progress: PageProgress | None) -> Callable[[int, int, int], None]:
    """Run the backup's steps within the busy time-out. SQLite's backup API alone would wait for a lock forever."""
    waiting_since: float | None = None

    def stepped(status: int, remaining: int, total: int) -> None:
        nonlocal waiting_since
        if status & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            waiting_since = waiting_since or time.monotonic()
            if time.monotonic() - waiting_since > connect.BUSY_TIMEOUT_MS / 1000:
                raise FileBusyError("the file stayed locked by another process while it was to be copied.")
            return
        waiting_since = None
        if progress is not None:
            progress(total - remaining, total)

    return stepped
