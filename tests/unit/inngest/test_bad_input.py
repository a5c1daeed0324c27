"""What the sweep must not do: each with its code, a fix, and the database as it was."""

import os
import resource
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from daemon.inngest.database import open_writer
from daemon.inngest.errors import SweepDatabaseChangedError
from daemon.inngest.operations import operate
from daemon.inngest.plan import Scope
from daemon.inngest.reports import sweep_report
from daemon.inngest.sweep import Outcome, Request, sweep
from daemon.inngest.writing import Mark, write_status
from schema.errors import ClawbusError
from schema.lockfree import Patience
from tests.support.hot_journal import strand_journal
from tests.support.inngest_db import HEALTH, MINUTE, NOW, TRIAGE, InngestDb
from tests.support.inngest_server import open_elsewhere

SCOPE = Scope(functions=(TRIAGE, HEALTH))


@pytest.fixture
def db(tmp_path: Path) -> InngestDb:
    made = InngestDb(tmp_path / "main.db")
    for _ in range(3):
        made.run(TRIAGE)
    made.run(HEALTH, age=MINUTE)
    return made


def apply(path: Path, progress: Callable[[str], None] | None = None) -> Outcome:
    return sweep(Request(path, SCOPE, "ada", apply=True), NOW, progress)


def code_of(path: Path, progress: Callable[[str], None] | None = None) -> str | None:
    try:
        error = apply(path, progress).error
    except ClawbusError as raised:
        error = raised
    assert error is None or error.hint
    return error.code if error is not None else None


@contextmanager
def unchanged(db: InngestDb) -> Generator[None]:
    before = db.dump()
    yield
    assert db.dump() == before


def at(step: str, act: Callable[[], object]) -> Callable[[str], None]:
    """Do something at a step of the sweep."""

    def tell(reached: str) -> None:
        if reached == step:
            act()

    return tell


@pytest.mark.parametrize("make", ["missing", "folder", "text", "empty", "another", "view"])
def test_a_file_that_is_no_inngest_database_is_refused_and_stays_as_it_is(tmp_path: Path, make: str) -> None:
    path = tmp_path / "main.db"
    if make == "folder":
        path.mkdir()
    elif make == "text":
        path.write_text("not a database, and long enough to be looked at " * 50)
    elif make == "empty":
        path.touch()
    elif make == "another":
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("CREATE TABLE history (id)")
    elif make == "view":
        InngestDb(path).do("DROP TABLE functions")
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("CREATE VIEW functions AS SELECT 1 AS id, 'x' AS name, 'x' AS slug")
    before = path.read_bytes() if path.is_file() else None
    assert code_of(path) == ("INNGEST_DB_MISSING" if make in ("missing", "folder") else "INNGEST_DB_FOREIGN")
    assert (path.read_bytes() if path.is_file() else None) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ([] if make == "missing" else ["main.db"])


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE history DROP COLUMN idempotency_key",
        "ALTER TABLE trace_runs RENAME COLUMN status TO state",
        "DROP TABLE trace_runs",
        "DROP TABLE function_finishes",
        "CREATE TRIGGER t AFTER UPDATE ON trace_runs BEGIN DELETE FROM history; END",
    ],
)
def test_a_version_that_is_not_known_is_refused(db: InngestDb, change: str) -> None:
    db.do(change)
    with unchanged(db):
        assert code_of(db.path) == "INNGEST_DB_VERSION"
    assert list(db.path.parent.glob("*.sqlite")) == []


def test_a_version_that_wants_more_than_is_known_fails_as_a_whole(db: InngestDb) -> None:
    db.do("DROP TABLE function_finishes")
    db.do("CREATE TABLE function_finishes (run_id BLOB, status VARCHAR, output VARCHAR, completed_step_count INT,"
          " created_at TIMESTAMP, tenant TEXT NOT NULL)")  # fmt: skip
    with unchanged(db):
        assert code_of(db.path) == "SWEEP_APPLY_FAILED"


def test_a_damaged_file_is_refused(db: InngestDb) -> None:
    with db.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (db.path.stat().st_size - 4096))
    before = db.path.read_bytes()
    assert code_of(db.path) == "INNGEST_DB_CORRUPT"
    assert db.path.read_bytes() == before


def test_text_that_is_none_fails_the_query_and_nothing_else(db: InngestDb) -> None:
    db.do("UPDATE functions SET name = CAST(x'ff' AS TEXT)")
    before = db.path.read_bytes()
    assert code_of(db.path) == "SWEEP_SQL_QUERY_FAILED"
    assert db.path.read_bytes() == before


def test_a_locked_file_is_told_before_and_within_the_sweep(db: InngestDb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schema.connect.BUSY_TIMEOUT_MS", 20)
    with unchanged(db), closing(sqlite3.connect(db.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert code_of(db.path) == "INNGEST_DB_LOCKED"
        other.execute("ROLLBACK")
        assert code_of(db.path, at("backed_up", lambda: other.execute("BEGIN IMMEDIATE"))) == "INNGEST_DB_LOCKED"
        other.execute("ROLLBACK")
    assert code_of(db.path) is None


def test_a_journal_that_a_killed_server_left_is_told_in_a_preview_and_rolled_back_by_an_apply(db: InngestDb) -> None:
    wanted = db.dump()
    strand_journal(db.path, "INSERT INTO events VALUES (?, 'e', 'e', '{}')")
    answer = operate("runs", {"path": str(db.path), "scope": vars_of(SCOPE), "status": None, "limit": 5}, print)
    assert answer["error"]["code"] == "INNGEST_DB_LOCKED"
    assert "--apply" in answer["error"]["fix"]
    outcome = apply(db.path)
    assert outcome.error is None
    assert outcome.backup is not None
    with closing(sqlite3.connect(outcome.backup.path)) as copy:
        assert list(copy.iterdump()) == wanted


def vars_of(scope: Scope) -> dict[str, object]:
    return {name: getattr(scope, name) for name in ("functions", "older_than_ms", "max_runs", "sample", "exclude")}


@pytest.mark.parametrize(
    ("wal", "step"),
    [(wal, step) for wal in (True, False) for step in ("planned", "backup_copy", "backed_up")],
)
def test_a_file_that_somebody_writes_to_meanwhile_is_left_alone(tmp_path: Path, wal: bool, step: str) -> None:
    db = InngestDb(tmp_path / "main.db", wal=wal)
    run = db.run(TRIAGE)
    db.run(HEALTH, age=MINUTE)

    def write() -> None:
        db.history(run, "FunctionCompleted", NOW - 10)

    found = code_of(db.path, at(step, write))
    assert found == "SWEEP_DATABASE_CHANGED"
    assert db.all("SELECT status, ended_at FROM trace_runs ORDER BY queued_at") == [(200, 0), (200, 0)]
    assert db.all("SELECT * FROM function_finishes") == []


def test_any_other_commit_after_the_backup_is_noticed_too(db: InngestDb) -> None:
    outcome = apply(db.path, at("backed_up", lambda: db.do("INSERT INTO events VALUES ('e', 'e', 'x', '{}')")))
    assert outcome.error is not None
    assert outcome.error.code == "SWEEP_DATABASE_CHANGED"
    assert outcome.backup is not None, "it stays, and is told"
    assert sweep_report(outcome)["backup"]["path"] == str(outcome.backup.path)
    assert db.span_list("Cancelled") == []


@contextmanager
def files_no_larger_than(size: int) -> Generator[None]:
    """A full disk, as far as one process can have one of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_backup_that_cannot_be_written_ends_it(db: InngestDb) -> None:
    with unchanged(db), files_no_larger_than(20_000):
        assert code_of(db.path) == "SWEEP_BACKUP_FAILED"
    assert sorted(one.name for one in db.path.parent.iterdir()) == ["main.db"]


def test_a_backup_that_does_not_verify_ends_it(db: InngestDb) -> None:
    """An index that does not match its table: readable, and no sound copy."""
    db.do("CREATE INDEX by_name ON functions (name)")
    with closing(sqlite3.connect(db.path)) as other, other:
        other.execute("PRAGMA writable_schema=ON")
        other.execute("UPDATE sqlite_schema SET sql = replace(sql, '(name)', '(slug)') WHERE name = 'by_name'")
    with unchanged(db):
        assert code_of(db.path) == "SWEEP_BACKUP_VERIFY_FAILED"
    assert sorted(one.name for one in db.path.parent.iterdir()) == ["main.db"]


def test_a_commit_that_cannot_be_written_is_rolled_back(db: InngestDb) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with unchanged(db):
        try:
            limit = at("transaction_begun", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard)))
            found = code_of(db.path, limit)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert found == "SWEEP_APPLY_FAILED"
    assert code_of(db.path) is None


def test_what_a_sweep_left_wrong_is_told_with_the_backup(db: InngestDb) -> None:
    """A server that writes between the commit and the look: its run is listed as running again."""
    run = db.all("SELECT trace_id, dynamic_span_id, run_id, function_id FROM spans WHERE name = 'executor.run'")[0]

    def revive() -> None:
        db.do("UPDATE trace_runs SET status = 200 WHERE started_at = (SELECT min(started_at) FROM trace_runs)")

    outcome = apply(db.path, at("committed", revive))
    assert outcome.error is not None
    assert outcome.error.code == "SWEEP_NOT_VERIFIED"
    assert outcome.backup is not None
    assert str(outcome.backup.path) in str(outcome.error)
    assert outcome.verification is not None
    assert any("still listed as running" in text for text in outcome.verification.wrong)
    assert run is not None


def test_a_row_more_than_the_sweep_wrote_is_found(db: InngestDb) -> None:
    outcome = apply(db.path, at("committed", lambda: db.do("INSERT INTO events VALUES ('e', 'e', 'x', '{}')")))
    assert outcome.verification is not None
    assert outcome.verification.wrong == ("table events has 1 rows instead of 0",)


def test_a_sweep_that_cannot_be_looked_at_is_still_told_as_done(db: InngestDb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.inngest.database.PATIENCE", Patience(seconds=0.1))
    with ExitStack() as other:
        lock = open_elsewhere(db.path, statement="BEGIN EXCLUSIVE")
        outcome = apply(db.path, at("committed", lambda: other.enter_context(lock)))
    assert outcome.error is not None
    assert outcome.error.code == "SWEEP_NOT_VERIFIED"
    assert sweep_report(outcome)["applied"] is True
    assert len(db.span_list("Cancelled")) == 3


def test_a_path_that_sqlite_would_resolve_to_another_file_is_refused(db: InngestDb) -> None:
    """/proc/PID/root is a link to this machine's own root, as far as SQLite can tell; so is a descriptor's path."""
    with db.path.open("rb") as file:
        db.path.unlink()
        assert code_of(Path(f"/proc/self/fd/{file.fileno()}")) == "INNGEST_DB_MISSING"


def test_a_wal_file_that_cannot_be_opened_says_what_it_needs(tmp_path: Path) -> None:
    db = InngestDb(tmp_path / "main.db", wal=True)
    db.path.with_name("main.db-wal").mkdir()
    answer = operate("run", {"path": str(db.path), "run_id": "0" * 26}, print)
    assert answer["error"]["code"] == "INNGEST_DB_MISSING"
    assert "-wal" in answer["error"]["fix"]


def test_a_status_that_moved_under_the_writing_ends_the_transaction(db: InngestDb) -> None:
    """Nothing but a defect could do that; it would still be rolled back."""
    found = sweep(Request(db.path, SCOPE, "ada"), NOW).plan.candidates[0]
    db.do("UPDATE trace_runs SET status = 300")
    with unchanged(db), open_writer(db.path) as (writer, _), pytest.raises(SweepDatabaseChangedError):
        write_status(writer, found, Mark("ada", "r", NOW))


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "main.db"
    os.mkfifo(path)
    found: list[str | None] = []
    asking = threading.Thread(target=lambda: found.append(code_of(path)), daemon=True)
    asking.start()
    asking.join(20)
    if asking.is_alive():
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # let the waiting one go
    assert found == ["INNGEST_DB_MISSING"]
