"""Reading another program's DELETE-mode file without a lock: its commits all succeed, and no read is torn."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from schema.connect import open_reader
from schema.errors import ClawbusError, FileBusyError, StorageError, UnusableFileError
from schema.handles import Reader
from schema.lockfree import Patience, read_unlocked, uses_wal
from schema.stamp import FileMovedError, StrandedJournalError, check_stamp, take_stamp
from tests.support.hot_journal import strand_journal
from tests.support.impatient_writer import LEFT, RIGHT, prepare
from tests.support.inngest_server import open_elsewhere

LARGE = Patience(memory_bytes=0)  # every file is too large for memory
COPIED = Patience(memory_bytes=0, tries_in_place=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "main.db"
    prepare(file)
    return file


def commit(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"INSERT INTO {LEFT} VALUES (NULL, 'x')")
        db.execute(f"INSERT INTO {RIGHT} VALUES (NULL, 'x')")


def counts(reader: Reader) -> tuple[int, int]:
    (left,), (right,) = (reader.all(f"SELECT count(*) FROM {table}")[0] for table in (LEFT, RIGHT))
    return left, right


def test_a_look_that_is_going_on_lets_such_a_writer_commit_and_one_with_a_lock_does_not(path: Path) -> None:
    def commits() -> bool:
        with closing(sqlite3.connect(path, timeout=0)) as db:
            try:
                with db:
                    db.execute(f"INSERT INTO {LEFT} VALUES (NULL, 'x')")
            except sqlite3.OperationalError:
                return False
        return True

    def work(reader: Reader) -> bool:
        reader.all(f"SELECT * FROM {RIGHT}")
        return commits()

    assert read_unlocked(path, work, COPIED)
    with open_reader(path) as reader, reader.snapshot():
        assert not work(reader)


@pytest.mark.parametrize("patience", [LARGE, COPIED, Patience()], ids=["in place", "copied", "memory"])
def test_a_commit_in_the_middle_of_a_look_makes_it_look_again(path: Path, patience: Patience) -> None:
    seen: list[tuple[int, int]] = []

    def work(reader: Reader) -> tuple[int, int]:
        seen.append(counts(reader))
        if len(seen) == 1 and patience is LARGE:
            commit(path)
        return seen[-1]

    result = read_unlocked(path, work, patience)
    assert result == seen[-1] == ((1, 1) if patience is LARGE else (0, 0))


def test_what_looks_like_damage_in_a_torn_look_is_not_told_as_damage(path: Path) -> None:
    calls: list[int] = []

    def work(reader: Reader) -> tuple[int, int]:
        calls.append(1)
        if len(calls) == 1:
            commit(path)
            raise UnusableFileError("database disk image is malformed")
        return counts(reader)

    assert read_unlocked(path, work, LARGE) == (1, 1)


def test_damage_that_is_there_in_a_quiet_file_is_told(path: Path) -> None:
    def work(_: Reader) -> None:
        raise UnusableFileError("database disk image is malformed")

    for patience in (LARGE, COPIED, Patience()):
        with pytest.raises(UnusableFileError):
            read_unlocked(path, work, patience)


def test_without_a_quiet_moment_it_ends_in_time_and_names_the_cure(path: Path) -> None:
    def work(reader: Reader) -> tuple[int, int]:
        commit(path)
        return counts(reader)

    hurried = Patience(seconds=0.2, memory_bytes=0, tries_in_place=10**9)
    with pytest.raises(FileBusyError, match="attempts") as caught:
        read_unlocked(path, work, hurried)
    assert "journal_mode=WAL" in caught.value.hint


def test_a_writer_that_holds_the_file_is_waited_for_and_no_longer_than_allowed(path: Path) -> None:
    with open_elsewhere(path, statement="BEGIN EXCLUSIVE"), pytest.raises(FileBusyError):
        read_unlocked(path, counts, Patience(seconds=0.1))
    assert read_unlocked(path, counts, Patience(seconds=0.1)) == (0, 0)


def test_a_reader_of_another_program_is_no_hindrance(path: Path) -> None:
    with open_elsewhere(path, statement=f"SELECT * FROM {LEFT}"):
        assert read_unlocked(path, counts) == (0, 0)


def test_a_transaction_that_is_open_and_has_written_no_page_yet_is_no_hindrance(path: Path) -> None:
    """Its journal has content, and its writer's RESERVED lock says that it lives."""
    change = f"INSERT INTO {LEFT} VALUES (NULL, 'x') RETURNING n"
    with open_elsewhere(path, statement=f"PRAGMA synchronous=OFF; BEGIN IMMEDIATE; {change}"):
        assert path.with_name("main.db-journal").read_bytes()[:1] not in (b"", b"\0")
        assert read_unlocked(path, counts, Patience(seconds=0.1)) == (0, 0)


def test_a_dead_writer_s_journal_is_told_and_left_where_it_is(path: Path) -> None:
    strand_journal(path, f"INSERT INTO {LEFT} VALUES (?, hex(randomblob(200)))")
    before = path.read_bytes(), path.with_name("main.db-journal").read_bytes()
    with pytest.raises(StrandedJournalError):
        read_unlocked(path, counts)
    assert (path.read_bytes(), path.with_name("main.db-journal").read_bytes()) == before


def test_the_journal_is_looked_for_where_the_file_really_is(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    assert read_unlocked(link, counts) == (0, 0)
    strand_journal(path, f"INSERT INTO {LEFT} VALUES (?, hex(randomblob(200)))")
    with pytest.raises(StrandedJournalError):
        read_unlocked(link, counts)


def test_a_journal_that_has_nothing_to_roll_back_is_no_hindrance(path: Path) -> None:
    for content in (b"", bytes(512)):
        path.with_name("main.db-journal").write_bytes(content)
        assert read_unlocked(path, counts) == (0, 0)


def test_a_transaction_that_was_spilled_and_rolled_back_meanwhile_is_noticed(path: Path) -> None:
    """It leaves the change counter as it was."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        stamp = take_stamp(descriptor, path)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA cache_size=5")
            db.execute("BEGIN IMMEDIATE")
            for _ in range(500):
                db.execute(f"INSERT INTO {LEFT} VALUES (NULL, hex(randomblob(200)))")
            db.execute("ROLLBACK")
        with pytest.raises(FileMovedError):
            check_stamp(descriptor, path, stamp)
    finally:
        os.close(descriptor)


def test_a_file_that_another_one_took_the_place_of_is_noticed(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    prepare(other)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        stamp = take_stamp(descriptor, path)
        other.rename(path)
        with pytest.raises(FileMovedError):
            check_stamp(descriptor, path, stamp)
    finally:
        os.close(descriptor)


def test_a_copy_that_has_no_room_is_told_and_not_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schema.lockfree.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(StorageError, match="no room") as caught:
        read_unlocked(path, counts, COPIED)
    assert "TMPDIR" in caught.value.hint


def test_nothing_is_left_behind_and_nothing_is_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(tmp_path.iterdir()), path.read_bytes(), path.stat().st_mtime_ns
    for patience in (Patience(), LARGE, COPIED):
        read_unlocked(path, counts, patience)
        with pytest.raises(ClawbusError):
            read_unlocked(path, lambda reader: reader.all(f"DELETE FROM {LEFT}"), patience)
    assert (sorted(tmp_path.iterdir()), path.read_bytes(), path.stat().st_mtime_ns) == before


def test_the_journal_mode_is_read_from_the_header(path: Path) -> None:
    assert not uses_wal(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
    assert uses_wal(path)
    with pytest.raises(StorageError):
        uses_wal(path.with_name("missing.db"))
