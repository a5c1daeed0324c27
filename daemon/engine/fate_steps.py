"""Judges special acks (`later`, void, too old) and expired messages, and writes the verdicts to inbound.db.

Synchronous; the caller holds the session's lock. Functions that write must be called inside `Writer.transaction()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from daemon.core.diagnosis import span
from daemon.core.message_fate import (
    EXPIRY_GRACE,
    Defer,
    Expire,
    Fate,
    GiveUp,
    Verdict,
    Void,
    deferred,
    is_expired,
    is_noted,
    looks_older,
)
from daemon.store import host_messages, messages, outbound
from daemon.store.transitions import change_status, defer, record, void_ack
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.instants import to_text
from schema.rows import Ack, AckStatus, MessageIn, MessageStatus


@frozen
class Judged:
    """The messages and acks as `verdicts` will leave them. `suspect`: an ack looks older than its message."""

    pending: tuple[MessageIn, ...]
    acks: Mapping[str, Ack]
    verdicts: tuple[Verdict, ...] = ()
    suspect: bool = False


def judge(db: Reader, pending: Sequence[MessageIn], acks: Mapping[str, Ack], fate: Fate, now: int) -> Judged:
    """Judge every `later` ack. Leave out an ack that looks older than its message: the sweep judges it."""
    verdicts: list[Verdict] = []
    left = dict(acks)
    after: dict[str, MessageIn] = {}
    suspect = False
    for message in pending:
        ack = acks.get(message.id)
        if ack is None:
            continue
        if is_noted(message, ack):
            del left[message.id]
        elif ack.status is AckStatus.FAILED and ack.incarnation is not None and ack.incarnation == _forced_out(db):
            # The host was ending this container, which may have caused the failure: retry, as if the container had died.
            del left[message.id]
            verdicts.append(Void(message.id, ack))
        elif looks_older(message, ack):
            suspect = True
            del left[message.id]
        elif ack.status is AckStatus.LATER:
            del left[message.id]
            # No container can have worked on a message before it is due. Record its `later` only then, so that a container cannot
            # make the host loop.
            if message.process_after is None or message.process_after <= now:
                verdict = deferred(message, ack, messages.first_deferred_at(db, message.id), fate, now)
                verdicts.append(verdict)
                after[message.id] = _after(message, verdict, fate)
    seen = tuple(after.get(message.id, message) for message in pending)
    return Judged(tuple(message for message in seen if message.status is MessageStatus.PENDING), left, tuple(verdicts),
                  suspect)  # fmt: skip


def _forced_out(db: Reader) -> str | None:
    """Return the incarnation that the host decided to end because it was stuck, or None."""
    row = db.one("SELECT incarnation FROM draining WHERE forced <> 0")
    return str(row["incarnation"]) if row is not None else None


def judge_suspects(
    db: Reader, out: Reader | None, pending: Sequence[MessageIn], acks: Mapping[str, Ack], floor: int
) -> tuple[list[Void], dict[str, Ack]]:
    """Split the acks that look older than their messages into void ones and valid ones.

    An ack is valid if the host saw the claim or if an answer belongs to it: then the clock was set back. After a known clock
    jump (`floor` is not 0) all of them are valid.
    """
    void: list[Void] = []
    good: dict[str, Ack] = {}
    for message in pending:
        ack = acks.get(message.id)
        if ack is None or is_noted(message, ack) or not looks_older(message, ack):
            continue
        own = floor or messages.claimed_at(db, message.id, None) is not None
        if own or (out is not None and outbound.is_answered(out, message.id, message.seq)):
            good[message.id] = ack
        else:
            void.append(Void(message.id, ack))
    return void, good


def expired(
    pending: Sequence[MessageIn], acks: Mapping[str, Ack], charged: frozenset[tuple[str, str]], now: int, *, alive: bool
) -> list[Expire]:
    """Return the messages that expired before a turn began, and those whose turn is to be stopped then.

    Otherwise one that a live container works on has begun in time.
    """
    found: list[Expire] = []
    for message in pending:
        if message.not_after is None or not is_expired(message, now - EXPIRY_GRACE):
            continue
        ack = acks.get(message.id)
        if ack is not None and ack.status is not AckStatus.PROCESSING:
            continue
        works = ack.incarnation if alive and ack is not None and (message.id, ack.incarnation) not in charged else None
        if works is not None and not message.stop_late:
            continue
        found.append(Expire(message.id, message.not_after, works))
    return found


def apply_verdict(db: Writer, verdict: Verdict, fate: Fate, now: int) -> None:
    """Write one verdict, its history first."""
    match verdict:
        case Defer():
            defer(
                db, verdict.message_id, verdict.number, verdict.process_after, now, incarnation=verdict.incarnation,
                reason=verdict.reason, holds=fate.strict,
            )  # fmt: skip
            _end_attempt(db, verdict.message_id, verdict.incarnation, now, "deferred")
        case GiveUp():
            _give_up(db, verdict, now)
        case Void():
            record(db, verdict.message_id, "ack_void", now, incarnation=verdict.ack.incarnation,
                   detail={"status": verdict.ack.status.value, "changed": verdict.ack.changed_text})  # fmt: skip
            void_ack(db, verdict.message_id, verdict.ack.changed_text or "")
        case Expire():
            _expire(db, verdict, now)


def _after(message: MessageIn, verdict: Defer | GiveUp, fate: Fate) -> MessageIn:
    if isinstance(verdict, GiveUp):
        return replace(message, status=MessageStatus.FAILED)
    return replace(
        message, process_after=verdict.process_after, holds=fate.strict, solo=True, deferrals=verdict.number
    )  # fmt: skip


def _end_attempt(db: Writer, message_id: str, incarnation: str | None, now: int, outcome: str) -> None:
    if incarnation is not None:
        messages.end_attempt(db, message_id, incarnation, now, outcome)
    else:
        messages.end_open_attempts(db, message_id, now, outcome)


def _give_up(db: Writer, verdict: GiveUp, now: int) -> None:
    text = f"gave up: for {span(verdict.deferred_for)} the agent asked for it to be tried again later"
    message = messages.find(db, verdict.message_id)
    detail = {"code": "DEFERRED_TOO_LONG", "reason": text, "agent_said": verdict.reason, "deferrals": verdict.number}
    change_status(
        db, verdict.message_id, MessageStatus.FAILED, "failed", now, incarnation=verdict.incarnation, detail=detail
    )
    _end_attempt(db, verdict.message_id, verdict.incarnation, now, "failed")
    address = messages.address_of(message) if message is not None else None
    if message is not None and address is not None:
        host_messages.notify_sender(db, message, address, "DEFERRED_TOO_LONG", text, now)


def _expire(db: Writer, verdict: Expire, now: int) -> None:
    message = messages.find(db, verdict.message_id)
    at = to_text(verdict.not_after)
    late = verdict.worked_on_by is not None
    text = f"the message was not {'answered' if late else 'begun'} before {at}, when it expired"
    detail = {"code": "EXPIRED", "reason": text, "not_after": at, "tries": message.tries if message is not None else 0}
    change_status(db, verdict.message_id, MessageStatus.CANCELLED, "cancelled", now, detail=detail)
    if verdict.worked_on_by is not None:
        messages.note_claim(db, verdict.message_id, verdict.worked_on_by, now, now)  # it ends when the turn has stopped
    else:
        messages.end_open_attempts(db, verdict.message_id, now, "released")
    address = messages.address_of(message) if message is not None else None
    if message is not None and address is not None and message.trigger:
        host_messages.notify_sender(db, message, address, "EXPIRED", text, now)
