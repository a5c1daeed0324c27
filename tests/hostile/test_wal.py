"""WAL in a container's folder: SQLite would map a file that its author can truncate, and that ends the whole daemon.

The reference is what the same bytes do to a plain read-only handle: it maps the index, and dies.
"""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import schema.connect
from schema.connect import open_owner
from schema.errors import ClawbusError, HostileFileError
from schema.layout import OUTBOUND_DB
from schema.migrate import Role
from schema.outbound_file import open_outbound_reader, recover_outbound_journal
from schema.plain_file import ReadLimits
from tests.support.hot_journal import strand_journal

pytestmark = pytest.mark.faults

LIMITS = ReadLimits()
WAL, SHM = OUTBOUND_DB + "-wal", OUTBOUND_DB + "-shm"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    open_owner(tmp_path / OUTBOUND_DB, Role.OUTBOUND).close()
    return tmp_path


def as_wal(path: Path) -> None:
    """Both version bytes of the header, as `PRAGMA journal_mode=WAL` leaves them."""
    with path.open("r+b") as file:
        file.seek(18)
        file.write(b"\x02\x02")


@pytest.mark.parametrize("name", [WAL, SHM])
@pytest.mark.parametrize("kind", ["file", "empty", "dangling", "fifo", "folder"])
def test_a_log_or_index_is_refused_whatever_it_is(out: Path, name: str, kind: str) -> None:
    path = out / name
    if kind == "file":
        path.write_bytes(os.urandom(64))
    elif kind == "empty":
        path.touch()
    elif kind == "dangling":
        path.symlink_to(out / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = sorted(out.iterdir())
    with pytest.raises(HostileFileError, match=name):
        open_outbound_reader(out, LIMITS)
    assert sorted(out.iterdir()) == before


@pytest.mark.parametrize("turn", ["a log appears", "the header changes"])
def test_a_file_that_turns_to_wal_after_our_look_is_never_mapped(
    out: Path, monkeypatch: pytest.MonkeyPatch, turn: str
) -> None:
    connect = schema.connect._connect

    def turn_and_connect(path: Path, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)
        if turn == "a log appears":
            (out / WAL).write_bytes(os.urandom(64))
        else:
            as_wal(path)
        return connection

    monkeypatch.setattr(schema.connect, "_connect", turn_and_connect)
    with pytest.raises(ClawbusError):
        open_outbound_reader(out, LIMITS)
    assert not (out / SHM).exists()
    with pytest.raises(HostileFileError):  # the next look sees it
        open_outbound_reader(out, LIMITS)


def test_without_the_guards_the_reader_dies_of_a_signal(out: Path) -> None:
    """The danger is real: a read-only handle beside a log, whose index is truncated while it is mapped."""
    (out / WAL).write_bytes(os.urandom(64))
    program = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True, isolation_level=None)\n"
        "db.execute('BEGIN'); db.execute('SELECT * FROM messages_out').fetchall(); db.execute('COMMIT')\n"
        "os.truncate(sys.argv[1] + '-shm', 0)\n"
        "db.execute('SELECT * FROM messages_out').fetchall()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(out / OUTBOUND_DB)], check=False, capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGBUS, done.stderr


def test_recovery_touches_nothing_beside_a_log(out: Path) -> None:
    strand_journal(out / OUTBOUND_DB, "INSERT INTO session_state VALUES ('k' || ?, hex(zeroblob(400)), 'now')")
    (out / WAL).write_bytes(os.urandom(64))
    before = {item.name: item.read_bytes() for item in out.iterdir()}
    with pytest.raises(HostileFileError):
        recover_outbound_journal(out)
    assert {item.name: item.read_bytes() for item in out.iterdir()} == before


def test_a_journal_larger_than_the_file_it_could_restore_is_refused(out: Path) -> None:
    limits = ReadLimits(max_file_bytes=1024**2)
    with (out / (OUTBOUND_DB + "-journal")).open("wb") as file:
        file.truncate(18 * 1024**2)
    for look in (lambda: open_outbound_reader(out, limits), lambda: recover_outbound_journal(out, limits)):
        with pytest.raises(HostileFileError, match="journal"):
            look()


def test_recovery_parses_no_schema(out: Path) -> None:
    """What a journal restores is as hostile as the rest: recovery reads the header and nothing that was written in it."""
    connection = sqlite3.connect(out / OUTBOUND_DB)
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute("UPDATE sqlite_schema SET sql = 'CREATE TABLE (' WHERE name = 'session_state'")
    connection.commit()
    connection.close()
    (out / (OUTBOUND_DB + "-journal")).write_bytes(b"\0" * 512)
    assert recover_outbound_journal(out)
    with pytest.raises(HostileFileError, match="malformed"):
        open_outbound_reader(out, LIMITS)
