"""SQL over one session's dead letters in inbound.db: find, requeue and close them.

A dead letter is a failed message or a dead delivery that is not listed in `dead_letters_closed`. The only row ever deleted
is an answer's `failed` receipt. Functions that write must be called inside `Writer.transaction()`; each records the
operator's name and reason in the history.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from daemon.core.errors import NotDeadLetterError, UnknownMessageError
from daemon.store.messages import find, free_id, insert, marks, next_even_seq
from daemon.store.transitions import record
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.instants import to_text
from schema.rows import DeliveryState, MessageIn, MessageStatus

# For a file with an older schema that lacks the table; a reader then assumes that it is empty.
CLOSED_TABLE: Final = "dead_letters_closed"
_REQUEUED: Final = re.compile(r"\+r[0-9]{1,9}\Z")
_LONGEST_STORY: Final = 10_000
_DROPPED: Final = "dropped"
_REQUEUE: Final = "requeued"
EXPIRED: Final = "expired"
BY_RULE: Final = "clawbus"  # recorded as the operator when a rule closed the letter


@frozen
class Operator:
    """Who asked for a repair, and why. It goes into the history."""

    name: str
    reason: str | None = None

    def detail(self, **more: object) -> dict[str, object]:
        """Return the detail of the history row."""
        return {"by": self.name, **({"reason": self.reason} if self.reason else {}), **more}


@frozen
class DeadAnswer:
    """A dead row of delivery_attempts."""

    message_out_id: str
    from_host: bool
    attempts: int
    code: str | None
    error: str | None


DeadLetter = DeadAnswer | MessageIn


def dead_letter(db: Reader, letter_id: str) -> DeadLetter:
    """Return the open dead letter of this id. Raise UnknownMessageError, or NotDeadLetterError with its state."""
    message = find(db, letter_id)
    tracked = db.one("SELECT * FROM delivery_attempts WHERE message_out_id = ?", (letter_id,))
    refuse_closed(db, letter_id)
    if tracked is not None and tracked["state"] == DeliveryState.DEAD:
        return DeadAnswer(
            message_out_id=letter_id,
            from_host=tracked["source"] == "host",
            attempts=tracked["attempts"],
            code=tracked["last_error_code"],
            error=tracked["last_error"],
        )
    if message is not None and message.status is MessageStatus.FAILED:
        return message
    receipt = db.one("SELECT status FROM delivered WHERE message_out_id = ?", (letter_id,))
    state = tracked["state"] if tracked is not None else message.status.value if message is not None else None
    state = state or (receipt["status"] if receipt is not None else None)
    if state is None:
        raise UnknownMessageError(f"there is no message {letter_id!r} in this session.")
    raise NotDeadLetterError(f"{letter_id} is {state}, not a dead letter.")


def refuse_closed(db: Reader, identity: str) -> None:
    """Raise NotDeadLetterError if the message or answer was requeued as another one, or dropped."""
    closed = db.one(f"SELECT * FROM {CLOSED_TABLE} WHERE id = ?", (identity,))
    if closed is not None:
        what = f"{closed['outcome']} as {closed['requeued_as']}" if closed["requeued_as"] else closed["outcome"]
        hint = (
            f"`clawbus message show {closed['requeued_as']}` shows the one that does its work."
            if closed["requeued_as"]
            else None
        )
        raise NotDeadLetterError(f"{identity} was {what} by {closed['by']} at {to_text(closed['at'])}.", hint=hint)


def requeue_answer(db: Writer, letter: DeadAnswer, operator: Operator, at: int) -> None:
    """Put an answer back into the queue, under its own id, with the full time for retries."""
    identity = letter.message_out_id
    detail = operator.detail(attempts=letter.attempts, code=letter.code, error=letter.error)
    record(db, identity, _REQUEUE, at, detail=detail)
    db.execute("DELETE FROM delivered WHERE message_out_id = ? AND status = 'failed'", (identity,))
    db.execute(
        "UPDATE delivery_attempts SET state = 'queued', attempts = 0, next_attempt_at = NULL, first_at = ?,"
        " last_error = NULL, last_error_code = NULL WHERE message_out_id = ? AND state = 'dead'",
        (at, identity),
    )


def latest_requeue(db: Reader, message: MessageIn) -> MessageIn:
    """Return the message that does this one's work now: its last requeued copy, or itself."""
    latest = message
    for _ in range(_LONGEST_STORY):
        row = db.one(f"SELECT requeued_as FROM {CLOSED_TABLE} WHERE id = ?", (latest.id,))
        following = find(db, row["requeued_as"]) if row is not None and row["requeued_as"] is not None else None
        if following is None:
            break
        latest = following
    return latest


def requeue_message(
    db: Writer, message: MessageIn, operator: Operator, at: int, *, not_after: int | None = None
) -> MessageIn:
    """Write a new message with the content and address of one that failed or was cancelled, due at once. Close that one.

    The new one is tried alone. It expires only at `not_after`, if given: the old expiry may be why the message failed.
    """
    new_id = free_id(db, _REQUEUED.sub("", message.id))
    again = replace(
        message, id=new_id, seq=next_even_seq(db), timestamp=to_text(at), status=MessageStatus.PENDING,
        process_after=None, recurrence=None, tries=0, not_after=not_after, solo=True,
        holds=False, deferrals=0, void_ack=None,
    )  # fmt: skip
    record(db, message.id, _REQUEUE, at, detail=operator.detail(requeued_as=new_id))
    insert(db, again, at, detail=operator.detail(requeue_of=message.id))
    _close(db, message.id, _REQUEUE, operator, at, requeued_as=new_id)
    return again


def drop(db: Writer, letter: DeadLetter, operator: Operator, at: int) -> None:
    """Close the dead letter, so that it is no longer listed. Its rows stay as they are."""
    identity = letter.id if isinstance(letter, MessageIn) else letter.message_out_id
    record(db, identity, _DROPPED, at, detail=operator.detail())
    _close(db, identity, _DROPPED, operator, at)


def expire(db: Writer, letter_id: str, at: int, rule: str) -> None:
    """Close a dead letter by a rule of the configuration. It is no longer listed; its rows stay until retention."""
    by = Operator(BY_RULE, rule)
    record(db, letter_id, EXPIRED, at, detail=by.detail())
    _close(db, letter_id, EXPIRED, by, at)


def _close(
    db: Writer, letter_id: str, outcome: str, operator: Operator, at: int, *, requeued_as: str | None = None
) -> None:
    db.execute(
        # OR REPLACE: an operator may have dropped a message that its sender then sent again.
        f"INSERT OR REPLACE INTO {CLOSED_TABLE}(id, outcome, at, by, reason, requeued_as) VALUES (?, ?, ?, ?, ?, ?)",
        (letter_id, outcome, at, operator.name, operator.reason, requeued_as),
    )


def too_many_dead(db: Reader, limit: int, codes: Collection[str]) -> bool:
    """Return whether more than `limit` answers are open dead letters with one of these codes."""
    row = db.one(
        "SELECT count(*) AS n FROM (SELECT 1 FROM delivery_attempts WHERE state = 'dead'"
        f" AND last_error_code IN ({marks(tuple(codes))}) AND message_out_id NOT IN (SELECT id FROM dead_letters_closed) LIMIT ?)",
        (*codes, limit + 1),
    )
    return row is not None and int(row["n"]) > limit


def open_dead_beyond(db: Reader, limit: int, codes: Collection[str]) -> list[str]:
    """Return the oldest open dead answers beyond the newest `limit`. Ignore those with one of these codes."""
    dead = (
        "FROM delivery_attempts WHERE state = 'dead'"
        f" AND coalesce(last_error_code, '') NOT IN ({marks(tuple(codes))})"
        " AND message_out_id NOT IN (SELECT id FROM dead_letters_closed)"
    )
    row = db.one(f"SELECT count(*) AS n {dead}", tuple(codes))
    beyond = int(row["n"]) - limit if row is not None else 0
    if beyond <= 0:
        return []
    rows = db.all(f"SELECT message_out_id {dead} ORDER BY seq LIMIT ?", (*codes, beyond))
    return [row["message_out_id"] for row in rows]
