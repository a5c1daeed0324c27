"""Deletes the records of incarnations in central.db that ended long ago. The caller opens the file."""

from __future__ import annotations

from daemon.store.pruned import note
from schema.handles import Writer


def prune(db: Writer, cutoff: int, after: str, limit: int, now_ms: int) -> tuple[int, str | None]:
    """Delete those of the next `limit` incarnations after id `after` that ended before `cutoff`; keep each session's newest.

    Return how many were deleted, and the id to continue from, or None when no old ones follow. Times are epoch milliseconds.
    """
    rows = db.all(
        "SELECT id, created_at, ended_at, EXISTS (SELECT 1 FROM incarnations AS later WHERE later.agent = one.agent"
        " AND later.session = one.session AND (later.created_at, later.id) > (one.created_at, one.id)) AS followed"
        " FROM incarnations AS one WHERE id > ? ORDER BY id LIMIT ?",
        (after, limit),
    )
    ended = [row for row in rows if row["ended_at"] is not None and row["ended_at"] < cutoff]
    old = [(row["id"],) for row in ended if row["followed"]]
    if old:
        with db.transaction():
            db.executemany("DELETE FROM incarnations WHERE id = ?", old)
            note(db, "incarnations", len(old), now_ms, cutoff)
    # Ids grow with time: if no incarnation on this page is old, no later one is.
    return len(old), rows[-1]["id"] if ended and len(rows) == limit else None
