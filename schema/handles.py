"""The database handles that `schema/connect.py` and `outbound_file.py` return, and the translation of SQLite's errors into ours.

This module opens nothing. A reader is a different type from a writer and cannot write.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from schema.errors import (
    ClawbusError,
    FileBusyError,
    HostileFileError,
    ReadDeadlineError,
    ReadRaceError,
    StorageError,
    UnusableFileError,
)
from schema.os_faults import Fault, as_host_error, host_error, read_through, sqlite_fault, sqlite_host_error

T = TypeVar("T")

_LEAST_WAIT_S: Final = 1.0
_WORK_SHARE: Final = 0.5  # CPU time as a share of the deadline, from which on the file, not the host, is to blame
_ROW_BYTES: Final = 200  # charged for each row, in addition to its content
_HOSTILE_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_AUTH,
    }
)


# For a file of ours: its content is not what we wrote. None of these is transient.
_BROKEN_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def is_readonly_race(error: object) -> bool:
    """Return whether an error belongs to the SQLITE_READONLY_* family.

    A read-only handle raises it when it finds a hot journal: while a live container commits, or after a kill.
    """
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_READONLY


def translate(error: sqlite3.Error | MemoryError, path: Path, *, hostile: bool) -> ClawbusError:
    """Translate SQLite's error into ours. `hostile`: the file belongs to a container.

    A fault of this host (`schema/os_faults.py`) becomes a StorageError, for files of host and container alike.
    """
    if isinstance(error, MemoryError):  # Python's sqlite3 raises it for SQLITE_NOMEM
        return as_host_error(error, path.name) or StorageError(path.name)
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    text = f"{path.name}: {error} ({name})"
    if is_readonly_race(error):
        return ReadRaceError(text)
    if isinstance(code, int) and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return FileBusyError(text, path=path)
    if hostile and isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_INTERRUPT:
        return ReadDeadlineError(text)
    if hostile and sqlite_fault(code) is Fault.THEIRS:
        return HostileFileError(text)
    host = sqlite_host_error(error, path.name, path)
    if host is not None:
        return host
    corrupt = isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_CORRUPT
    if corrupt and (failed := read_through(path)) is not None:
        return host_error(failed, f"{path.name} cannot be read")
    if hostile and (code is None or code & 0xFF in _HOSTILE_CODES):
        refused = HostileFileError(text)
        refused.doubtful = corrupt
        return refused
    if isinstance(code, int) and code & 0xFF in _BROKEN_CODES:
        broken = UnusableFileError.of(path.name, f"{text.rstrip('.')}.")
        broken.doubtful = corrupt
        return broken
    return StorageError(text)


def once_more(operation: Callable[[], T]) -> T:
    """Run the operation, and once more when SQLite reports corruption: a single failed read is reported the same way.

    The operation must open its files itself, so that the second run reads every page again.
    """
    try:
        return operation()
    except (HostileFileError, UnusableFileError) as error:
        if not error.doubtful:
            raise
    return operation()


def not_writable(error: object, path: Path) -> StorageError | None:
    """Return our error when an owner's write failed because the file is read-only; None for any other error."""
    if not is_readonly_race(error):
        return None
    name = getattr(error, "sqlite_errorname", "SQLITE_READONLY")
    hint = "Make the data folder writable again (`mount` and `dmesg` say why it is not); the daemon keeps retrying."
    return StorageError(f"{path.name}: {error} ({name})", hint=hint)


class Deadline:
    """Limits how long the statements of one read of a container's file may run.

    After `seconds`, a statement is interrupted if the thread has used CPU time for half of them: the file is made to be
    slow. Otherwise the thread only waited (a hung disk, an overloaded machine, a daemon that was stopped), which is the
    host's fault; then the limit is three times `seconds`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._thread = threading.get_ident()
        self._worked = time.thread_time()
        self._host_is_slow = False

    def passed(self) -> int:
        """Serve as SQLite's progress handler: return 1 to interrupt the statement, else 0."""
        now = time.monotonic()
        if now <= self._until:
            return 0
        mine = threading.get_ident() == self._thread
        if not mine or time.thread_time() - self._worked >= self._seconds * _WORK_SHARE:
            return 1
        self._host_is_slow = now > self._until + max(2 * self._seconds, _LEAST_WAIT_S)
        return int(self._host_is_slow)

    def judged(self, error: ClawbusError) -> ClawbusError:
        """Return the error to raise: a StorageError when the deadline passed because this host was slow."""
        if not isinstance(error, ReadDeadlineError) or not self._host_is_slow:
            return error
        hint = (
            "The disk, or the whole machine, is too slow now (`dmesg`, `iostat`, `uptime`); the daemon keeps retrying."
        )
        return StorageError(f"{error} This host waited for most of that time.", hint=hint)


class Reader:
    """A handle that can only read. Use as a context manager; errors come out as ClawbusError."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, *, hostile: bool = False, max_read_bytes: int | None = None
    ) -> None:
        connection.row_factory = sqlite3.Row
        self._connection = connection
        self._path = path
        self._hostile = hostile
        self._max_read_bytes = max_read_bytes
        self.deadline: Deadline | None = None  # set for a container's file
        self.known_columns: Mapping[str, frozenset[str]] = {}  # columns of the tables that were read while opening
        self.file_id: str = ""  # of a container's file: distinguishes a recreated file from the old one

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
        """Return every row of a query. Raise HostileFileError when a container's file yields more than `max_read_bytes`."""
        try:
            rows = self._connection.execute(sql, params)
            return rows.fetchall() if self._max_read_bytes is None else self._bounded(rows, self._max_read_bytes)
        except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
            raise self._translated(error) from error

    def some(self, sql: str, params: Sequence[object], *, budget: int, column: str | None = None) -> list[sqlite3.Row]:
        """Return rows until the length of `column`, or of all columns, exceeds `budget`. At least one row, if there is any.

        Text counts in characters, blobs in bytes.
        """
        found: list[sqlite3.Row] = []
        try:
            for row in self._connection.execute(sql, params):
                found.append(row)
                budget -= _weight(row if column is None else (row[column],))
                if budget < 0:
                    break
        except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
            raise self._translated(error) from error
        return found

    def one(self, sql: str, params: Sequence[object] | Mapping[str, object] = ()) -> sqlite3.Row | None:
        """Return the first row, or None."""
        try:
            row: sqlite3.Row | None = self._connection.execute(sql, params).fetchone()
        except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
            raise self._translated(error) from error
        return row

    def columns(self, table: str, alias: str = "main") -> frozenset[str]:
        """Return the columns that a table has in this file; empty without such a table. Both names must be our own."""
        if alias == "main" and table in self.known_columns:
            return self.known_columns[table]
        return frozenset(row["name"] for row in self.all(f"PRAGMA {alias}.table_info({table})"))

    @contextmanager
    def snapshot(self) -> Generator[Self]:
        """Let every read inside see the file at one instant. In DELETE mode this blocks commits: keep it short."""
        self.one("BEGIN")
        try:
            self.one("SELECT count(*) FROM sqlite_schema")  # a transaction's snapshot begins with its first read
            yield self
        finally:
            self._roll_back()

    def copy_pages(self, target: sqlite3.Connection, pages: int, stepped: Callable[[int, int, int], None]) -> None:
        """Copy this file into an open one with SQLite's backup API, `pages` at a time.

        Raise sqlite3.Error, and whatever `stepped` (status, pages remaining, total pages) raises.
        """
        self._connection.backup(target, pages=pages, progress=stepped, sleep=0.02)

    def _roll_back(self) -> None:
        try:
            self._connection.rollback()
        except (sqlite3.Error, MemoryError) as error:
            raise self._translated(error) from error

    def _bounded(self, rows: sqlite3.Cursor, budget: int) -> list[sqlite3.Row]:
        """Read the rows up to `budget` bytes: a file without the contract's keys may return millions where one is expected."""
        found: list[sqlite3.Row] = []
        for row in rows:
            found.append(row)
            budget -= _ROW_BYTES + _weight(row)
            if budget < 0:
                raise HostileFileError(
                    f"{self._path.name} answers with more than {self._max_read_bytes} bytes at once."
                )
        return found

    def _translated(self, error: Exception) -> ClawbusError:
        if isinstance(error, sqlite3.Error | MemoryError):
            found = translate(error, self._path, hostile=self._hostile)
            return found if self.deadline is None else self.deadline.judged(found)
        return (HostileFileError if self._hostile else StorageError)(f"{self._path.name}: {error}")


class Writer(Reader):
    """A handle of the file's owner. Every change goes through `transaction()`."""

    _looks = False  # inside `looking`, before any transaction
    commits = 0  # transactions that changed the file and were committed

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement. Return the number of rows it changed."""
        try:
            return self._connection.execute(sql, params).rowcount
        except (sqlite3.Error, MemoryError) as error:
            raise self._translated(error) from error

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> int:
        """Run one statement for each row. Return the number of rows changed."""
        try:
            return self._connection.executemany(sql, rows).rowcount
        except (sqlite3.Error, MemoryError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> ClawbusError:
        """Translate as a reader does, except SQLITE_READONLY: for a writer, the folder or its file system is not writable."""
        return not_writable(error, self._path) or super()._translated(error)

    def compact(self, *, min_free_bytes: int, max_live_bytes: int) -> int:
        """Return unused pages to the file system, if they are at least `min_free_bytes` and half of the file.

        Return the number of bytes freed. VACUUM copies the live pages under an exclusive lock, so a file with more than
        `max_live_bytes` of them is left alone.
        """
        before, free = (self._pragma("page_count"), self._pragma("freelist_count"))
        size = self._pragma("page_size")
        if free * size < min_free_bytes or free * 2 < before or (before - free) * size > max_live_bytes:
            return 0
        self.execute("VACUUM")
        return (before - self._pragma("page_count")) * size

    def prove_writable(self, timeout_ms: int) -> None:
        """Write to the file without changing its content. Raise FileBusyError if it stays locked for `timeout_ms`."""
        before, version = self._pragma("busy_timeout"), self._pragma("user_version")
        self.one(f"PRAGMA busy_timeout={timeout_ms}")
        try:
            with self.transaction():
                self.execute(f"PRAGMA user_version={version}")
            self.commits += 1
        finally:
            self.one(f"PRAGMA busy_timeout={before}")

    def bound_cache(self, size: int) -> None:
        """Keep at most about `size` bytes of the file's pages in memory."""
        self.one(f"PRAGMA cache_size={-(size // 1024)}")

    def forget_pages(self) -> None:
        """Drop the cached pages, so that they are read from the file again. The parsed schema stays cached."""
        self.one("PRAGMA shrink_memory")

    def _pragma(self, name: str) -> int:
        row = self.one(f"PRAGMA {name}")
        return int(row[0]) if row is not None else 0

    def attach_reader(self, path: Path, alias: str) -> None:
        """Attach a trusted file of the other side for reading, under `alias` (one of our own names).

        It is attached read-only, so no transaction here writes it: a commit touches one file and needs no super-journal.
        Read from it at once, so that a hot journal or a missing file fails here. Raise as `open_reader` does.
        """
        try:
            self._connection.execute(f"ATTACH DATABASE ? AS {alias}", (f"{path.absolute().as_uri()}?mode=ro",))
            self._connection.execute(f"PRAGMA {alias}.mmap_size=0")
            self._connection.execute(f"PRAGMA {alias}.schema_version").fetchone()
        except (sqlite3.Error, MemoryError) as error:
            raise translate(error, path, hostile=False) from error

    def detach(self, alias: str) -> None:
        """Close a file that `attach_reader` opened. Call it outside transactions."""
        self.execute(f"DETACH DATABASE {alias}")

    @contextmanager
    def looking(self) -> Generator[Self]:
        """Read, and optionally end with a `transaction` that acts on what was read, in one snapshot of the file.

        Without a `transaction` nothing is written, and the file need not be writable.
        """
        self.execute("BEGIN")
        self._looks = True
        try:
            yield self
        finally:
            self._looks = False
            if self._connection.in_transaction:
                self._roll_back()

    @contextmanager
    def transaction(self, *, exclusive: bool = False) -> Generator[Self]:
        """Run BEGIN IMMEDIATE .. COMMIT; on any exception roll back. Inside `looking`, continue its open transaction.

        `exclusive`: no other process reads the file meanwhile, so whatever it does with what it read is over or comes later.
        """
        if self._looks:
            self._looks = False
        else:
            self.execute("BEGIN EXCLUSIVE" if exclusive else "BEGIN IMMEDIATE")
        changes = self._connection.total_changes
        try:
            yield self
            self.execute("COMMIT")
            # A transaction that changed nothing commits even while another process holds a lock, so it proves nothing.
            self.commits += int(self._connection.total_changes != changes)
        except BaseException:
            # Report the original error. If the rollback fails too, it leaves a journal, which the next open rolls back.
            with suppress(ClawbusError):
                self._roll_back()
            raise


def _weight(values: Iterable[object]) -> int:
    return sum([len(value) for value in values if isinstance(value, (str, bytes))])
