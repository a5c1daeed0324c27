"""Opens a container's outbound.db on the host's side, and recovers its journal after a confirmed exit.

The file is hostile: never followed through a link, checked, limited, given a deadline. It is opened for one read and closed,
because a long-lived reader across a VM mount freezes at its first view.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Final

from schema import migrate
from schema.connect import connected, connected_to_memory
from schema.errors import HostileFileError
from schema.handles import Deadline, Reader, translate
from schema.layout import OUTBOUND_DB
from schema.os_faults import in_own_folder
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
    connection = connected_to_memory()
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
    connection = connected(path, "rw", hostile=True)
    try:
        _limit(connection, limits)
        # Enough to make SQLite look for a hot journal, and it does not parse the schema, which is hostile too.
        connection.execute("PRAGMA user_version").fetchone()
    except (sqlite3.Error, MemoryError) as error:
        raise translate(error, path, hostile=True) from error
    finally:
        connection.close()
    drop_journal(folder)
    return True


def _connect_to(guard: int, path: Path) -> tuple[sqlite3.Connection, int]:
    """Connect by path, and prove that SQLite opened the very file that `guard` holds and no link put in its place.

    Returns the connection and the number of its descriptor.
    """
    with in_own_folder(f"{OUTBOUND_DB} cannot be opened"):
        wanted = os.fstat(guard)
        probe = os.dup(guard)
    os.close(probe)  # the number that the next open of this process most likely gets
    connection = connected(path, "ro", hostile=True)
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
    with closing(connected_to_memory()) as connection:
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
