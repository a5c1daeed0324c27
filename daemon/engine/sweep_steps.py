"""The sweep's transactions over one session's files: read, decide, and write the decisions to inbound.db.

Synchronous; the caller holds the session's lock. No container is started or stopped here: those actions are returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from daemon.config.agents import Agent
from daemon.config.models import Config
from daemon.config.policies import agent_policy
from daemon.core.attempt_end import AttemptEnd
from daemon.core.lifecycle import (
    CEILING,
    CLAIM_OVERDUE,
    CLAIM_STUCK,
    Action,
    Container,
    Fail,
    Kill,
    Observation,
    Policy,
    Release,
    Reset,
    Settle,
    Stop,
    Wake,
    decide,
    reset_orphans,
    settled,
)
from daemon.core.message_fate import EXPIRY_GRACE, Fate, Verdict, Void, claimed_by, held_from
from daemon.engine import recurrence, schedule_steps
from daemon.engine.cancelled_turns import STOP_LOOK, CancelledTurns, cancelled_turns, note_stopped
from daemon.engine.endings import endings
from daemon.engine.fate_steps import apply_verdict, expired, judge, judge_suspects
from daemon.engine.settle_steps import settle, unfinished
from daemon.runtimes import output_log
from daemon.runtimes.spec import STDERR_LOG
from daemon.store import deliveries, host_messages, messages, outbound, questions, schedules
from daemon.store.backlog import count_dead
from daemon.store.folder_use import FolderUse, SessionLimits, check_folder
from daemon.store.registry import SessionKey
from daemon.store.schedules import Scheduled
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import change_status, record, schedule_retry
from schema.connect import Reader, Writer
from schema.ids import time_of
from schema.rows import Ack, AckStatus, MessageIn, MessageStatus, ToolInFlight

FORCED: Final = frozenset({CEILING, CLAIM_STUCK, CLAIM_OVERDUE, "unreadable"})


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep of a session did, and what is left to do.

    `next_at`: when the earliest known work is due (epoch ms), 0 for now, None for none. `due`: number of messages that wait
    for an agent. `dead`: number of open dead letters. `tool`: the tool in flight that the container declared. `schedules`: 1
    if the session has any, else 0; `schedule_at`: when the next of them is due. `fired`: the messages that they sent now.
    `decided`: the questions that ended without an answer. `stop_at`: when to check a cancelled turn again.
    """

    actions: tuple[Action, ...]
    rearmed: tuple[MessageIn, ...]
    next_at: int | None
    due: int
    recovered: bool = False
    dead: int = 0
    endings: tuple[AttemptEnd, ...] = ()
    tool: ToolInFlight | None = None
    use: FolderUse | None = field(default=None, compare=False)
    verdicts: tuple[Verdict, ...] = ()
    expires_at: int | None = None
    held: bool = False
    schedules: int = 0
    schedule_at: int | None = None
    fired: tuple[MessageIn, ...] = ()
    home_use: FolderUse | None = field(default=None, compare=False)
    decided: tuple[questions.Asked, ...] = ()
    stop_at: int | None = None


class Finished(NamedTuple):
    """The result of settling a confirmed exit. `claimed`: whether the incarnation had claimed anything."""

    claimed: bool
    actions: list[Action]
    endings: tuple[AttemptEnd, ...]
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """The sweep's policy, the time zone of recurrences (an IANA name), and the limits of out/ and home/.

    `own_policies` returns an agent's own policy, as currently configured; `policy` applies to agents without one.
    `schedules`: the configuration's, by session and key; `configured`: those of the session that is swept.
    """

    policy: Policy
    timezone: str = "UTC"
    limits: SessionLimits = field(default_factory=SessionLimits)
    fate: Fate = field(default_factory=Fate)
    own_policies: Callable[[str], Policy] | None = None
    configured: Mapping[str, Scheduled] = field(default_factory=dict[str, Scheduled])
    schedules: Mapping[SessionKey, Mapping[str, Scheduled]] = field(
        default_factory=dict[SessionKey, Mapping[str, Scheduled]]
    )

    def policy_of(self, agent: str) -> Policy:
        """Return the agent's policy, as currently configured."""
        return self.own_policies(agent) if self.own_policies is not None else self.policy

    @classmethod
    def of(cls, config: Config, agents: Mapping[str, Agent]) -> Settings:
        """Return the settings for `agents`, a mapping that a reload may change."""
        return cls(
            agent_policy(config, None), config.timezone, session_limits(config),
            own_policies=lambda agent: agent_policy(config, agents.get(agent)), schedules=schedule_steps.configured(config),
        )  # fmt: skip


def session_limits(config: Config) -> SessionLimits:
    """Return the limits of what a session's container may keep on the host's disk."""
    limits, default = config.limits, SessionLimits()
    return SessionLimits(
        replace(default.out, max_bytes=limits.max_out_folder_bytes, max_files=limits.max_out_folder_files),
        replace(default.home, max_bytes=limits.max_home_folder_bytes, max_files=limits.max_home_folder_files),
    )


def sweep_files(
    files: SessionFiles,
    container: Container | None,
    now: int,
    settings: Settings,
    *,
    occupied: bool,
    floor: int,
    last_tool: ToolInFlight | None = None,
    members: Callable[[], Iterable[int] | None] | None = None,
) -> Swept:
    """Read the files, decide and apply. Raise what opening the files raises; then nothing has changed.

    `last_tool` is the tool at the last sweep: a different one is progress. `members` returns the container's processes. When
    no container is running, recover a leftover journal first: there was a confirmed exit, or never a container.
    """
    use = check_folder(files.folder.outbox, settings.limits.out, members() if members is not None else None)
    home_use = check_folder(files.folder.home, settings.limits.home)
    if container is not None:
        with suppress(OSError):  # failing to shorten the log must not block the sweep
            output_log.cut(files.folder.logs / STDERR_LOG)
    recovered = container is None and not occupied and files.has_journal() and files.recover()
    stopping = CancelledTurns()
    with files.inbound() as db, db.looking():
        fired = schedule_steps.sweep(db, settings.configured, now)
        with files.outbound() as out:
            raw = _observe(db, out, now)
            void, good = judge_suspects(db, out, raw.pending, raw.acks, floor)
            judged = judge(db, raw.pending, raw.acks, settings.fate, now)
            news = out is not None and outbound.has_after(out, deliveries.cursor(db, out.file_id))
            if container is not None:
                container = _as_it_shows(container, db, out, outbound.heartbeat_at(files.folder), last_tool, now)
                claimed = [claim.message_id for claim in raw.claims]
                raw = replace(raw, noted=messages.noted_at(db, claimed, container.incarnation))
                stopping = cancelled_turns(db, out, container.incarnation)
        acks = {**judged.acks, **good}
        alive = container is not None or occupied
        too_late = expired(judged.pending, acks, raw.charged, now, alive=alive)
        over = {item.message_id for item in too_late}
        seen = replace(
            raw, pending=tuple(message for message in judged.pending if message.id not in over), acks=acks,
            container=container, occupied=occupied, evidence_floor=floor, excused=questions.excused(db, [claim.message_id for claim in raw.claims], now),
            cancelled=stopping.going_on,
        )  # fmt: skip
        verdicts: tuple[Verdict, ...] = (*judged.verdicts, *void, *too_late)
        actions = decide(seen, settings.policy)
        rearmed: list[MessageIn] = []
        stale = _ended_attempts(db, seen)
        changes = verdicts or questions.to_close(db, now) or any(not isinstance(item, Wake | Stop) for item in actions)
        closed: list[questions.Asked] = []
        if messages.to_rearm(db, 1) or stale or changes or stopping.over:
            with db.transaction():
                _apply_all(db, seen, verdicts, actions, settings.fate)
                for attempt in stale:
                    messages.end_attempt(db, attempt.message_id, attempt.incarnation, now, "released")
                for turn in stopping.over:
                    note_stopped(db, turn, container.incarnation if container else None, now)
                closed = questions.close_overdue(db, now)  # after the messages have their statuses
                # After the loops above, so that a series whose occurrence was just settled is rearmed in this transaction.
                missed = [
                    message for message in judged.pending if message.id in over and message.recurrence is not None
                ]
                rearmed = recurrence.rearm(db, [*missed, *messages.to_rearm(db)], now, settings.timezone)
        # An answer that delivery has not recorded yet is work, so its session must not be retired.
        next_at = 0 if news else next_work(db, now)
        late = any(item.worked_on_by is not None for item in too_late)
        stop_at = now + STOP_LOOK if stopping.going_on or late else None
        due, dead = messages.count_due(db, now), count_dead(db)
        ended = endings(db, seen.pending, seen.acks, actions, now)
        expiry = messages.next_expiry(db)
        kept, schedule_at = int(schedules.stored(db)), schedules.next_at(db)
    if (due or void or closed or late) and container is not None:
        files.ring()  # a message may have come due by the clock alone, without a commit that would notify the runner
    expires_at = expiry + EXPIRY_GRACE if expiry is not None else None
    return Swept(
        tuple(actions), tuple(rearmed), next_at, due, recovered, dead, ended, container.tool if container else None,
        use, verdicts, expires_at, held_from(seen.pending, now) is not None, kept, schedule_at, fired, home_use,
        tuple(closed), stop_at,
    )  # fmt: skip


def _as_it_shows(
    container: Container,
    db: Reader,
    out: Reader | None,
    heartbeat_at: int | None,
    last_tool: ToolInFlight | None,
    now: int,
) -> Container:
    """Return the container with what its files show of it now. Another tool than `last_tool` is progress."""
    tool = outbound.tool_in_flight(out) if out is not None else None
    moved_at = container.moved_at if tool is None or tool == last_tool else now
    draining = is_draining(db, container.incarnation)
    return replace(container, tool=tool, heartbeat_at=heartbeat_at, moved_at=moved_at, draining=draining)


def _apply_all(
    db: Writer, seen: Observation, verdicts: Sequence[Verdict], actions: Sequence[Action], fate: Fate
) -> None:
    for verdict in verdicts:
        apply_verdict(db, verdict, fate, seen.now)
    for action in actions:
        apply(db, action, seen.now, fate)
        if isinstance(action, Kill) and seen.container is not None:
            note_draining(db, seen.container.incarnation, seen.now, forced=True)


def finish_incarnation(files: SessionFiles, incarnation: str, reason: str, now: int, settings: Settings) -> Finished:
    """Settle a CONFIRMED exit in the files: recover the journal, settle acks, reset claims. Safe to repeat.

    A claim that the runner released costs no try, unless the host had to force the container to end.
    """
    files.recover()
    with files.inbound() as db:
        with files.outbound() as out:
            raw = _observe(db, out, now)
            # Count only acks that are proven to belong to their message; the next sweep judges the others.
            _, good = judge_suspects(db, out, raw.pending, raw.acks, floor=0)
        judged = judge(db, raw.pending, raw.acks, settings.fate, now)
        seen = replace(raw, pending=judged.pending, acks={**judged.acks, **good})
        born = time_of(incarnation)
        own = tuple(replace(c, incarnation=incarnation) for c in seen.claims if claimed_by(c, incarnation, born))
        open_ids = [item.message_id for item in messages.open_attempts(db) if item.incarnation == incarnation]
        had_any = messages.ever_claimed(db, incarnation) or bool(own)
        claimed = {claim.message_id for claim in own}
        put_off = {verdict.message_id for verdict in judged.verdicts if not isinstance(verdict, Void)}
        open_ids = [message_id for message_id in open_ids if message_id not in put_off]
        if reason in FORCED:
            own += tuple(_forced(message_id, incarnation) for message_id in open_ids if message_id not in claimed)
            claimed.update(open_ids)
        seen = replace(seen, claims=own)
        settles = settled(seen)
        finished = {item.message_id for item in settles}
        orphans = [item for item in reset_orphans(seen, settings.policy) if item.message_id not in finished]
        actions: list[Action] = [*settles, *orphans]
        with db.transaction():
            for claim in own:
                messages.note_claim(db, claim.message_id, incarnation, claim.changed_at or now, now)
            for verdict in judged.verdicts:
                apply_verdict(db, verdict, settings.fate, now)
            for action in actions:
                apply(db, action, now, settings.fate)
            for message_id in set(open_ids) - claimed - finished:
                record(db, message_id, "released", now, incarnation=incarnation, detail={"reason": reason})
                messages.end_attempt(db, message_id, incarnation, now, "released")
        ended = endings(db, seen.pending, seen.acks, actions, now)
    return Finished(had_any or bool(settles) or bool(put_off), actions, ended, judged.verdicts)


def disown_incarnation(files: SessionFiles, incarnation: str, now: int) -> int:
    """Release, without charging a try, what another installation's container had claimed when this folder was copied.

    Return the number of released messages. None of our containers may have written to these files.
    """
    files.recover()
    with files.inbound() as db:
        with files.outbound() as out:
            seen = _observe(db, out, now)
        held = {claim.message_id for claim in seen.claims if claim.incarnation == incarnation}
        held |= {item.message_id for item in messages.open_attempts(db) if item.incarnation == incarnation}
        held -= {item.message_id for item in settled(seen)}
        with db.transaction():
            for message_id in sorted(held):
                messages.note_claim(db, message_id, incarnation, now, now)
                if messages.end_attempt(db, message_id, incarnation, now, "released"):
                    record(db, message_id, "released", now, incarnation=incarnation, detail={"reason": "copied"})
    return len(held)


def drain(files: SessionFiles, incarnation: str, now: int) -> bool:
    """Ask this incarnation, in inbound.db, to stop claiming. Return whether it works on nothing.

    After the commit our runner makes no further claim, so "works on nothing" stays true. A runner that ignores the request
    may still claim; it then gets the usual grace before it is stopped.
    """
    with files.inbound() as db:
        if not is_draining(db, incarnation):
            with db.transaction():
                note_draining(db, incarnation, now, forced=False)
        with files.outbound() as out:
            seen = _observe(db, out, now)
        # An open claim counts as work even if the turn is finished: its commit may still be missing.
        return not any(claimed_by(claim, incarnation, time_of(incarnation)) for claim in seen.claims)


def is_draining(db: Reader, incarnation: str) -> bool:
    """Return whether this incarnation was asked to stop claiming."""
    return db.one("SELECT 1 FROM draining WHERE incarnation = ?", (incarnation,)) is not None


def note_draining(db: Writer, incarnation: str, now: int, *, forced: bool) -> None:
    """Ask an incarnation to stop claiming. `forced`: from now on, a failure that it acks does not count."""
    db.execute("DELETE FROM draining")  # at most one incarnation is live, so other rows are a predecessor's
    db.execute("INSERT INTO draining(incarnation, since, forced) VALUES (?, ?, ?)", (incarnation, now, int(forced)))


def apply(db: Writer, action: Action, now: int, fate: Fate) -> None:
    """Apply an action to inbound.db. Call inside a transaction."""
    if isinstance(action, Settle):
        settle(db, action, now)
    elif isinstance(action, Reset):
        if messages.end_attempt(db, action.message_id, action.incarnation, now, "orphaned"):
            schedule_retry(
                db, action.message_id, action.tries, action.process_after, now,
                incarnation=action.incarnation, reason="its container ended before the work was done", holds=fate.strict,
            )  # fmt: skip
    elif isinstance(action, Release):
        messages.end_attempt(db, action.message_id, action.incarnation, now, "orphaned")
    elif isinstance(action, Fail) and messages.end_attempt(db, action.message_id, action.incarnation, now, "orphaned"):
        _fail(db, action, now)


def next_work(db: Reader, now: int) -> int | None:
    """Return when the next work is due (epoch ms): a message, a row to send, a series to rearm. 0 for now, None for none."""
    if messages.to_rearm(db, 1):
        return 0
    expiry = messages.next_expiry(db)
    instants = (
        messages.next_due_at(db, now),
        deliveries.next_attempt_at(db),
        schedules.next_at(db),
        expiry + EXPIRY_GRACE if expiry is not None else None,
        questions.next_deadline(db),
    )
    return min((value for value in instants if value is not None), default=None)


def _fail(db: Writer, action: Fail, now: int) -> None:
    text = f"gave up after {action.tries} tries: each time the agent's container ended before the work was done"
    message = messages.find(db, action.message_id)
    detail = {"code": "TRIES_EXHAUSTED", "tries": action.tries, "reason": text}
    change_status(
        db, action.message_id, MessageStatus.FAILED, "failed", now, incarnation=action.incarnation, detail=detail
    )
    db.execute("UPDATE messages_in SET tries = ? WHERE id = ?", (action.tries, action.message_id))
    address = messages.address_of(message) if message is not None else None
    if message is not None and address is not None:
        told = f"This message could not be answered in {action.tries} tries."
        host_messages.notify_sender(db, message, address, "TRIES_EXHAUSTED", told, now)


def _observe(db: Reader, out: Reader | None, now: int) -> Observation:
    claims = outbound.claims(out) if out is not None else []
    pending, acks = unfinished(db, out, now, [claim.message_id for claim in claims])
    # A container may invent any number of claims; add those on our own messages that the limited list missed.
    listed = {(claim.message_id, claim.incarnation) for claim in claims}
    claims += [
        ack for ack in acks.values()
        if ack.status is AckStatus.PROCESSING and (ack.message_id, ack.incarnation) not in listed
    ]  # fmt: skip
    # The host cannot delete a dead container's claims; those of finished messages no longer matter.
    open_ids = {message.id for message in pending}
    relevant = tuple(claim for claim in claims if claim.message_id in open_ids)
    charged = messages.charged(db, sorted({claim.message_id for claim in relevant}))
    return Observation(now=now, pending=tuple(pending), acks=acks, claims=relevant, charged=charged)


def _ended_attempts(db: Reader, seen: Observation) -> Sequence[messages.Attempt]:
    """Return the open attempts of containers that are gone and whose claim is gone as well: the claim was released.

    A session has one container at a time, so an attempt of any incarnation but the live one has ended.
    """
    if seen.container is None and seen.occupied:
        return ()  # a container of this session may still run, but its incarnation is unknown
    alive = seen.container.incarnation if seen.container is not None else None
    held = {(claim.message_id, claim.incarnation) for claim in seen.claims}
    return [
        item for item in messages.open_attempts(db)
        if item.incarnation != alive and (item.message_id, item.incarnation) not in held
    ]  # fmt: skip


def _forced(message_id: str, incarnation: str) -> Ack:
    return Ack(message_id, AckStatus.PROCESSING, None, incarnation)
