"""Opens every clawbus file. Only this file calls sqlite3.connect, with every mode, pragma and guard.

Rules that must not be broken here:
- journal_mode=DELETE for all shared files: WAL's shared memory does not cross a VM mount.
- Open, work, close, for every reader of the other side's file: a long-lived one across such a mount freezes at its first view.
- A reader is a different type from a writer and cannot write.
- outbound.db is hostile on the host's side: never followed through a link, checked, limited, given a deadline.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from schema import migrate
from schema.errors import FileBusyError, HostileFileError
from schema.handles import Deadline, Reader, Writer, is_readonly_race, not_writable, translate
from schema.layout import OUTBOUND_DB
from schema.os_faults import host_error, in_own_folder
from schema.plain_file import (
    ReadLimits,
    check_header,
    check_journal,
    check_recoverable,
    drop_journal,
    lies_there,
    open_plain,
    refuse_wal,
    same_file,
)

__all__ = [
    "BUSY_TIMEOUT_MS", "PageProgress", "ReadLimits", "Reader", "Writer", "copy_database", "is_readonly_race",
    "make_whole", "open_foreign_reader", "open_foreign_writer", "open_memory_reader", "open_outbound_bytes", "open_outbound_reader", "open_owner", "open_reader",
    "open_still_reader", "overwrite_database",
    "recover_outbound_journal", "translate",
]  # fmt: skip

BUSY_TIMEOUT_MS: Final = 5000
# Called with the number of copied pages and of all pages. If it raises, the copy ends there.
PageProgress = Callable[[int, int], None]
_PAGES_A_STEP: Final = 4096
_REPLACED: Final = f"{OUTBOUND_DB} was replaced while it was being opened."
# SQLite runs this many steps between two checks of the clock; parsing a schema takes one step for each statement.
_STEPS_BETWEEN_LOOKS: Final = 1000
# A schema is text that its author chose: what of it is parsed and compiled must stay small. Ours needs far less.
_SCHEMA_LIMITS: Final = (
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 64 * 1024),
    (sqlite3.SQLITE_LIMIT_COLUMN, 250),
    (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 50),
    (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 5),
    (sqlite3.SQLITE_LIMIT_VDBE_OP, 25_000),
    (sqlite3.SQLITE_LIMIT_FUNCTION_ARG, 20),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
    (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
    (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
)
_KNOWN_TABLES: Final = "SELECT lower(name) AS name, type, sql FROM sqlite_schema WHERE lower(name) IN ({})".format(
    ",".join(f"'{name}'" for name in migrate.OUTBOUND_TABLES)
)
# Another program's file: its views, triggers and defaults must not call functions with side effects, nor its cells lie.
_FOREIGN_PRAGMAS: Final = ("trusted_schema=OFF", "cell_size_check=ON")


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
    mode = "rwc" if create else "rw"
    if create:
        _make_empty(path, _FILE_MODES[role])
    try:
        connection = _connect(path, mode)
    except (sqlite3.Error, MemoryError) as error:
        raise (not_writable(error, path) or translate(error, path, hostile=False)) from error
    try:
        # EXTRA also syncs the folder after the journal is unlinked: without it a power cut may undo a commit
        # that was already acknowledged (sqlite.org/pragma.html#pragma_synchronous).
        connection.execute("PRAGMA synchronous=EXTRA")
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
    with in_own_folder(f"{path.name} cannot be made"):
        for left in (f"{fresh}-journal", fresh, f"{path}-journal"):  # without pages, a journal brings nothing back
            Path(left).unlink(missing_ok=True)
    with open_owner(fresh, role) as db:
        if fill is not None:
            fill(db)
    with in_own_folder(f"{path.name} cannot be moved into place"):
        fresh.replace(path)
        _sync_folder(path.parent)


def open_reader(path: Path) -> Reader:
    """Open a trusted file read-only, as the runner opens inbound.db and the command line central.db."""
    try:
        connection = _connect(path, "ro")
        connection.execute("PRAGMA mmap_size=0")
        connection.execute("PRAGMA query_only=ON")
    except (sqlite3.Error, MemoryError) as error:
        raise translate(error, path, hostile=False) from error
    return Reader(connection, path)


def open_still_reader(path: Path) -> Reader:
    """Open a file that does not change, read-only, without locks and without believing its schema: a backup.

    It may be any program's and in any journal mode. Create nothing beside it. Raise StorageError or UnusableFileError.
    """
    try:
        connection = _connect(path, "ro", "&immutable=1")
        for pragma in ("mmap_size=0", "query_only=ON", "trusted_schema=OFF", "cell_size_check=ON"):
            connection.execute(f"PRAGMA {pragma}")
    except (sqlite3.Error, MemoryError) as error:
        raise translate(error, path, hostile=False) from error
    return Reader(connection, path)


def open_memory_reader(data: bytes, path: Path) -> Reader:
    """Open the whole content of a DELETE-mode file that was read into memory. `path` is its name in errors."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        if data:
            connection.deserialize(data)
        for pragma in ("query_only=ON", *_FOREIGN_PRAGMAS):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error as error:
        connection.close()
        raise translate(error, path, hostile=False) from error
    return Reader(connection, path)


def open_foreign_reader(path: Path) -> Reader:
    """Open another program's database read-only, whatever its journal mode, without believing its schema.

    A WAL file needs a folder in which its `-shm` can be made. Errors as of `open_reader`.
    """
    try:
        connection = _connect(path, "ro")
        for pragma in ("mmap_size=0", "query_only=ON", *_FOREIGN_PRAGMAS):
            connection.execute(f"PRAGMA {pragma}")
    except (sqlite3.Error, MemoryError) as error:
        raise translate(error, path, hostile=False) from error
    return Reader(connection, path)


def open_foreign_writer(path: Path) -> Writer:
    """Open another program's existing database read-write. Its journal mode, its schema and its version stay as they are.

    A journal that its owner left in a crash is rolled back by that, as its own next start would. Errors as of `open_owner`.
    """
    try:
        connection = _connect(path, "rw")
        for pragma in ("synchronous=EXTRA", *_FOREIGN_PRAGMAS):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA schema_version").fetchone()
    except (sqlite3.Error, MemoryError) as error:
        raise (not_writable(error, path) or translate(error, path, hostile=False)) from error
    return Writer(connection, path)


def copy_database(source: Reader, target: Path, progress: PageProgress | None = None) -> None:
    """Copy a whole database into `target`, an empty file of ours, with SQLite's backup API. Not synced to disk.

    Raise FileBusyError when the source stays locked for the busy time-out, StorageError for the target.
    """
    try:
        copy = _connect(target, "rw")
    except (sqlite3.Error, MemoryError) as error:
        raise translate(error, target, hostile=False) from error
    try:
        # A copy that is not finished is thrown away, so it needs no journal; its maker syncs it.
        copy.execute("PRAGMA journal_mode=MEMORY")
        copy.execute("PRAGMA synchronous=OFF")
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
    try:
        connection = _connect(target, "rw")
    except (sqlite3.Error, MemoryError) as error:
        raise (not_writable(error, target) or translate(error, target, hostile=False)) from error
    try:
        connection.execute("PRAGMA synchronous=EXTRA")
        source.copy_pages(connection, _PAGES_A_STEP, _stepped(progress))
    except (sqlite3.Error, MemoryError) as error:
        raise (not_writable(error, target) or translate(error, target, hostile=False)) from error
    finally:
        connection.close()


def open_outbound_reader(folder: Path, limits: ReadLimits) -> Reader | None:
    """Open a container's outbound.db read-only, as hostile input. None while the runner has not made it.

    Raise HostileFileError, ReadRaceError, ReadDeadlineError, FileBusyError or StorageError. A container that swaps the
    file for a fifo in the right microsecond makes SQLite's open wait forever: callers bound the call themselves.
    """
    path = folder / OUTBOUND_DB
    guard = open_plain(folder, OUTBOUND_DB)
    if guard is None:
        return None
    try:
        if not check_header(guard, limits, journal=lies_there(folder, f"{OUTBOUND_DB}-journal")):
            return None
        check_journal(folder, limits)
        refuse_wal(folder)
        with in_own_folder(f"{OUTBOUND_DB} cannot be looked at"):
            identity = os.fstat(guard)
        connection, descriptor = _connect_to(guard, path)
    finally:
        # Before the first statement: closing any descriptor of a file drops this process's locks on it.
        os.close(guard)
    try:
        deadline = _limit(connection, limits)
        reader = Reader(connection, path, hostile=True, max_read_bytes=limits.max_read_bytes)
        reader.deadline = deadline
        reader.file_id = f"{identity.st_dev}:{identity.st_ino}"
        _check_tables(reader)
        # Again, now that it has been read: another thread's descriptor, which may have vouched by chance, is gone.
        _check_same(descriptor, identity)
    except (sqlite3.Error, MemoryError) as error:
        connection.close()
        raise translate(error, path, hostile=True) from error
    except BaseException:
        connection.close()
        raise
    return reader


def open_outbound_bytes(data: bytes, path: Path, limits: ReadLimits) -> Reader:
    """Open the whole content of an outbound.db that was read into memory, as hostile input. `path` is its name in errors.

    The caller has asked `check_header` of it. Raises as `open_outbound_reader`.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        connection.deserialize(data)
        deadline = _limit(connection, limits)
        reader = Reader(connection, path, hostile=True, max_read_bytes=limits.max_read_bytes)
        reader.deadline = deadline
        _check_tables(reader)
    except (sqlite3.Error, MemoryError) as error:
        connection.close()
        raise translate(error, path, hostile=True) from error
    except BaseException:
        connection.close()
        raise
    return reader


def recover_outbound_journal(folder: Path, limits: ReadLimits | None = None) -> bool:
    """Let SQLite roll a stranded outbound.db-journal back and delete it. True if there was one.

    Call this ONLY after the container's confirmed exit: a live writer's journal must never be touched.
    Raise HostileFileError for a journal or file that no runner of ours writes.
    """
    path, limits = folder / OUTBOUND_DB, limits or ReadLimits()
    if not check_journal(folder, limits):
        return False
    guard = open_plain(folder, OUTBOUND_DB)
    if guard is None:
        return False
    try:
        check_recoverable(guard, limits)
    finally:
        os.close(guard)
    refuse_wal(folder)
    try:
        connection = _connect(path, "rw")
        try:
            _limit(connection, limits)
            # Enough to make SQLite look for a hot journal, and it does not parse the schema, which is hostile too.
            connection.execute("PRAGMA user_version").fetchone()
        finally:
            connection.close()
    except (sqlite3.Error, MemoryError) as error:
        raise translate(error, path, hostile=True) from error
    drop_journal(folder)
    return True


def _stepped(progress: PageProgress | None) -> Callable[[int, int, int], None]:
    """Run the backup's steps within the busy time-out. SQLite's backup API alone would wait for a lock forever."""
    waiting_since: float | None = None

    def stepped(status: int, remaining: int, total: int) -> None:
        nonlocal waiting_since
        if status & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            waiting_since = waiting_since or time.monotonic()
            if time.monotonic() - waiting_since > BUSY_TIMEOUT_MS / 1000:
                raise FileBusyError("the file stayed locked by another process while it was to be copied.")
            return
        waiting_since = None
        if progress is not None:
            progress(total - remaining, total)

    return stepped


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


def _connect_to(guard: int, path: Path) -> tuple[sqlite3.Connection, int]:
    """Connect by path, and prove that SQLite opened the very file that `guard` holds and no link put in its place.

    Returns the connection and the number of its descriptor.
    """
    with in_own_folder(f"{OUTBOUND_DB} cannot be opened"):
        wanted = os.fstat(guard)
        probe = os.dup(guard)
    os.close(probe)  # the number that the next open of this process most likely gets
    try:
        connection = _connect(path, "ro")
    except (sqlite3.Error, MemoryError) as error:
        raise translate(error, path, hostile=True) from error
    if same_file(probe, wanted) and probe != guard:
        return connection, probe
    try:
        found = _open_here(wanted, guard)
    except BaseException:
        connection.close()
        raise
    if found is None:
        connection.close()
        raise HostileFileError(_REPLACED)
    return connection, found


def _open_here(wanted: os.stat_result, guard: int) -> int | None:
    """Return a descriptor of this process, other than `guard`, that holds the file, or None."""
    with in_own_folder("this process's descriptors cannot be listed"):
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return next((number for number in numbers if number != guard and same_file(number, wanted)), None)


def _check_same(descriptor: int, wanted: os.stat_result) -> None:
    """Check that both connections have the same file: the number may have been reused after a close."""
    if not same_file(descriptor, wanted) and _open_here(wanted, -1) is None:
        raise HostileFileError(_REPLACED)


def _limit(connection: sqlite3.Connection, limits: ReadLimits) -> Deadline:
    """Set the limits on what a hostile file can make SQLite do, before its first byte is read."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.max_row_bytes)
    for limit, value in _SCHEMA_LIMITS:
        connection.setlimit(limit, value)
    deadline = Deadline(limits.deadline_s)
    connection.set_progress_handler(deadline.passed, _STEPS_BETWEEN_LOOKS)
    # Exclusive locking before the first read: a file that turns to WAL behind our check then asks for a lock that a
    # read-only handle cannot have, instead of a shared-memory map that its author could truncate under us
    # (sqlite.org/wal.html#use_of_wal_without_shared_memory). In DELETE mode a reader takes no more than a shared lock.
    connection.executescript(
        "PRAGMA locking_mode=EXCLUSIVE;PRAGMA trusted_schema=OFF;PRAGMA query_only=ON;PRAGMA mmap_size=0;"
        "PRAGMA cell_size_check=ON"
    )
    return deadline


@functools.cache
def outbound_columns() -> Mapping[tuple[str, str], frozenset[str]]:
    """Return each table's columns in a runner's own outbound.db, by name and the SQL text that SQLite keeps."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in migrate.statements(migrate.Role.OUTBOUND):
            connection.execute(statement)
        tables = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
        return MappingProxyType(
            {
                (name, sql): frozenset(row[1] for row in connection.execute(f"PRAGMA table_info({name})"))
                for name, sql in tables
                if name in migrate.OUTBOUND_TABLES
            }
        )


def _check_tables(reader: Reader) -> None:
    """Check that every known name is an ordinary table: a view or a virtual table would run its author's SQL.

    So would a generated column, and one step of its expression may take minutes, which no deadline interrupts.
    """
    ours = outbound_columns()
    columns: dict[str, frozenset[str]] = {name: frozenset() for name in migrate.OUTBOUND_TABLES}
    for row in reader.all(_KNOWN_TABLES):
        if row["type"] != "table" or not str(row["sql"]).upper().startswith("CREATE TABLE"):
            raise HostileFileError(f"{OUTBOUND_DB}: {row['name']} is not an ordinary table.")
        # SQLite makes a table of this text and of nothing else, so our own text says what is in it.
        if (row["name"], row["sql"]) in ours:
            columns[row["name"]] = ours[row["name"], row["sql"]]
            continue
        found = reader.all(f"PRAGMA table_xinfo({row['name']})")
        if any(column["hidden"] for column in found):
            raise HostileFileError(f"{OUTBOUND_DB}: {row['name']} has a generated column.")
        columns[row["name"]] = frozenset(column["name"] for column in found)
    reader.known_columns = columns
