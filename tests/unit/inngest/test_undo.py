"""A sweep's backup put back, and what that refuses."""

from pathlib import Path

from daemon.inngest.operations import operate
from daemon.inngest.plan import Scope
from daemon.inngest.sweep import Request, sweep
from tests.support.inngest_db import HEALTH, NOW, TRIAGE, InngestDb, Night
from tests.support.inngest_server import open_elsewhere


def swept(night: Night) -> Path:
    scope = Scope(functions=(TRIAGE, HEALTH), exclude=(night.unregistered.key,))
    backup = sweep(Request(night.db.path, scope, "ada", apply=True), NOW).backup
    assert backup is not None
    return backup.path


def put_back(db: InngestDb, backup: Path) -> tuple[dict[str, object] | None, str | None]:
    answer = operate("restore", {"path": str(db.path), "backup": str(backup)}, print, lambda: NOW)
    return answer["result"], answer["error"] and answer["error"]["code"]


def test_a_restore_undoes_the_sweep_and_can_itself_be_undone(night: Night) -> None:
    before, mode = night.db.dump(), night.db.one("PRAGMA journal_mode")
    backup = swept(night)
    after = night.db.dump()
    result, error = put_back(night.db, backup)
    assert error is None
    assert night.db.dump() == before
    assert night.db.one("PRAGMA journal_mode") == mode
    assert result is not None
    undo = result["before"]
    assert isinstance(undo, dict)
    assert put_back(night.db, Path(undo["path"]))[1] is None
    assert night.db.dump() == after


def test_it_is_refused_while_a_server_is_up(night: Night) -> None:
    backup = swept(night)
    with open_elsewhere(night.db.path):
        after = night.db.dump()
        assert put_back(night.db, backup) == (None, "SWEEP_SERVER_RUNNING")
        assert night.db.dump() == after


def test_what_is_no_backup_of_an_inngest_database_is_refused(night: Night, tmp_path: Path) -> None:
    before = night.db.dump()
    assert put_back(night.db, tmp_path / "none.sqlite") == (None, "RESTORE_REFUSED")
    text = tmp_path / "text.sqlite"
    text.write_text("not a database " * 500)
    assert put_back(night.db, text) == (None, "INNGEST_DB_FOREIGN")
    old = InngestDb(tmp_path / "old.db")
    old.do("ALTER TABLE history DROP COLUMN idempotency_key")
    assert put_back(night.db, old.path) == (None, "INNGEST_DB_VERSION")
    assert night.db.dump() == before
