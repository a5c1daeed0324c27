"""Decides about messages that are not finished: order, "later", expiry and void acks. Pure.

No I/O, no clock, no log. `fate_steps.py` gathers the evidence and writes the results.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from daemon.core.giving_up import tried_long_enough
from schema.frozen import frozen
from schema.ids import time_of
from schema.instants import from_text
from schema.rows import Ack, AckStatus, Deferral, MessageIn

# A runner that read the row just before its expiry may still be committing its claim.
EXPIRY_GRACE: Final = 2_000
_FINAL: Final = frozenset({AckStatus.COMPLETED, AckStatus.FAILED})
_SECOND: Final = 1000
# An agent that names no time waits longer and longer; one that names a short time may not spin.
_LONGEST_WAIT: Final = 10 * 60_000
_LONGEST_FLOOR: Final = 60_000
_MAX_DOUBLINGS: Final = 20


@frozen
class Fate:
    """An agent's rules. `strict`: a message that waits for its next try holds back the later ones of its session.

    `later_for`: how long an agent may go on saying "later" about one message; `later_base`: the first wait. Milliseconds.
    `trying_since`: since when this daemon can have it tried (epoch milliseconds). `doubted`: the wall clock may be wrong
    now, so nothing ends for good because its time is over.
    """

    strict: bool = True
    later_for: int = 24 * 3_600_000
    later_base: int = 5_000
    trying_since: int = 0
    doubted: bool = False


@frozen
class Defer:
    """The agent said "later": the message is due again at `process_after`. It costs no try."""

    message_id: str
    incarnation: str | None
    number: int
    process_after: int
    reason: str | None


@frozen
class GiveUp:
    """The agent has said "later" for too long: a dead letter."""

    message_id: str
    incarnation: str | None
    number: int
    deferred_for: int
    reason: str | None


@frozen
class Void:
    """The ack does not count, and the runner is to ignore it.

    It was written before its message was accepted, or it is a failure by a container that was being ended for being stuck.
    """

    message_id: str
    ack: Ack


@frozen
class Expire:
    """The message was not begun in time, or `worked_on_by` that incarnation at its deadline: it is closed, its sender informed."""

    message_id: str
    not_after: int
    worked_on_by: str | None = None


Verdict = Defer | GiveUp | Void | Expire


def held_from(pending: Iterable[MessageIn], now: int) -> int | None:
    """Return the seq of the first message that waits for its next try and holds back those behind it, or None.

    A message that its sender scheduled for later is not "earlier": it holds nothing back before its first try.
    """
    return min((message.seq for message in pending if _holds(message, now)), default=None)


def due_since(pending: Iterable[MessageIn]) -> dict[str, int]:
    """Return when each of these messages (in `seq` order) could first start. One that is held back starts after its holder."""
    latest, since = 0, dict[str, int]()
    for message in sorted(pending, key=lambda one: one.seq):
        own = max(message.process_after or 0, from_text(message.timestamp) or 0)
        since[message.id] = max(own, latest)
        if message.holds and message.trigger and not message.on_wake:
            latest = max(latest, message.process_after or 0)
    return since


def is_expired(message: MessageIn, now: int) -> bool:
    """Return whether it is too late to start work on a message."""
    return message.not_after is not None and message.not_after <= now


def is_noted(message: MessageIn, ack: Ack) -> bool:
    """Return whether the host has handled an ack already."""
    if message.void_ack is not None and ack.changed_text == message.void_ack:
        return True
    return ack.status is AckStatus.LATER and ack.deferral is not None and ack.deferral.number <= message.deferrals


def claimed_by(claim: Ack, incarnation: str, born: int | None) -> bool:
    """Return whether a claim is this incarnation's: by its incarnation or, if the runner writes none, by its time.

    Such runners write whole seconds: a claim within the second of the container's birth is the container's.
    """
    if claim.incarnation is not None:
        return claim.incarnation == incarnation
    if claim.changed_at is None or born is None:
        return True
    return latest_moment(claim.changed_at) >= born


def looks_older(message: MessageIn, ack: Ack) -> bool:
    """Return whether a final ack is dated before its message was accepted. Only then is further evidence worth reading."""
    accepted = from_text(message.timestamp)
    if ack.status not in _FINAL or ack.changed_at is None or accepted is None or message.void_ack is not None:
        return False
    born = time_of(ack.incarnation) if ack.incarnation is not None else None
    return latest_moment(ack.changed_at) < accepted and (born is None or born < accepted)


def deferred(message: MessageIn, ack: Ack, first_at: int | None, fate: Fate, now: int) -> Defer | GiveUp:
    """Decide what an agent's "later" means. `first_at`: when it first said so about this message, epoch ms."""
    asked = ack.deferral or Deferral(message.deferrals + 1)
    since = min(first_at, now) if first_at is not None else now
    if tried_long_enough(now + 1, since, fate.trying_since, fate.later_for):
        return GiveUp(message.id, ack.incarnation, asked.number, now - since, asked.reason)
    doublings = min(message.deferrals, _MAX_DOUBLINGS)
    wait = min(fate.later_base * 2**doublings, _LONGEST_WAIT)
    if asked.retry_at is not None:
        wait = max(asked.retry_at - now, min(wait, _LONGEST_FLOOR))
    # However far away the agent wants it: it is tried once more at the end of what it may ask for.
    due = min(now + wait, max(since + fate.later_for, now + fate.later_base))
    return Defer(message.id, ack.incarnation, asked.number, due, asked.reason)


def _holds(message: MessageIn, now: int) -> bool:
    waits = message.process_after is not None and message.process_after > now
    return message.holds and waits and message.trigger and not message.on_wake and not is_expired(message, now)


def latest_moment(instant: int) -> int:
    """Return the latest moment that a time may stand for. A time in whole seconds may stand for any moment of that second."""
    return instant + _SECOND - 1 if instant % _SECOND == 0 else instant
