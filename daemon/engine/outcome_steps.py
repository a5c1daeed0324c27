"""Records what came of sends: receipts, retries and dead letters, in one transaction.

Synchronous; the caller holds the session's lock. Nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.core.delivery_plan import (
    OF_CONTAINER,
    DeadLetterDecision,
    retry_at,
)
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.hand_over import Outcome
from daemon.store import dead_letters, deliveries
from daemon.store.dead_letters import expire
from daemon.store.session_files import SessionFiles
from schema.handles import Writer


def record_outcomes(
    files: SessionFiles, outcomes: Sequence[Outcome], means: DeliveryContext, now: int
) -> list[DeadLetterDecision]:
    """Record the receipts, retries and dead letters of sends in one transaction. Return the dead letters, for the log.

    Recording the same outcomes twice changes nothing: a commit that was reported as failed may have reached the file.
    """
    dead_lettered: list[DeadLetterDecision] = []
    taken: dict[str, str] = {}
    receipts: list[tuple[str, str | None]] = []
    with files.inbound() as db, db.transaction():
        for outcome in outcomes:
            candidate = outcome.send.candidate
            if not outcome.sent:
                deliveries.revert_intent(db, candidate.row.id)
            elif outcome.error is not None:
                dead = _failed(db, outcome, means, now)
                if dead:
                    dead_lettered.append(dead)
            elif outcome.not_wanted:
                if deliveries.state_of(db, candidate.row.id) is not None:
                    deliveries.not_wanted(db, candidate.row.id, now)
            else:
                receipts.append((candidate.row.id, outcome.platform_message_id))
                taken[outcome.send.address.key] = candidate.row.id
        deliveries.delivered(db, receipts, now)
        for destination, row_id in taken.items():
            deliveries.set_aside(db, destination, row_id, now)
        if dead_lettered:
            _expire_dead(db, means.config.max_dead_letters, now)
    return dead_lettered


def _expire_dead(db: Writer, limit: int, now: int) -> None:
    """Close the oldest refused answers beyond the limit, so that they do not fill the file. Retention deletes them."""
    for letter_id in dead_letters.open_dead_beyond(db, limit, OF_CONTAINER):
        expire(db, letter_id, now, "delivery.max_dead_letters")


def _failed(db: Writer, outcome: Outcome, means: DeliveryContext, now: int) -> DeadLetterDecision | None:
    send = outcome.send
    code, error = outcome.error_code or "DELIVERY_TRANSIENT", outcome.error or ""
    state = deliveries.state_of(db, send.candidate.row.id)
    if state != "intended":  # recorded already, or an operator has dropped it meanwhile
        return DeadLetterDecision(send.candidate, code, error, send.address) if state == "dead" else None
    if outcome.paced and not deliveries.head_that_lets_try(db, send.address.key, send.candidate.row.id):
        # Vary it: all sessions that wait for the same limit would else come at the same moment.
        wait_s = (outcome.retry_after_s or means.config.retry_base_s) * (1 + means.jitter)
        deliveries.wait_turn(db, send.candidate.row.id, now, now + int(wait_s * 1000) + 1, code, error)
        return None
    attempts = send.candidate.attempts + 1
    first_at = send.candidate.first_at or now
    if outcome.permanent or means.tried_long_enough(now, first_at):
        text = error if outcome.permanent else f"gave up after {attempts} attempts: {error}"
        deliveries.make_dead_letter(db, send.candidate.row, now, code, text, notify_agent=not send.candidate.from_host)
        return DeadLetterDecision(send.candidate, code, text, send.address)
    not_before = retry_at(
        now, attempts, base_s=means.config.retry_base_s, max_s=means.config.retry_max_s,
        retry_after_s=outcome.retry_after_s, jitter=means.jitter,
    )  # fmt: skip
    identity, destination = send.candidate.row.id, send.address.key
    if deliveries.head_that_lets_try(db, destination, identity):
        deliveries.probe_failed(db, identity, destination, now, code, error, in_doubt=outcome.in_doubt)
        return None
    traits = means.channels.get(send.address.channel_type)
    over = traits is not None and traits.head.is_over(attempts, now - first_at)
    deliveries.retry(db, identity, now, not_before, code, error, in_doubt=outcome.in_doubt, lets_try=over)
    return None
