"""SQL over `conversations` in central.db: which generation of a session is the current one."""

from __future__ import annotations

from daemon.core.user_commands import generation_name
from schema.frozen import frozen
from schema.handles import Reader, Writer


@frozen
class Generation:
    """A session's current generation, counted from 1, and when it began (epoch milliseconds)."""

    number: int = 1
    begun_at: int = 0


def generations(db: Reader) -> dict[tuple[str, str], Generation]:
    """Return the current generation of each session that was started over, by (agent, session)."""
    return {
        (row["agent"], row["session"]): Generation(int(row["generation"]), int(row["begun_at"]))
        for row in db.all("SELECT * FROM conversations")
    }


def begin(db: Writer, key: tuple[str, str], by: str, now: int) -> None:
    """Begin the next generation. The same event, asked again, begins nothing.

    Skip a generation whose session exists: that session has the memory of an older conversation. This table does not
    know of it if central.db was lost.
    """
    with db.transaction():
        sql = "SELECT generation, begun_by FROM conversations WHERE agent = ? AND session = ?"
        row = db.one(sql, key)
        if row is not None and row["begun_by"] == by:
            return
        number = (int(row["generation"]) if row is not None else 1) + 1
        while _exists(db, key, number):
            number += 1
        db.execute(
            "INSERT OR REPLACE INTO conversations(agent, session, generation, begun_at, begun_by) VALUES (?, ?, ?, ?, ?)",
            (*key, number, now, by),
        )


def prune(db: Writer, cutoff: int) -> int:
    """Forget the conversations that began before `cutoff` (epoch ms) and none of whose sessions is left. Return how many."""
    rows = db.all("SELECT agent, session, generation FROM conversations WHERE begun_at < ?", (cutoff,))
    gone = [
        (row["agent"], row["session"])
        for row in rows
        if not any(_exists(db, (row["agent"], row["session"]), one) for one in range(1, int(row["generation"]) + 1))
    ]
    if gone:
        with db.transaction():
            db.executemany("DELETE FROM conversations WHERE agent = ? AND session = ?", gone)
    return len(gone)


def _exists(db: Reader, key: tuple[str, str], generation: int) -> bool:
    agent, session = key[0], generation_name(key[1], generation)
    return db.one("SELECT 1 FROM sessions WHERE agent = ? AND session = ?", (agent, session)) is not None
