"""Facts about tries that have just ended, for metrics and traces, read together with the rows of the decision.

Only reads; decides nothing. A container dates its own claims and acks, so its times are limited to what the host knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from daemon.core.attempt_end import COMPLETED, DEAD_LETTERED, FAILED, RETRIED, AttemptEnd
from daemon.core.lifecycle import Action, Fail, Reset, Settle
from daemon.store import messages
from schema.handles import Reader
from schema.instants import from_text
from schema.rows import Ack, AckStatus, MessageIn


def endings(
    db: Reader, pending: Iterable[MessageIn], acks: Mapping[str, Ack], actions: Iterable[Action], now: int
) -> tuple[AttemptEnd, ...]:
    """Return the tries that these actions ended. `pending` was read before the actions; `db` already holds their changes."""
    over = [action for action in actions if isinstance(action, Settle | Reset | Fail)]
    if not over:
        return ()
    rows = {message.id: message for message in pending}
    found: list[AttemptEnd] = []
    for action in over:
        message = rows.get(action.message_id)
        if message is None:
            continue
        ack = acks.get(action.message_id) if isinstance(action, Settle) else None
        due = _within(0, _due_at(message), now)
        ended = _within(due, ack.changed_at if ack is not None else None, now)
        claimed = messages.claimed_at(db, message.id, action.incarnation)
        # The host first saw this attempt when it had ended: it was too short to be seen while it ran.
        found.append(
            AttemptEnd(message, action.incarnation, _outcome(action), due, _within(due, claimed, ended), ended)
        )
    return tuple(found)


def _due_at(message: MessageIn) -> int | None:
    """Return when the message could first be claimed for this try: after its acceptance, schedule or back-off."""
    known = [at for at in (from_text(message.timestamp), message.process_after) if at is not None]
    return max(known) if known else None


def _outcome(action: Settle | Reset | Fail) -> str:
    if isinstance(action, Reset):
        return RETRIED
    if isinstance(action, Fail):
        return DEAD_LETTERED
    return COMPLETED if action.status is AckStatus.COMPLETED else FAILED


def _within(lowest: int, at: int | None, highest: int) -> int:
    return highest if at is None else max(lowest, min(at, highest))
