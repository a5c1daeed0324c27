"""Folders in folders, deeper than a path can name: what a process can make, and hardly anybody expects."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def nest(folder: Path, name: str, depth: int) -> Iterator[None]:
    """`depth` folders of one name, each in the one before, for as long as the block runs.

    They are not left to whoever removes the test's folder: before Python 3.13 rmtree calls itself for each of them.
    """
    here = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=here)
            inner = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        yield
    finally:
        os.close(here)
        subprocess.run(["rm", "-rf", str(folder / name)], check=True, timeout=120)
