"""Decides what the sweep does to one session. Pure; `engine/sweep_steps.py` executes the actions.

The order is part of the contract: settle acks, wake, judge what runs, reset orphans, re-arm. Wake comes before the reset
because a reset moves process_after into the future, and the wake would never come (NanoClaw commit 209061f54).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Final

from daemon.core.message_fate import claimed_by, due_since, held_from, is_expired
from schema.frozen import frozen
from schema.questions import TOOL as QUESTION_TOOL
from schema.rows import Ack, AckStatus, MessageIn, ToolInFlight, TurnNote, TurnUsage

CEILING: Final = "ceiling"
CLAIM_STUCK: Final = "claim_stuck"
CLAIM_OVERDUE: Final = "claim_overdue"
UNCLAIMED: Final = "unclaimed"
CANCEL_IGNORED: Final = "cancel_ignored"
IDLE: Final = "idle"

# Host and container share the kernel's clock; only the resolution of file times differs.
FUTURE_ALLOWED: Final = 2_000

# With many tries configured, doubling would exceed the calendar after 35 of them.
LONGEST_BACKOFF: Final = 24 * 3_600_000


@frozen
class Policy:
    """The sweep's limits in milliseconds, and the number of tries. `claim_max` and `turn` depend on the agent.

    `claim_max` is the longest a claim may last, whatever progress its container reports. `turn` is how long one may last without
    provable progress (an answer, an ack, another declared tool) when another session waits for the slot; `contended`
    means that one does. `unclaimed` is how long a container may leave due messages untouched, and `cancel_grace` how long it
    may work on after its message was cancelled.
    """

    ceiling: int = 30 * 60_000
    claim_stuck: int = 60_000
    claim_max: int = 6 * 3_600_000 + 30 * 60_000
    turn: int = 31 * 60_000
    unclaimed: int = 60_000
    cancel_grace: int = 15_000
    contended: bool = False
    max_declared: int = 6 * 3_600_000
    max_tries: int = 5
    schedule_failures: int = 5  # failures in a row after which a schedule is paused; 0: never
    backoff_base: int = 5_000
    idle_stop: int = 15 * 60_000


@frozen
class Container:
    """The running incarnation. Its times are as read: they may be older than the spawn.

    `heartbeat_at` and `tool` are the container's own claims. The host records `last_activity` (a message accepted, claimed or
    answered), `moved_at` (the last provable progress) and `held_at` (when messages were last seen held back).
    `draining`: the host has asked it to claim nothing more.
    """

    incarnation: str
    spawned_at: int
    heartbeat_at: int | None = None
    tool: ToolInFlight | None = None
    last_activity: int = 0
    moved_at: int = 0
    held_at: int = 0
    draining: bool = False


@frozen
class CancelledTurn:
    """A message that was cancelled at `since` while the container worked on it. `usage` is what its turn used, once known."""

    message_id: str
    since: int
    usage: TurnUsage | None = None


@frozen
class Observation:
    """The state of one session at one instant. Times are epoch milliseconds.

    `occupied`: a spawn, stop or kill is under way, so neither wake nor reset may happen. `charged`: attempts that have
    ended. `noted`: when the host first saw each message claimed by the running container. `evidence_floor`: evidence
    older than this was dated by a wall clock that has jumped since. `excused`: for each message, the end of the time in
    which its turn may be silent because it waits for the answer to a question; `now` while the question is open.
    `cancelled`: the cancelled turns that the container has yet to stop.
    """

    now: int
    pending: tuple[MessageIn, ...] = ()
    acks: Mapping[str, Ack] = field(default_factory=dict[str, Ack])
    claims: tuple[Ack, ...] = ()
    charged: frozenset[tuple[str, str]] = frozenset()
    noted: Mapping[str, int] = field(default_factory=dict[str, int])
    container: Container | None = None
    occupied: bool = False
    evidence_floor: int = 0
    excused: Mapping[str, int] = field(default_factory=dict[str, int])
    cancelled: tuple[CancelledTurn, ...] = ()


@frozen
class Settle:
    """Turn a final ack into a status."""

    message_id: str
    status: AckStatus
    incarnation: str | None
    note: TurnNote | None = None
    usage: TurnUsage | None = None


@frozen
class Wake:
    """Start a container: `due` messages wait and no container runs."""

    due: int


@frozen
class Kill:
    """End the container because it is stuck. `reason` is one of the constants above except IDLE; the rest is its evidence."""

    reason: str
    silent_ms: int
    allowed_ms: int
    message_id: str | None = None


@frozen
class Stop:
    """End gracefully a container that is idle, or whose turn only waits for a person's answer while others wait for the slot."""

    quiet_ms: int


@frozen
class Reset:
    """Charge a try for an orphaned claim. The message is due again at `process_after`."""

    message_id: str
    incarnation: str
    tries: int
    process_after: int


@frozen
class Release:
    """Drop an orphaned claim without charging a try: its message is already scheduled for the future."""

    message_id: str
    incarnation: str


@frozen
class Fail:
    """Make the message a dead letter: its last try is used up."""

    message_id: str
    incarnation: str
    tries: int


Orphaned = Reset | Release | Fail
Action = Settle | Wake | Kill | Stop | Orphaned


def decide(seen: Observation, policy: Policy) -> list[Action]:
    """Return the actions for one session, in the order in which they must be done."""
    settles = settled(seen)
    finished = {action.message_id for action in settles}
    actions: list[Action] = [*settles]
    open_messages = [message for message in seen.pending if message.id not in finished]
    held = held_from(open_messages, seen.now)
    due_messages = [
        message for message in open_messages if is_due(message, seen.now) and (held is None or message.seq < held)
    ]
    due = len(due_messages)
    if seen.container is None and not seen.occupied and due:
        return [
            *actions,
            Wake(due),
        ]  # a fresh container clears orphaned claims itself; judging them now would starve it
    if seen.container is not None and not seen.occupied:
        # An on_wake row is for the first poll of the next container, so it must not keep this one from being stopped.
        its_own = [message for message in due_messages if not message.on_wake]
        verdict = (
            _cancel_ignored(seen, policy)
            or judge(seen.container, seen, policy)
            or _answer_awaited(seen.container, seen, policy)
        )
        if not seen.cancelled:  # while it stops a turn, it neither leaves messages untouched nor is idle
            verdict = (
                verdict
                or _unclaimed(seen.container, seen, policy, its_own)
                or _idle(seen.container, seen, policy, len(its_own))
            )
        if verdict is not None:
            actions.append(verdict)
    if seen.container is None and not seen.occupied:
        actions.extend(reset_orphans(seen, policy))
    return actions


def settled(seen: Observation) -> list[Settle]:
    """Return a Settle for each pending message that the container has finished."""
    actions: list[Settle] = []
    for message in seen.pending:
        ack = seen.acks.get(message.id)
        if ack is not None and ack.status not in (AckStatus.PROCESSING, AckStatus.LATER):
            actions.append(Settle(message.id, ack.status, ack.incarnation, ack.note, ack.usage))
    return actions


def is_due(message: MessageIn, now: int) -> bool:
    """Return whether a pending message should wake an agent now, ignoring the other messages."""
    waits = message.process_after is not None and message.process_after > now
    return message.trigger and not waits and not is_expired(message, now)


def judge(container: Container, seen: Observation, policy: Policy) -> Kill | None:
    """Return a Kill if the container holds a claim and shows no progress. Ignore evidence older than the container.

    A container without a claim may be silent, because no message waits for it.
    """
    own = [claim for claim in seen.claims if _is_of(claim, container)]
    if not own:
        return None
    # An instant in the future was dated before the clock was set back.
    ends = (seen.excused.get(claim.message_id, 0) for claim in own)
    excused = max((end for end in ends if end <= seen.now), default=0)
    seen = replace(seen, evidence_floor=max(seen.evidence_floor, excused)) if excused else seen
    born = max(container.spawned_at, seen.evidence_floor)
    heartbeat = _heartbeat(container, born, seen.now)
    # A runner touches its heartbeat when it reads how its question ended: one that has not is not waiting any more.
    tool = container.tool
    unread = tool is not None and tool.name == QUESTION_TOOL and 0 < excused < seen.now and heartbeat is None
    declared = 0 if unread else _declared(container, policy)
    # A turn cannot have been silent for longer than it has lasted: its runner may beat late, never, or by a wrong clock.
    begun = min(_seen_since(claim, seen) for claim in own)
    silent = seen.now - max(heartbeat if heartbeat is not None else born, begun)
    ceiling = max(policy.ceiling, declared)
    if silent > ceiling:
        return Kill(CEILING, silent, ceiling)
    tolerance = max(policy.claim_stuck, declared)
    for claim in own:
        if claim.changed_at is None:
            continue
        claimed_at = max(claim.changed_at, seen.evidence_floor)
        age = seen.now - max(claimed_at, _seen_since(claim, seen))
        if age > tolerance and (heartbeat is None or heartbeat <= claimed_at):
            return Kill(CLAIM_STUCK, age, tolerance, claim.message_id)
    return _overdue(container, own, seen, policy, declared)


def _seen_since(claim: Ack, seen: Observation) -> int:
    """Return when the host first saw this container work on the message, or when it was due again if that was later; 0 if unknown.

    The container's clock does not matter: it may be behind, and then its claims look old from the first moment.
    """
    noted = seen.noted.get(claim.message_id, 0)
    due = next((message.process_after or 0 for message in seen.pending if message.id == claim.message_id), 0)
    return max((instant for instant in (noted, due if noted else 0) if instant <= seen.now), default=0)


def _answer_awaited(container: Container, seen: Observation, policy: Policy) -> Stop | None:
    """Return a Stop if another session waits for the slot of a turn that waits for a person, for as long as a turn may stand still.

    It costs no try: the runner gives its claims back, and the next turn asks the same question, or finds its answer.
    """
    own = [claim for claim in seen.claims if _is_of(claim, container)]
    if not policy.contended or not any(seen.excused.get(claim.message_id) == seen.now for claim in own):
        return None
    born = max(container.spawned_at, seen.evidence_floor)
    still = seen.now - max(born, container.moved_at)
    age = seen.now - min(max(born, seen.noted.get(claim.message_id, born)) for claim in own)
    return Stop(still) if still > policy.turn or age > policy.claim_max else None


def _cancel_ignored(seen: Observation, policy: Policy) -> Kill | None:
    """Judge a container that works on although its message was cancelled. Time from before a clock's jump does not count."""
    for turn in seen.cancelled:
        age = seen.now - max(turn.since, seen.evidence_floor)
        if age > policy.cancel_grace:
            return Kill(CANCEL_IGNORED, age, policy.cancel_grace, turn.message_id)
    return None


def _overdue(container: Container, own: Sequence[Ack], seen: Observation, policy: Policy, declared: int) -> Kill | None:
    """Limit how long a claim may last: a heartbeat does not prove work.

    The limit is shorter when there is no progress while other sessions wait for the slot.
    """
    due_since = {message.id: message.process_after or 0 for message in seen.pending}
    for claim in own:
        # Use the host's record, because the container can change its claim's date at will. If it gave a message back
        # and claimed it again later, count only from the time at which the message was due again.
        dated = seen.noted.get(claim.message_id, min(claim.changed_at or seen.now, seen.now))
        since = max(dated, due_since.get(claim.message_id, 0), container.spawned_at, seen.evidence_floor)
        age = seen.now - since
        if age > policy.claim_max:
            return Kill(CLAIM_OVERDUE, age, policy.claim_max, claim.message_id)
        still, allowed = seen.now - max(since, container.moved_at), max(policy.turn, declared)
        if policy.contended and still > allowed:
            return Kill(CLAIM_OVERDUE, still, allowed, claim.message_id)
    return None


def _unclaimed(container: Container, seen: Observation, policy: Policy, due: Sequence[MessageIn]) -> Kill | None:
    """Return a Kill if the container leaves due messages unclaimed for too long: it wastes its slot."""
    if not due or any(_is_of(claim, container) for claim in seen.claims):
        return None
    waits = due_since(seen.pending)
    waits_since = min(waits[message.id] for message in due)
    since = max(waits_since, container.spawned_at, container.moved_at, container.held_at, seen.evidence_floor)
    age = seen.now - since
    return Kill(UNCLAIMED, age, policy.unclaimed) if age > policy.unclaimed else None


def reset_orphans(seen: Observation, policy: Policy) -> list[Orphaned]:
    """Decide about claims whose container is gone. Charge each (message, incarnation) only once."""
    pending = {message.id: message for message in seen.pending}
    triggers = Counter(claim.incarnation for claim in seen.claims if (m := pending.get(claim.message_id)) and m.trigger)
    actions: list[Orphaned] = []
    for claim in seen.claims:
        message = pending.get(claim.message_id)
        if message is None or claim.incarnation is None or (message.id, claim.incarnation) in seen.charged:
            continue
        if message.process_after is not None and message.process_after > seen.now:
            actions.append(Release(message.id, claim.incarnation))
            continue
        tries = message.tries + 1
        # If a turn with several triggers dies for the first time, do not give up any of them: try each one alone first.
        in_company = message.tries == 0 and triggers[claim.incarnation] > 1
        if tries >= policy.max_tries and not in_company:
            actions.append(Fail(message.id, claim.incarnation, tries))
        else:
            wait = min(policy.backoff_base * 2**message.tries, LONGEST_BACKOFF)
            actions.append(Reset(message.id, claim.incarnation, tries, seen.now + wait))
    return actions


def _heartbeat(container: Container, born: int, now: int) -> int | None:
    """Return the time of the last heartbeat, or None if it is older than the container or lies in the future.

    A container can set any date on its heartbeat; a false one must not keep it or its successor alive.
    """
    heartbeat = container.heartbeat_at
    if heartbeat is None or not born <= heartbeat <= now + FUTURE_ALLOWED:
        return None
    return min(heartbeat, now)


def _declared(container: Container, policy: Policy) -> int:
    """Return how long the tool in flight has declared it may be silent, at most `max_declared`."""
    if container.tool is None or container.tool.declared_timeout_ms is None:
        return 0
    return min(container.tool.declared_timeout_ms, policy.max_declared)


def _is_of(claim: Ack, container: Container) -> bool:
    """Return whether a claim is this container's: by its incarnation or, if the runner writes none, by its time."""
    dated = claim.incarnation is not None or claim.changed_at is not None
    return dated and claimed_by(claim, container.incarnation, container.spawned_at)


def _idle(container: Container, seen: Observation, policy: Policy, due: int) -> Stop | None:
    """Return a Stop if the container has had no open message for long enough, whatever its heartbeat says."""
    if any(_is_of(claim, container) for claim in seen.claims) or (due and not container.draining):
        return None
    marks = (container.spawned_at, container.last_activity, seen.evidence_floor)
    quiet = seen.now - max(marks)
    # A draining container claims nothing more, so due messages wait for its successor.
    return Stop(quiet) if container.draining or quiet >= policy.idle_stop else None
