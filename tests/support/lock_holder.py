"""A process of somebody else that holds a lock on one of our files, as a backup tool or a shell of sqlite3 does."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_HOLDS: Final = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA busy_timeout=10000")
db.execute(f"BEGIN {sys.argv[2]}")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path, kind: str = "EXCLUSIVE") -> Iterator[subprocess.Popen[str]]:
    """Lock the file by another process for as long as the block runs, or until that process is ended.

    IMMEDIATE lets others read.
    """
    words = [sys.executable, "-I", "-S", "-c", _HOLDS, str(path), kind]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
