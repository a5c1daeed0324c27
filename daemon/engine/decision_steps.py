"""Writes what was decided about one row that is to be delivered. Runs in the caller's transaction over inbound.db."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from daemon.core.delivery_plan import (
    CarryOut,
    DeadLetterDecision,
    Decision,
    Defer,
    Queue,
    Reason,
    Send,
    retry_at,
)
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.hand_over import Outcome
from daemon.engine.schedule_requests import carry_out
from daemon.store import deliveries, host_messages, messages, questions
from schema.handles import Writer
from schema.questions import from_content, is_question
from schema.rows import DeliveryState, Kind

_UNSENDABLE: Final = frozenset({Reason.BAD_CONTENT, Reason.UNKNOWN_KIND})
# An answer that may not wait so long: its sender is notified if it was to go there, and not for a reminder elsewhere.
_NOT_SCHEDULED: Final = frozenset({Reason.TOO_FAR_AHEAD, Reason.TOO_MANY_SCHEDULED})


def write_receipts(db: Writer, taken: Mapping[str, Outcome], now: int) -> None:
    """Record new rows that their channel took before this commit as delivered: they never had an intent."""
    last = {outcome.send.address.key: row_id for row_id, outcome in taken.items()}
    receipts = [(row_id, outcome.platform_message_id) for row_id, outcome in taken.items()]
    deliveries.delivered(db, receipts, now, tracked=False)
    for destination, row_id in last.items():
        deliveries.set_aside(db, destination, row_id, now)


def write_decision(db: Writer, decision: Decision, means: DeliveryContext, now: int) -> questions.Asked | None:
    """Write one decision. Return the question that its row asks, if that is new."""
    candidate, asked = decision.candidate, None
    if isinstance(decision, CarryOut):
        carry_out(db, candidate.row, decision.address, means.schedules, now)
        deliveries.carried_out(db, candidate.row.id, now)
        return None
    if candidate.state is None:
        _track_new(db, decision, now)
        asked = _note_question(db, decision, means, now)
    elif isinstance(decision, Send):
        deliveries.intend(db, candidate.row.id, decision.address.key)
        if decision.in_doubt:
            traits = means.channels.get(decision.address.channel_type)
            known = traits is not None and traits.deduplicates
            deliveries.resend(db, candidate.row.id, now, candidate.attempts + 1, deduplicates=known)
    if isinstance(decision, DeadLetterDecision):
        deliveries.make_dead_letter(
            db, candidate.row, now, decision.reason, decision.error, notify_agent=not candidate.from_host
        )
        _notify_unsendable(db, decision, now)
    elif isinstance(decision, Defer):
        not_before = retry_at(
            now, candidate.attempts + 1, base_s=means.config.retry_base_s, max_s=means.config.retry_max_s,
            retry_after_s=None, jitter=means.jitter,
        )  # fmt: skip
        if means.tried_long_enough(now, candidate.first_at):
            deliveries.make_dead_letter(
                db, candidate.row, now, decision.reason, decision.error, notify_agent=not candidate.from_host
            )
        else:
            deliveries.intend(db, candidate.row.id, decision.address.key)
            deliveries.retry(db, candidate.row.id, now, not_before, decision.reason, decision.error)
    return asked


def _note_question(db: Writer, decision: Decision, means: DeliveryContext, now: int) -> questions.Asked | None:
    """Record the question that a new row asks, also when no channel can show it: an operator may answer it."""
    row = decision.candidate.row
    if not is_question(row.kind, row.content):
        return None
    if isinstance(decision, DeadLetterDecision) and decision.reason != Reason.NO_ROUTE:
        return None
    asked, shortest = from_content(row.id, row.content), means.schedules.shortest_ms
    return questions.note_asked(db, row, asked, decision.address, now, shortest=shortest)


def _notify_unsendable(db: Writer, decision: DeadLetterDecision, now: int) -> None:
    """Inform the sender that an answer cannot be sent. The message counts as completed, so nothing else informs it.

    Not of a request to the host, and not of what the agent said in mid-turn: neither is the answer, and a notice would be
    taken for it.
    """
    candidate = decision.candidate
    answered = candidate.row.in_reply_to
    if decision.reason not in _UNSENDABLE | _NOT_SCHEDULED or candidate.from_host or answered is None:
        return
    if not candidate.row.final or candidate.row.kind == Kind.SYSTEM:
        return
    message = messages.find(db, answered)
    address = messages.address_of(message) if message is not None else None
    if decision.reason in _NOT_SCHEDULED and decision.address != address:
        return
    if message is not None and address is not None:
        host_messages.notify_sender(
            db, message, address, decision.reason, "The answer to this message cannot be sent.", now
        )


def _track_new(db: Writer, decision: Decision, now: int) -> None:
    state = DeliveryState.INTENDED if isinstance(decision, Send) else DeliveryState.QUEUED
    address = decision.address
    deliveries.track(
        db,
        decision.candidate.row,
        from_host=False,
        destination=address.key if address is not None else "",
        state=state,
        not_before=decision.not_before if isinstance(decision, Queue) else None,
        # Its time for retries begins when it is due, not when it was written.
        at=decision.not_before or now if isinstance(decision, Queue) else now,
    )
