"""A program of another make that writes into a SQLite file with no busy time-out: a commit that meets a lock is lost.

Runs in a process of its own: `python -m tests.support.impatient_writer FILE COMMITS JOURNAL_MODE PAUSE_EVERY`; with 0 commits it
goes on until its standard input ends. Each commit puts one row into each of two tables, so that a reader that sees two
different numbers of rows has seen half a commit. Prints one line of JSON at the end: how many commits were made, and how many failed.
"""

from __future__ import annotations

import itertools
import json
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

LEFT, RIGHT = "impatient_left", "impatient_right"
_PAUSE_S = 0.002


def prepare(path: Path, *, wide: int = 0) -> None:
    """Make the two tables. `wide` bytes of a third one make the file large."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE {LEFT} (n INTEGER PRIMARY KEY, filler TEXT)")
        db.execute(f"CREATE TABLE {RIGHT} (n INTEGER PRIMARY KEY, filler TEXT)")
        if wide:
            db.execute("CREATE TABLE impatient_wide (filler BLOB)")
            db.execute("INSERT INTO impatient_wide VALUES (zeroblob(?))", (wide,))


@contextmanager
def impatient_writer(
    path: Path, commits: int, *, journal: str = "DELETE", pause_every: int = 5
) -> Generator[subprocess.Popen[bytes]]:
    """The program, at work; it is ended at the end if it has not ended by itself."""
    words = [sys.executable, "-m", "tests.support.impatient_writer", str(path), str(commits), journal, str(pause_every)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def begin(process: subprocess.Popen[bytes]) -> None:
    """Let it commit."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def outcome(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for its end; `made` and `failed`."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def _until_closed() -> Iterator[int]:
    for number in itertools.count():
        if select.select([sys.stdin], [], [], 0)[0]:
            return
        yield number


def main(path: str, commits: int, journal: str, pause_every: int) -> None:
    """Commit, and count what failed."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}").fetchone()
        db.execute("PRAGMA synchronous=OFF")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        made, errors = 0, list[str]()
        for number in range(commits) if commits else _until_closed():
            try:
                db.execute("BEGIN IMMEDIATE")
                for table in (LEFT, RIGHT):
                    db.execute(f"INSERT INTO {table} VALUES (NULL, ?)", ("x" * 300,))
                db.execute("COMMIT")
                made += 1
            except sqlite3.OperationalError as error:
                errors.append(str(error))
                if db.in_transaction:
                    db.execute("ROLLBACK")
            if pause_every and number % pause_every == 0:
                time.sleep(_PAUSE_S)
    sys.stdout.write(json.dumps({"made": made, "failed": len(errors), "errors": errors[:3]}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
