"""Eight readers beside a writer without a busy time-out: no commit of it fails, and no read is torn.

What a look does step by step is in `tests/unit/schema/test_lockfree.py` and `test_outbound_copy.py`.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from schema.connect import open_owner, open_reader
from schema.errors import ClawbusError
from schema.handles import Reader
from schema.layout import OUTBOUND_DB
from schema.lockfree import Patience, copy_unlocked, read_unlocked
from schema.migrate import Role
from schema.outbound_copy import copy_outbound, open_outbound_copy
from schema.outbound_file import open_outbound_reader
from schema.plain_file import ReadLimits
from tests.support.impatient_writer import LEFT, RIGHT, begin, impatient_writer, outcome, prepare

COMMITS: Final = 600
READERS: Final = 8
PATIENCE: Final = {
    "memory": Patience(),
    "in place": Patience(memory_bytes=0),
    "copied": Patience(memory_bytes=0, tries_in_place=0),
}
Counts = tuple[int, int]


def counts(reader: Reader) -> Counts:
    (left,), (right,) = (reader.all(f"SELECT count(*) FROM {table}")[0] for table in (LEFT, RIGHT))
    return left, right


@dataclass(slots=True)
class Seen:
    """What the readers saw: both tables' rows, and the codes of errors. `last` is what each saw after the last commit."""

    all: list[Counts] = field(default_factory=list)
    last: list[Counts] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def beside_a_writer(path: Path, read: Callable[[], Counts], journal: str = "DELETE", pause_every: int = 5) -> Seen:
    """Read again and again until the writer is done, and once more. No commit may have failed."""
    done, seen = threading.Event(), Seen()

    def again() -> None:
        while not done.is_set():
            try:
                seen.all.append(read())
            except ClawbusError as error:
                seen.errors.append(error.code)
        seen.last.append(read())

    readers = [threading.Thread(target=again) for _ in range(READERS)]
    with impatient_writer(path, COMMITS, journal=journal, pause_every=pause_every) as writer:
        for reader in readers:
            reader.start()
        begin(writer)
        result = outcome(writer)
        done.set()
        for reader in readers:
            reader.join()
    assert (result["made"], result["failed"]) == (COMMITS, 0)
    assert seen.all
    assert all(left == right for left, right in seen.all)
    assert seen.last == [(COMMITS, COMMITS)] * READERS
    return seen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Another program's database."""
    file = tmp_path / "main.db"
    prepare(file)
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A session's folder `out` with a runner's file."""
    folder = tmp_path / "out"
    folder.mkdir()
    open_owner(folder / OUTBOUND_DB, Role.OUTBOUND).close()
    prepare(folder / OUTBOUND_DB)
    return folder


@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"])
@pytest.mark.parametrize("patience", PATIENCE)
def test_readers_of_another_program_s_file(path: Path, journal: str, patience: str) -> None:
    seen = beside_a_writer(path, partial(read_unlocked, path, counts, PATIENCE[patience]), journal)
    assert seen.errors == []


def test_copies_of_another_program_s_file_are_whole(path: Path, tmp_path: Path) -> None:
    def copied() -> Counts:
        mine = tmp_path / f"{threading.get_ident()}.db"
        mine.touch()
        copy_unlocked(path, mine)
        with open_reader(mine) as reader:
            assert reader.all("PRAGMA integrity_check")[0][0] == "ok"
            return counts(reader)

    assert beside_a_writer(path, copied).errors == []


def _looked(out: Path) -> Counts:
    reader = open_outbound_copy(out, ReadLimits())
    assert reader is not None
    with reader:
        return counts(reader)


def _copied(out: Path) -> Counts:
    folder = out.parent / str(threading.get_ident())
    folder.mkdir(exist_ok=True)
    assert copy_outbound(out, folder / OUTBOUND_DB, ReadLimits())
    reader = open_outbound_reader(folder, ReadLimits())
    assert reader is not None
    with reader:
        return counts(reader)


@pytest.mark.parametrize("read", [_looked, _copied])
@pytest.mark.parametrize("memory", [16 * 1024 * 1024, 0])
def test_looks_at_a_runner_s_file(
    out: Path, read: Callable[[Path], Counts], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schema.outbound_copy._MEMORY_BYTES", memory)
    seen = beside_a_writer(out / OUTBOUND_DB, partial(read, out), pause_every=2)
    assert set(seen.errors) <= {"READ_RACE"}, "a torn look is a race, and never damage"
