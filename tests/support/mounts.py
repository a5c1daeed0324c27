"""Small file systems for tests: a tmpfs of a given size, and a read-only face put over a folder. Both go with the block.

A machine that does not let us mount skips the test and says so.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator["SmallDisk"]:
    """A tmpfs of `size_kib` KiB at `folder`, which is made."""
    folder.mkdir(mode=0o700, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size_kib}k,mode=0700", "tmpfs", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        _unmount(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Every path under `folder` is on a read-only file system for as long as the block runs; open files stay as they are."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        _unmount(folder)


class SmallDisk:
    """Fill it, and make room again."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        """To the last byte."""
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"this machine does not let us mount: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    # Lazily: a process that still has a file open there must not keep the mount from going.
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False, timeout=120)
