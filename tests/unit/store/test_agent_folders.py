"""Agents' folders: made once, and refused where one that held files lost its mount."""

from pathlib import Path

import pytest

from daemon.core.errors import AgentFileError
from daemon.store import agent_folders
from daemon.store.agent_folders import AgentFolders


@pytest.fixture
def folders(tmp_path: Path) -> AgentFolders:
    (tmp_path / "agents").mkdir()
    return AgentFolders(tmp_path / "agents", tmp_path / "records")


def mounted_at(monkeypatch: pytest.MonkeyPatch, point: Path | str) -> None:
    monkeypatch.setattr(agent_folders, "mount_of", lambda _: str(point))


def test_an_empty_folder_that_is_removed_is_made_again(folders: AgentFolders) -> None:
    folder = folders.make("a")
    folders.check("a", [folder])
    folder.rmdir()
    assert folders.make("a").is_dir()


def test_one_that_held_files_is_not(folders: AgentFolders) -> None:
    folder = folders.make("a")
    (folder / "program").touch()
    folders.check("a", [folder])
    (folder / "program").unlink()
    folder.rmdir()
    assert folders.away() == ["a"]
    folders.forget_others(["a"])
    assert folders.away() == ["a"]
    folders.make_new("a")
    assert not folder.exists()
    with pytest.raises(AgentFileError, match="is gone"):
        folders.make("a")
    folder.mkdir()
    assert folders.make("a") == folder, "it was made by hand"
    folders.check("a", [folder])
    assert folders.away() == []


def test_a_mount_s_source_is_checked_as_well(
    folders: AgentFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "disk" / "data"
    source.mkdir(parents=True)
    (source / "file").touch()
    mounted_at(monkeypatch, source.parent)
    folders.check("a", [source])
    (source / "file").unlink()
    folders.check("a", [source])  # emptied, and mounted
    (source / "file").touch()
    folders.check("a", [source])
    (source / "file").unlink()
    mounted_at(monkeypatch, "/")
    with pytest.raises(AgentFileError, match=f"{source.parent}, on which its files are, is not mounted"):
        folders.check("a", [source])
    (source / "moved-here").touch()
    folders.check("a", [source])


def test_a_deeper_mount_may_be_empty(folders: AgentFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.make("a")
    (folder / "file").touch()
    mounted_at(monkeypatch, "/")
    folders.check("a", [folder])
    (folder / "file").unlink()
    mounted_at(monkeypatch, folder)
    folders.check("a", [folder])


def test_a_broken_record_counts_as_none(folders: AgentFolders, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a").write_text("{")
    assert folders.make("a").is_dir()


def test_an_agent_that_is_not_configured_any_more_is_forgotten(folders: AgentFolders) -> None:
    folder = folders.make("a")
    (folder / "program").touch()
    folders.check("a", [folder])
    (folder / "program").unlink()
    folder.rmdir()
    folders.forget_others(["b"])
    assert folders.away() == []
