"""Opens an Inngest server's `main.db`, checks that it is one, and says which tables and columns it has.

It writes nothing (only the caller of `open_writer` does), locks no file in DELETE mode for reading, and opens files only
through `schema/`. It recognises an Inngest database by its tables, not by its name. It reads both journal modes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from daemon.inngest.errors import (
    InngestDbCorruptError,
    InngestDbForeignError,
    InngestDbLockedError,
    InngestDbMissingError,
    InngestDbVersionError,
    SweepQueryFailedError,
)
from schema.closed_wal import read_closed
from schema.connect import open_foreign_reader, open_foreign_writer
from schema.errors import ClawbusError, FileBusyError, ReadRaceError, UnusableFileError
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.lockfree import Patience, read_unlocked, uses_wal
from schema.stamp import StrandedJournalError

T = TypeVar("T")

PATIENCE: Final = Patience()

# What must be there, as every released schema since v1.0 has it (pkg/db/sqlite/migrations and its predecessors).
REQUIRED: Final[Mapping[str, frozenset[str]]] = {
    "trace_runs": frozenset({"run_id", "function_id", "queued_at", "started_at", "ended_at", "status"}),
    "function_runs": frozenset({"run_id", "run_started_at", "function_id", "function_version", "event_id", "batch_id"}),
    "function_finishes": frozenset({"run_id", "status", "output", "completed_step_count", "created_at"}),
    "history": frozenset(
        {"id", "created_at", "run_started_at", "function_id", "function_version", "run_id", "event_id", "batch_id",
         "idempotency_key", "type", "attempt", "cancel_request", "result"}
    ),
    "functions": frozenset({"id", "name", "slug"}),
}  # fmt: skip
_SPANS: Final = frozenset(
    {"span_id", "trace_id", "name", "start_time", "end_time", "run_id", "dynamic_span_id", "attributes", "status"}
)
WRITTEN: Final = ("history", "function_finishes", "trace_runs", "spans")
_JOURNAL: Final = "The server died in a commit and left a journal: start it once, or sweep with --apply."
_FOLDER: Final = (
    "A WAL file needs a folder that may be written: work as a user who may, or copy main.db with its -wal elsewhere."
)
_KNOWN: Final = (*REQUIRED, "spans", "traces", "apps", "queue_snapshot_chunks", "worker_connections")


@frozen
class Shape:
    """Which tables and columns this file has."""

    tables: Mapping[str, frozenset[str]]

    @property
    def spans(self) -> bool:
        """Whether runs may also be listed from spans here."""
        return self.has("spans", *_SPANS)

    def has(self, table: str, *columns: str) -> bool:
        """Return whether a table has all these columns."""
        return table in self.tables and self.tables[table].issuperset(columns)


def read_database(path: Path, work: Callable[[Reader, Shape], T], patience: Patience | None = None) -> T:
    """Return what `work` reads from the file at one instant. It may run several times, so it must only read.

    A file in DELETE mode is read without any lock: the server has no busy time-out, and each of its commits that met a
    lock of ours would be lost. A WAL file that nobody has open stays without a `-wal` and `-shm` of ours. Raises the errors of `daemon.inngest.errors`, and no others of a database.
    """
    _check_there(path)
    with translated(path):
        if not uses_wal(path):
            return read_unlocked(path, lambda reader: work(reader, read_shape(reader, path)), patience or PATIENCE)
        found = read_closed(path, lambda reader: (work(reader, read_shape(reader, path)),))
        if found is not None:
            return found[0]
        with open_foreign_reader(path) as reader:
            shape = read_shape(reader, path)
            with reader.snapshot():
                return work(reader, shape)


@contextmanager
def open_writer(path: Path) -> Generator[tuple[Writer, Shape]]:
    """Open the file read-write, without changing anything. Errors as of `read_database`."""
    _check_there(path)
    with translated(path), open_foreign_writer(path) as writer:
        shape = read_shape(writer, path)
        _refuse_triggers(writer, path)
        yield writer, shape


def read_shape(reader: Reader, path: Path) -> Shape:
    """Return the tables and columns. Raise InngestDbForeignError or InngestDbVersionError."""
    kinds = {row["name"]: row["type"] for row in reader.all("SELECT name, type FROM sqlite_schema")}
    there = [table for table in REQUIRED if table in kinds]
    if len(there) < 3 or any(kinds.get(table, "table") != "table" for table in _KNOWN):
        raise InngestDbForeignError(f"{path} is not an Inngest database: it has {_listed(kinds)}.")
    tables = {table: reader.columns(table) for table in _KNOWN if table in kinds}
    for table, wanted in REQUIRED.items():
        missing = sorted(wanted - tables.get(table, frozenset()))
        if table not in tables:
            raise InngestDbVersionError(f"{path} has no table {table}.")
        if missing:
            raise InngestDbVersionError(f"{path}: table {table} has no column {', '.join(missing)}.")
    return Shape(tables)


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Translate errors of opening and reading into the errors of this package."""
    try:
        yield
    except StrandedJournalError as error:
        raise InngestDbLockedError(f"{path}: {error}", hint=_JOURNAL) from error
    except ReadRaceError as error:
        hint = _JOURNAL if _sqlite_code(error) == sqlite3.SQLITE_READONLY_ROLLBACK else _FOLDER
        raise InngestDbLockedError(f"{path}: {error}", hint=hint) from error
    except FileBusyError as error:
        raise InngestDbLockedError(f"{path}: {error}", hint=_hint_of(error)) from error
    except UnusableFileError as error:
        raise _kind_of_damage(error)(f"{path}: {error}") from error
    except ClawbusError as error:
        if type(error).__module__.startswith("daemon."):
            raise
        if (_sqlite_code(error) or 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
            raise InngestDbMissingError(f"{path}: {error}", hint=_FOLDER) from error
        raise SweepQueryFailedError(f"{path}: {error}") from error


def _kind_of_damage(error: ClawbusError) -> Callable[[str], ClawbusError]:
    return InngestDbForeignError if _sqlite_code(error) == sqlite3.SQLITE_NOTADB else InngestDbCorruptError


def _hint_of(error: ClawbusError) -> str | None:
    """Return the error's own hint, if it says more than that of its class."""
    return error.hint if error.hint != error.default_hint else None


def _sqlite_code(error: ClawbusError) -> int | None:
    return getattr(error.__cause__, "sqlite_errorcode", None)


def _check_there(path: Path) -> None:
    # Not by opening it: closing that descriptor would drop the locks of this process's own connections.
    if not path.is_file():
        raise InngestDbMissingError(f"there is no file {path}.")
    if not os.access(path, os.R_OK):
        raise InngestDbMissingError(f"{path} may not be read by this user.")
    real = Path(os.path.realpath(path))
    if not real.exists() or not real.samefile(path):
        raise InngestDbMissingError(
            f"SQLite would look for {path} at {real}.",
            hint="Work where the file is: --exec 'kubectl -n NS exec POD --' or --exec 'docker exec CONTAINER'.",
        )


def _refuse_triggers(writer: Writer, path: Path) -> None:
    """Raise if a table that the sweep writes has a trigger. Inngest creates none, and one would do more than the sweep."""
    found = writer.one(
        f"SELECT name, tbl_name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name IN ({', '.join('?' * len(WRITTEN))})",
        WRITTEN,
    )
    if found is not None:
        raise InngestDbVersionError(f"{path}: there is a trigger {found['name']} on {found['tbl_name']}.")


def _listed(kinds: Mapping[str, str]) -> str:
    names = sorted(kinds)[:8]
    return ", ".join(names) if names else "no tables"
