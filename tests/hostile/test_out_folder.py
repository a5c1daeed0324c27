"""What a container keeps in out/ is counted by every sweep: bounded, without following anything, and then it is too much."""

import os
from pathlib import Path

import pytest

from daemon.store import out_folder
from daemon.store.out_folder import OutLimits, check_out_folder
from daemon.sweep.decide import Container, Policy
from daemon.sweep.steps import Settings, sweep_files
from schema.errors import HostileFileError
from tests.support.hostile_session import LIVE, HostileSession
from tests.support.nest import nest

pytestmark = pytest.mark.faults

LIMITS = OutLimits(max_bytes=1024**2, max_files=100)


def test_what_is_within_the_limits_passes(tmp_path: Path) -> None:
    (tmp_path / "outbox" / "m1").mkdir(parents=True)
    (tmp_path / "outbox" / "m1" / "answer.pdf").write_bytes(os.urandom(900_000))
    check_out_folder(tmp_path, LIMITS)
    check_out_folder(tmp_path / "gone", LIMITS)


def test_bytes_count_where_they_lie_and_holes_do_not(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 * 1024**3)
    check_out_folder(tmp_path, LIMITS)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(os.urandom(1_200_000))
    with pytest.raises(HostileFileError, match="max_out_folder_bytes"):
        check_out_folder(tmp_path, LIMITS)


def test_a_file_with_many_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(os.urandom(500_000))
    for number in range(5):
        (tmp_path / f"name{number}").hardlink_to(tmp_path / "one")
    check_out_folder(tmp_path, LIMITS)


def test_however_many_files_there_are_it_looks_no_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3000):
        (folder / str(number)).touch()
    looked: list[os.stat_result] = []
    note = out_folder._Count._note

    def counted(self: out_folder._Count, status: os.stat_result) -> None:
        looked.append(status)
        note(self, status)

    monkeypatch.setattr(out_folder._Count, "_note", counted)
    with pytest.raises(HostileFileError, match="max_out_folder_files"):
        check_out_folder(tmp_path, OutLimits(max_files=100))
    assert len(looked) == 101


def test_links_are_counted_and_never_followed(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "large").write_bytes(os.urandom(2 * 1024**2))
    (out / "to a folder").symlink_to(elsewhere)
    (out / "to a file").symlink_to(elsewhere / "large")
    (out / "to itself").symlink_to(out)
    os.mkfifo(out / "fifo")
    check_out_folder(out, LIMITS)
    (tmp_path / "link").symlink_to(elsewhere)
    check_out_folder(tmp_path / "link", LIMITS)


def test_a_nest_without_end_is_left_in_time(tmp_path: Path) -> None:
    with nest(tmp_path, "d", 3000):
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(HostileFileError, match="nested"):
            check_out_folder(tmp_path, OutLimits())
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_sweep_asks(tmp_path: Path) -> None:
    session = HostileSession(tmp_path / "s")
    session.accept("m1")
    settings = Settings(Policy(), out=LIMITS)
    container = Container(LIVE, session.now - 1000)
    sweep_files(session.files, container, session.now, settings, occupied=False, floor=0)
    (session.out / "large").write_bytes(os.urandom(2 * 1024**2))
    with pytest.raises(HostileFileError, match="out/"):
        sweep_files(session.files, container, session.now, settings, occupied=False, floor=0)
