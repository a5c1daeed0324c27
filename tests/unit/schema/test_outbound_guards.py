"""outbound.db is hostile: every way a container can make it something else is refused, typed, and touches nothing else."""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import schema.connect
import schema.outbound_file
from schema.connect import open_owner
from schema.errors import HostileFileError, ReadDeadlineError, StorageError
from schema.handles import Reader
from schema.layout import OUTBOUND_DB
from schema.migrate import OUTBOUND_TABLES, Role
from schema.outbound_copy import open_outbound_copy
from schema.outbound_file import open_outbound_reader, recover_outbound_journal
from schema.plain_file import ReadLimits
from schema.second_names import _MAX_ENTRIES
from tests.support.hot_journal import strand_journal

LIMITS = ReadLimits(max_file_bytes=1024**2, max_row_bytes=100_000, deadline_s=5.0)
JOURNAL = OUTBOUND_DB + "-journal"
Make = Callable[[Path], object]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def good(folder: Path) -> Path:
    open_owner(folder / OUTBOUND_DB, Role.OUTBOUND).close()
    return folder / OUTBOUND_DB


def descriptors() -> dict[str, str]:
    """What every open descriptor is of. An earlier test's garbage may be closed at any time, which takes some away."""
    found: dict[str, str] = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found[link.name] = str(link.readlink())
    return found


def made_by(folder: Path, *statements: str) -> None:
    """A file whose author did as they liked, in place of the good one."""
    connection = sqlite3.connect(folder / OUTBOUND_DB, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def _symlink(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    good(elsewhere)
    (folder / OUTBOUND_DB).symlink_to(elsewhere / OUTBOUND_DB)


def _hard_link(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "twin.db").hardlink_to(good(folder))


def _hidden_hard_link(folder: Path) -> None:
    """More files than are looked through, so that a second name among them may stay unseen."""
    (folder.parent / "twin.db").hardlink_to(good(folder))
    for number in range(_MAX_ENTRIES):
        os.mknod(folder / str(number))


def _dangling(folder: Path) -> None:
    (folder / OUTBOUND_DB).symlink_to(folder / "nowhere")


def _wal(folder: Path) -> None:
    good(folder)
    made_by(folder, "PRAGMA journal_mode=WAL")


def _large(folder: Path) -> None:
    with good(folder).open("r+b") as file:
        file.truncate(LIMITS.max_file_bytes + 1)


def _torn(folder: Path) -> None:
    path = good(folder)
    path.write_bytes(path.read_bytes()[:5000])


def _folder_is_a_link(folder: Path) -> None:
    folder.rename(folder.parent / "real")
    good(folder.parent / "real")
    folder.symlink_to(folder.parent / "real")


REFUSED: dict[str, Make] = {
    "symlink": _symlink,
    "dangling symlink": _dangling,
    "hard link": _hard_link,
    "hard link among too many files": _hidden_hard_link,
    "fifo": lambda folder: os.mkfifo(folder / OUTBOUND_DB),
    "directory": lambda folder: (folder / OUTBOUND_DB).mkdir(),
    "random bytes": lambda folder: (folder / OUTBOUND_DB).write_bytes(os.urandom(8192)),
    "one byte": lambda folder: (folder / OUTBOUND_DB).write_bytes(b"S"),
    "a header and nothing more": lambda folder: (folder / OUTBOUND_DB).write_bytes(b"SQLite format 3\0"),
    "torn": _torn,
    "WAL": _wal,
    "too large": _large,
    "journal is a fifo": lambda folder: (good(folder), os.mkfifo(folder / JOURNAL))[1],
    "journal is a symlink": lambda folder: (good(folder), (folder / JOURNAL).symlink_to("/etc/passwd"))[1],
    "journal is a directory": lambda folder: (good(folder), (folder / JOURNAL).mkdir())[1],
    "journal is a hard link": lambda folder: (good(folder), (folder / JOURNAL).hardlink_to(folder / OUTBOUND_DB))[1],
    "out/ is a symlink": _folder_is_a_link,
    "out/ is a file": lambda folder: (folder.rmdir(), folder.write_bytes(b""))[1],
}


Look = Callable[[Path, ReadLimits], Reader | None]


@pytest.fixture(params=["the file", "a copy in memory", "a copy in a file"])
def look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Each way in which the host reads outbound.db; the guards are the same for all."""
    if request.param == "the file":
        return open_outbound_reader
    if request.param == "a copy in a file":
        monkeypatch.setattr("schema.outbound_copy._MEMORY_BYTES", 0)
    return open_outbound_copy


@pytest.mark.faults
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_database_is_refused(out: Path, look: Look, name: str) -> None:
    REFUSED[name](out)
    before = descriptors()
    with pytest.raises(HostileFileError) as refused:
        look(out, LIMITS)
    assert str(out.parent) not in str(refused.value)
    assert descriptors().items() <= before.items(), "a refusal leaks no descriptor"


def test_a_second_name_outside_of_the_containers_folder_is_not_its_doing(out: Path, look: Look) -> None:
    strand_journal(good(out), "INSERT INTO session_state VALUES ('k' || ?, hex(zeroblob(400)), 'now')", rows=500)
    for name in (OUTBOUND_DB, JOURNAL):  # as `cp -al` of a live data folder does
        (out.parent / f"copied-{name}").hardlink_to(out / name)
    assert recover_outbound_journal(out)
    before = descriptors()
    reader = look(out, LIMITS)
    assert reader is not None
    reader.close()
    assert descriptors().items() <= before.items()


def test_a_second_name_that_cannot_be_looked_for_is_no_verdict(
    out: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out.parent / "copied").hardlink_to(good(out))

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("schema.second_names.os.scandir", full)
    before = descriptors()
    with pytest.raises(StorageError):
        look(out, LIMITS)
    assert descriptors().items() <= before.items()


def test_what_is_not_there_yet_is_none(out: Path, look: Look) -> None:
    assert look(out, LIMITS) is None
    (out / OUTBOUND_DB).touch()
    assert look(out, LIMITS) is None
    assert look(out / "gone", LIMITS) is None
    assert not recover_outbound_journal(out)


def test_what_may_not_be_read_is_an_operators_matter(out: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    good(out)
    really_open = os.open

    def refuse(path: str, flags: int, **where: Any) -> int:
        if path == OUTBOUND_DB:  # root reads everything, so the kernel's answer is played here
            raise PermissionError(13, "Permission denied")
        return really_open(path, flags, **where)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError):
        look(out, LIMITS)


IMPOSTORS = {
    "view": ("CREATE TABLE t (x)", "CREATE VIEW {name} AS SELECT x AS id, x AS seq FROM t"),
    "recursive view": ("CREATE VIEW {name} AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n FROM c) SELECT * FROM c",),
    "trigger": ("CREATE TABLE t (x)", "CREATE TRIGGER {name} AFTER INSERT ON t BEGIN SELECT 1; END"),
    "index": ("CREATE TABLE t (x)", "CREATE INDEX {name} ON t(x)"),
    "virtual table": ("CREATE VIRTUAL TABLE {name} USING fts5(content)",),
    "virtual generated column": ("CREATE TABLE {name} (id, seq, content AS (hex(zeroblob(9))) VIRTUAL)",),
    "stored generated column": ("CREATE TABLE {name} (id, seq, content AS (hex(zeroblob(9))) STORED)",),
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("spelling", ["plain", "upper case"])
@pytest.mark.parametrize("table", OUTBOUND_TABLES)
@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_a_known_name_that_is_no_plain_table_is_refused(
    out: Path, look: Look, impostor: str, table: str, spelling: str
) -> None:
    name = table.upper() if spelling == "upper case" else table
    made_by(out, *(statement.format(name=name) for statement in IMPOSTORS[impostor]))
    with pytest.raises(HostileFileError, match=table):
        look(out, LIMITS)


def test_other_names_may_be_what_they_like(out: Path, look: Look) -> None:
    """A runner may keep things of its own in its file; nobody here looks at them."""
    good(out)
    made_by(out, "CREATE VIEW mine AS SELECT 1", "CREATE TABLE notes (a, b AS (a + 1))")
    reader = look(out, LIMITS)
    assert reader is not None
    with reader:
        assert reader.all("SELECT * FROM messages_out") == []


SCHEMAS = {
    "wide": "CREATE TABLE notes (" + ", ".join(f"c{number}" for number in range(300)) + ")",
    "long": "CREATE TABLE notes (x /* " + "y" * 70_000 + " */)",
    "deep": "CREATE TABLE notes (x CHECK (" + "(" * 60 + "x" + " + 1)" * 60 + "))",
}


@pytest.mark.faults
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_costs_little_to_parse_or_is_refused(out: Path, look: Look, name: str) -> None:
    good(out)
    made_by(out, SCHEMAS[name])
    with pytest.raises(HostileFileError):
        look(out, LIMITS)


@pytest.mark.faults
def test_a_row_over_the_limit_is_refused_before_it_is_in_memory(out: Path, look: Look) -> None:
    good(out)
    made_by(out, "INSERT INTO session_state VALUES ('k', hex(zeroblob(60000)), 'now')")
    reader = look(out, LIMITS)
    assert reader is not None
    with reader:
        assert reader.all("SELECT key FROM session_state")[0]["key"] == "k"
        with pytest.raises(HostileFileError):
            reader.all("SELECT * FROM session_state")
        with pytest.raises(HostileFileError):
            reader.one("SELECT * FROM session_state")
        with pytest.raises(HostileFileError):
            reader.some("SELECT * FROM session_state", (), budget=1)


@pytest.mark.faults
@pytest.mark.parametrize("text", ["CAST(x'ff00' AS TEXT)", "CAST(x'eda080' AS TEXT)"])
def test_text_that_is_no_utf8_is_refused(out: Path, look: Look, text: str) -> None:
    good(out)
    made_by(out, f"INSERT INTO session_state VALUES ('k', {text}, 'now')")
    reader = look(out, LIMITS)
    assert reader is not None
    with reader, pytest.raises(HostileFileError):
        reader.all("SELECT * FROM session_state")


@pytest.mark.faults
def test_a_file_made_to_be_slow_meets_the_deadline(out: Path, look: Look) -> None:
    """Its author dropped the index that the reads count on and wrote many rows: a look scans them all, up to the deadline."""
    made_by(
        out,
        "CREATE TABLE messages_out (id, seq, content)",
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000)"
        " INSERT INTO messages_out SELECT n, n, '' FROM c",
    )
    reader = look(out, ReadLimits(deadline_s=0.02))
    assert reader is not None
    with reader, pytest.raises(ReadDeadlineError):
        # 8e12 rows: without the deadline it would not come back at all.
        reader.all("SELECT count(*) FROM messages_out AS a, messages_out AS b, messages_out AS c WHERE a.seq <> b.id")


@pytest.mark.faults
def test_a_schema_made_to_be_slow_meets_the_deadline_at_open(out: Path, look: Look) -> None:
    good(out)
    made_by(out, "BEGIN", *(f"CREATE TABLE t{number} (x)" for number in range(1500)), "COMMIT")
    with pytest.raises(ReadDeadlineError):
        look(out, ReadLimits(deadline_s=0.0))


@pytest.mark.faults
@pytest.mark.parametrize("with_what", ["another file", "a symlink", "nothing"])
def test_a_file_swapped_while_it_is_opened_is_noticed(
    out: Path, monkeypatch: pytest.MonkeyPatch, with_what: str
) -> None:
    path = good(out)
    secret = out.parent / "secret.db"
    open_owner(secret, Role.CENTRAL).close()
    connect = schema.connect._connect

    def swap_and_connect(wanted: Path, mode: str) -> sqlite3.Connection:
        path.unlink()
        if with_what == "another file":
            path.write_bytes(secret.read_bytes())
        elif with_what == "a symlink":
            path.symlink_to(secret)
        return connect(wanted, mode)

    monkeypatch.setattr(schema.connect, "_connect", swap_and_connect)
    with pytest.raises((HostileFileError, StorageError)):
        open_outbound_reader(out, LIMITS)


@pytest.mark.faults
def test_a_descriptor_that_vouched_by_chance_vouches_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread has the checked file open while SQLite was given another one: the look after the first read sees it."""
    path = good(out)
    secret = out.parent / "secret.db"
    open_owner(secret, Role.OUTBOUND).close()
    connect, limit, chance = schema.connect._connect, schema.outbound_file._limit, [-1]

    def swap_and_connect(wanted: Path, mode: str) -> sqlite3.Connection:
        spare = os.open("/dev/null", os.O_RDONLY)  # the number that SQLite's open would have had
        chance[0] = os.open(path, os.O_RDONLY)
        path.unlink()
        path.symlink_to(secret)
        os.close(spare)
        return connect(wanted, mode)

    def close_and_limit(connection: sqlite3.Connection, limits: ReadLimits) -> None:
        os.close(chance[0])
        limit(connection, limits)

    monkeypatch.setattr(schema.connect, "_connect", swap_and_connect)
    monkeypatch.setattr(schema.outbound_file, "_limit", close_and_limit)
    with pytest.raises(HostileFileError, match="replaced"):
        open_outbound_reader(out, LIMITS)


def super_journal(named: Path, folder: Path) -> bytes:
    """A hot journal's bytes that name a super-journal, as sqlite.org/fileformat2.html has it."""
    strand_journal(good(folder), "INSERT INTO session_state VALUES ('k' || ?, hex(zeroblob(400)), 'now')", rows=500)
    name = str(named).encode()
    checksum = sum(struct.unpack(f"{len(name)}b", name)) & 0xFFFFFFFF
    page_of_locks = struct.pack(">I", 2**30 // 4096 + 1)
    trailer = struct.pack(">II", len(name), checksum) + bytes.fromhex("d9d505f920a163d7")
    return (folder / JOURNAL).read_bytes() + page_of_locks + name + trailer


@pytest.mark.faults
def test_a_journal_that_names_a_super_journal_is_refused(out: Path, look: Look) -> None:
    victim = out.parent / "victim"
    victim.write_bytes(b"precious\0")
    journal = super_journal(victim, out)
    (out / JOURNAL).write_bytes(journal)
    before = (out / OUTBOUND_DB).read_bytes()
    with pytest.raises(HostileFileError, match="super-journal"):
        look(out, LIMITS)
    with pytest.raises(HostileFileError, match="super-journal"):
        recover_outbound_journal(out)
    assert victim.read_bytes() == b"precious\0"
    assert (out / OUTBOUND_DB).read_bytes() == before
    assert (out / JOURNAL).read_bytes() == journal


@pytest.mark.faults
def test_without_that_guard_sqlite_would_delete_the_named_file(out: Path) -> None:
    """The danger is real: the same journal, opened plainly, costs a file that lies elsewhere."""
    victim = out.parent / "victim"
    victim.write_bytes(b"precious\0")
    (out / JOURNAL).write_bytes(super_journal(victim, out))
    with sqlite3.connect(out / OUTBOUND_DB) as connection:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    connection.close()
    assert not victim.exists()


RECOVERY_REFUSES: dict[str, Callable[[Path], Any]] = {
    "random database": lambda out: (out / OUTBOUND_DB).write_bytes(os.urandom(4096)),
    "WAL database": _wal,
    "symlinked database": _symlink,
    "fifo as database": lambda out: os.mkfifo(out / OUTBOUND_DB),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", RECOVERY_REFUSES)
def test_recovery_opens_only_what_a_runner_of_ours_writes(out: Path, name: str) -> None:
    RECOVERY_REFUSES[name](out)
    (out / JOURNAL).write_bytes(b"\0" * 512)
    with pytest.raises(HostileFileError):
        recover_outbound_journal(out)
    assert (out / JOURNAL).exists()


@pytest.mark.faults
def test_a_host_that_is_slow_is_not_the_files_fault(out: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time goes by and this thread has not worked: a disk that does not answer, a daemon that was stopped."""
    good(out)
    made_by(out, "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000)"
                 " INSERT INTO session_state SELECT n, n, '' FROM c")  # fmt: skip
    reader = look(out, ReadLimits(deadline_s=0.02))
    assert reader is not None
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    with reader:
        with pytest.raises(StorageError, match="waited") as caught:
            reader.all("SELECT count(*) FROM session_state AS a, session_state AS b WHERE a.key <> b.value")
        assert not isinstance(caught.value, ReadDeadlineError)
        assert "dmesg" in caught.value.hint
