"""What a SIGKILL in mid-write leaves on disk: a database with half a transaction in it, and the journal to undo it.

A transaction that is bigger than SQLite's page cache spills into the file before its commit. The bytes of both files
are captured at that moment and put back after the connection was closed properly.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path


def strand_journal(db: Path, statement: str, rows: int = 2000) -> None:
    """Leave `db` with an uncommitted transaction of `rows` runs of `statement` (with the number as `?`) and its journal."""
    journal = db.with_name(db.name + "-journal")
    connection = sqlite3.connect(db, isolation_level=None)
    try:
        connection.execute("PRAGMA cache_size=5")
        connection.execute("PRAGMA cache_spill=ON")
        connection.execute("BEGIN IMMEDIATE")
        for number in range(rows):
            connection.execute(statement, (number,))
        captured = db.read_bytes(), journal.read_bytes()
        connection.execute("ROLLBACK")
    finally:
        connection.close()
    before = db.read_bytes()
    if captured[0] == before:
        raise AssertionError("nothing was spilled: the transaction is too small to leave a hot journal")
    db.write_bytes(captured[0])
    journal.write_bytes(captured[1])
