"""A container killed in mid-commit: what its half-written transaction does to a reader, and what heals it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from schema.connect import open_owner, open_reader
from schema.errors import HostileFileError, ReadRaceError
from schema.layout import OUTBOUND_DB
from schema.migrate import Role
from schema.outbound_file import open_outbound_reader, recover_outbound_journal
from schema.plain_file import ReadLimits
from tests.support.hot_journal import strand_journal

JOURNAL = OUTBOUND_DB + "-journal"
UNCOMMITTED = "INSERT INTO session_state VALUES ('uncommitted' || ?, hex(zeroblob(400)), 'now')"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The folder of a container that committed 50 rows and was killed while it wrote 2,000 more."""
    with open_owner(tmp_path / OUTBOUND_DB, Role.OUTBOUND) as db, db.transaction():
        db.executemany("INSERT INTO session_state VALUES (?, 'v', 'now')", [(f"committed{n}",) for n in range(50)])
    strand_journal(tmp_path / OUTBOUND_DB, UNCOMMITTED)
    return tmp_path


def keys(folder: Path) -> set[str]:
    reader = open_outbound_reader(folder, ReadLimits())
    assert reader is not None
    with reader:
        return {row["key"] for row in reader.all("SELECT key FROM session_state")}


@pytest.mark.faults
def test_a_reader_fails_with_the_race_and_changes_nothing(killed: Path) -> None:
    before = {item.name: item.read_bytes() for item in killed.iterdir()}
    for _ in range(3):
        with pytest.raises(ReadRaceError) as failed:
            open_outbound_reader(killed, ReadLimits())
        assert isinstance(failed.value.__cause__, sqlite3.Error)
        assert failed.value.__cause__.sqlite_errorcode == 776, "SQLITE_READONLY_ROLLBACK"
    with open_reader(killed / OUTBOUND_DB) as reader, pytest.raises(ReadRaceError):
        reader.all("SELECT * FROM session_state")
    assert {item.name: item.read_bytes() for item in killed.iterdir()} == before


@pytest.mark.faults
def test_recovery_rolls_back_what_was_not_committed_and_keeps_what_was(killed: Path) -> None:
    assert recover_outbound_journal(killed)
    assert not (killed / JOURNAL).exists()
    assert keys(killed) == {f"committed{n}" for n in range(50)}
    with open_owner(killed / OUTBOUND_DB, Role.OUTBOUND) as db:
        row = db.one("PRAGMA integrity_check")
    assert row is not None
    assert row[0] == "ok"


@pytest.mark.faults
def test_recovery_is_done_once(killed: Path) -> None:
    assert recover_outbound_journal(killed)
    healed = (killed / OUTBOUND_DB).read_bytes()
    assert not recover_outbound_journal(killed)
    assert (killed / OUTBOUND_DB).read_bytes() == healed


@pytest.mark.faults
def test_the_next_container_heals_its_file_itself(killed: Path) -> None:
    with open_owner(killed / OUTBOUND_DB, Role.OUTBOUND) as db:
        assert len(db.all("SELECT * FROM session_state")) == 50
    assert keys(killed) == {f"committed{n}" for n in range(50)}


@pytest.mark.faults
def test_the_very_first_transaction_of_a_container_may_be_the_torn_one(tmp_path: Path) -> None:
    """The file was empty before it: rolled back, it is empty again, which is what a reader takes for `not yet made`."""
    path = tmp_path / OUTBOUND_DB
    path.touch()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA cache_size=5")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE session_state (key, value, updated_at)")
    for number in range(2000):
        connection.execute(UNCOMMITTED, (number,))
    captured = path.read_bytes(), (tmp_path / JOURNAL).read_bytes()
    connection.execute("ROLLBACK")
    connection.close()
    path.write_bytes(captured[0])
    (tmp_path / JOURNAL).write_bytes(captured[1])
    assert captured[0]
    with pytest.raises(ReadRaceError):
        open_outbound_reader(tmp_path, ReadLimits())
    assert recover_outbound_journal(tmp_path)
    assert open_outbound_reader(tmp_path, ReadLimits()) is None
    assert not (tmp_path / JOURNAL).exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    "cold", [b"", b"\0" * 512, b"\0" * 28, b"not a journal"], ids=["empty", "zeroed", "short", "text"]
)
def test_a_cold_journal_is_cleared_and_costs_nothing(tmp_path: Path, cold: bytes) -> None:
    """Killed before the journal's header was valid, or after the commit zeroed it: there is nothing to roll back."""
    with open_owner(tmp_path / OUTBOUND_DB, Role.OUTBOUND) as db:
        db.execute("INSERT INTO session_state VALUES ('k', 'v', 'now')")
    (tmp_path / JOURNAL).write_bytes(cold)
    assert recover_outbound_journal(tmp_path)
    assert not (tmp_path / JOURNAL).exists()
    assert keys(tmp_path) == {"k"}


def test_a_clean_folder_needs_no_recovery(tmp_path: Path) -> None:
    open_owner(tmp_path / OUTBOUND_DB, Role.OUTBOUND).close()
    before = (tmp_path / OUTBOUND_DB).stat()
    assert not recover_outbound_journal(tmp_path)
    after = (tmp_path / OUTBOUND_DB).stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


@pytest.mark.faults
def test_a_journal_without_its_database_is_no_reason_to_make_one(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"\0" * 512)
    assert not recover_outbound_journal(tmp_path)
    assert not (tmp_path / OUTBOUND_DB).exists()


@pytest.mark.faults
def test_zeros_that_no_journal_explains_are_hostile(tmp_path: Path) -> None:
    (tmp_path / OUTBOUND_DB).write_bytes(bytes(8192))
    with pytest.raises(HostileFileError):
        open_outbound_reader(tmp_path, ReadLimits())
    (tmp_path / JOURNAL).write_bytes(b"\0" * 512)
    with pytest.raises(HostileFileError):
        recover_outbound_journal(tmp_path)
