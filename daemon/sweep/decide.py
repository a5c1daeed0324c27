"""What the sweep does to one session: pure. No I/O, no clock, no log; `act.py` executes the named actions.

The order is the contract: settle acks, wake, judge what runs, reset orphans, re-arm. Wake comes before the reset
because a reset pushes process_after into the future and would starve the wake (NanoClaw commit 209061f54).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from schema.rows import Ack, AckStatus, MessageIn, ToolInFlight

CEILING: Final = "ceiling"
CLAIM_STUCK: Final = "claim_stuck"
IDLE: Final = "idle"

# Clocks of a container's file system and ours may differ by a little.
FUTURE_ALLOWED: Final = 60_000

# Configured for many tries, doubling would leave the calendar after 35 of them.
LONGEST_BACKOFF: Final = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Policy:
    """The sweep's figures in milliseconds, and the number of tries."""

    ceiling: int = 30 * 60_000
    claim_stuck: int = 60_000
    max_declared: int = 6 * 3_600_000
    max_tries: int = 5
    backoff_base: int = 5_000
    idle_stop: int = 15 * 60_000


@dataclass(frozen=True, slots=True)
class Container:
    """The incarnation that runs. `heartbeat_at` and `last_activity` are as read: they may be older than the spawn."""

    incarnation: str
    spawned_at: int
    heartbeat_at: int | None = None
    tool: ToolInFlight | None = None
    last_activity: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of one session, at one instant. Times are epoch milliseconds.

    `occupied`: a spawn, stop or kill is under way, so neither wake nor reset may happen. `charged`: attempts that have
    ended. `evidence_floor`: evidence older than this was dated by a wall clock that has jumped since.
    """

    now: int
    pending: tuple[MessageIn, ...] = ()
    acks: Mapping[str, Ack] = field(default_factory=dict[str, Ack])
    claims: tuple[Ack, ...] = ()
    charged: frozenset[tuple[str, str]] = frozenset()
    container: Container | None = None
    occupied: bool = False
    evidence_floor: int = 0


@dataclass(frozen=True, slots=True)
class Settle:
    """Turn a final ack into a status."""

    message_id: str
    status: AckStatus
    incarnation: str | None


@dataclass(frozen=True, slots=True)
class Wake:
    """Start a container: `due` messages wait and nothing runs."""

    due: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End the container by force; `reason` is CEILING or CLAIM_STUCK, the rest explains it."""

    reason: str
    silent_ms: int
    allowed_ms: int
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End the idle container gracefully."""

    quiet_ms: int


@dataclass(frozen=True, slots=True)
class Reset:
    """An orphaned claim costs a try; the message is due again at `process_after`."""

    message_id: str
    incarnation: str
    tries: int
    process_after: int


@dataclass(frozen=True, slots=True)
class Release:
    """An orphaned claim whose message is scheduled for the future already: nothing is bumped."""

    message_id: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The last try is used up: a dead letter."""

    message_id: str
    incarnation: str
    tries: int


Orphaned = Reset | Release | Fail
Action = Settle | Wake | Kill | Stop | Orphaned


def decide(seen: Observation, policy: Policy) -> list[Action]:
    """The actions for one session, in the order they must be done."""
    settles = settled(seen)
    finished = {action.message_id for action in settles}
    actions: list[Action] = [*settles]
    open_messages = [message for message in seen.pending if message.id not in finished]
    due_messages = [message for message in open_messages if is_due(message, seen.now)]
    due = len(due_messages)
    if seen.container is None and not seen.occupied and due:
        return [
            *actions,
            Wake(due),
        ]  # a fresh container clears orphaned claims itself; judging them now would starve it
    if seen.container is not None and not seen.occupied:
        # A row for a first poll is not for this container, once that is over: it must not keep it from being stopped.
        its_own = sum(1 for message in due_messages if not message.on_wake)
        verdict = judge(seen.container, seen, policy) or _idle(seen.container, seen, policy, its_own)
        if verdict is not None:
            actions.append(verdict)
    if seen.container is None and not seen.occupied:
        actions.extend(reset_orphans(seen, policy))
    return actions


def settled(seen: Observation) -> list[Settle]:
    """Pending messages that the container has finished."""
    actions: list[Settle] = []
    for message in seen.pending:
        ack = seen.acks.get(message.id)
        if ack is not None and ack.status is not AckStatus.PROCESSING:
            actions.append(Settle(message.id, ack.status, ack.incarnation))
    return actions


def is_due(message: MessageIn, now: int) -> bool:
    """Whether a pending message should wake an agent now."""
    return message.trigger and (message.process_after is None or message.process_after <= now)


def judge(container: Container, seen: Observation, policy: Policy) -> Kill | None:
    """The ceiling and claim-stuck rules for a container that runs. Evidence older than it is not about it."""
    born = max(container.spawned_at, seen.evidence_floor)
    heartbeat = _heartbeat(container, born, seen.now)
    declared = _declared(container, policy)
    silent = seen.now - (heartbeat if heartbeat is not None else born)
    ceiling = max(policy.ceiling, declared)
    if silent > ceiling:
        return Kill(CEILING, silent, ceiling)
    tolerance = max(policy.claim_stuck, declared)
    for claim in seen.claims:
        if claim.changed_at is None or not _is_of(claim, container):
            continue
        claimed_at = max(claim.changed_at, seen.evidence_floor)
        age = seen.now - claimed_at
        if age > tolerance and (heartbeat is None or heartbeat <= claimed_at):
            return Kill(CLAIM_STUCK, age, tolerance, claim.message_id)
    return None


def reset_orphans(seen: Observation, policy: Policy) -> list[Orphaned]:
    """What becomes of claims whose container is gone. Each (message, incarnation) is charged once, ever."""
    pending = {message.id: message for message in seen.pending}
    actions: list[Orphaned] = []
    for claim in seen.claims:
        message = pending.get(claim.message_id)
        if message is None or claim.incarnation is None or (message.id, claim.incarnation) in seen.charged:
            continue
        if message.process_after is not None and message.process_after > seen.now:
            actions.append(Release(message.id, claim.incarnation))
            continue
        tries = message.tries + 1
        if tries >= policy.max_tries:
            actions.append(Fail(message.id, claim.incarnation, tries))
        else:
            wait = min(policy.backoff_base * 2**message.tries, LONGEST_BACKOFF)
            actions.append(Reset(message.id, claim.incarnation, tries, seen.now + wait))
    return actions


def _heartbeat(container: Container, born: int, now: int) -> int | None:
    """Its last progress, if that is evidence: neither older than it is, nor from the future.

    A container may date its heartbeat as it likes; neither it nor its successor must live on that for ever.
    """
    heartbeat = container.heartbeat_at
    return heartbeat if heartbeat is not None and born <= heartbeat <= now + FUTURE_ALLOWED else None


def _declared(container: Container, policy: Policy) -> int:
    """How long the tool in flight said it may be silent, within reason."""
    if container.tool is None or container.tool.declared_timeout_ms is None:
        return 0
    return min(container.tool.declared_timeout_ms, policy.max_declared)


def _is_of(claim: Ack, container: Container) -> bool:
    """Whether a claim is this container's: by its stamp, or, from a runner that stamps none, by its time."""
    if claim.incarnation is not None:
        return claim.incarnation == container.incarnation
    return claim.changed_at is not None and claim.changed_at >= container.spawned_at


def _idle(container: Container, seen: Observation, policy: Policy, due: int) -> Stop | None:
    if due or any(_is_of(claim, container) for claim in seen.claims):
        return None
    heartbeat = _heartbeat(container, 0, seen.now) or 0
    marks = (container.spawned_at, heartbeat, container.last_activity, seen.evidence_floor)
    quiet = seen.now - max(marks)
    return Stop(quiet) if quiet >= policy.idle_stop else None
