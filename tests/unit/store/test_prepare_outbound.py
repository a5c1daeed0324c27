"""What a session's files hold before its first container: outbound.db with its tables, whole or not at all."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from daemon.core.destinations import DestinationSource, NamedPlace
from daemon.store import destinations
from daemon.store.destinations import OWN_PLACE
from daemon.store.session_files import SessionFiles
from schema.connect import open_reader
from schema.migrate import OUTBOUND_TABLES
from schema.plain_file import ReadLimits


@pytest.fixture
def files(tmp_path: Path) -> SessionFiles:
    made = SessionFiles(tmp_path / "sessions" / "a" / "s", ReadLimits())
    made.create()
    return made


def tables(path: Path) -> set[str]:
    with open_reader(path) as db:
        return {row["name"] for row in db.all("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def test_the_tables_are_there_and_nothing_else_is_left(files: SessionFiles) -> None:
    files.prepare_outbound()
    assert set(OUTBOUND_TABLES) <= tables(files.folder.outbound_db)
    assert (files.folder.outbox / "outbox").is_dir()
    assert {path.name for path in files.folder.root.iterdir()} == {"in", "out", "logs"}
    assert {path.name for path in files.folder.outbox.iterdir()} == {"outbound.db", "outbox"}


def test_a_folder_that_somebody_removed_keeps_no_session_from_its_next_container(files: SessionFiles) -> None:
    files.prepare_outbound()
    shutil.rmtree(files.folder.outbox)
    shutil.rmtree(files.folder.logs)
    files.prepare_outbound()
    assert set(OUTBOUND_TABLES) <= tables(files.folder.outbound_db)
    assert (files.folder.outbox.stat().st_mode & 0o777, files.folder.logs.stat().st_mode & 0o777) == (0o755, 0o700)


def test_a_session_of_an_earlier_version_gets_its_home_at_the_next_start(files: SessionFiles) -> None:
    assert not files.folder.home.exists()
    files.prepare_home()
    (files.folder.home / "transcript").write_text("kept")
    files.prepare_home()
    assert (files.folder.home / "transcript").read_text() == "kept"


def test_a_file_that_holds_something_is_left_alone(files: SessionFiles) -> None:
    with closing(sqlite3.connect(files.folder.outbound_db)) as db:
        db.execute("CREATE TABLE mine (x)")
        db.commit()
    before = files.folder.outbound_db.read_bytes()
    files.prepare_outbound()
    assert files.folder.outbound_db.read_bytes() == before


def test_a_draft_that_a_crash_left_and_an_empty_file_are_replaced(files: SessionFiles) -> None:
    (files.folder.root / "outbound.db.new").write_bytes(b"half a file")
    (files.folder.root / "outbound.db.new-journal").write_bytes(b"")
    files.folder.outbound_db.touch()
    files.prepare_outbound()
    assert set(OUTBOUND_TABLES) <= tables(files.folder.outbound_db)
    assert not (files.folder.root / "outbound.db.new").exists()


def test_an_empty_file_beside_a_journal_is_left_to_recovery(files: SessionFiles) -> None:
    files.folder.outbound_db.touch()
    (files.folder.outbox / "outbound.db-journal").write_bytes(b"\0" * 512)
    files.prepare_outbound()
    assert files.folder.outbound_db.stat().st_size == 0


def test_a_link_in_the_place_of_the_file_or_of_the_folder_is_not_followed(files: SessionFiles, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    files.folder.outbound_db.symlink_to(tmp_path / "elsewhere" / "x.db")
    (files.folder.outbox / "outbox").symlink_to(tmp_path / "elsewhere")
    files.prepare_outbound()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert files.folder.outbound_db.is_symlink()


def names(files: SessionFiles) -> dict[str, str]:
    with files.inbound() as db:
        return {row["name"]: row["platform_id"] for row in db.all("SELECT name, platform_id FROM destinations")}


def test_destinations_are_those_of_the_configuration_and_no_others(files: SessionFiles) -> None:
    ops = NamedPlace("ops", "local", "ops-room", "Ops", DestinationSource.CONFIG)
    dev = NamedPlace("dev", "local", "dev-room", "dev", DestinationSource.ROUTE)
    for places in ((ops, dev), (ops,), ()):
        with files.inbound() as db:
            destinations.write(db, places, own_place=False, keep_brought=True)
        assert names(files) == {one.name: one.place for one in places}


def test_the_own_place_is_added_to_an_empty_table_and_never_displaces_imported_rows(files: SessionFiles) -> None:
    with files.inbound() as db, db.transaction():
        db.execute("INSERT INTO session_routing VALUES (1, 'local', 'me', NULL)")
    with files.inbound() as db:
        destinations.write(db, (), own_place=True, keep_brought=True)
    assert names(files) == {OWN_PLACE: "me"}
    with files.inbound() as db, db.transaction():
        db.execute("DELETE FROM destinations")
        db.execute("INSERT INTO destinations VALUES ('cli', 'CLI', 'channel', 'local', 'cli', NULL, NULL)")
    with files.inbound() as db:
        destinations.write(db, (), own_place=True, keep_brought=True)
    assert names(files) == {"cli": "cli"}
    ops = NamedPlace("ops", "local", "ops-room", "Ops", DestinationSource.CONFIG)
    taken = NamedPlace("cli", "local", "elsewhere", "Other", DestinationSource.ROUTE)
    with files.inbound() as db:
        destinations.write(db, (ops, taken), own_place=False, keep_brought=True)
        assert destinations.not_derived(db) == {("local", "cli"), ("local", "me")}
    assert names(files) == {"cli": "cli", OWN_PLACE: "me", "ops": "ops-room"}, "what was brought keeps its name"
    with files.inbound() as db:
        destinations.write(db, (ops,), own_place=False, keep_brought=False)
    assert names(files) == {OWN_PLACE: "me", "ops": "ops-room"}, "the configuration lists them: nothing else counts"
