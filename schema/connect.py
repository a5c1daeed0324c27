"""How every clawbus file is opened: the only place that calls sqlite3.connect, with every mode, pragma and guard.

Rules that must not be broken here:
- journal_mode=DELETE for all shared files: WAL's shared memory does not cross a VM mount.
- Open, work, close: a long-lived reader across such a mount freezes at its first view.
- A reader is a different type from a writer and cannot write.
- outbound.db is hostile on the host's side: never followed through a link, checked, limited, given a deadline.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from schema import migrate
from schema.errors import (
    ClawbusError,
    FileBusyError,
    HostileFileError,
    ReadDeadlineError,
    ReadRaceError,
    StorageError,
    UnusableFileError,
)
from schema.layout import OUTBOUND_DB

BUSY_TIMEOUT_MS: Final = 5000
_MAGIC: Final = b"SQLite format 3\x00"
_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_HOSTILE_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_AUTH,
    }
)


# Of a file of ours: its content is not what we wrote. Nothing transient is among these.
_BROKEN_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What one look into a container's file may cost. Bytes and seconds."""

    max_file_bytes: int = 512 * 1024 * 1024
    max_row_bytes: int = 4 * 1024 * 1024
    deadline_s: float = 2.0


def is_readonly_race(error: object) -> bool:
    """Whether an error is the SQLITE_READONLY_* family, and that family alone.

    A read-only handle raises it when it meets a hot journal: in the commit window of a live container, or after a kill.
    """
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_READONLY


def translate(error: sqlite3.Error, path: Path, *, hostile: bool) -> ClawbusError:
    """Our error for SQLite's. `hostile`: whether the file belongs to a container."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    text = f"{path.name}: {error} ({name})"
    if is_readonly_race(error):
        return ReadRaceError(text)
    if isinstance(code, int) and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return FileBusyError(text)
    if hostile and isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_INTERRUPT:
        return ReadDeadlineError(text)
    if hostile and (code is None or code & 0xFF in _HOSTILE_CODES):
        return HostileFileError(text)
    if isinstance(code, int) and code & 0xFF in _BROKEN_CODES:
        return UnusableFileError(f"{text.rstrip('.')}.")
    return StorageError(text)


def _not_writable(error: object, path: Path) -> StorageError | None:
    """Our error when an owner may not write its own file."""
    if not is_readonly_race(error):
        return None
    name = getattr(error, "sqlite_errorname", "SQLITE_READONLY")
    hint = "Make the data folder writable again (`mount` and `dmesg` say why it is not); the daemon retries by itself."
    return StorageError(f"{path.name}: {error} ({name})", hint=hint)


class Reader:
    """A handle that can only read. Use as a context manager; errors come out as ClawbusError."""

    def __init__(self, connection: sqlite3.Connection, path: Path, *, hostile: bool = False) -> None:
        connection.row_factory = sqlite3.Row
        self._connection = connection
        self._path = path
        self._hostile = hostile
        self.file_id: str = ""  # of a container's file: tells one that was deleted and made anew from the old one

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._connection.close()

    def all(self, sql: str, params: Sequence[object] | Mapping[str, object] = ()) -> list[sqlite3.Row]:
        """Every row of a query."""
        try:
            return self._connection.execute(sql, params).fetchall()
        except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
            raise self._translated(error) from error

    def some(self, sql: str, params: Sequence[object], *, column: str, budget: int) -> list[sqlite3.Row]:
        """Rows of a query until `column`'s characters exceed `budget`; at least one row if there is any."""
        found: list[sqlite3.Row] = []
        try:
            for row in self._connection.execute(sql, params):
                found.append(row)
                value = row[column]
                budget -= len(value) if isinstance(value, str | bytes) else 0
                if budget < 0:
                    break
        except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
            raise self._translated(error) from error
        return found

    def one(self, sql: str, params: Sequence[object] = ()) -> sqlite3.Row | None:
        """The first row, or None."""
        try:
            row: sqlite3.Row | None = self._connection.execute(sql, params).fetchone()
        except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
            raise self._translated(error) from error
        return row

    def columns(self, table: str, alias: str = "main") -> frozenset[str]:
        """The columns a table has here; empty if there is no such table. Both names are our own."""
        return frozenset(row["name"] for row in self.all(f"PRAGMA {alias}.table_info({table})"))

    def _translated(self, error: Exception) -> ClawbusError:
        if isinstance(error, sqlite3.Error):
            return translate(error, self._path, hostile=self._hostile)
        return (HostileFileError if self._hostile else StorageError)(f"{self._path.name}: {error}")


class Writer(Reader):
    """A handle of the file's owner. Every change goes through `transaction()`."""

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement; returns the number of rows it changed."""
        try:
            return self._connection.execute(sql, params).rowcount
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> int:
        """Run one statement for each row; returns the number of rows changed."""
        try:
            return self._connection.executemany(sql, rows).rowcount
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> ClawbusError:
        """As a reader's; but to a writer SQLITE_READONLY is no race: the folder or its file system is not writable."""
        return _not_writable(error, self._path) or super()._translated(error)

    def attach_reader(self, path: Path, alias: str) -> None:
        """Let this handle also read a trusted file of the other side, under `alias` (one of our own names).

        Read-only, so no transaction here ever writes it: a commit stays one file's and names no super-journal.
        Looks into the file at once, so that a hot journal or a missing file shows here. Errors as of `open_reader`.
        """
        try:
            self._connection.execute(f"ATTACH DATABASE ? AS {alias}", (f"{path.absolute().as_uri()}?mode=ro",))
            self._connection.execute(f"PRAGMA {alias}.mmap_size=0")
            self._connection.execute(f"PRAGMA {alias}.schema_version").fetchone()
        except sqlite3.Error as error:
            raise translate(error, path, hostile=False) from error

    @contextmanager
    def transaction(self) -> Generator[Self]:
        """BEGIN IMMEDIATE .. COMMIT; any exception rolls back and nothing has changed."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield self
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise


def open_owner(path: Path, role: migrate.Role, *, create: bool = True) -> Writer:
    """Open a file of ours read-write, made or migrated if need be. Raises SchemaTooNewError, FileBusyError, StorageError."""
    mode = "rwc" if create else "rw"
    try:
        connection = _connect(path, mode)
    except sqlite3.Error as error:
        raise (_not_writable(error, path) or translate(error, path, hostile=False)) from error
    try:
        # EXTRA also syncs the folder after the journal is unlinked: without it a power cut may undo a commit
        # that was already acknowledged (sqlite.org/pragma.html#pragma_synchronous).
        connection.execute("PRAGMA synchronous=EXTRA")
        migrate.ensure(connection, role, path)
    except sqlite3.Error as error:
        connection.close()
        raise (_not_writable(error, path) or translate(error, path, hostile=False)) from error
    except BaseException:
        connection.close()
        raise
    return Writer(connection, path)


def open_reader(path: Path) -> Reader:
    """Open a trusted file read-only (the runner's look at inbound.db, the command line's at the registry)."""
    try:
        connection = _connect(path, "ro")
        connection.execute("PRAGMA mmap_size=0")
        connection.execute("PRAGMA query_only=ON")
    except sqlite3.Error as error:
        raise translate(error, path, hostile=False) from error
    return Reader(connection, path)


def open_outbound_reader(folder: Path, limits: ReadLimits) -> Reader | None:
    """Open a container's outbound.db read-only, as hostile input. None while the runner has not made it.

    Raises HostileFileError, ReadRaceError, FileBusyError or StorageError.
    """
    path = folder / OUTBOUND_DB
    guard = _open_plain(folder, OUTBOUND_DB)
    if guard is None:
        return None
    try:
        if not _check_header(guard, path, limits):
            return None
        _check_journal(folder)
        connection = _connect_to(guard, path)
        identity = os.fstat(guard)
    finally:
        # Before the first statement: closing any descriptor of a file drops this process's locks on it.
        os.close(guard)
    try:
        _limit(connection, limits)
        reader = Reader(connection, path, hostile=True)
        reader.file_id = f"{identity.st_dev}:{identity.st_ino}"
        _check_tables(reader)
    except sqlite3.Error as error:
        connection.close()
        raise translate(error, path, hostile=True) from error
    except BaseException:
        connection.close()
        raise
    return reader


def recover_outbound_journal(folder: Path) -> bool:
    """Let SQLite roll a stranded outbound.db-journal back and delete it. True if there was one.

    Call this ONLY after the container's confirmed exit: a live writer's journal must never be touched.
    Raises HostileFileError for a journal or file that no runner of ours writes.
    """
    path = folder / OUTBOUND_DB
    if not _check_journal(folder):
        return False
    guard = _open_plain(folder, OUTBOUND_DB)
    if guard is None:
        return False
    try:
        header = os.pread(guard, 100, 0)
    finally:
        os.close(guard)
    # Zeros: the very first transaction was torn, and its journal says that there was nothing before it.
    if any(header) and (not header.startswith(_MAGIC) or header[18:20] != b"\x01\x01"):
        raise HostileFileError(f"{path.name} is not a SQLite file in DELETE journal mode.")
    try:
        connection = _connect(path, "rw")
        try:
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translate(error, path, hostile=True) from error
    _drop_cold_journal(folder)
    return True


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # isolation_level=None: transactions are begun by us, never by the module behind our back.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_MS / 1000,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=32,
    )
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    return connection


def _connect_to(guard: int, path: Path) -> sqlite3.Connection:
    """Connect by path, and prove that SQLite opened the very file that `guard` holds and no link put in its place."""
    wanted = os.fstat(guard)
    probe = os.dup(guard)
    os.close(probe)  # the number that the next open of this process most likely gets
    try:
        connection = _connect(path, "ro")
    except sqlite3.Error as error:
        raise translate(error, path, hostile=True) from error
    if _same(probe, wanted) and probe != guard:
        return connection
    for name in Path("/proc/self/fd").iterdir():
        if int(name.name) != guard and _same(int(name.name), wanted):
            return connection
    connection.close()
    raise HostileFileError(f"{path.name} was replaced while it was being opened.")


def _same(descriptor: int, wanted: os.stat_result) -> bool:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _open_plain(folder: Path, name: str) -> int | None:
    """A descriptor of a plain, singly linked file in `folder`, not followed; None if there is none."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostileFileError(f"{folder.name}/ cannot be opened: {error.strerror}.") from error
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise StorageError(f"{name} cannot be read: {error.strerror}.") from error
    except OSError as error:
        raise HostileFileError(f"{name} is not a plain file: {error.strerror}.") from error
    finally:
        os.close(parent)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise HostileFileError(f"{name} is not a plain file with a single link.")
    return descriptor


def _check_header(guard: int, path: Path, limits: ReadLimits) -> bool:
    """False for a file that is still empty; raises HostileFileError for one no runner writes."""
    size = os.fstat(guard).st_size
    if size == 0:
        return False
    if size > limits.max_file_bytes:
        raise HostileFileError(f"{path.name} has {size} bytes; the limit is {limits.max_file_bytes}.")
    header = os.pread(guard, 100, 0)
    if not any(header) and os.path.lexists(path.with_name(path.name + "-journal")):
        raise ReadRaceError(f"{path.name} is in its first transaction.")
    if not header.startswith(_MAGIC):
        raise HostileFileError(f"{path.name} is not a SQLite database.")
    if header[18:20] != b"\x01\x01":
        raise HostileFileError(f"{path.name} is in WAL mode; the contract is journal_mode=DELETE.")
    return True


def _check_journal(folder: Path) -> bool:
    """Whether a journal lies beside outbound.db; raises HostileFileError for one that SQLite must not see.

    A journal may name a super-journal, which SQLite would then open and even delete, wherever it lies
    (sqlite.org/fileformat2.html#the_rollback_journal: the name, its length, a checksum and the magic at the end).
    """
    name = OUTBOUND_DB + "-journal"
    descriptor = _open_plain(folder, name)
    if descriptor is None:
        return False
    try:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, 8, size - 8) if size >= 16 else b""
    finally:
        os.close(descriptor)
    # A journal whose whole content is its header also ends in no magic: the magic opens the header, at offset 0.
    if tail == _JOURNAL_MAGIC:
        raise HostileFileError(f"{name} names a super-journal.")
    return True


def _drop_cold_journal(folder: Path) -> None:
    """Remove a journal that SQLite looked at and found cold (empty, or its header zeroed): nothing to roll back."""
    try:
        (folder / (OUTBOUND_DB + "-journal")).unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{OUTBOUND_DB}-journal cannot be removed: {error.strerror}.") from error


def _limit(connection: sqlite3.Connection, limits: ReadLimits) -> None:
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.max_row_bytes)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    deadline = time.monotonic() + limits.deadline_s
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 5000)
    for pragma in ("trusted_schema=OFF", "query_only=ON", "mmap_size=0", "cell_size_check=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _check_tables(reader: Reader) -> None:
    """Every known name must be an ordinary table: a view or virtual table would run what its author likes.

    So would a generated column, and one step of its expression may take minutes, which no deadline interrupts.
    """
    known = ",".join(f"'{name}'" for name in migrate.OUTBOUND_TABLES)
    for row in reader.all(f"SELECT lower(name) AS name, type, sql FROM sqlite_schema WHERE lower(name) IN ({known})"):
        if row["type"] != "table" or not str(row["sql"]).upper().startswith("CREATE TABLE"):
            raise HostileFileError(f"{OUTBOUND_DB}: {row['name']} is not an ordinary table.")
        if any(column["hidden"] for column in reader.all(f"PRAGMA table_xinfo({row['name']})")):
            raise HostileFileError(f"{OUTBOUND_DB}: {row['name']} has a generated column.")
