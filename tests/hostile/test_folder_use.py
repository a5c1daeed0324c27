"""What a container keeps in out/ and home/ is counted by every sweep: bounded, without following anything, and then it is too much."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.core.lifecycle import Container, Policy
from daemon.engine.sweep_steps import Settings, sweep_files
from daemon.store import folder_use
from daemon.store.folder_use import SessionLimits, UseLimits, check_folder
from daemon.store.open_files import deleted_bytes
from schema.errors import HostileFileError
from tests.support.hostile_session import LIVE, HostileSession
from tests.support.nest import nest

pytestmark = pytest.mark.faults

LIMITS = UseLimits(max_bytes=1024**2, max_files=100)


def test_home_has_limits_of_its_own(tmp_path: Path) -> None:
    home = SessionLimits().home
    deep = tmp_path.joinpath(*"d" * 40)
    deep.mkdir(parents=True)
    assert check_folder(tmp_path, home).files == 40, "caches of programs are nested deeper than out/ may be"
    with pytest.raises(HostileFileError, match=r"home/.*limits\.max_home_folder_files"):
        check_folder(tmp_path, replace(home, max_files=30))


def test_what_is_within_the_limits_passes(tmp_path: Path) -> None:
    (tmp_path / "outbox" / "m1").mkdir(parents=True)
    (tmp_path / "outbox" / "m1" / "answer.pdf").write_bytes(os.urandom(900_000))
    check_folder(tmp_path, LIMITS)
    check_folder(tmp_path / "gone", LIMITS)


def test_bytes_count_where_they_lie_and_holes_do_not(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 * 1024**3)
    check_folder(tmp_path, LIMITS)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(os.urandom(1_200_000))
    with pytest.raises(HostileFileError, match="max_out_folder_bytes"):
        check_folder(tmp_path, LIMITS)


def test_a_file_with_many_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(os.urandom(500_000))
    for number in range(5):
        (tmp_path / f"name{number}").hardlink_to(tmp_path / "one")
    check_folder(tmp_path, LIMITS)


def test_however_many_files_there_are_it_looks_no_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3000):
        (folder / str(number)).touch()
    looked: list[os.stat_result] = []
    note = folder_use._Count._note

    def counted(self: folder_use._Count, status: os.stat_result) -> None:
        looked.append(status)
        note(self, status)

    monkeypatch.setattr(folder_use._Count, "_note", counted)
    with pytest.raises(HostileFileError, match="max_out_folder_files"):
        check_folder(tmp_path, UseLimits(max_files=100))
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
    check_folder(out, LIMITS)
    (tmp_path / "link").symlink_to(elsewhere)
    check_folder(tmp_path / "link", LIMITS)


def test_a_nest_without_end_is_left_in_time(tmp_path: Path) -> None:
    with nest(tmp_path, "d", 3000):
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(HostileFileError, match="nested"):
            check_folder(tmp_path, UseLimits())
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def as_another_user(work: Callable[[Path], object], prepare: Callable[[Path], object]) -> str:
    """What `work` on a folder of an unprivileged user's raises there, as that user: root may look into everything."""
    root = Path(tempfile.mkdtemp(dir="/dev/shm"))
    reading, writing = os.pipe()
    try:
        root.chmod(0o755)
        child = os.fork()
        if child == 0:
            said = "the child raised"
            with contextlib.suppress(BaseException):
                if os.getuid() == 0:
                    os.chown(root, 65534, 65534)
                    os.setgroups([])
                    os.setresgid(65534, 65534, 65534)
                    os.setresuid(65534, 65534, 65534)
                prepare(root)
                said = repr(work(root))
            os.write(writing, said.encode())
            os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        return os.read(reading, 10_000).decode()
    finally:
        os.close(reading)
        for folder in root.rglob("*"):
            if folder.is_dir():
                folder.chmod(0o700)
        shutil.rmtree(root)


def judged(folder: Path) -> object:
    try:
        return check_folder(folder, LIMITS)
    except HostileFileError as error:
        return str(error)


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o200, 0o100])
@pytest.mark.parametrize("depth", ["out/", "a folder in it", "a folder in that"])
def test_what_lies_in_a_closed_folder_is_counted(mode: int, depth: str) -> None:
    """The daemon's own user is the container's by default, so that the folder is opened up and counted."""

    def prepare(root: Path) -> None:
        inner = {"out/": root, "a folder in it": root / "a", "a folder in that": root / "a" / "b"}[depth]
        inner.mkdir(parents=True, exist_ok=True)
        (inner / "large").write_bytes(os.urandom(1_200_000))
        inner.chmod(mode)

    assert "max_out_folder_bytes" in as_another_user(judged, prepare)


def test_a_closed_folder_of_another_user_counts_as_over_the_limit() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to make a folder of another user's")
    closed = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        closed.chmod(0o755)
        (closed / "roots").mkdir(mode=0o700)
        told = as_another_user(lambda _: judged(closed), lambda _: None)
        assert "closed to the daemon" in told
    finally:
        shutil.rmtree(closed)


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_deleted_files_that_are_kept_open_are_counted(tmp_path: Path, how: str) -> None:
    program = (
        "import mmap, os, sys\n"
        "f = open(sys.argv[1], 'w+b')\n"
        "os.unlink(sys.argv[1])\n"
        "f.write(os.urandom(1_200_000)); f.flush()\n"
        "kept = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED)\n"
        "if sys.argv[2] == 'mapped': f.close()\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    (tmp_path / "small").write_bytes(b"x" * 1000)
    command = [sys.executable, "-c", program, str(tmp_path / "gone"), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert check_folder(tmp_path, LIMITS).deleted_bytes is None, "its processes are not known"
            with pytest.raises(HostileFileError, match="deleted files"):
                check_folder(tmp_path, LIMITS, [holder.pid, 2**22 - 1])
            use = check_folder(tmp_path, UseLimits(), [holder.pid])
            assert use.deleted_bytes is not None
            assert use.deleted_bytes >= 1_200_000
        finally:
            holder.communicate()
    assert check_folder(tmp_path, LIMITS, [holder.pid]).deleted_bytes is None


def test_maps_are_read_for_a_moment_only_and_descriptors_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr("daemon.store.open_files._note_maps", lambda path, *_: read.append(path))
    with (tmp_path / "gone").open("wb") as file:
        (tmp_path / "gone").unlink()
        file.write(os.urandom(100_000))
        file.flush()
        clock = iter((0.0, 0.0, 1.0, 2.0)).__next__  # the third process's turn comes too late
        counted = deleted_bytes([os.getpid()] * 4, tmp_path.stat().st_dev, clock=clock)
    assert counted is not None
    assert counted >= 100_000
    assert len(read) == 2


def test_names_outside_of_out_hide_no_part_of_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "large").write_bytes(os.urandom(1_200_000))
    for number in range(5):
        (tmp_path / f"name{number}").hardlink_to(out / "large")
    with pytest.raises(HostileFileError, match="max_out_folder_bytes"):
        check_folder(out, LIMITS)


def test_the_sweep_asks(tmp_path: Path) -> None:
    session = HostileSession(tmp_path / "s")
    session.accept("m1")
    settings = Settings(Policy(), limits=SessionLimits(out=LIMITS))
    container = Container(LIVE, session.now - 1000)
    sweep_files(session.files, container, session.now, settings, occupied=False, floor=0)
    (session.out / "large").write_bytes(os.urandom(2 * 1024**2))
    with pytest.raises(HostileFileError, match="out/"):
        sweep_files(session.files, container, session.now, settings, occupied=False, floor=0)
