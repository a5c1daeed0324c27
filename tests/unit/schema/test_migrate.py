"""Files of older shapes: migrated on open by their owner, all or nothing, with every row explained afterwards."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from schema import migrate
from schema.connect import open_owner, open_reader
from schema.errors import SchemaTooNewError
from schema.migrate import VERSION, Role
from schema.outbound_file import open_outbound_reader
from schema.plain_file import ReadLimits
from tests.support.older_shapes import (
    INBOUND_SHAPES,
    OLDEST_IN,
    OLDEST_OUT,
    OUTBOUND_SHAPES,
    ROWS_IN,
    ROWS_OUT,
    make_older,
)

# ALTER TABLE cannot add a NOT NULL column without a default, so this one differs from the fresh file's.
DEFAULTED = ("session_state", "updated_at")


def shape(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tables with their columns (the order does not matter), and indexes with their SQL."""
    connection = sqlite3.connect(path)
    tables: dict[str, Any] = {}
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    for table in names:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        tables[table] = {
            name: (kind, notnull, None if (table, name) == DEFAULTED else default, pk)
            for _, name, kind, notnull, default, pk in columns
        }
    indexes = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index'").fetchall())
    connection.close()
    return tables, {name: sql and sql.replace(" IF NOT EXISTS", "") for name, sql in indexes.items()}


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    lines = [*connection.iterdump(), *map(str, connection.execute("PRAGMA user_version"))]
    connection.close()
    return lines


def older(path: Path, role: Role, name: str, *, wal: bool = False) -> None:
    if role is Role.INBOUND:
        make_older(path, OLDEST_IN, INBOUND_SHAPES[name], ROWS_IN, wal=wal)
    else:
        make_older(path, OLDEST_OUT, OUTBOUND_SHAPES[name], ROWS_OUT, wal=wal)


SHAPES = [(Role.INBOUND, name) for name in INBOUND_SHAPES] + [(Role.OUTBOUND, name) for name in OUTBOUND_SHAPES]


@pytest.mark.parametrize(("role", "name"), SHAPES)
def test_an_older_file_becomes_the_fresh_one(tmp_path: Path, role: Role, name: str) -> None:
    older(tmp_path / "old.db", role, name)
    open_owner(tmp_path / "fresh.db", role).close()
    open_owner(tmp_path / "old.db", role).close()
    assert shape(tmp_path / "old.db") == shape(tmp_path / "fresh.db")


@pytest.mark.parametrize(("role", "name"), SHAPES)
def test_migrating_again_changes_nothing(tmp_path: Path, role: Role, name: str) -> None:
    path = tmp_path / "old.db"
    older(path, role, name)
    open_owner(path, role).close()
    before = dump(path)
    open_owner(path, role).close()
    assert dump(path) == before
    # As if the version had been lost: each step finds its work done.
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=0")
    connection.close()
    open_owner(path, role).close()
    assert dump(path) == before


@pytest.mark.parametrize("name", INBOUND_SHAPES)
def test_every_row_is_kept_and_backfilled(tmp_path: Path, name: str) -> None:
    path = tmp_path / "old.db"
    older(path, Role.INBOUND, name)
    with open_reader(path) as db:
        before = {row["id"]: dict(row) for row in db.all("SELECT * FROM messages_in")}
    with open_owner(path, Role.INBOUND) as db:
        after = {row["id"]: dict(row) for row in db.all("SELECT * FROM messages_in")}
        receipts = [dict(row) for row in db.all("SELECT * FROM delivered")]
        history = db.all("SELECT message_id, event, json_extract(detail, '$.status') AS status FROM message_history")
    assert set(after) == set(before)
    for identity, row in after.items():
        assert row.items() >= {key: value for key, value in before[identity].items() if key != "series_id"}.items()
        assert (row["series_id"], row["trigger"], row["on_wake"]) == (identity, 1, 0)
    assert receipts == [
        {
            "message_out_id": "o1",
            "platform_message_id": None,
            "status": "delivered",
            "delivered_at": "2026-04-23 15:13:00",
        }
    ]
    told = {row["message_id"]: (row["event"], row["status"]) for row in history}
    assert told == {identity: ("migrated", row["status"]) for identity, row in before.items()}
    assert len(history) == len(before), "one row each"


@pytest.mark.parametrize("name", OUTBOUND_SHAPES)
def test_the_containers_rows_are_kept(tmp_path: Path, name: str) -> None:
    path = tmp_path / "old.db"
    older(path, Role.OUTBOUND, name)
    with open_owner(path, Role.OUTBOUND) as db:
        acks = {
            row["message_id"]: (row["status"], row["incarnation"]) for row in db.all("SELECT * FROM processing_ack")
        }
        state = [(row["key"], row["value"]) for row in db.all("SELECT * FROM session_state")]
        assert [row["id"] for row in db.all("SELECT id FROM messages_out ORDER BY seq")] == ["o1", "o2"]
    assert acks == {"done": ("completed", None), "open": ("processing", None)}
    assert state == [("conversation", "abc")]


class Crash(Exception):
    """The process dies here."""


class Dying:
    """A connection whose owner dies at its `at`-th statement."""

    def __init__(self, connection: sqlite3.Connection, at: int) -> None:
        self._connection = connection
        self._left = at

    def execute(self, sql: str, *params: Any) -> sqlite3.Cursor:
        self._left -= 1
        if self._left < 0:
            raise Crash(sql)
        return self._connection.execute(sql, *params)

    @property
    def in_transaction(self) -> bool:
        return False  # a dead process rolls nothing back


@pytest.mark.faults
@pytest.mark.parametrize("role", [Role.INBOUND, Role.OUTBOUND])
def test_a_crash_at_any_statement_leaves_the_old_file_and_the_next_open_completes(tmp_path: Path, role: Role) -> None:
    path = tmp_path / "old.db"
    open_owner(tmp_path / "fresh.db", role).close()
    older(path, role, "oldest")
    original, before = path.read_bytes(), dump(path)
    statements = 0
    while True:
        path.write_bytes(original)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            migrate.ensure(Dying(connection, statements), role, path)  # pyright: ignore[reportArgumentType]
        except Crash as crash:
            done = str(crash)
        else:
            connection.close()
            break
        connection.close()
        assert dump(path) == before, f"died before {done}"
        open_owner(path, role).close()
        assert shape(path) == shape(tmp_path / "fresh.db")
        statements += 1
    assert statements > 10, "every statement had its turn"
    assert shape(path) == shape(tmp_path / "fresh.db")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_newer_file_is_refused_and_unchanged(tmp_path: Path, role: Role, mode: str) -> None:
    path = tmp_path / "new.db"
    open_owner(path, role).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute(f"PRAGMA user_version={VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaTooNewError) as refused:
        open_owner(path, role)
    assert str(VERSION + 1) in str(refused.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("which", ["older", "current"])
@pytest.mark.parametrize("role", [Role.INBOUND, Role.OUTBOUND])
def test_a_file_that_was_left_in_wal_comes_back_to_delete(tmp_path: Path, role: Role, which: str) -> None:
    path = tmp_path / "x.db"
    if which == "older":
        older(path, role, "oldest", wal=True)
    else:
        open_owner(path, role).close()
        make_older(path, wal=True)
    assert path.read_bytes()[18:20] == b"\x02\x02"
    with open_owner(path, role) as db:
        row = db.one("PRAGMA journal_mode")
        assert row is not None
        assert row[0] == "delete"
    assert path.read_bytes()[18:20] == b"\x01\x01"
    assert [item.name for item in tmp_path.iterdir()] == ["x.db"]


@pytest.mark.parametrize("name", OUTBOUND_SHAPES)
def test_the_host_never_migrates_the_containers_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "outbound.db"
    older(path, Role.OUTBOUND, name)
    before = path.read_bytes()
    reader = open_outbound_reader(tmp_path, ReadLimits())
    assert reader is not None
    with reader:
        assert "incarnation" not in reader.columns("processing_ack")
    assert path.read_bytes() == before


def test_a_second_opener_that_waited_finds_the_work_done(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    older(path, Role.INBOUND, "oldest")

    class Waiting(Dying):
        """Another owner migrates between this one's look and its lock."""

        def execute(self, sql: str, *params: Any) -> sqlite3.Cursor:
            if sql == "BEGIN IMMEDIATE":
                open_owner(path, Role.INBOUND).close()
            return super().execute(sql, *params)

    connection = sqlite3.connect(path, isolation_level=None)
    migrate.ensure(Waiting(connection, 1000), Role.INBOUND, path)  # pyright: ignore[reportArgumentType]
    connection.close()
    with open_reader(path) as db:
        assert len(db.all("SELECT * FROM message_history")) == 5


# What versions 3 and 4 added, as files of version 2 lack it.
VERSION_2 = {
    Role.INBOUND: (
        (
            "ALTER TABLE messages_in DROP COLUMN traceparent",
            *(
                f"ALTER TABLE messages_in DROP COLUMN {name}"
                for name in ("not_after", "solo", "holds", "deferrals", "void_ack")
            ),
            "DROP INDEX delivery_attempts_dead",
            "DROP TABLE draining",
        ),
        (
            "INSERT INTO messages_in(id, seq, kind, timestamp, tries, content)"
            " VALUES ('m1', 2, 'chat', '2026-11-21T00:00:00.000Z', 1, '{}')"
        ),
        "SELECT id, traceparent, not_after, solo, holds, deferrals, void_ack FROM messages_in",
        ("m1", None, None, 1, 0, 0, None),  # what is being retried is tried alone from now on
    ),
    Role.OUTBOUND: (
        ("DROP TABLE turn_notes", "DROP TABLE deferrals"),
        "INSERT INTO processing_ack(message_id, status, status_changed) VALUES ('m1', 'failed', '2026-11-21T00:00:00.000Z')",
        "SELECT message_id, status, incarnation FROM processing_ack",
        ("m1", "failed", None),
    ),
    Role.CENTRAL: (
        (
            "DROP INDEX sessions_dead",
            "DROP INDEX sessions_quarantined",
            "ALTER TABLE sessions DROP COLUMN dead_letters",
        ),
        "INSERT INTO sessions(agent, session, created_at, active, quarantine_reason) VALUES ('a', 's', 1, 0, 'why')",
        "SELECT session, active, quarantine_reason, dead_letters FROM sessions",
        ("s", 0, "why", 0),
    ),
}


@pytest.mark.parametrize("role", VERSION_2)
def test_a_file_of_version_2_gains_what_it_lacks_and_keeps_its_rows(tmp_path: Path, role: Role) -> None:
    undo, insert, select, expected = VERSION_2[role]
    old, fresh = tmp_path / "old.db", tmp_path / "fresh.db"
    open_owner(old, role).close()
    open_owner(fresh, role).close()
    connection = sqlite3.connect(old)
    for statement in (*undo, insert, "PRAGMA user_version=2"):
        connection.execute(statement)
    connection.commit()
    connection.close()
    assert shape(old) != shape(fresh)
    with open_owner(old, role) as db:
        assert [tuple(row) for row in db.all(select)] == [expected]
    assert shape(old) == shape(fresh)
    before = dump(old)
    open_owner(old, role).close()
    assert dump(old) == before
