"""Files that stay open: the same handle again, but never one whose file is no longer what we left."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.store.session_files import SessionFiles
from schema.connect import open_owner
from schema.errors import ClawbusError, UnusableFileError
from schema.file_pool import FilePool
from schema.handles import Writer
from schema.migrate import Role
from schema.plain_file import ReadLimits


@pytest.fixture
def files(tmp_path: Path) -> SessionFiles:
    made = SessionFiles(tmp_path / "sessions" / "a" / "s", ReadLimits(), kept=FilePool(4))
    made.create()
    return made


def count(db: Writer) -> int:
    row = db.one("SELECT count(*) AS n FROM pruned")
    assert row is not None
    return int(row["n"])


def put(db: Writer, what: str) -> None:
    with db.transaction():
        db.execute("INSERT INTO pruned(what, rows, at, through) VALUES (?, 1, 1, 1)", (what,))


def descriptors(path: Path) -> int:
    """How many of this process hold the file."""
    wanted = path.stat()
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            here = entry.stat()
        except OSError:
            continue
        found += (here.st_dev, here.st_ino) == (wanted.st_dev, wanted.st_ino)
    return found


def test_the_next_operation_gets_the_same_handle_and_sees_what_was_committed(files: SessionFiles) -> None:
    with files.inbound() as first:
        put(first, "x")
    with files.inbound() as second:
        assert second is first
        assert count(second) == 1


def test_another_reader_sees_every_commit_and_is_not_locked_out(files: SessionFiles) -> None:
    with files.inbound() as db:
        put(db, "x")
    other = sqlite3.connect(files.folder.inbound_db, timeout=0, isolation_level=None)
    assert other.execute("SELECT count(*) FROM pruned").fetchone()[0] == 1
    other.execute("BEGIN EXCLUSIVE")  # nothing of ours is locked between two operations
    other.execute("ROLLBACK")
    other.close()


def test_an_operation_that_failed_leaves_nothing_behind_and_no_handle(files: SessionFiles) -> None:
    def fail() -> None:
        with files.inbound() as db, db.transaction():
            db.execute("INSERT INTO pruned(what, rows, at, through) VALUES ('x', 1, 1, 1)")
            raise KeyboardInterrupt

    with files.inbound() as first:
        pass
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert descriptors(files.folder.inbound_db) == 0
    with files.inbound() as second:
        assert second is not first
        assert count(second) == 0


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


def _rewrite(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("INSERT INTO pruned VALUES ('theirs', 1, 1, 1)")
    other.commit()
    other.close()


@pytest.mark.parametrize("change", [_replace, _rewrite, os.utime, lambda path: path.chmod(0o640)])
def test_what_another_hand_touched_is_opened_anew(files: SessionFiles, change: Callable[[Path], object]) -> None:
    with files.inbound() as first:
        put(first, "ours")
    change(files.folder.inbound_db)
    with files.inbound() as second:
        assert second is not first
        assert count(second) >= 1


def test_a_file_that_another_hand_put_into_wal_mode_comes_back(files: SessionFiles) -> None:
    with files.inbound():
        pass
    other = sqlite3.connect(files.folder.inbound_db)
    other.execute("PRAGMA journal_mode=WAL")
    other.close()
    with files.inbound() as db:
        row = db.one("PRAGMA journal_mode")
        assert row is not None
        assert row[0] == "delete"


def test_a_truncated_file_and_a_deleted_one_are_told(files: SessionFiles) -> None:
    with files.inbound():
        pass
    os.truncate(files.folder.inbound_db, 0)
    with pytest.raises(UnusableFileError, match="truncated"), files.inbound():
        pass
    files.folder.inbound_db.unlink()
    with pytest.raises(UnusableFileError, match="gone"), files.inbound():
        pass


def test_a_file_torn_behind_an_operation_is_told_to_the_next_one(files: SessionFiles) -> None:
    with files.inbound() as db:
        put(db, "x")
        with files.folder.inbound_db.open("r+b") as file:
            file.seek(4096)  # the first page, by which SQLite knows whether anything was committed, is as it was
            file.write(os.urandom(files.folder.inbound_db.stat().st_size - 4096))
    with pytest.raises(UnusableFileError), files.inbound() as db:
        count(db)


def test_a_handle_in_use_is_nobody_elses(files: SessionFiles) -> None:
    with files.inbound() as first, files.inbound() as second:
        assert second is not first
    assert descriptors(files.folder.inbound_db) == 1, "one is kept, the other closed"


def test_no_more_are_kept_than_there_is_room_for(tmp_path: Path) -> None:
    kept = FilePool(2)
    paths = [tmp_path / f"{number}.db" for number in range(3)]
    for path in paths:
        with kept.using(path, lambda path=path: open_owner(path, Role.INBOUND)) as db:
            put(db, "x")
        del db
    assert [descriptors(path) for path in paths] == [0, 1, 1], "the one that was not used for longest went"
    del kept
    assert [descriptors(path) for path in paths] == [0, 0, 0], "and with their keeper all of them"


def test_what_is_let_go_is_closed(files: SessionFiles) -> None:
    with files.inbound():
        pass
    files.evict()
    files.evict()
    assert descriptors(files.folder.inbound_db) == 0


def test_an_opening_that_fails_keeps_nothing(tmp_path: Path) -> None:
    kept = FilePool(1)
    (tmp_path / "x.db").write_text("no database, whatever its name says; and long enough to be read as one" * 20)
    for _ in range(2):
        with (
            pytest.raises(ClawbusError),
            kept.using(tmp_path / "x.db", lambda: open_owner(tmp_path / "x.db", Role.INBOUND)),
        ):
            pass
    assert descriptors(tmp_path / "x.db") == 0
