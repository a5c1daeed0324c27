"""The table `pruned` of inbound.db and central.db: how much retention has removed, for reports."""

from __future__ import annotations

from typing import Any

from schema.handles import Reader, Writer


def note(db: Writer, what: str, rows: int, at: int, through: int) -> None:
    """Add to the count, in the transaction that removes the rows. Nothing that ended after `through` was removed. Times are epoch ms."""
    db.execute(
        "INSERT INTO pruned(what, rows, at, through) VALUES (?, ?, ?, ?) ON CONFLICT(what) DO UPDATE SET"
        " rows = rows + excluded.rows, at = excluded.at, through = max(through, excluded.through)",
        (what, rows, at, through),
    )


def read(db: Reader) -> list[dict[str, Any]]:
    """Return [{what, rows, at, through}], or nothing where an older file has no such table."""
    return [dict(row) for row in db.all("SELECT * FROM pruned ORDER BY what")] if db.columns("pruned") else []
