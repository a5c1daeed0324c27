"""Turns the container's final acks into statuses of messages. Reads both files, writes inbound.db in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from daemon.core.lifecycle import Settle
from daemon.store import messages, outbound
from daemon.store.transitions import change_status
from daemon.store.turn_usage import with_usage
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.rows import Ack, AckStatus, MessageIn, MessageStatus


@frozen
class Claims:
    """Whether an incarnation has open claims: some that the host has recorded, and new ones."""

    known: bool = False
    new: bool = False


NO_CLAIMS: Final = Claims()


def unfinished(
    db: Reader, out: Reader | None, now: int, also: Sequence[str] = ()
) -> tuple[list[MessageIn], dict[str, Ack]]:
    """Return the unfinished messages (those of `also` in any case) and the container's acks for them.

    If the backlog exceeds the window, also include the messages that the container acked last: it claims the context next
    to its trigger, which may be anywhere in the backlog.
    """
    pending = messages.pending(db, now)
    wanted = dict.fromkeys(also)
    if out is not None and len(pending) == messages.WINDOW:
        wanted.update(dict.fromkeys(outbound.recently_acked(out, messages.WINDOW)))
    have = {message.id for message in pending}
    pending += messages.pending_of(db, [message_id for message_id in wanted if message_id not in have])
    if out is None:
        return pending, {}
    acks = outbound.with_notes(out, outbound.acks_for(out, [message.id for message in pending]))
    return pending, with_usage(out, acks)


def turns_begun(
    db: Reader, settles: Sequence[Settle], acks: Mapping[str, Ack], live: str | None = None, open_: Claims = NO_CLAIMS
) -> int:
    """Return how many turns began that were not counted yet. A turn acks all its messages at one time.

    `open_` are the claims of the incarnation `live`. It runs one turn at a time, and what it claims meanwhile joins that turn.
    But a claim that it keeps is no turn that all others belong to: when some messages end before it, the next end is another's.
    """
    ends: dict[str | None, set[int | None]] = {}
    counted: set[str | None] = {live} if open_.known else set()
    for one in settles:
        ends.setdefault(one.incarnation, set()).add(acks[one.message_id].changed_at)
        if messages.claimed_at(db, one.message_id, one.incarnation) is not None:
            counted.add(one.incarnation)
    return sum(map(len, ends.values())) + int(open_.known or open_.new) - len(counted)


def settle(db: Writer, action: Settle, now: int) -> None:
    """Turn a final ack into the message's status, and end its attempt."""
    done = action.status is AckStatus.COMPLETED
    target = MessageStatus.COMPLETED if done else MessageStatus.FAILED
    detail = settled_detail(action)
    change_status(db, action.message_id, target, target.value, now, incarnation=action.incarnation, detail=detail)
    if action.incarnation is not None:
        messages.end_attempt(db, action.message_id, action.incarnation, now, target.value)
    else:
        messages.end_open_attempts(db, action.message_id, now, target.value)


def settled_detail(action: Settle) -> dict[str, object] | None:
    """Return the history detail for a turn's end: what it used; for a failure, the reason that the runner noted."""
    note = action.note
    if action.status is AckStatus.COMPLETED:
        told: dict[str, object] = {} if note is None else {"note": note.code, "reason": note.message}
        if action.usage is not None:
            told |= action.usage.counted()
        return told or None
    if note is None:
        return {"code": "AGENT_FAILED", "reason": "the agent answered with an error"}
    return {"code": "AGENT_FAILED", "error_code": note.code, "reason": note.message}
