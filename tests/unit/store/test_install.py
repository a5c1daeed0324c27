"""Whose folder it is: a copy is told from the original, a moved folder is still the original."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.store.install import Engine, Install, InstallFile, Origin, Place, is_copied, mark_restored, place_of

PLACE = Place("/data", 1, 2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "sessions").mkdir(parents=True)
    InstallFile(made / "install.json").write(Install("one", place_of(made), Engine("docker", "e1", "unix:///x")))
    return made


def record(folder: Path) -> Install:
    found = InstallFile(folder / "install.json").read()
    assert found is not None
    return found


def test_the_folder_itself_is_no_copy(folder: Path) -> None:
    assert not is_copied(record(folder), folder)
    assert not is_copied(None, folder), "a folder of an earlier version"


def test_the_record_is_its_owner_s_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0)
    try:
        InstallFile(folder / "open.json").write(record(folder))
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "open.json").stat().st_mode) == 0o600


def test_a_copy_is_one_though_every_byte_and_date_is_the_same(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.copystat(folder, copy)
    assert is_copied(record(copy), copy)


def test_a_moved_folder_is_no_copy_also_behind_a_link(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "moved")
    assert not is_copied(record(moved), moved)
    link = tmp_path / "link"
    link.symlink_to(moved)
    assert not is_copied(record(link), link)


def test_a_copy_in_the_originals_place_is_a_copy(folder: Path, tmp_path: Path) -> None:
    aside = folder.rename(tmp_path / "aside")
    shutil.copytree(aside, folder)
    assert is_copied(record(folder), folder)
    assert not is_copied(record(aside), aside)


def test_what_takes_the_inode_of_a_removed_folder_was_born_later(folder: Path) -> None:
    kept = record(folder).place
    assert kept is not None
    if kept.born is None:
        pytest.fail("this file system keeps no births, so the test shows nothing")
    assert not replace(kept, born=kept.born + 1).is_same(kept)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (replace(PLACE, device=9), True),  # the disk has another number since a boot
        (replace(PLACE, device=9, path="/snapshot"), False),  # a clone of the disk, mounted beside it
        (replace(PLACE, path="/moved"), True),
        (replace(PLACE, inode=9), False),
        (replace(PLACE, born=9), False),
        (replace(PLACE, born=None), True),  # a kernel that does not say
        (replace(PLACE, born=None, device=9), False),
    ],
)
def test_what_makes_two_places_one(other: Place, same: bool) -> None:
    assert other.is_same(PLACE) is same


def test_a_restored_folder_is_a_copy_wherever_it_lies(folder: Path) -> None:
    mark_restored(folder / "install.json", "one")
    found = record(folder)
    assert is_copied(found, folder)
    assert found.engine == Engine("docker", "e1", "unix:///x"), "what its containers ran on is still known"
    assert found.origin == Origin("one", str(folder.resolve()), 0)


def test_a_backup_of_an_earlier_version_is_marked_by_its_id_alone(tmp_path: Path) -> None:
    mark_restored(tmp_path / "install.json", "old")
    found = InstallFile(tmp_path / "install.json").read()
    assert found is not None
    assert (found.install_id, found.place, is_copied(found, tmp_path)) == ("old", None, True)


def test_a_file_that_is_none_of_ours_is_as_none(tmp_path: Path) -> None:
    path = tmp_path / "install.json"
    for text in ("", "{", "[]", "null", '{"install_id": "x", "place": 3}', '{"place": null}'):
        path.write_text(text)
        assert InstallFile(path).read() is None, text


def test_a_folder_restored_twice_still_knows_where_its_original_lay(tmp_path: Path) -> None:
    file = tmp_path / "install.json"
    here = place_of(tmp_path)
    InstallFile(file).write(Install("one", here))
    for _ in range(2):
        mark_restored(file, None)
    found = InstallFile(file).read()
    assert found is not None
    assert found.origin is not None
    assert found.origin.path == here.path
