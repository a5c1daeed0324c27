"""The only place that changes messages_in.status: history row and status in one transaction, or neither.

Every function here must be called inside `Writer.transaction()`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from schema.handles import Writer
from schema.instants import to_text
from schema.rows import MessageStatus
from schema.states import check_transition

# The history's subject for what was done to the whole session. No message may have this id.
SESSION: Final = "@session"


def record(
    db: Writer,
    message_id: str,
    event: str,
    at: int,
    *,
    incarnation: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Append to the history. `at` is epoch milliseconds; `detail` becomes JSON."""
    db.execute(
        "INSERT INTO message_history(message_id, event, incarnation, at, detail) VALUES (?, ?, ?, ?, ?)",
        (message_id, event, incarnation, at, json.dumps(detail, ensure_ascii=False) if detail else None),
    )


def change_status(
    db: Writer,
    message_id: str,
    target: MessageStatus,
    event: str,
    at: int,
    *,
    incarnation: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> bool:
    """Move a message to `target`, history first. Return False if it does not exist or already has that status.

    Raise IllegalTransitionError; then nothing has changed.
    """
    row = db.one("SELECT status FROM messages_in WHERE id = ?", (message_id,))
    if row is None:
        return False
    current = MessageStatus(row["status"] or MessageStatus.PENDING)
    if current is target:
        return False
    check_transition(message_id, current, target)
    record(db, message_id, event, at, incarnation=incarnation, detail=detail)
    db.execute("UPDATE messages_in SET status = ? WHERE id = ?", (target.value, message_id))
    return True


def repair_status(
    db: Writer,
    message_id: str,
    target: MessageStatus,
    at: int,
    *,
    detail: Mapping[str, object],
    by: Mapping[str, object],
    in_history: bool,
    incarnation: str | None = None,
    finish: Callable[[], object] = lambda: None,
) -> bool:
    """Give an unfinished message the status that the evidence shows. Write history first, then the attempt, then the status.

    First record `by` (who and why) as `swept`. Then record `target`'s own history row, unless there is one already
    (`in_history`). Then `finish` ends the attempt. Last comes the status. Return False if the message is gone. Raise
    IllegalTransitionError; then nothing has changed.
    """
    row = db.one("SELECT status FROM messages_in WHERE id = ?", (message_id,))
    if row is None:
        return False
    check_transition(message_id, MessageStatus(row["status"] or MessageStatus.PENDING), target)
    record(db, message_id, "swept", at, incarnation=incarnation, detail={"status": target.value, **by})
    if not in_history:
        record(db, message_id, target.value, at, incarnation=incarnation, detail=detail)
    finish()
    db.execute("UPDATE messages_in SET status = ? WHERE id = ?", (target.value, message_id))
    return True


def schedule_retry(
    db: Writer, message_id: str, tries: int, process_after: int, at: int, *, incarnation: str, reason: str,
    holds: bool = False,
) -> None:  # fmt: skip
    """Charge a try and schedule the next one at `process_after` (epoch milliseconds). The message stays pending.

    From now on it is tried alone. With `holds`, the session's later messages wait for it.
    """
    detail = {"tries": tries, "process_after": to_text(process_after), "reason": reason}
    record(db, message_id, "retry_scheduled", at, incarnation=incarnation, detail=detail)
    db.execute(
        "UPDATE messages_in SET tries = ?, process_after = ?, solo = 1, holds = ? WHERE id = ? AND status = 'pending'",
        (tries, to_text(process_after), int(holds), message_id),
    )


def defer(
    db: Writer, message_id: str, number: int, process_after: int, at: int, *, incarnation: str | None,
    reason: str | None, holds: bool,
) -> None:  # fmt: skip
    """Schedule a message again because its agent asked for `later`. No try is charged. `number` counts such requests."""
    detail = {"process_after": to_text(process_after), "deferrals": number, **({"reason": reason} if reason else {})}
    record(db, message_id, "deferred", at, incarnation=incarnation, detail=detail)
    db.execute(
        "UPDATE messages_in SET deferrals = ?, process_after = ?, solo = 1, holds = ? WHERE id = ? AND status = 'pending'",
        (number, to_text(process_after), int(holds), message_id),
    )


def void_ack(db: Writer, message_id: str, changed_text: str) -> None:
    """Mark the ack with this `status_changed` as void: the runner may claim the message despite it."""
    db.execute("UPDATE messages_in SET void_ack = ? WHERE id = ? AND status = 'pending'", (changed_text, message_id))
