"""The owner's errors on its own files: what waiting mends and what it does not, told apart."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from daemon.store.mailbox import Mailbox
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from schema import migrate
from schema.connect import open_owner
from schema.errors import ReadRaceError, StorageError, UnusableFileError
from schema.handles import Writer, translate
from schema.migrate import Role
from schema.plain_file import ReadLimits


@pytest.fixture
def files(tmp_path: Path) -> SessionFiles:
    made = SessionFiles(tmp_path / "sessions" / "a" / "s", ReadLimits())
    made.create()
    SessionFiles(tmp_path / "sessions" / "a" / "other", ReadLimits()).create()
    return made


def opened(files: SessionFiles) -> None:
    with files.inbound() as db:
        db.all("SELECT * FROM messages_in")


def test_a_failed_read_while_a_file_is_made_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite reports a read that failed once (EIO) as a corrupt file; a file that is only being made cannot be one."""
    real, broken = migrate.ensure, [True]

    def ensure(connection: sqlite3.Connection, role: Role, path: Path) -> None:
        real(connection, role, path)
        if broken and broken.pop():
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
            raise error

    monkeypatch.setattr(migrate, "ensure", ensure)
    files = SessionFiles(tmp_path / "sessions" / "a" / "s", ReadLimits())
    files.create()
    assert broken == []
    opened(files)


def test_an_inbound_db_that_is_gone_is_unusable_and_never_made_again(files: SessionFiles) -> None:
    files.folder.inbound_db.unlink()
    with pytest.raises(UnusableFileError, match="gone") as found:
        opened(files)
    assert "backup" in found.value.hint
    assert not files.folder.inbound_db.exists()


def test_an_inbound_db_that_was_truncated_is_unusable_and_no_fresh_session(files: SessionFiles) -> None:
    files.folder.inbound_db.write_bytes(b"")
    with pytest.raises(UnusableFileError, match="empty") as found:
        opened(files)
    assert "backup" in found.value.hint
    assert files.folder.inbound_db.stat().st_size == 0, "it was remade"


@pytest.mark.parametrize("start", [0, 4096], ids=["from-the-header", "behind-the-first-page"])
def test_an_inbound_db_that_is_corrupt_is_unusable(files: SessionFiles, start: int) -> None:
    size = files.folder.inbound_db.stat().st_size
    with files.folder.inbound_db.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * (size - start))
    with pytest.raises(UnusableFileError):
        opened(files)


def test_a_registry_that_is_no_database_is_moved_away_and_no_session_is(tmp_path: Path) -> None:
    (tmp_path / "central.db").write_bytes(b"\xa5" * 9000)
    with pytest.raises(UnusableFileError) as found:
        Registry(tmp_path / "central.db").install_id(1)
    assert "mv central.db central.db.broken" in found.value.hint
    (tmp_path / "central.db").unlink()
    with contextlib.closing(sqlite3.connect(tmp_path / "central.db")) as db:
        db.execute("CREATE TABLE photos(id)")
    with pytest.raises(UnusableFileError, match="another program's") as found:
        Registry(tmp_path / "central.db").install_id(1)
    assert "mv central.db central.db.broken" in found.value.hint


def test_a_mailbox_that_is_no_database_is_moved_away_and_no_session_is(tmp_path: Path) -> None:
    (tmp_path / "mailbox.db").write_bytes(b"\xa5" * 9000)
    with pytest.raises(UnusableFileError) as found:
        Mailbox(tmp_path / "mailbox.db").read("cli", 0, 1)
    assert "mv mailbox.db mailbox.db.broken" in found.value.hint
    assert "session" not in found.value.hint


def test_a_sessions_folder_that_is_empty_is_a_disk_that_is_not_mounted_and_no_loss(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    with pytest.raises(StorageError) as found:
        opened(SessionFiles(tmp_path / "sessions" / "a" / "s", ReadLimits()))
    assert not isinstance(found.value, UnusableFileError)


def test_a_file_that_its_owner_may_not_write_is_no_race(tmp_path: Path) -> None:
    path = tmp_path / "central.db"
    open_owner(path, Role.CENTRAL).close()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    with (
        Writer(connection, path) as db,
        pytest.raises(StorageError, match="SQLITE_READONLY") as found,
        db.transaction(),
    ):
        db.execute("DELETE FROM sessions")
    assert "writable" in found.value.hint


def test_the_same_codes_of_a_foreign_file_stay_what_they_were() -> None:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = sqlite3.SQLITE_READONLY
    assert isinstance(translate(error, Path("outbound.db"), hostile=True), ReadRaceError)
