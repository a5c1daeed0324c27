"""Opens the host's own files (central.db, inbound.db) read-only for a report. A missing table or column reads as absent."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from schema.connect import open_reader
from schema.errors import ClawbusError, SchemaTooNewError, UnusableFileError
from schema.handles import Reader
from schema.layout import SessionFolder
from schema.migrate import VERSION

_T = TypeVar("_T")


def open_inbound(folder: SessionFolder) -> Reader:
    """Open the host's own file read-only. Raise UnusableFileError when it is gone."""
    if not folder.inbound_db.exists():
        raise UnusableFileError(f"{folder.inbound_db} is gone.")
    return open_current(folder.inbound_db)


def open_current(path: Path) -> Reader:
    """Open a trusted file read-only. Raise SchemaTooNewError for one that a newer clawbus wrote."""
    reader = open_reader(path)
    try:
        row = reader.one("PRAGMA user_version")
    except BaseException:
        reader.close()
        raise
    found = int(row[0]) if row is not None else 0
    if found > VERSION:
        reader.close()
        raise SchemaTooNewError(f"{path} has schema version {found}; this clawbus knows {VERSION}.")
    return reader


def table_rows(reader: Reader, table: str, sql: str, *params: object) -> list[sqlite3.Row]:
    """Return the rows, or none where an older file has no such table."""
    return reader.all(sql, params) if reader.columns(table) else []


def guarded(errors: list[str], work: Callable[[], _T]) -> _T | None:
    """Return the work's result, or None after adding why it failed to `errors`."""
    try:
        return work()
    except ClawbusError as error:
        errors.append(f"{error.code}: {error}")
    return None
