"""Finds waits that a clock which was too far ahead has set, and starts them again with their full length.

Only waits that the host itself chose: the next try of a message or of an answer, and the deadline of a question. A row of
history, or a column, says when each wait began. Synchronous; the caller holds the session's lock.
"""

from __future__ import annotations

from typing import Final

from daemon.core.schedules import CLOCK_SLACK_MS
from daemon.store.transitions import record
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.instants import from_text, to_text

_SET_BACK: Final = "the clock was set back"
_MESSAGES: Final = """
SELECT id, process_after, (SELECT at FROM message_history AS h WHERE h.message_id = m.id
         AND event IN ('retry_scheduled', 'deferred') ORDER BY h.id DESC LIMIT 1) AS at
  FROM messages_in AS m
 WHERE status = 'pending' AND (tries > 0 OR deferrals > 0) AND julianday(process_after) > julianday(?)
"""
_ANSWERS: Final = """
SELECT message_out_id AS id, next_attempt_at, (SELECT at FROM message_history AS h WHERE h.message_id = t.message_out_id
         AND event = 'delivery_failed' ORDER BY h.id DESC LIMIT 1) AS at
  FROM delivery_attempts AS t WHERE state = 'retrying' AND next_attempt_at > ?
"""
_QUESTIONS: Final = "SELECT id, asked_at, deadline FROM questions WHERE outcome IS NULL AND asked_at > ?"


@frozen
class _Wait:
    """One wait: from when (the other clock's time) until when. Epoch milliseconds."""

    id: str
    since: int
    until: int

    def from_now(self, now: int) -> int:
        """Return when it is over if it begins now."""
        return now + max(0, self.until - self.since)


def bring_forward(db: Writer, now: int) -> None:
    """Start the waits that began in the future again, in one transaction. Change nothing if there are none."""
    later = now + CLOCK_SLACK_MS
    messages, answers, questions = _messages(db, later), _answers(db, later), _questions(db, later)
    if not (messages or answers or questions):
        return
    with db.transaction():
        for wait in messages:
            due = to_text(wait.from_now(now))
            record(db, wait.id, "brought_forward", now, detail={"process_after": due, "reason": _SET_BACK})
            db.execute("UPDATE messages_in SET process_after = ? WHERE id = ?", (due, wait.id))
        for wait in answers:
            at = wait.from_now(now)
            record(db, wait.id, "brought_forward", now, detail={"next_attempt_at": to_text(at), "reason": _SET_BACK})
            db.execute(
                "UPDATE delivery_attempts SET next_attempt_at = ?, first_at = min(first_at, ?) WHERE message_out_id = ?",
                (at, now, wait.id),
            )
        for wait in questions:
            db.execute(
                "UPDATE questions SET asked_at = ?, deadline = ? WHERE id = ?", (now, wait.from_now(now), wait.id)
            )


def _messages(db: Reader, later: int) -> list[_Wait]:
    rows = db.all(_MESSAGES, (to_text(later),))
    return [
        _Wait(row["id"], row["at"], until)
        for row in rows
        if (row["at"] or 0) > later and (until := from_text(row["process_after"])) is not None
    ]


def _answers(db: Reader, later: int) -> list[_Wait]:
    rows = db.all(_ANSWERS, (later,))
    return [_Wait(row["id"], row["at"], row["next_attempt_at"]) for row in rows if (row["at"] or 0) > later]


def _questions(db: Reader, later: int) -> list[_Wait]:
    return [_Wait(row["id"], row["asked_at"], row["deadline"]) for row in db.all(_QUESTIONS, (later,))]
