"""A tree of a container's in a backup: whatever it made of it, what can be copied is, the rest is named, and nothing raises."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.maintenance.folder_files import Copied, copy_file, copy_tree
from schema.errors import StorageError
from tests.support.nest import nest

FEW = 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


def copied(
    source: Path, tmp_path: Path, *, max_bytes: int = 10**6, max_files: int = 10_000
) -> tuple[list[str], list[str]]:
    """The paths that were copied, and those that were left out."""
    found = list(copy_tree(source, tmp_path / "target", "out", max_bytes=max_bytes, max_files=max_files))
    done = [one.path for one in found if isinstance(one, Copied)]
    assert all((tmp_path / "target" / path.partition("/")[2]).is_file() for path in done)
    return done, [one for one in found if isinstance(one, str)]


@pytest.mark.parametrize(("name", "depth"), [("d", 3000), ("x" * 255, 20)], ids=["deep", "long"])
def test_a_nest_without_end_is_left_out_and_the_rest_is_copied(
    source: Path, tmp_path: Path, name: str, depth: int
) -> None:
    (source / "last").write_text("kept", encoding="utf-8")
    with nest(source, name, depth):
        before = set(Path("/proc/self/fd").iterdir())
        done, left_out = copied(source, tmp_path)
        # Other tests' descriptors may go at any time, when their objects are collected.
        assert set(Path("/proc/self/fd").iterdir()) <= before
    assert done == ["out/last"]
    assert len(left_out) == 1
    assert left_out[0].startswith(f"out/{name}/{name}/")


def test_folders_count_and_what_is_beyond_the_limit_is_told_once(source: Path, tmp_path: Path) -> None:
    for number in range(FEW):
        (source / f"{number:02}").mkdir()
        (source / f"{number:02}" / "file").touch()
    done, left_out = copied(source, tmp_path, max_files=6)
    assert len(done) == 3
    assert left_out == ["out/*"]


def test_a_file_that_is_too_large_is_left_out_and_the_next_one_copied(source: Path, tmp_path: Path) -> None:
    (source / "a").write_bytes(b"x" * 60)
    (source / "b").write_bytes(b"x" * 60)
    (source / "c").write_bytes(b"x" * 40)
    assert copied(source, tmp_path, max_bytes=100) == (["out/a", "out/c"], ["out/b"])


@pytest.mark.parametrize("most", [0, 7, 10, 99])
def test_no_more_is_copied_than_the_file_had_when_it_was_judged(tmp_path: Path, most: int) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb") as file:
        size, digest = copy_file(file.fileno(), tmp_path / "copy", most)
    assert (tmp_path / "copy").read_bytes() == b"0123456789"[:most]
    assert size == min(most, 10)
    assert digest == hashlib.sha256(b"0123456789"[:most]).hexdigest()


def test_links_and_special_files_are_left_out(source: Path, tmp_path: Path) -> None:
    (source / "file").touch()
    (source / "folder").symlink_to("/etc")
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    assert copied(source, tmp_path) == (["out/file"], ["out/folder", "out/link", "out/pipe"])


def test_a_link_in_the_tree_s_own_place_is_named_and_an_absent_tree_is_none(source: Path, tmp_path: Path) -> None:
    (source / "link").symlink_to("/etc")
    assert copied(source / "link", tmp_path) == ([], ["out"])
    assert copied(source / "nothing", tmp_path) == ([], [])


@pytest.mark.parametrize("call", ["open", "scandir"])
@pytest.mark.parametrize(("number", "raises"), [(errno.EMFILE, True), (errno.ENFILE, True), (errno.EIO, False)])
def test_what_this_process_cannot_open_now_is_not_left_out_and_what_cannot_be_read_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, raises: bool
) -> None:
    """Too many open files: a backup without the rest of the tree would look complete."""
    (source / "folder").mkdir()
    (source / "folder" / "file").touch()
    real: Any = getattr(os, call)

    def fails(what: Any, *args: Any, **more: Any) -> Any:
        if what == "file" or (call == "scandir" and os.path.realpath(f"/proc/self/fd/{what}").endswith("/folder")):
            raise OSError(number, os.strerror(number))
        return real(what, *args, **more)

    monkeypatch.setattr(os, call, fails)
    if raises:
        with pytest.raises(StorageError, match=r"out/folder.*: Too many open files"):
            copied(source, tmp_path)
    else:
        assert copied(source, tmp_path) == ([], ["out/folder/file" if call == "open" else "out/folder/*"])
