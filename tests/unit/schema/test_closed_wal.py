"""A WAL file that nobody has open is read without a file beside it, and with all that its WAL holds."""

import errno
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from schema import closed_wal
from schema.closed_wal import read_closed
from schema.errors import StorageError
from schema.handles import Reader

# Commits a row and dies as a killed server does, without a checkpoint.
DIES = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA wal_autocheckpoint=0")
db.execute("INSERT INTO t VALUES (2)")
db.commit()
os._exit(0)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    found = tmp_path / "there" / "main.db"
    with closing(sqlite3.connect(found)) as db:
        db.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1);")
    return found


@pytest.fixture
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO t VALUES (2)")
        yield db


def rows(reader: Reader) -> list[int]:
    return [row["a"] for row in reader.all("SELECT a FROM t")]


def beside(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.parent.iterdir()}


@pytest.mark.parametrize("rights", [0o755, 0o555])
def test_a_reader_leaves_nothing_beside_a_closed_file(path: Path, rights: int) -> None:
    before = beside(path)
    path.parent.chmod(rights)
    try:
        assert read_closed(path, rows) == [1]
        assert beside(path) == before
    finally:
        path.parent.chmod(0o755)


def test_what_a_dead_writer_left_in_the_wal_is_read_and_stays_there(path: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES, path], check=True)
    path.with_name("main.db-shm").unlink()  # a copy has none
    before = beside(path)
    assert before["main.db-wal"]
    assert read_closed(path, rows) == [1, 2]
    assert beside(path) == before
    link = path.with_name("link.db")
    link.symlink_to(path)
    assert read_closed(link, rows) == [1, 2]


def test_a_file_that_is_open_is_left_to_sqlite(path: Path, opened: sqlite3.Connection) -> None:
    assert opened.in_transaction is False
    assert read_closed(path, rows) is None


def test_a_file_that_is_opened_meanwhile_is_left_to_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:

        def reading(reader: Reader) -> list[int]:
            db.execute("INSERT INTO t VALUES (3)")
            return rows(reader)

        assert read_closed(path, reading) is None


def test_a_wal_that_is_no_file_is_left_to_sqlite(path: Path) -> None:
    path.with_name("main.db-wal").mkdir()
    assert read_closed(path, rows) is None
    shutil.rmtree(path.with_name("main.db-wal"))
    assert [one.name for one in path.parent.iterdir()] == ["main.db"]


def test_a_wal_that_its_program_removes_meanwhile_is_left_to_sqlite(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the program opens and closes the file again, which ends with a checkpoint."""
    subprocess.run([sys.executable, "-c", DIES, path], check=True)
    path.with_name("main.db-shm").unlink()
    copy = shutil.copyfile

    def removing(source: Path, target: Path) -> object:
        path.with_name("main.db-wal").unlink(missing_ok=True)
        return copy(source, target)

    monkeypatch.setattr(closed_wal.shutil, "copyfile", removing)
    assert read_closed(path, rows) is None


def test_a_folder_that_does_not_answer_is_not_taken_for_a_closed_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Path.lstat

    def failing(one: Path) -> object:
        if one.name.endswith("-shm"):
            raise OSError(errno.EIO, "Input/output error")
        return look(one)

    monkeypatch.setattr(Path, "lstat", failing)
    with pytest.raises(StorageError, match=r"main\.db-shm cannot be looked at"):
        read_closed(path, rows)
