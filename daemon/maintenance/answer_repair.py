"""An operator's repairs of one answer on its way: try it now, or give it up. Each is one transaction, history first.

Synchronous; the caller holds the session's lock. Never sends anything and never writes outbound.db.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from daemon.core.errors import UnknownMessageError
from daemon.core.repair_errors import AnswerNotOpenError, AnswerUnderWayError
from daemon.store import deliveries
from daemon.store.dead_letters import DeadAnswer, Operator, drop
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import record
from schema.handles import Reader
from schema.instants import to_text
from schema.rows import DeliveryState, MessageOut

DROPPED = "DROPPED"


def retry_answer(
    files: SessionFiles, answer_id: str, operator: Operator, now: int, *, under_way: bool
) -> dict[str, Any]:
    """Make a failing answer due now, whatever its back-off: {id, was, attempts}.

    Raise UnknownMessageError, AnswerNotOpenError or AnswerUnderWayError; nothing has changed then.
    """
    with files.inbound() as db:
        row = _open(db, answer_id)
        if under_way:
            raise AnswerUnderWayError(f"{answer_id} is being sent now.")
        if row["state"] == DeliveryState.QUEUED:
            raise _not_failing(db, row, now)
        with db.transaction():
            detail = operator.detail(attempts=row["attempts"], code=row["last_error_code"])
            record(db, answer_id, "delivery_retried", now, detail=detail)
            db.execute("UPDATE delivery_attempts SET next_attempt_at = ? WHERE message_out_id = ?", (now, answer_id))
    return {"id": answer_id, "was": row["state"], "attempts": row["attempts"]}


def drop_answer(
    files: SessionFiles, answer_id: str, operator: Operator, now: int, *, under_way: bool
) -> dict[str, Any]:
    """Give an answer up: do not send it any more, and continue with those behind it.

    Return {id, was, attempts}. Raise as `retry_answer` does.
    """
    with files.inbound() as db:
        row = _open(db, answer_id)
        if under_way:
            raise AnswerUnderWayError(f"{answer_id} is being sent now.")
        from_host = row["source"] == "host"
        why = f"given up by {operator.name}" + (f": {operator.reason}" if operator.reason else "")
        last = row["last_error"]
        with db.transaction():
            answer = MessageOut(answer_id, row["seq"], "", "", "")
            text = f"{why} (last error: {last})" if last else why
            deliveries.make_dead_letter(db, answer, now, DROPPED, text, notify_agent=not from_host)
            drop(db, DeadAnswer(answer_id, from_host, row["attempts"], DROPPED, text), operator, now)
    return {"id": answer_id, "was": row["state"], "attempts": row["attempts"]}


def _open(db: Reader, answer_id: str) -> sqlite3.Row:
    """Return the answer's row, if it is not finished."""
    row = db.one("SELECT * FROM delivery_attempts WHERE message_out_id = ?", (answer_id,))
    if row is not None and row["state"] != DeliveryState.DEAD:
        return row
    if row is not None:
        raise AnswerNotOpenError(
            f"{answer_id} is a dead letter.",
            hint="`clawbus dead requeue ID` sends it again, `clawbus dead drop ID` closes it.",
        )
    receipt = db.one("SELECT status FROM delivered WHERE message_out_id = ?", (answer_id,))
    if receipt is not None:
        raise AnswerNotOpenError(f"{answer_id} is {receipt['status']}.")
    raise UnknownMessageError(
        f"there is no answer {answer_id!r} on its way in this session.", hint="`clawbus delivery list` lists them."
    )


def _not_failing(db: Reader, row: sqlite3.Row, now: int) -> AnswerNotOpenError:
    identity = row["message_out_id"]
    if (row["next_attempt_at"] or 0) > now:
        return AnswerNotOpenError(
            f"{identity} has not failed: its agent wants it sent at {to_text(row['next_attempt_at'])}.",
            hint="Nothing to do; `clawbus delivery drop ID` gives it up.",
        )
    head = db.one(
        "SELECT message_out_id AS id FROM delivery_attempts WHERE destination = ? AND state = 'retrying' ORDER BY seq",
        (row["destination"],),
    )
    if head is not None:
        return AnswerNotOpenError(
            f"{identity} waits behind {head['id']}, which keeps failing.", hint="Retry or drop that one."
        )
    return AnswerNotOpenError(
        f"{identity} is not failing: it waits for its turn.", hint="`clawbus doctor` names what is stuck."
    )
