"""Putting a backup of a whole data folder in place of what is there."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Final

import pytest

from daemon.core.errors import DataFolderError
from daemon.core.repair_errors import BackupNotVerifiedError, RestoreFailedError, RestoreRefusedError
from daemon.core.slots import SlotState
from daemon.deploy.state_file import read_state, write_state
from daemon.maintenance.folder_backup import MANIFEST, FolderLimits, back_up_folder
from daemon.maintenance.folder_restore import read_manifest, restore_folder
from daemon.store.data_folder import DataFolder
from daemon.store.mailbox import Mailbox, NewEntry
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from schema.plain_file import ReadLimits

NOW: Final = 1_763_000_000_000


def silent(_what: str, _done: int, _total: int) -> None:
    return


def test_two_restores_within_one_second_move_what_was_there_aside_twice(tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        back_up_folder(data, backup, FolderLimits(ReadLimits(), 1024**2, 100), NOW, silent, owner=True)
    before: list[str] = []
    for number in range(3):
        (data / f"since {number}").touch()
        before.append(restore_folder(backup, data, NOW + number, silent, replace=True)["before"])
    assert len(set(before)) == 3
    assert [sorted(path.name for path in Path(one).glob("since *")) for one in before] == [
        ["since 0"], ["since 1"], ["since 2"],
    ]  # fmt: skip
    assert (data / "central.db").is_file()


@pytest.mark.parametrize("when", ["it copies", "what was there is moved aside"])
def test_ctrl_c_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        back_up_folder(data, backup, FolderLimits(ReadLimits(), 1024**2, 100), NOW, silent, owner=True)
    (data / "since").touch()
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        done = rename(self, target)
        if self == data:
            raise KeyboardInterrupt
        return done

    def copying(_what: str, done: int, _total: int) -> None:
        if when == "it copies" and done:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore_folder(backup, data, NOW, copying, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "data"]
    assert (data / "since").exists()


class Death(BaseException):
    """The process ends here."""


def test_no_daemon_begins_anew_where_a_restore_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there is moved aside, and the restored folder is not in its place yet."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        back_up_folder(data, backup, FolderLimits(ReadLimits(), 1024**2, 100), NOW, silent, owner=True)
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if target == data:
            raise Death
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(Death):
        restore_folder(backup, data, NOW, silent, replace=True)
    monkeypatch.undo()
    with pytest.raises(DataFolderError, match="a restore of it was interrupted") as refused:
        DataFolder.open(data)
    assert not data.exists(), "nothing was begun"
    fresh = data.with_name("data.restoring")
    assert f"Remove {fresh}" in refused.value.hint
    shutil.rmtree(fresh)
    assert restore_folder(backup, data, NOW, silent, replace=True)["files"]
    DataFolder.open(data).close()


def test_a_second_restore_and_a_start_learn_that_one_is_at_work(tmp_path: Path) -> None:
    """Told to remove what is in the way, an operator would take the first one's files from under it."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        back_up_folder(data, backup, FolderLimits(ReadLimits(), 1024**2, 100), NOW, silent, owner=True)
    target, met = tmp_path / "target", list[str]()

    def meanwhile(what: str, done: int, _total: int) -> None:
        if what.startswith("restore") and done == 1:
            with pytest.raises(RestoreRefusedError, match=r"another restore of .* is at work") as refused:
                restore_folder(backup, target, NOW, silent, replace=False)
            with pytest.raises(DataFolderError, match="is being restored now") as start:
                DataFolder.open(target)
            met.extend((refused.value.hint, start.value.hint))

    assert restore_folder(backup, target, NOW, meanwhile, replace=False)["files"]
    assert len(met) == 2
    assert not any("emove" in one for one in met)
    DataFolder.open(target).close()


def test_a_restore_that_fails_leaves_what_was_there_and_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        back_up_folder(data, backup, FolderLimits(ReadLimits(), 1024**2, 100), NOW, silent, owner=True)
    rename, fresh = Path.rename, data.with_name("data.restoring")

    def full(self: Path, target: Path) -> Path:
        if self == fresh:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RestoreFailedError, match="No space left on device"):
        restore_folder(backup, data, NOW, silent, replace=True)
    assert (data / "central.db").is_file(), "it was moved back"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "data"]


def test_a_restore_keeps_which_slot_serves(tmp_path: Path) -> None:
    """Else the standby of the older release serves the restored folder, if it looks first."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        back_up_folder(data, backup, FolderLimits(ReadLimits(), 1024**2, 100), NOW, silent, owner=True)
    state = SlotState(epoch=4, serving="green", release="r")
    write_state(data, state)
    restore_folder(backup, data, NOW, silent, replace=True)
    assert read_state(data) == state


def test_an_answer_that_arrives_during_a_backup_is_in_its_mailbox(tmp_path: Path) -> None:
    """Its receipt may be in the session's copy, so that nothing would send it again."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        mailbox = Mailbox(folder.mailbox_db)
        mailbox.prepare()
        SessionFiles(folder.sessions_dir / "a" / "s", ReadLimits()).create()
        arrived: list[int] = []

        def arrives(what: str, _done: int, _total: int) -> None:
            if what == "a/s":
                arrived.append(mailbox.put(NewEntry("cli", "o1", "a", "s", None, "chat", None, "{}", NOW)))

        back_up_folder(data, backup, FolderLimits(ReadLimits(), 1024**2, 100), NOW, arrives, owner=True)
    assert arrived
    assert [one.cursor for one in Mailbox(backup / "mailbox.db").read("cli", 0, 10)] == arrived


AGENT: Final = 65_532  # a container's user
ITS_FOLDERS: Final = ("agents/a/memory", "agents/a/empty", "sessions/a/s/home/.ssh", "sessions/a/s/out/outbox", "sessions/a/s/out/outbox/m1")  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")
@pytest.mark.parametrize("older", [False, True])
def test_an_agent_can_go_on_writing_in_its_folders(tmp_path: Path, older: bool) -> None:
    """The container's user is not the daemon's: what root restores must belong to it again."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        SessionFiles(folder.sessions_dir / "a" / "s", ReadLimits()).create()
        for name in ITS_FOLDERS:
            (data / name).mkdir(parents=True, exist_ok=True)
            if name != "agents/a/empty":
                (data / name / "file").touch()
                os.chown(data / name / "file", AGENT, AGENT)
            os.chown(data / name, AGENT, AGENT)
        (data / "sessions/a/s/home/.ssh").chmod(0o700)
        (data / "agents/a/memory/of-root").touch()
        (data / "agents/a/lib").mkdir()
        (data / "agents/a/lib/program").touch()
        back_up_folder(data, backup, FolderLimits(ReadLimits(), 1024**2, 100), NOW, silent, owner=True)
    if older:
        manifest = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))
        del manifest["folders"]
        (backup / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    restore_folder(backup, data, NOW, silent, replace=True)
    found = {name: (data / name).stat().st_uid for name in ITS_FOLDERS if (data / name).exists()}
    assert found == dict.fromkeys([name for name in ITS_FOLDERS if name != "agents/a/empty" or not older], AGENT)
    assert (data / "agents/a/lib").stat().st_uid == 0
    assert older or (data / "sessions/a/s/home/.ssh").stat().st_mode & 0o777 == 0o700


def test_an_answers_file_that_is_not_copied_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with DataFolder.open(data) as folder:
        Registry(folder.central_db).install_id(NOW)
        for session in ("large", "link"):
            SessionFiles(folder.sessions_dir / "a" / session, ReadLimits()).create()
        with (folder.sessions_dir / "a/large/out/outbound.db").open("wb") as file:
            file.truncate(3 * ReadLimits().max_file_bytes)
        (folder.sessions_dir / "a/link/out/outbound.db").symlink_to("/etc/passwd")
        found = back_up_folder(
            data, tmp_path / "backup", FolderLimits(ReadLimits(), 1024**2, 100), NOW, silent, owner=True
        )
    assert sorted(found.left_out) == ["sessions/a/large/out/outbound.db", "sessions/a/link/out/outbound.db"]


def test_a_manifest_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    with pytest.raises(RestoreRefusedError, match=f"it has no {MANIFEST}"):
        read_manifest(tmp_path / "backup")
    (tmp_path / "backup" / MANIFEST).symlink_to(MANIFEST)
    with pytest.raises(BackupNotVerifiedError, match="cannot be read: Too many levels"):
        read_manifest(tmp_path / "backup")
