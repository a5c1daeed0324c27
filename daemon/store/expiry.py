"""Closes rows of one session's inbound.db for retention: dead letters by a rule, and scheduled answers whose row is gone.

It deletes nothing: `store/pruning.py` deletes closed rows once they are old. Synchronous; the caller holds the session's lock.
One step is one read and one short transaction.
"""

from __future__ import annotations

from typing import Final

from daemon.store import deliveries, outbound
from daemon.store.dead_letters import expire
from daemon.store.session_files import SessionFiles
from schema.handles import Reader
from schema.instants import to_text

RULE: Final = "retention.dead_letters_s"
ROW_GONE: Final = "ROW_GONE"
_OPEN: Final = "NOT IN (SELECT id FROM dead_letters_closed)"


def expire_dead_letters(files: SessionFiles, cutoff: int, limit: int, now: int) -> int:
    """Close up to `limit` open dead letters that were given up before `cutoff` (epoch milliseconds). Return how many."""
    with files.inbound() as db:
        letters = [*_answers(db, cutoff, limit), *_messages(db, cutoff, limit)][:limit]
        if letters:
            with db.transaction():
                for letter in letters:
                    expire(db, letter, now, RULE)
    return len(letters)


def drop_gone(files: SessionFiles, after: int, limit: int, now: int) -> tuple[list[str], int | None]:
    """Close those of the next `limit` scheduled answers above seq `after` whose row the container has deleted.

    Return their ids and the seq to continue from (None at the end). Otherwise they would fill the file until they are due.
    """
    with files.inbound() as db:
        waiting = deliveries.scheduled_of_agent(db, now, after, limit)
        if not waiting:
            return [], None
        with files.outbound() as out:
            # A missing or replaced file proves nothing: the original may have been moved away and come back.
            if out is None or not deliveries.cursor(db, out.file_id):
                return [], None
            there = outbound.present(out, [row.id for row in waiting])
        gone = [row for row in waiting if row.id not in there]
        if gone:
            with db.transaction():
                for row in gone:
                    error = "the row is no longer in outbound.db"
                    deliveries.make_dead_letter(db, row, now, ROW_GONE, error, notify_agent=True)
    return [row.id for row in gone], waiting[-1].seq if len(waiting) == limit else None


def _answers(db: Reader, cutoff: int, limit: int) -> list[str]:
    rows = db.all(
        "SELECT t.message_out_id AS id FROM delivery_attempts AS t JOIN delivered AS d USING (message_out_id)"
        f" WHERE t.state = 'dead' AND t.message_out_id {_OPEN} AND d.delivered_at < ? LIMIT ?",
        (to_text(cutoff), limit),
    )
    return [row["id"] for row in rows]


def _messages(db: Reader, cutoff: int, limit: int) -> list[str]:
    rows = db.all(
        f"SELECT id FROM messages_in AS m WHERE status = 'failed' AND id {_OPEN}"
        " AND (SELECT max(at) FROM message_history AS h WHERE h.message_id = m.id) < ? LIMIT ?",
        (cutoff, limit),
    )
    return [row["id"] for row in rows]
