"""Finds turns whose message was cancelled while an agent worked on it: those still running, and those that have stopped.

The runner sees the cancellation in inbound.db, stops its agent, and releases its claims. Synchronous; the caller
holds the session's lock.
"""

from __future__ import annotations

from typing import Final

from daemon.core.lifecycle import CancelledTurn
from daemon.store import messages, outbound
from daemon.store.transitions import record
from daemon.store.turn_usage import usage_of
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.rows import AckStatus

STOP_LOOK: Final = 200  # milliseconds until a turn that is to stop is checked again


@frozen
class CancelledTurns:
    """The cancelled turns of one incarnation. `going_on`: it still holds the claim. `over`: it has released it."""

    going_on: tuple[CancelledTurn, ...] = ()
    over: tuple[CancelledTurn, ...] = ()


def cancelled_turns(db: Reader, out: Reader | None, incarnation: str) -> CancelledTurns:
    """Return the cancelled turns of the incarnation, judged by its claims."""
    since = messages.cancelled_attempts(db, incarnation)
    if not since:
        return CancelledTurns()
    acks = outbound.acks_for(out, sorted(since)) if out is not None else {}
    turns = [CancelledTurn(message_id, at, usage_of(out, message_id, incarnation)) for message_id, at in since.items()]
    held = {
        message_id
        for message_id, ack in acks.items()
        if ack.status is AckStatus.PROCESSING and ack.incarnation in (incarnation, None)
    }
    return CancelledTurns(
        tuple(turn for turn in turns if turn.message_id in held),
        tuple(turn for turn in turns if turn.message_id not in held),
    )


def note_stopped(db: Writer, turn: CancelledTurn, incarnation: str | None, now: int) -> None:
    """Record that the turn has stopped, history first. Call inside a transaction."""
    used = turn.usage.counted() if turn.usage else {}
    detail = {"after_ms": now - turn.since, **used}
    record(db, turn.message_id, "turn_stopped", now, incarnation=incarnation, detail=detail)
    messages.end_open_attempts(db, turn.message_id, now, "released")
