"""A backup is a whole, checked copy or it is not there; a restore is one transaction or nothing."""

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core.repair_errors import (
    BackupFailedError,
    BackupNotVerifiedError,
    RestoreFailedError,
    RestoreRefusedError,
)
from daemon.maintenance import backup as backups
from daemon.maintenance.backup import back_up, read_contents, restore, verify
from schema import connect, database_copy
from schema.connect import open_reader
from tests.support.mounts import small_disk

NOW = 1_772_652_586_000  # 2026-03-04T19:29:46Z


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "main.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE run(id BLOB, status INT)")
        db.execute("CREATE TABLE note(id INTEGER PRIMARY KEY, run INT REFERENCES parent(id), text TEXT)")
        db.execute("CREATE TABLE parent(id INTEGER PRIMARY KEY)")
        db.executemany("INSERT INTO run VALUES (?, 200)", [(os.urandom(16),) for _ in range(500)])
        db.executemany("INSERT INTO note(run, text) VALUES (1, ?)", [("x" * 900,) for _ in range(300)])
        db.execute("PRAGMA user_version=7")
    db.close()
    return path


def run_sql(path: Path, sql: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(sql)
    db.close()


def files(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_backup_is_a_whole_copy_beside_the_file(source: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made = back_up(source, NOW, purpose="pre-sweep", progress=lambda *step: seen.append(step))
    assert made.path == source.with_name("main.db.pre-sweep-20260304T192946Z.sqlite")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert files(source.parent) == {source.name, made.path.name}
    assert made.contents.tables == {"run": 500, "note": 300, "parent": 0}
    assert made.contents.broken_references == 300
    assert made.contents.user_version == 7
    assert [step for step, done, total in seen if done == total] == ["copy", "verify", "sync"]
    assert verify(made.path, made.contents) == made.contents


def test_two_backups_of_one_second_are_two_files(source: Path) -> None:
    first, second = back_up(source, NOW), back_up(source, NOW)
    assert first.path != second.path
    assert first.path.exists()
    assert second.path.exists()


def test_a_backup_of_a_file_in_wal_mode_has_what_is_only_in_the_log(source: Path) -> None:
    db = sqlite3.connect(source)
    db.execute("PRAGMA journal_mode=WAL")
    with db:
        db.execute("DELETE FROM note")
    made = back_up(source, NOW)
    db.close()
    assert made.contents.tables["note"] == 0
    assert files(source.parent) == {source.name, made.path.name}


def test_what_is_committed_meanwhile_is_not_half_in_it(source: Path) -> None:
    """A writer in WAL mode commits between the copy and the counts: both are of the instant before."""
    db = sqlite3.connect(source)
    db.execute("PRAGMA journal_mode=WAL")

    def write(step: str, done: int, total: int) -> None:
        if step == "copy" and done == total:
            with db:
                db.execute("INSERT INTO parent(id) VALUES (1)")

    made = back_up(source, NOW, progress=write)
    db.close()
    assert made.contents.tables["parent"] == 0


def test_a_locked_file_is_an_error_with_a_code_and_no_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_MS", 20)
    db = sqlite3.connect(source, isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BackupFailedError, match="locked"):
        back_up(source, NOW)
    db.close()
    assert files(source.parent) == {source.name}


@pytest.mark.parametrize("content", [b"", b"no database, but a text that is long enough" * 9], ids=["empty", "text"])
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "main.db"
    path.write_bytes(content)
    if content:
        with pytest.raises(BackupFailedError):
            back_up(path, NOW)
        assert files(tmp_path) == {path.name}
    else:
        assert back_up(path, NOW).contents.tables == {}
    assert path.read_bytes() == content


def test_a_corrupt_source_gives_no_verified_backup(source: Path) -> None:
    with source.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xa5" * 4096 * 6)
    before = source.read_bytes()
    with pytest.raises((BackupNotVerifiedError, BackupFailedError)):
        back_up(source, NOW)
    assert source.read_bytes() == before
    assert files(source.parent) == {source.name}


def test_a_copy_that_lacks_rows_is_not_verified(source: Path) -> None:
    made = back_up(source, NOW)
    run_sql(made.path, "DELETE FROM run WHERE rowid = 1")
    with pytest.raises(BackupNotVerifiedError, match="run has 499 rows instead of 500"):
        verify(made.path, made.contents)


def test_a_copy_with_a_broken_index_is_not_verified(source: Path) -> None:
    run_sql(source, "CREATE INDEX run_status ON run(status)")
    made = back_up(source, NOW)
    db = sqlite3.connect(made.path)
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_schema SET sql = 'CREATE INDEX run_status ON run(id)' WHERE name = 'run_status'")
    db.commit()
    db.close()
    with pytest.raises(BackupNotVerifiedError, match="integrity check"):
        verify(made.path)


def test_a_folder_that_cannot_be_written_is_an_error_with_a_code(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupFailedError, match="cannot be created"):
        back_up(source, NOW, folder=tmp_path / "none")


@pytest.mark.faults
def test_a_disk_that_is_full_is_an_error_with_a_code_and_no_file(source: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        disk.fill()
        with pytest.raises(BackupFailedError):
            back_up(source, NOW, folder=tmp_path / "disk")
        assert files(tmp_path / "disk") == {"filler"}


def test_an_interruption_leaves_nothing(source: Path) -> None:
    def interrupt(step: str, _done: int, _total: int) -> None:
        if step == "verify":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(source, NOW, progress=interrupt)
    assert files(source.parent) == {source.name}


def test_a_name_that_somebody_takes_meanwhile_is_not_overwritten(source: Path) -> None:
    taken = source.with_name("main.db.backup-20260304T192946Z.sqlite")

    def take(step: str, _done: int, _total: int) -> None:
        if step == "sync":
            taken.write_bytes(b"theirs")

    with pytest.raises(BackupFailedError, match="could not be finished"):
        back_up(source, NOW, progress=take)
    assert taken.read_bytes() == b"theirs"


def test_a_restore_undoes_what_came_after_and_can_be_undone(source: Path) -> None:
    made = back_up(source, NOW)
    run_sql(source, "UPDATE run SET status = 500")
    run_sql(source, "DROP TABLE parent")
    inode = source.stat().st_ino
    done = restore(made.path, source, NOW + 1000)
    assert source.stat().st_ino == inode, "whoever has the file open would not see it"
    with open_reader(source) as reader:
        assert read_contents(reader) == made.contents
        assert reader.all("SELECT DISTINCT status FROM run")[0]["status"] == 200
    restore(done.before.path, source, NOW + 2000)
    with open_reader(source) as reader:
        assert "parent" not in read_contents(reader).tables
        assert reader.all("SELECT DISTINCT status FROM run")[0]["status"] == 500


def test_a_restore_into_a_locked_file_changes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = back_up(source, NOW)
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_MS", 20)
    before = source.read_bytes()
    db = sqlite3.connect(source, isolation_level=None)
    db.execute("BEGIN")
    db.execute("SELECT count(*) FROM run").fetchone()
    with pytest.raises(RestoreFailedError, match="locked"):
        restore(made.path, source, NOW + 1000)
    db.close()
    assert source.read_bytes() == before


def test_a_restore_that_breaks_off_changes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_copy, "_PAGES_A_STEP", 8)
    made = back_up(source, NOW)
    run_sql(source, "DELETE FROM run")

    def die(step: str, _done: int, _total: int) -> None:
        if step == "restore":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(made.path, source, NOW + 1000, progress=die)
    with open_reader(source) as reader:
        assert read_contents(reader).tables["run"] == 0


def garbage(path: Path) -> None:
    path.write_bytes(b"\xa5" * 9000)


def other_tables(path: Path) -> None:
    path.unlink()
    run_sql(path, "CREATE TABLE another(x)")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (garbage, BackupNotVerifiedError),
        (other_tables, RestoreRefusedError),
        (Path.unlink, RestoreRefusedError),
    ],
)
def test_a_wrong_backup_is_not_put_back(source: Path, spoil: Callable[[Path], None], error: type[Exception]) -> None:
    made = back_up(source, NOW)
    spoil(made.path)
    before = source.read_bytes()
    with pytest.raises(error):
        restore(made.path, source, NOW + 1000)
    assert source.read_bytes() == before


def test_a_backup_of_another_install_is_refused_by_what_both_must_share(source: Path, tmp_path: Path) -> None:
    made = back_up(source, NOW)
    run_sql(source, "PRAGMA user_version=8")
    with pytest.raises(RestoreRefusedError, match="is not a backup of"):
        restore(made.path, source, NOW + 1, same=lambda db: tuple(db.all("PRAGMA user_version")[0]))


def test_no_backup_without_its_row_counts(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is sound in itself and lacks a row: the counts of the source find it."""
    copied = backups._copy

    def lossy(path: Path, partial: Path, tell: backups.Progress) -> backups.Contents:
        contents = copied(path, partial, tell)
        run_sql(partial, "DELETE FROM parent")
        run_sql(partial, "DELETE FROM run WHERE rowid = 7")
        return contents

    monkeypatch.setattr(backups, "_copy", lossy)
    with pytest.raises(BackupNotVerifiedError, match="499"):
        back_up(source, NOW)
    assert files(source.parent) == {source.name}
