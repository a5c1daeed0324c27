"""Opens every clawbus file: only this file calls sqlite3.connect. What is hostile is opened by `outbound_file.py` through it.

Rules that must not be broken here:
- journal_mode=DELETE for all shared files: WAL's shared memory does not cross a VM mount.
- Open, work, close, for every reader of the other side's file: a long-lived one across such a mount freezes at its first view.
- A reader is a different type from a writer and cannot write.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from schema import migrate
from schema.handles import Reader, Writer, not_writable, once_more, translate
from schema.os_faults import host_error, in_own_folder

BUSY_TIMEOUT_MS: Final = 5000
_HEADER_BYTES: Final = 100  # of every SQLite file (sqlite.org/fileformat2.html)
_READ_ONLY: Final = ("mmap_size=0", "query_only=ON")
# Another program's file: its views, triggers and defaults must not call functions with side effects, nor its cells lie.
_FOREIGN: Final = ("trusted_schema=OFF", "cell_size_check=ON")
# What a container's user reads, or the daemon's where it is another one, is open to all; only our own folder hides the rest.
_FILE_MODES: Final[Mapping[migrate.Role, int]] = MappingProxyType(
    {
        migrate.Role.INBOUND: 0o644,
        migrate.Role.OUTBOUND: 0o644,
        migrate.Role.CENTRAL: 0o600,
        migrate.Role.MAILBOX: 0o600,
    }
)


def open_owner(path: Path, role: migrate.Role, *, create: bool = True) -> Writer:
    """Open a file of ours read-write, made or migrated if need be. Raise SchemaTooNewError, FileBusyError, StorageError."""
    if create and not os.path.exists(path):  # noqa: PTH110 - at every opening; pathlib takes four times as long
        _make_empty(path, _FILE_MODES[role])
    # EXTRA also syncs the folder after the journal is unlinked: without it a power cut may undo a commit
    # that was already acknowledged (sqlite.org/pragma.html#pragma_synchronous).
    connection = connected(path, "rwc" if create else "rw", pragmas=("synchronous=EXTRA",))
    try:
        migrate.ensure(connection, role, path)
    except (sqlite3.Error, MemoryError) as error:
        connection.close()
        raise (not_writable(error, path) or translate(error, path, hostile=False)) from error
    except BaseException:
        connection.close()
        raise
    return Writer(connection, path)


def make_whole(path: Path, role: migrate.Role, fill: Callable[[Writer], object] | None = None) -> None:
    """Make a file of ours with its tables, or nothing: under another name, and moved to `path` when it is done.

    `fill` writes what the file must hold from its first moment. What lies at `path` must be empty or absent. Errors as of `open_owner`; what a crash leaves is removed by the next call.
    """
    fresh = path.with_name(f"{path.name}.new")

    def make() -> None:
        with in_own_folder(f"{path.name} cannot be made"):
            for left in (f"{fresh}-journal", fresh, f"{path}-journal"):  # without pages, a journal brings nothing back
                Path(left).unlink(missing_ok=True)
        with open_owner(fresh, role) as db:
            if fill is not None:
                fill(db)

    once_more(make)
    with in_own_folder(f"{path.name} cannot be moved into place"):
        fresh.replace(path)
        _sync_folder(path.parent)


def holds_pages(path: Path) -> bool:
    """Return whether a file of ours is there and holds anything: one that was emptied is as lost as one that was deleted.

    Raise PermissionError.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size >= _HEADER_BYTES


def open_reader(path: Path) -> Reader:
    """Open a trusted file read-only, as the runner opens inbound.db and the command line central.db."""
    return Reader(connected(path, "ro", pragmas=_READ_ONLY), path)


def open_still_reader(path: Path) -> Reader:
    """Open a file that does not change, read-only, without locks and without believing its schema: a backup.

    It may be any program's and in any journal mode. Create nothing beside it. Raise StorageError or UnusableFileError.
    """
    return Reader(connected(path, "ro", "&immutable=1", pragmas=(*_READ_ONLY, *_FOREIGN)), path)


def open_memory_reader(data: bytes, path: Path) -> Reader:
    """Open the whole content of a DELETE-mode file that was read into memory. `path` is its name in errors."""
    connection = connected_to_memory()
    try:
        if data:
            connection.deserialize(data)
        for pragma in ("query_only=ON", *_FOREIGN):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error as error:
        connection.close()
        raise translate(error, path, hostile=False) from error
    return Reader(connection, path)


def open_foreign_reader(path: Path) -> Reader:
    """Open another program's database read-only, whatever its journal mode, without believing its schema.

    A WAL file needs a folder in which its `-shm` can be made. Errors as of `open_reader`.
    """
    return Reader(connected(path, "ro", pragmas=(*_READ_ONLY, *_FOREIGN)), path)


def open_foreign_writer(path: Path) -> Writer:
    """Open another program's existing database read-write. Its journal mode, its schema and its version stay as they are.

    A journal that its owner left in a crash is rolled back by that, as its own next start would. Errors as of `open_owner`.
    """
    return Writer(connected(path, "rw", pragmas=("synchronous=EXTRA", *_FOREIGN, "schema_version")), path)


def connected(
    path: Path, mode: str, *more: str, pragmas: Sequence[str] = (), hostile: bool = False
) -> sqlite3.Connection:
    """Open a file and run these pragmas. What SQLite refuses is raised as our error, of a container's file if `hostile`."""
    connection: sqlite3.Connection | None = None
    try:
        connection = _connect(path, mode, *more)
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").fetchone()
    except (sqlite3.Error, MemoryError) as error:
        if connection is not None:
            connection.close()
        refused = None if hostile or mode == "ro" else not_writable(error, path)
        raise (refused or translate(error, path, hostile=hostile)) from error
    return connection


def connected_to_memory() -> sqlite3.Connection:
    """Open an empty database in memory."""
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)


def _make_empty(path: Path, mode: int) -> None:
    """Make the file with exactly these rights, whatever the umask is; SQLite gives its journals the same. An existing file keeps its rights."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        return
    except OSError as error:
        raise host_error(error, f"{path.name} cannot be made") from error
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        raise host_error(error, f"{path.name} cannot be made") from error
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path, mode: str, more: str = "") -> sqlite3.Connection:
    # isolation_level=None: transactions are begun by us, never by the module behind our back.
    return sqlite3.connect(
        f"file:{quote(str(path if path.is_absolute() else path.absolute()))}?mode={mode}{more}",
        uri=True,
        timeout=BUSY_TIMEOUT_MS / 1000,  # SQLite's busy time-out
        isolation_level=None,
        check_same_thread=False,
        cached_statements=128,
    )
