"""An operator's repairs of dead letters: requeue and drop, each in one transaction in the session's own file.

It never sends anything and never writes outbound.db: a requeued letter takes the usual path.
"""

from __future__ import annotations

from typing import Any

from daemon.core.errors import RowGoneError
from daemon.store import host_messages, outbound
from daemon.store.dead_letters import (
    DeadAnswer,
    Operator,
    dead_letter,
    drop,
    requeue_answer,
    requeue_message,
)
from daemon.store.session_files import SessionFiles
from schema.handles import Reader


def requeue(files: SessionFiles, letter_id: str, operator: Operator, now: int) -> dict[str, Any]:
    """Requeue one dead letter. Synchronous; the caller holds the session's lock."""
    with files.inbound() as db:
        letter = dead_letter(db, letter_id)
        if isinstance(letter, DeadAnswer):
            _check_row(files, db, letter)
            with db.transaction():
                requeue_answer(db, letter, operator, now)
            return {"id": letter_id, "kind": "out", "requeued_as": letter_id}
        with db.transaction():
            again = requeue_message(db, letter, operator, now)
        return {"id": letter_id, "kind": "in", "requeued_as": again.id}


def _check_row(files: SessionFiles, db: Reader, letter: DeadAnswer) -> None:
    """Raise RowGoneError when the answer's row no longer exists."""
    identity = letter.message_out_id
    if letter.from_host:
        found = identity in host_messages.host_rows(db, [identity])
    else:
        with files.outbound() as out:
            found = out is not None and identity in outbound.rows_by_id(out, [identity])[0]
    if not found:
        raise RowGoneError(f"the row of {identity} is no longer in the session's outbound.db.")


def drop_one(files: SessionFiles, letter_id: str, operator: Operator, now: int) -> str:
    """Close one dead letter. Return its kind, in or out. Synchronous; the caller holds the session's lock."""
    with files.inbound() as db:
        letter = dead_letter(db, letter_id)
        with db.transaction():
            drop(db, letter, operator, now)
    return "out" if isinstance(letter, DeadAnswer) else "in"
