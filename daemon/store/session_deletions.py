"""How far the deletion of a session has come: the table `session_deletions` of central.db.

Functions that write must be called inside `Writer.transaction()`. `session_trash.py` moves and removes the folders.
"""

from __future__ import annotations

from daemon.core.session_key import SessionKey
from daemon.store.dead_letters import Operator
from schema.handles import Reader, Writer


def begin(db: Writer, deletion: str, key: SessionKey, now_ms: int, operator: Operator) -> None:
    """Delete the session and its incarnations, and record that it is being deleted.

    The caller knows that none of its containers runs. One whose end nobody recorded would be adopted by the next start,
    which would make the session anew for it.
    """
    db.execute(
        "INSERT INTO session_deletions(id, agent, session, at, by, reason) VALUES (?, ?, ?, ?, ?, ?)",
        (deletion, *key, now_ms, operator.name, operator.reason),
    )
    db.execute("DELETE FROM sessions WHERE agent = ? AND session = ?", key)
    db.execute("DELETE FROM verified_idle WHERE agent = ? AND session = ?", key)
    db.execute("DELETE FROM incarnations WHERE agent = ? AND session = ?", key)


def forget(db: Writer, deletion: str) -> None:
    """Remove the record of a deletion that did not happen."""
    db.execute("DELETE FROM session_deletions WHERE id = ?", (deletion,))


def note_moved(db: Writer, deletion: str, key: SessionKey) -> None:
    """Record that the folder is in the trash. The row goes again: a search for folders may have brought it back meanwhile."""
    db.execute("UPDATE session_deletions SET moved = 1 WHERE id = ?", (deletion,))
    db.execute("DELETE FROM sessions WHERE agent = ? AND session = ?", key)


def keep_folder(db: Writer, key: SessionKey) -> None:
    """Move the session's folder for no deletion that has begun: a session of this name gets work, so it is not deleted."""
    db.execute(
        "UPDATE session_deletions SET moved = 1 WHERE finished_at IS NULL AND moved = 0 AND agent = ? AND session = ?",
        key,
    )


def prune(db: Writer, cutoff: int) -> int:
    """Remove the records of deletions that ended before `cutoff` (epoch milliseconds); return how many there were."""
    return db.execute("DELETE FROM session_deletions WHERE finished_at < ?", (cutoff,))


def note_done(db: Writer, deletion: str, now_ms: int) -> None:
    """Record that the deletion is complete."""
    db.execute("UPDATE session_deletions SET finished_at = ? WHERE id = ?", (now_ms, deletion))


def unfinished(db: Reader) -> list[tuple[str, SessionKey, bool]]:
    """Return unfinished deletions: (id, session, whether its folder is in the trash)."""
    rows = db.all("SELECT * FROM session_deletions WHERE finished_at IS NULL ORDER BY id")
    return [(row["id"], SessionKey(row["agent"], row["session"]), bool(row["moved"])) for row in rows]
