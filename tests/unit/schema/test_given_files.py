"""Files that somebody else may have put there: only plain ones are read, in one piece, and nothing outside the folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from schema import given_files
from schema.errors import StorageError
from schema.given_files import FileRefusedError, read_below


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have about a hundred bytes
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def _linked(path: Path) -> None:
    path.write_bytes(b"x")
    path.with_name("second").hardlink_to(path)


MADE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link": (lambda path: path.symlink_to("/etc/passwd"), "is a link"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link"),
    "a fifo": (os.mkfifo, "is a fifo"),
    "a socket": (_socket, "a socket"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "two names": (_linked, "second name"),
    "too large": (lambda path: path.write_bytes(b"12345"), "has 5 bytes"),
    "sparse": (lambda path: path.touch() or os.truncate(path, 2**40), "has 1099511627776 bytes"),
    "nothing": (lambda path: None, "is not there"),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_not_a_plain_small_file_is_refused(tmp_path: Path, kind: str) -> None:
    make, reason = MADE[kind]
    make(tmp_path / "file")
    with pytest.raises(FileRefusedError, match=reason):
        read_below(tmp_path, ("file",), 4)


def test_a_folder_on_the_way_is_never_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "plain").write_bytes(b"x")
    assert read_below(tmp_path, ("real", "file"), 4) == b"x"
    for folder in ("link", "plain"):
        with pytest.raises(FileRefusedError, match="behind a link"):
            read_below(tmp_path, (folder, "file"), 4)


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    read = os.read
    for change in (b"more", b""):
        path.write_bytes(b"first")

        def changing(descriptor: int, count: int, content: bytes = change) -> bytes:
            path.write_bytes(content)
            return read(descriptor, count)

        with monkeypatch.context() as patched:
            patched.setattr(given_files.os, "read", changing)
            with pytest.raises(FileRefusedError, match="changes"):
                read_below(tmp_path, ("file",), 100)
    assert read_below(tmp_path, ("file",), 100) == b""


def test_a_full_table_of_descriptors_is_this_machine_s_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(given_files.os, "open", full)
        with pytest.raises(StorageError):
            read_below(tmp_path, ("file",), 4)


def test_a_second_name_outside_of_the_folder_is_not_the_containers(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    (tmp_path / "copied").hardlink_to(folder / "file")
    assert read_below(folder, ("file",), 4) == b"x"
