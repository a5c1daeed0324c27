"""When a container has no room for another turn."""

import os
from types import SimpleNamespace

import pytest

from container_runner.room import used_up


@pytest.mark.parametrize(
    ("blocks", "free", "files", "free_files", "full"),
    [
        (1000, 900, 1000, 900, False),
        (1000, 50, 1000, 900, False),
        (1000, 49, 1000, 900, True),
        (1000, 900, 1000, 0, True),
        (0, 0, 0, 0, False),  # a file system without a size says nothing
    ],
)
def test_the_first_without_room_is_named(
    monkeypatch: pytest.MonkeyPatch, blocks: int, free: int, files: int, free_files: int, full: bool
) -> None:
    other = SimpleNamespace(f_blocks=10, f_bavail=10, f_files=10, f_favail=10)
    this = SimpleNamespace(f_blocks=blocks, f_bavail=free, f_files=files, f_favail=free_files)
    monkeypatch.setattr(os, "statvfs", lambda folder: this if folder == "/two" else other)
    assert used_up(("/one", "/two")) == ("/two" if full else None)


def test_one_that_is_not_there_says_nothing() -> None:
    assert used_up(("/no/such/folder",)) is None
