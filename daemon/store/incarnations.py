"""The incarnations in central.db: which were begun, which live, how they ended. The caller opens the file.

Functions that write must be called inside `Writer.transaction()`, except `prune`, which makes its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from daemon.core.session_key import SessionKey
from daemon.store.pruned import note
from schema.frozen import frozen
from schema.handles import Reader, Writer


@frozen
class IncarnationRow:
    """A row of incarnations."""

    id: str
    key: SessionKey
    runtime: str
    fingerprint: str
    container_id: str | None
    created_at: int
    started_at: int | None = None


def begin(db: Writer, row: IncarnationRow, epoch: int) -> bool:
    """Record an incarnation before its container exists. Return False if the session already has another live one."""
    taken = db.one("SELECT id FROM incarnations WHERE agent = ? AND session = ? AND ended_at IS NULL", row.key)
    if taken is not None:
        return taken["id"] == row.id
    db.execute(
        "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, created_at, epoch)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (row.id, *row.key, row.runtime, row.fingerprint, row.created_at, epoch),
    )
    return True


def started(db: Writer, incarnation: str, container_id: str, started_at: int) -> None:
    """Record that the incarnation's container runs."""
    db.execute(
        "UPDATE incarnations SET container_id = ?, started_at = ? WHERE id = ?",
        (container_id, started_at, incarnation),
    )


def end(db: Writer, incarnation: str, at: int, exit_code: int | None, reason: str) -> None:
    """Record a confirmed exit. Safe to repeat."""
    db.execute(
        "UPDATE incarnations SET ended_at = ?, exit_code = ?, end_reason = ? WHERE id = ? AND ended_at IS NULL",
        (at, exit_code, reason, incarnation),
    )


def end_all(db: Writer, at: int, reason: str) -> None:
    """Record that no incarnation on record is live any longer."""
    db.execute("UPDATE incarnations SET ended_at = ?, end_reason = ? WHERE ended_at IS NULL", (at, reason))


def insert_live(db: Writer, rows: Iterable[IncarnationRow]) -> None:
    """Record incarnations that are known to live."""
    db.executemany(
        "INSERT INTO incarnations(id, agent, session, runtime, fingerprint, container_id, created_at, started_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET ended_at = NULL, end_reason = NULL",
        [
            (row.id, *row.key, row.runtime, row.fingerprint, row.container_id, row.created_at, row.started_at)
            for row in rows
        ],
    )


def live(db: Reader) -> list[IncarnationRow]:
    """Return every incarnation without a confirmed exit."""
    return [
        IncarnationRow(
            id=row["id"],
            key=SessionKey(row["agent"], row["session"]),
            runtime=row["runtime"],
            fingerprint=row["fingerprint"],
            container_id=row["container_id"],
            created_at=row["created_at"],
            started_at=row["started_at"],
        )
        for row in db.all("SELECT * FROM incarnations WHERE ended_at IS NULL ORDER BY id")
    ]


def ended(db: Reader, key: SessionKey) -> dict[str, int]:
    """Return when a session's incarnations exited (epoch milliseconds), by id; the newest 10,000."""
    rows = db.all(
        "SELECT id, ended_at FROM incarnations WHERE agent = ? AND session = ? AND ended_at IS NOT NULL"
        " ORDER BY created_at DESC LIMIT 10000",
        key,
    )
    return {row["id"]: row["ended_at"] for row in rows}


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
