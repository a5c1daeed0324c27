"""The handles that `schema/connect.py` gives out: what a reader and a writer can do, and our errors for SQLite's.

Opens nothing itself. A reader is a different type from a writer and cannot write.
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
_WORK_SHARE: Final = 0.5  # of a deadline, from which on the time was spent on the file
_ROW_BYTES: Final = 200  # of a row's own, whatever is in it
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


# Of a file of ours: its content is not what we wrote. Nothing transient is among these.
_BROKEN_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def is_readonly_race(error: object) -> bool:
    """Whether an error is the SQLITE_READONLY_* family, and that family alone.

    A read-only handle raises it when it meets a hot journal: in the commit window of a live container, or after a kill.
    """
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_READONLY


def translate(error: sqlite3.Error | MemoryError, path: Path, *, hostile: bool) -> ClawbusError:
    """Our error for SQLite's. `hostile`: whether the file belongs to a container.

    What this host cannot do now (`schema/os_faults.py`) is a StorageError, whoever owns the file.
    """
    if isinstance(error, MemoryError):  # what the module raises for SQLITE_NOMEM
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
    """Run the operation again, once, when SQLite found corruption: a single read error looks the same and passes.

    The operation opens its files itself, so that the second time reads every page again.
    """
    try:
        return operation()
    except (HostileFileError, UnusableFileError) as error:
        if not error.doubtful:
            raise
    return operation()


def not_writable(error: object, path: Path) -> StorageError | None:
    """Our error when an owner may not write its own file."""
    if not is_readonly_race(error):
        return None
    name = getattr(error, "sqlite_errorname", "SQLITE_READONLY")
    hint = "Make the data folder writable again (`mount` and `dmesg` say why it is not); the daemon retries by itself."
    return StorageError(f"{path.name}: {error} ({name})", hint=hint)


class Deadline:
    """How long the statements of one look at a container's file may run: `seconds` of work, or three times that of waiting.

    A file that is made to be slow costs this thread's processor time. A disk that does not answer, a machine with no
    processor to spare, or a daemon that was stopped costs none of it, and is the host's own doing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._thread = threading.get_ident()
        self._worked = time.thread_time()
        self._host_is_slow = False

    def passed(self) -> int:
        """For SQLite's progress handler: 1 interrupts the statement."""
        now = time.monotonic()
        if now <= self._until:
            return 0
        mine = threading.get_ident() == self._thread
        if not mine or time.thread_time() - self._worked >= self._seconds * _WORK_SHARE:
            return 1
        self._host_is_slow = now > self._until + max(2 * self._seconds, _LEAST_WAIT_S)
        return int(self._host_is_slow)

    def judged(self, error: ClawbusError) -> ClawbusError:
        """Return the error to raise: a StorageError when time passed without any work."""
        if not isinstance(error, ReadDeadlineError) or not self._host_is_slow:
            return error
        hint = "The disk, or the whole machine, is too slow now (`dmesg`, `iostat`, `uptime`); the daemon retries by itself."
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
        self.deadline: Deadline | None = None  # of a container's file
        self.known_columns: Mapping[str, frozenset[str]] = {}  # of tables that were looked at while opening
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
        """Every row of a query. Of a container's file: HostileFileError when they are more than `max_read_bytes`."""
        try:
            rows = self._connection.execute(sql, params)
            return rows.fetchall() if self._max_read_bytes is None else self._bounded(rows, self._max_read_bytes)
        except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
            raise self._translated(error) from error

    def some(self, sql: str, params: Sequence[object], *, budget: int, column: str | None = None) -> list[sqlite3.Row]:
        """Rows of a query until `column`'s characters, or all columns', exceed `budget`; at least one row if any."""
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
        """Return the columns that a table has here; empty without such a table. Both names are our own."""
        if alias == "main" and table in self.known_columns:
            return self.known_columns[table]
        return frozenset(row["name"] for row in self.all(f"PRAGMA {alias}.table_info({table})"))

    @contextmanager
    def snapshot(self) -> Generator[Self]:
        """Every read inside sees the file at one instant. In DELETE mode no writer can commit meanwhile: keep it short."""
        self.one("BEGIN")
        try:
            self.one("SELECT count(*) FROM sqlite_schema")  # a transaction takes its view with its first read
            yield self
        finally:
            self._roll_back()

    def copy_pages(self, target: sqlite3.Connection, pages: int, stepped: Callable[[int, int, int], None]) -> None:
        """SQLite's backup API from this file into an open one, `pages` at a time.

        Raises sqlite3.Error, and what `stepped` (status, pages remaining, pages in all) raises.
        """
        self._connection.backup(target, pages=pages, progress=stepped, sleep=0.02)

    def _roll_back(self) -> None:
        try:
            self._connection.rollback()
        except (sqlite3.Error, MemoryError) as error:
            raise self._translated(error) from error

    def _bounded(self, rows: sqlite3.Cursor, budget: int) -> list[sqlite3.Row]:
        """Bound the rows: a file without the contract's keys may answer a question about one row with millions."""
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

    _looks = False  # inside `looking`, and nothing written yet
    commits = 0  # transactions that changed the file and were committed

    def execute(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run one statement; returns the number of rows it changed."""
        try:
            return self._connection.execute(sql, params).rowcount
        except (sqlite3.Error, MemoryError) as error:
            raise self._translated(error) from error

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> int:
        """Run one statement for each row; returns the number of rows changed."""
        try:
            return self._connection.executemany(sql, rows).rowcount
        except (sqlite3.Error, MemoryError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> ClawbusError:
        """As a reader's; but to a writer SQLITE_READONLY is no race: the folder or its file system is not writable."""
        return not_writable(error, self._path) or super()._translated(error)

    def compact(self, *, min_free_bytes: int, max_live_bytes: int) -> int:
        """Give pages back that nothing uses, when they are at least `min_free_bytes` and half of the file; the bytes given back.

        It copies what is live under an exclusive lock, so a file with more than `max_live_bytes` of it is left as it is.
        """
        before, free = (self._pragma("page_count"), self._pragma("freelist_count"))
        size = self._pragma("page_size")
        if free * size < min_free_bytes or free * 2 < before or (before - free) * size > max_live_bytes:
            return 0
        self.execute("VACUUM")
        return (before - self._pragma("page_count")) * size

    def prove_writable(self, timeout_ms: int) -> None:
        """Write the file without changing anything in it. FileBusyError when a lock keeps it from that for so long."""
        before, version = self._pragma("busy_timeout"), self._pragma("user_version")
        self.one(f"PRAGMA busy_timeout={timeout_ms}")
        try:
            with self.transaction():
                self.execute(f"PRAGMA user_version={version}")
            self.commits += 1
        finally:
            self.one(f"PRAGMA busy_timeout={before}")

    def bound_cache(self, size: int) -> None:
        """Hold no more than about `size` bytes of the file's pages in memory."""
        self.one(f"PRAGMA cache_size={-(size // 1024)}")

    def forget_pages(self) -> None:
        """Read every page from the file again when it is next wanted; what the schema is stays known."""
        self.one("PRAGMA shrink_memory")

    def _pragma(self, name: str) -> int:
        row = self.one(f"PRAGMA {name}")
        return int(row[0]) if row is not None else 0

    def attach_reader(self, path: Path, alias: str) -> None:
        """Let this handle also read a trusted file of the other side, under `alias` (one of our own names).

        Read-only, so no transaction here ever writes it: a commit stays one file's and names no super-journal.
        Looks into the file at once, so that a hot journal or a missing file shows here. Errors as of `open_reader`.
        """
        try:
            self._connection.execute(f"ATTACH DATABASE ? AS {alias}", (f"{path.absolute().as_uri()}?mode=ro",))
            self._connection.execute(f"PRAGMA {alias}.mmap_size=0")
            self._connection.execute(f"PRAGMA {alias}.schema_version").fetchone()
        except (sqlite3.Error, MemoryError) as error:
            raise translate(error, path, hostile=False) from error

    @contextmanager
    def looking(self) -> Generator[Self]:
        """Read, and perhaps end in a `transaction` on what was read: one lock and one view of the file for all of it.

        Without one it ends with nothing written, and needs no right to write.
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
    def transaction(self) -> Generator[Self]:
        """BEGIN IMMEDIATE .. COMMIT; any exception rolls back and nothing has changed. Inside `looking` it goes on from there."""
        if self._looks:
            self._looks = False
        else:
            self.execute("BEGIN IMMEDIATE")
        changes = self._connection.total_changes
        try:
            yield self
            self.execute("COMMIT")
            # One that changed nothing is committed under any lock of somebody else's, and proves nothing.
            self.commits += int(self._connection.total_changes != changes)
        except BaseException:
            # What made it fail counts. A rollback that fails too leaves a journal, and the next opening rolls it back.
            with suppress(ClawbusError):
                self._roll_back()
            raise


def _weight(values: Iterable[object]) -> int:
    return sum(len(value) for value in values if isinstance(value, str | bytes))
