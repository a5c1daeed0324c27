"""The data folder: made private, held by one daemon at a time, refused when it is not ours to touch."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from daemon.core.clock import SystemClock
from daemon.core.errors import DataFolderError, DataFolderLockedError
from daemon.store.data_folder import DataFolder
from daemon.store.data_layout import Layout
from daemon.store.folder_lock import live_holder, read_holder
from schema.errors import SchemaTooNewError
from schema.migrate import VERSION
from tests.support.mounts import small_disk

# Opens the folder in another process and says so; then waits for its end.
HOLD: Final = (
    "import sys; from pathlib import Path; from daemon.store.data_folder import DataFolder\n"
    "folder = DataFolder.open(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


def hold(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_new_folder_is_private_and_complete(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path / "deep" / "data") as folder:
        assert folder.root == tmp_path / "deep" / "data"
        for path in (folder.root, folder.sessions_dir, folder.agents_dir, folder.logs_dir, folder.run_dir):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert (folder.root / "clawbus.version").read_text() == f"{VERSION}\n"
        assert stat.S_IMODE(folder.lock_file.stat().st_mode) == 0o600
        assert {folder.central_db.parent, folder.mailbox_db.parent, folder.wheels_dir.parent} == {folder.root}


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    DataFolder.open(tmp_path / "d").close()
    before = (tmp_path / "d" / "clawbus.version").stat()
    folder = DataFolder.open(tmp_path / "d")
    folder.close()
    folder.close()
    after = (tmp_path / "d" / "clawbus.version").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_second_daemon_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    first = hold(tmp_path)
    try:
        with pytest.raises(DataFolderLockedError, match=f"process {first.pid}, since 2") as caught:
            DataFolder.open(tmp_path)
        assert "systemctl stop" in caught.value.hint
        holder = read_holder(tmp_path)
        assert holder is not None
        assert holder.pid == first.pid
    finally:
        end(first)


def test_the_lock_ends_with_the_process_however_it_ends(tmp_path: Path) -> None:
    first = hold(tmp_path)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert read_holder(tmp_path) is not None  # its name is still written there, and counts for nothing
    with DataFolder.open(tmp_path):
        holder = read_holder(tmp_path)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert read_holder(tmp_path) is None


def test_a_full_disk_keeps_no_command_out_and_a_standby_knows_it_for_one(tmp_path: Path) -> None:
    """What makes room there, and a backup to another disk, are commands; a standby would end a daemon."""
    data = tmp_path / "d"
    with small_disk(data, 1024) as disk:
        DataFolder.open(data).close()
        disk.fill()
        with DataFolder.open(data):
            holder = live_holder(data)
        assert holder is not None
        assert (holder.pid, holder.is_daemon) == (os.getpid(), False)


def test_no_child_inherits_the_lock(tmp_path: Path) -> None:
    folder = DataFolder.open(tmp_path)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        folder.close()
        DataFolder.open(tmp_path).close()
    finally:
        child.communicate()


def test_the_locked_out_one_does_not_overwrite_the_holder(tmp_path: Path) -> None:
    first = hold(tmp_path)
    try:
        before = (tmp_path / "clawbus.lock").read_bytes()
        with pytest.raises(DataFolderLockedError):
            DataFolder.open(tmp_path)
        assert (tmp_path / "clawbus.lock").read_bytes() == before != b""
    finally:
        end(first)


def test_a_newer_versions_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "clawbus.version").write_text(f"{VERSION + 1}\n")
    with pytest.raises(SchemaTooNewError, match=f"version {VERSION + 1}"):
        DataFolder.open(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clawbus.lock", "clawbus.version"]
    (tmp_path / "clawbus.version").write_text(f"{VERSION}\n")
    DataFolder.open(tmp_path).close()  # and the lock was given back


def test_an_older_versions_folder_is_marked_as_ours(tmp_path: Path) -> None:
    (tmp_path / "clawbus.version").write_text("0\n")
    DataFolder.open(tmp_path).close()
    assert (tmp_path / "clawbus.version").read_text() == f"{VERSION}\n"


@pytest.mark.parametrize("text", ["", "one", "-1", "\xff"])
def test_a_marker_that_is_no_version_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "clawbus.version").write_text(text, encoding="latin-1")
    with pytest.raises(DataFolderError, match="holds no version"):
        DataFolder.open(tmp_path)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataFolderError, match="is not a folder"):
        DataFolder.open(tmp_path / "file")
    with pytest.raises(DataFolderError, match="cannot be made: Not a directory"):
        DataFolder.open(tmp_path / "file" / "below")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "sessions").write_text("x")
    with pytest.raises(DataFolderError, match="cannot be used: File exists"):
        DataFolder.open(tmp_path / "sub")


def test_a_link_to_a_folder_is_followed_and_a_link_for_a_lock_is_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with DataFolder.open(tmp_path / "link"), pytest.raises(DataFolderLockedError):
        DataFolder.open(tmp_path / "real")
    (tmp_path / "real" / "clawbus.lock").unlink()
    (tmp_path / "real" / "clawbus.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataFolderError, match="cannot be used"):
        DataFolder.open(tmp_path / "real")
    assert not (tmp_path / "elsewhere").exists()


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(DataFolderError, match="cannot be used: No such file"):
        DataFolder.open(tmp_path / "link")


def test_a_folder_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    with pytest.raises(DataFolderError, match="everybody"):
        DataFolder.open(tmp_path / "open")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user, which only root may")
def test_root_leaves_another_users_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(DataFolderError, match="12345, and this is root"):
        DataFolder.open(tmp_path / "theirs")


def test_a_folder_that_this_user_may_not_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so the answer of access(2) is given here.
    monkeypatch.setattr(os, "access", lambda *_args, **_options: False)
    with pytest.raises(DataFolderError, match="cannot be read and written"):
        DataFolder.open(tmp_path)


def test_the_layout_alone_touches_nothing(tmp_path: Path) -> None:
    assert Layout(tmp_path / "x").central_db == tmp_path / "x" / "central.db"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x", "since": "y"}', "\x00"])
def test_a_lock_file_with_other_text_names_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "clawbus.lock").write_text(text)
    assert read_holder(tmp_path) is None


def test_what_others_could_read_is_closed_and_named(tmp_path: Path) -> None:
    root = tmp_path / "d"
    DataFolder.open(root).close()
    for name, mode in (("", 0o755), ("sessions", 0o755), ("logs", 0o750)):
        (root / name).chmod(mode)
    for name in ("central.db", "mailbox.db", "install-id"):
        (root / name).touch()
        (root / name).chmod(0o644)
    with DataFolder.open(root) as folder:
        assert set(folder.was_open) == {"d", "sessions", "logs", "central.db", "mailbox.db", "install-id"}
        for path in (root, *root.iterdir()):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    with DataFolder.open(root) as folder:
        assert folder.was_open == ()


def test_a_new_folder_was_not_open(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path / "d") as folder:
        assert folder.was_open == ()


def test_a_lock_file_that_was_removed_is_made_and_locked_again(tmp_path: Path) -> None:
    clock = SystemClock()
    with DataFolder.open(tmp_path / "data", clock) as folder:
        assert not folder.retake_lock(clock)
        folder.lock_file.unlink()
        assert folder.retake_lock(clock)
        assert not folder.retake_lock(clock)
        with pytest.raises(DataFolderLockedError):
            DataFolder.open(tmp_path / "data", clock)


def test_without_its_lock_file_the_folder_is_still_held(tmp_path: Path) -> None:
    """At no moment, and not only after the holder's next check, may a second daemon start."""
    first = hold(tmp_path)
    try:
        (tmp_path / "clawbus.lock").unlink()
        found = live_holder(tmp_path)
        assert found is not None
        assert found.pid == first.pid
        with pytest.raises(DataFolderLockedError, match=f"is held by process {first.pid}"):
            DataFolder.open(tmp_path)
        assert not (tmp_path / "clawbus.lock").exists(), "the refused one leaves nothing for the holder to trip over"
        (tmp_path / "clawbus.lock").write_text("{}")
        with pytest.raises(DataFolderLockedError, match=f"is held by process {first.pid}"):
            DataFolder.open(tmp_path)
    finally:
        end(first)
    assert live_holder(tmp_path) is None
    DataFolder.open(tmp_path).close()


def test_a_folder_put_in_the_place_of_a_held_one_is_locked_too(tmp_path: Path) -> None:
    clock, root = SystemClock(), tmp_path / "data"
    with DataFolder.open(root, clock) as folder:
        root.rename(tmp_path / "old")
        root.mkdir(mode=0o700)
        assert folder.retake_lock(clock)
        folder.lock_file.unlink()
        with pytest.raises(DataFolderLockedError, match=f"process {os.getpid()}"):
            DataFolder.open(root, clock)


def test_where_a_folder_cannot_be_locked_the_file_still_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems lock only what is open for writing."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with DataFolder.open(tmp_path), pytest.raises(DataFolderLockedError):
        DataFolder.open(tmp_path)


def test_a_removed_lock_that_another_daemon_was_faster_to_take_is_refused(tmp_path: Path) -> None:
    """One of an earlier version, which locks the file alone."""
    clock = SystemClock()
    with DataFolder.open(tmp_path / "data", clock) as folder:
        folder.lock_file.unlink()
        with folder.lock_file.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(DataFolderLockedError, match="is held by process"):
                folder.retake_lock(clock)
