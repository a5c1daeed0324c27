"""A look at outbound.db without a lock: no commit of a runner without a busy time-out fails, and no read is torn."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from schema.connect import open_owner
from schema.errors import HostileFileError, ReadRaceError
from schema.handles import Reader
from schema.layout import OUTBOUND_DB
from schema.migrate import Role
from schema.outbound_copy import open_outbound_copy
from schema.outbound_file import open_outbound_reader
from schema.plain_file import ReadLimits
from tests.support.hot_journal import strand_journal
from tests.support.impatient_writer import LEFT, RIGHT, prepare
from tests.support.inngest_server import open_elsewhere

LIMITS = ReadLimits()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    open_owner(folder / OUTBOUND_DB, Role.OUTBOUND).close()
    prepare(folder / OUTBOUND_DB)
    return folder


def counts(reader: Reader | None) -> tuple[int, int]:
    assert reader is not None
    with reader:
        (left,), (right,) = (reader.all(f"SELECT count(*) FROM {table}")[0] for table in (LEFT, RIGHT))
        return left, right


def look(out: Path) -> tuple[int, int]:
    return counts(open_outbound_copy(out, LIMITS))


def commits(out: Path) -> bool:
    """Whether a runner without a busy time-out can commit now."""
    with closing(sqlite3.connect(out / OUTBOUND_DB, timeout=0)) as db:
        try:
            with db:
                db.execute(f"INSERT INTO {LEFT} VALUES (NULL, 'x')")
        except sqlite3.OperationalError:
            return False
    return True


@pytest.mark.parametrize(("opened", "harmless"), [(open_outbound_copy, True), (open_outbound_reader, False)])
def test_a_look_that_is_still_open_lets_such_a_runner_commit(
    out: Path, opened: Callable[[Path, ReadLimits], Reader | None], harmless: bool
) -> None:
    """An ordinary reader does not: that is the harm."""
    reader = opened(out, LIMITS)
    assert reader is not None
    with reader:
        assert reader.all(f"SELECT * FROM {RIGHT}") == []
        assert commits(out) is harmless


def test_a_runner_that_leaves_no_quiet_moment_is_a_race_and_takes_no_longer_than_the_deadline(out: Path) -> None:
    with open_elsewhere(out / OUTBOUND_DB, statement="BEGIN EXCLUSIVE"), pytest.raises(ReadRaceError):
        open_outbound_copy(out, ReadLimits(deadline_s=0.05))
    assert look(out) == (0, 0)


def test_a_journal_of_a_dead_runner_is_a_race_and_stays(out: Path) -> None:
    strand_journal(out / OUTBOUND_DB, f"INSERT INTO {LEFT} VALUES (?, hex(randomblob(200)))")
    journal = out / f"{OUTBOUND_DB}-journal"
    before = (out / OUTBOUND_DB).read_bytes(), journal.read_bytes()
    with pytest.raises(ReadRaceError):
        open_outbound_copy(out, LIMITS)
    assert ((out / OUTBOUND_DB).read_bytes(), journal.read_bytes()) == before


@pytest.mark.parametrize("memory", [16 * 1024 * 1024, 0])
def test_a_torn_file_with_a_commit_meanwhile_is_never_called_hostile(
    out: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is damaged at the first look and whole at the second: what changed in between was not judged."""
    monkeypatch.setattr("schema.outbound_copy._MEMORY_BYTES", memory)
    path = out / OUTBOUND_DB
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    from schema import outbound_copy  # noqa: PLC0415

    take, looks = outbound_copy.take_stamp, [0]

    def then_whole(descriptor: int, where: Path) -> object:
        stamp = take(descriptor, where)
        looks[0] += 1
        if looks[0] == 1:
            with path.open("r+b") as file:
                file.write(whole)
            with closing(sqlite3.connect(path)) as db, db:
                db.execute(f"INSERT INTO {LEFT} VALUES (NULL, 'x')")
        return stamp

    monkeypatch.setattr("schema.outbound_copy.take_stamp", then_whole)
    assert look(out) == (1, 0)
    assert looks == [2]


def test_damage_that_nobody_is_writing_is_hostile(out: Path) -> None:
    path = out / OUTBOUND_DB
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(HostileFileError):
        look(out)


def test_nothing_is_left_behind(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(tmp_path.rglob("*")), (out / OUTBOUND_DB).stat()
    for memory in (16 * 1024 * 1024, 0):
        monkeypatch.setattr("schema.outbound_copy._MEMORY_BYTES", memory)
        look(out)
    after = (out / OUTBOUND_DB).stat()
    assert sorted(tmp_path.rglob("*")) == before[0]
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (
        before[1].st_mtime_ns,
        before[1].st_ino,
        before[1].st_size,
    )
