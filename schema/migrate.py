"""Migrates a file to this version's schema when the side that owns it opens it. Every step can be repeated.

Files of older NanoClaw versions have user_version 0 and lack columns; their rows are backfilled so that the invariants
hold. A reader never migrates: it does without a column that the other side's file does not have yet.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

from schema.errors import SchemaTooNewError, UnusableFileError
from schema.os_faults import in_own_folder

VERSION: Final = 5
_TABLE: Final = re.compile(r"^CREATE TABLE IF NOT EXISTS (\w+)", re.MULTILINE)

OUTBOUND_TABLES: Final = (
    "messages_out", "processing_ack", "session_state", "container_state", "turn_notes", "turn_usage", "deferrals",
)  # fmt: skip


class Role(StrEnum):
    """Which file this is; the value names its SQL file."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"
    CENTRAL = "central"
    MAILBOX = "mailbox"


# Columns that older schemas lack: (table, column, declaration, backfill or None). ALTER TABLE cannot add a NOT NULL
# column without a default, so each of these has one or is nullable.
_Added = tuple[str, str, str, str | None]
_ADDED: Final[Mapping[Role, tuple[_Added, ...]]] = MappingProxyType(
    {
        Role.INBOUND: (
            ("messages_in", "series_id", "TEXT", "UPDATE messages_in SET series_id = id WHERE series_id IS NULL"),
            ("messages_in", "trigger", "INTEGER NOT NULL DEFAULT 1", None),
            ("messages_in", "source_session_id", "TEXT", None),
            ("messages_in", "on_wake", "INTEGER NOT NULL DEFAULT 0", None),
            ("messages_in", "traceparent", "TEXT", None),
            ("messages_in", "not_after", "TEXT", None),
            # A message that was retried before this column existed is tried alone from now on.
            ("messages_in", "solo", "INTEGER NOT NULL DEFAULT 0", "UPDATE messages_in SET solo = 1 WHERE tries > 0"),
            ("messages_in", "holds", "INTEGER NOT NULL DEFAULT 0", None),
            ("messages_in", "deferrals", "INTEGER NOT NULL DEFAULT 0", None),
            ("messages_in", "void_ack", "TEXT", None),
            ("messages_in", "stop_late", "INTEGER NOT NULL DEFAULT 0", None),
            ("messages_in", "relay", "TEXT", None),
            ("destinations", "source", "TEXT", None),
            ("delivered", "platform_message_id", "TEXT", None),
            ("host_messages", "final", "INTEGER NOT NULL DEFAULT 1", None),
            ("delivery_attempts", "passed", "INTEGER NOT NULL DEFAULT 0", None),
            ("delivery_attempts", "doubts", "INTEGER NOT NULL DEFAULT 0", None),
            ("delivered", "status", "TEXT NOT NULL DEFAULT 'delivered'", None),
        ),
        Role.OUTBOUND: (
            # The time of older rows is unknown: the epoch stands for it.
            ("session_state", "updated_at", "TEXT NOT NULL DEFAULT '1970-01-01T00:00:00.000Z'", None),
            ("processing_ack", "incarnation", "TEXT", None),
            ("messages_out", "final", "INTEGER NOT NULL DEFAULT 1", None),
            ("turn_usage", "tools", "TEXT", None),
        ),
        Role.MAILBOX: (
            ("mailbox", "final", "INTEGER NOT NULL DEFAULT 1", None),
            ("mailbox", "files", "TEXT", None),
        ),
        Role.CENTRAL: (
            ("sessions", "dead_letters", "INTEGER NOT NULL DEFAULT 0", None),
            ("incarnations", "epoch", "INTEGER NOT NULL DEFAULT 0", None),
            ("sessions", "schedules", "INTEGER NOT NULL DEFAULT 0", None),
        ),
    }
)


def ensure(connection: sqlite3.Connection, role: Role, path: Path) -> None:
    """Create the tables of an owner's file, or migrate them. Raise SchemaTooNewError or UnusableFileError before any change."""
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > VERSION:
        raise SchemaTooNewError(f"{path} has schema version {found}; this clawbus knows {VERSION}.")
    if found < VERSION:
        _refuse_foreign(connection, role, path)
    # Before the first write, outside a transaction: switch a file that another program left in WAL mode back to DELETE.
    if str(connection.execute("PRAGMA journal_mode").fetchone()[0]).lower() != "delete":
        connection.execute("PRAGMA journal_mode=DELETE")
    if found == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have migrated the file while this one waited for the lock.
        if int(connection.execute("PRAGMA user_version").fetchone()[0]) < VERSION:
            _add_columns(connection, role)
            for statement in statements(role):
                connection.execute(statement)
            _backfill(connection, role)
            connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error, MemoryError):  # raise the first error, not this one
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


def _refuse_foreign(connection: sqlite3.Connection, role: Role, path: Path) -> None:
    """Raise UnusableFileError for another program's database, which must not get our tables."""
    there = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    ours = {name for one in statements(role) for name in _TABLE.findall(one)}
    if there and there.isdisjoint(ours):
        why = f"{path} is another program's database: it has none of the tables of {role.value}.db."
        raise UnusableFileError.of(path.name, why)


def _add_columns(connection: sqlite3.Connection, role: Role) -> None:
    for table, column, declaration, _ in _ADDED.get(role, ()):
        present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if present and column not in present:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declaration}")


def _backfill(connection: sqlite3.Connection, role: Role) -> None:
    for _, _, _, update in _ADDED.get(role, ()):
        if update is not None:
            connection.execute(update)
    if role is Role.INBOUND:
        _adopt_messages(connection)


def _adopt_messages(connection: sqlite3.Connection) -> None:
    """Add a history row to each message without one, as in a folder that NanoClaw made: every status needs a history."""
    connection.execute(
        "INSERT INTO message_history(message_id, event, at, detail)"
        " SELECT id, 'migrated', CAST(strftime('%s', 'now') AS INTEGER) * 1000, json_object('status', status)"
        " FROM messages_in WHERE id NOT IN (SELECT message_id FROM message_history)"
    )


@functools.cache
def statements(role: Role) -> tuple[str, ...]:
    """Return the SQL statements that make a file's tables and indexes. Raise StorageError if they cannot be read."""
    with in_own_folder(f"the tables of {role.value}.db cannot be read"):
        text = resources.files("schema").joinpath(f"{role.value}.sql").read_text(encoding="utf-8")
    found: list[str] = []
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return tuple(found)
