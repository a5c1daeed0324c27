"""Opening files of our own: what each handle promises, and that a reader cannot write."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest

from schema.connect import open_owner, open_reader
from schema.errors import (
    ClawbusError,
    FileBusyError,
    HostileFileError,
    ReadDeadlineError,
    ReadRaceError,
    StorageError,
    UnusableFileError,
)
from schema.handles import Reader, Writer, is_readonly_race, translate
from schema.migrate import OUTBOUND_TABLES, Role
from schema.outbound_file import open_outbound_reader, outbound_columns
from schema.plain_file import ReadLimits


def pragma(db: Reader, name: str) -> object:
    row = db.one(f"PRAGMA {name}")
    assert row is not None
    return row[0]


def sqlite_error(code: int | None, name: str = "X") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("said by sqlite")
    if code is not None:
        error.sqlite_errorcode = code
        error.sqlite_errorname = name
    return error


@pytest.mark.parametrize("role", Role)
def test_an_owner_writes_in_delete_mode_and_as_durably_as_sqlite_can(tmp_path: Path, role: Role) -> None:
    for _ in ("made", "opened again"):
        with open_owner(tmp_path / "x.db", role) as db:
            assert pragma(db, "journal_mode") == "delete"
            assert pragma(db, "busy_timeout") == 5000
            assert pragma(db, "synchronous") == 3, "EXTRA"


def test_a_reader_of_ours_promises_what_the_contract_says(tmp_path: Path) -> None:
    open_owner(tmp_path / "x.db", Role.INBOUND).close()
    with open_reader(tmp_path / "x.db") as db:
        assert pragma(db, "journal_mode") == "delete"
        assert pragma(db, "busy_timeout") == 5000
        assert pragma(db, "mmap_size") == 0
        assert pragma(db, "query_only") == 1


def test_a_reader_of_a_container_trusts_nothing(tmp_path: Path) -> None:
    open_owner(tmp_path / "outbound.db", Role.OUTBOUND).close()
    db = open_outbound_reader(tmp_path, ReadLimits(max_row_bytes=12_345))
    assert db is not None
    with db:
        assert pragma(db, "busy_timeout") == 5000
        assert pragma(db, "mmap_size") == 0
        assert pragma(db, "query_only") == 1
        assert pragma(db, "trusted_schema") == 0
        assert pragma(db, "cell_size_check") == 1
        assert db._connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) == 12_345
        assert db._connection.getlimit(sqlite3.SQLITE_LIMIT_ATTACHED) == 0


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO processing_ack VALUES ('m', 'completed', 'now', NULL)",
        "UPDATE processing_ack SET status = 'x'",
        "DELETE FROM processing_ack",
        "DROP TABLE processing_ack",
        "CREATE TABLE more (x)",
        "PRAGMA user_version=7",
        "PRAGMA journal_mode=WAL",
        "VACUUM",
    ],
)
@pytest.mark.parametrize("query_only", ["ON", "OFF"])
def test_a_reader_cannot_write(tmp_path: Path, statement: str, query_only: str) -> None:
    path = tmp_path / "outbound.db"
    with open_owner(path, Role.OUTBOUND) as db:
        db.execute("INSERT INTO processing_ack VALUES ('a', 'processing', 'now', NULL)")
    before = path.read_bytes()
    hostile = open_outbound_reader(tmp_path, ReadLimits())
    assert hostile is not None
    for reader in (hostile, open_reader(path)):
        with reader:
            assert not isinstance(reader, Writer)
            assert not hasattr(reader, "execute")
            # Even without its belt it has braces: the file itself is open read-only.
            reader.all(f"PRAGMA query_only={query_only}")
            try:
                reader.all(statement)
            except ClawbusError:
                pass
            else:
                assert statement.startswith("PRAGMA journal_mode"), "only that one answers instead of failing"
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["outbound.db"]


def test_an_attached_file_of_the_other_side_cannot_be_written(tmp_path: Path) -> None:
    with open_owner(tmp_path / "in.db", Role.INBOUND) as db:
        db.execute("INSERT INTO destinations(name, type) VALUES ('d', 'channel')")
    with open_owner(tmp_path / "out.db", Role.OUTBOUND) as db:
        db.attach_reader(tmp_path / "in.db", "inbound")
        assert [row["name"] for row in db.all("SELECT name FROM inbound.destinations")] == ["d"]
        assert "series_id" in db.columns("messages_in", "inbound")
        with pytest.raises(ClawbusError):
            _in_one_transaction(db, INSERT_STATE, "DELETE FROM inbound.destinations")
        assert db.all("SELECT * FROM session_state") == []
        assert len(db.all("SELECT * FROM inbound.destinations")) == 1


def test_attaching_what_is_not_there_says_so(tmp_path: Path) -> None:
    with open_owner(tmp_path / "out.db", Role.OUTBOUND) as db, pytest.raises(StorageError):
        db.attach_reader(tmp_path / "in.db", "inbound")
    assert not (tmp_path / "in.db").exists()


INSERT_STATE = "INSERT INTO session_state VALUES ('k', 'v', 'now')"


class Interruption(Exception):
    """Raised inside transactions here."""


def _in_one_transaction(db: Writer, *statements: str, error: Exception | None = None) -> None:
    with db.transaction():
        for statement in statements:
            db.execute(statement)
        if error is not None:
            raise error


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    with open_owner(tmp_path / "x.db", Role.OUTBOUND) as db:
        with pytest.raises(Interruption):
            _in_one_transaction(db, INSERT_STATE, error=Interruption())
        assert db.all("SELECT * FROM session_state") == []
        with pytest.raises(StorageError):
            _in_one_transaction(db, INSERT_STATE, INSERT_STATE)
        assert db.all("SELECT * FROM session_state") == []
        with db.transaction():
            assert db.executemany("INSERT INTO session_state VALUES (?, 'v', 'now')", [("a",), ("b",)]) == 2
        assert len(db.all("SELECT * FROM session_state")) == 2


def test_a_file_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        open_owner(tmp_path / "x.db", Role.INBOUND, create=False)
    with pytest.raises(StorageError):
        open_reader(tmp_path / "x.db")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_looks_like_a_uri_is_only_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory&x#y%41.db"
    open_owner(path, Role.CENTRAL).close()
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_some_stops_at_the_budget_and_never_before_one_row(tmp_path: Path) -> None:
    with open_owner(tmp_path / "x.db", Role.OUTBOUND) as db:
        db.executemany("INSERT INTO session_state VALUES (?, ?, 'now')", [(str(n), "x" * 100) for n in range(9)])
        sql = "SELECT * FROM session_state WHERE key >= ? ORDER BY key"
        assert len(db.some(sql, ("0",), column="value", budget=250)) == 3
        assert len(db.some(sql, ("0",), column="value", budget=0)) == 1
        assert len(db.some(sql, ("0",), column="value", budget=10**9)) == 9
        assert db.some(sql, ("z",), column="value", budget=0) == []


READONLY_FAMILY = (8, 264, 520, 776, 1032, 1288, 1544)


@pytest.mark.parametrize("code", READONLY_FAMILY)
def test_the_whole_readonly_family_is_the_race(code: int) -> None:
    assert is_readonly_race(sqlite_error(code))
    for hostile in (True, False):
        assert type(translate(sqlite_error(code), Path("x.db"), hostile=hostile)) is ReadRaceError


@pytest.mark.parametrize(
    "other",
    [
        sqlite_error(sqlite3.SQLITE_BUSY), sqlite_error(261), sqlite_error(sqlite3.SQLITE_LOCKED),
        sqlite_error(sqlite3.SQLITE_CANTOPEN), sqlite_error(sqlite3.SQLITE_IOERR), sqlite_error(sqlite3.SQLITE_ERROR),
        sqlite_error(sqlite3.SQLITE_CORRUPT), sqlite_error(None), sqlite3.OperationalError("attempt to write a readonly database"),
        ValueError("readonly"), OSError(8, "x"), None, "SQLITE_READONLY", 8, ReadRaceError("x"),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'sqlite_errorcode', None)}",
)  # fmt: skip
def test_nothing_else_is_the_race(other: object) -> None:
    assert not is_readonly_race(other)


def test_an_error_that_only_carries_the_code_is_not_the_race() -> None:
    class Pretender(Exception):
        sqlite_errorcode = 776

    assert not is_readonly_race(Pretender())


TRANSLATIONS = {
    "busy": (5, FileBusyError, FileBusyError),
    "busy_recovery": (261, FileBusyError, FileBusyError),
    "locked": (6, FileBusyError, FileBusyError),
    "interrupt": (9, ReadDeadlineError, StorageError),
    "corrupt": (11, HostileFileError, UnusableFileError),
    "corrupt_index": (779, HostileFileError, UnusableFileError),
    "not_a_database": (26, HostileFileError, UnusableFileError),
    "too_big": (18, HostileFileError, StorageError),
    "error": (1, HostileFileError, StorageError),
    "no_code": (None, HostileFileError, StorageError),
    "cannot_open": (14, StorageError, StorageError),
    "io": (10, StorageError, StorageError),
    "full": (13, StorageError, StorageError),
}


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_every_error_of_sqlite_has_a_name_of_ours(name: str) -> None:
    code, theirs, ours = TRANSLATIONS[name]
    assert type(translate(sqlite_error(code), Path("x.db"), hostile=True)) is theirs
    error = translate(sqlite_error(code), Path("x.db"), hostile=False)
    assert type(error) is ours
    assert "x.db" in str(error)
    assert error.hint


def test_a_look_that_writes_nothing_needs_no_lock_and_one_that_does_commits_what_it_saw(tmp_path: Path) -> None:
    path = tmp_path / "inbound.db"
    with open_owner(path, Role.INBOUND) as db:
        with db.looking():
            assert db.all("SELECT * FROM pruned") == []
            other = sqlite3.connect(path, timeout=0, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
        with db.looking():
            assert db.all("SELECT * FROM pruned") == []
            with db.transaction():
                db.execute("INSERT INTO pruned VALUES ('x', 1, 1, 1)")
        assert other.execute("SELECT what FROM pruned").fetchall() == [("x",)]
        with pytest.raises(StorageError), db.looking(), db.transaction():
            assert db.executemany("INSERT INTO pruned VALUES (?, 1, 1, 1)", [("y",), ("x",)])
        with pytest.raises(StorageError), db.transaction(), db.transaction():
            pass  # only a look becomes a transaction: one inside another is a mistake
        other.close()
        assert [row["what"] for row in db.all("SELECT what FROM pruned")] == ["x"]


def test_the_columns_of_our_own_text_are_those_that_sqlite_makes_of_it(tmp_path: Path) -> None:
    with open_owner(tmp_path / "outbound.db", Role.OUTBOUND) as db:
        made = {(row["name"], row["sql"]) for row in db.all("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")}
        ours = outbound_columns()
        assert {name for name, _ in ours} == set(OUTBOUND_TABLES)
        assert set(ours) <= made
        for (name, _), columns in ours.items():
            found = db.all(f"PRAGMA table_xinfo({name})")
            assert {row["name"] for row in found} == columns
            assert not any(row["hidden"] for row in found)
    reader = open_outbound_reader(tmp_path, ReadLimits())
    assert reader is not None
    with reader:
        assert reader.columns("messages_out") == columns_of(ours, "messages_out")


def columns_of(ours: Mapping[tuple[str, str], frozenset[str]], table: str) -> frozenset[str]:
    return next(columns for (name, _), columns in ours.items() if name == table)
