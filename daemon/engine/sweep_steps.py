"""The sweep's transactions over one session's files: read, decide, and write the decisions to inbound.db.

Synchronous; the caller holds the session's lock. No container is started or stopped here: those actions are returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace

from daemon.config.agents import Agent
from daemon.config.models import Config
from daemon.config.policies import agent_policy
from daemon.core.attempt_end import AttemptEnd
from daemon.core.lifecycle import (
    Action,
    CancelledTurn,
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
)
from daemon.core.message_fate import EXPIRY_GRACE, Expire, Fate, Verdict, held_from
from daemon.core.session_key import SessionKey
from daemon.engine import recurrence, schedule_steps
from daemon.engine.cancelled_turns import STOP_LOOK, CancelledTurns, cancelled_turns, note_stopped
from daemon.engine.endings import endings
from daemon.engine.fate_steps import apply_verdict, expired, judge, judge_suspects
from daemon.engine.settle_steps import Claims, settle, turns_begun, unfinished
from daemon.runtimes import output_log
from daemon.runtimes.spec import STDERR_LOG
from daemon.store import deliveries, host_messages, messages, outbound, put_off, questions, schedules
from daemon.store.backlog import count_dead
from daemon.store.draining import is_draining, note_draining
from daemon.store.folder_use import FolderUse, SessionLimits, check_folder
from daemon.store.schedules import Scheduled
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import change_status, schedule_retry
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.rows import AckStatus, MessageIn, MessageStatus, ToolInFlight


@frozen
class Swept:
    """What one sweep of a session did, and what is left to do. Times are epoch milliseconds.

    `next_at`: when the earliest known work is due; 0 for now, None for none. `due`: number of messages that wait for an
    agent. `dead`: number of open dead letters. `tool`: the tool in flight that the container declared. `schedules`: 1 if the
    session has any schedule, else 0; `schedule_at`: when the next one is due. `fired`: the messages that schedules sent now;
    `failing`: the schedules that were paused now. `decided`: the questions that ended without an answer. `stop_at`: when to
    check a cancelled turn again; `stopped`: the cancelled turns that have stopped. `begun`: the number of turns that this
    sweep learned of after their end.
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
    failing: tuple[schedules.ScheduleRow, ...] = ()
    home_use: FolderUse | None = field(default=None, compare=False)
    decided: tuple[questions.Asked, ...] = ()
    stop_at: int | None = None
    stopped: tuple[CancelledTurn, ...] = ()
    begun: int = 0


@frozen
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
    """Read the files, decide and apply. Raise the errors of opening the files; then nothing has changed.

    `last_tool` is the tool at the last sweep: a different one is progress. `members` returns the container's processes. When
    no container is running, recover a leftover journal first: there was a confirmed exit, or never a container.
    """
    use = check_folder(files.folder.outbox, settings.limits.out, members() if members is not None else None)
    home_use = check_folder(files.folder.home, settings.limits.home)
    if container is not None:
        with suppress(OSError):  # failing to shorten the log must not block the sweep
            output_log.cut(files.folder.logs / STDERR_LOG)
    recovered = container is None and not occupied and files.has_journal() and files.recover()
    with files.inbound() as db, db.looking():
        put_off.bring_forward(db, now)
        fired = schedule_steps.sweep(db, settings.configured, now, settings.policy.schedule_failures, settings.fate)
        found = _read(db, files, container, now, settings, occupied=occupied, floor=floor, last_tool=last_tool)
        actions = decide(found.seen, settings.policy)
        settles = [one for one in actions if isinstance(one, Settle)]
        live = container.incarnation if container is not None else None
        begun = turns_begun(db, settles, found.seen.acks, live, Claims(known=bool(found.seen.noted)))
        rearmed, closed = _write(db, found, actions, settings)
        swept = _outcome(db, found, actions, now)
    if (swept.due or found.void or closed or found.late) and container is not None:
        files.ring()  # a message may have come due by the clock alone, without a commit that would notify the runner
    return replace(
        swept,
        recovered=recovered,
        rearmed=tuple(rearmed),
        decided=tuple(closed),
        fired=fired.messages,
        failing=fired.paused,
        begun=begun,
        use=use,
        home_use=home_use,
    )


@frozen
class _Found:
    """What a session's files show at a sweep, and the first verdicts about its messages. Nothing of this is written yet.

    `seen`: the input of the other decisions. `missed`: messages of a series that expired and must be rearmed. `news`:
    whether delivery has rows to record. `stopping`: the turns of cancelled messages.
    """

    seen: Observation
    judged: Sequence[Verdict]
    void: Sequence[Verdict]
    too_late: Sequence[Expire]
    missed: Sequence[MessageIn]
    news: bool
    stopping: CancelledTurns

    @property
    def late(self) -> bool:
        """Whether an agent still works on a message that has expired."""
        return any(item.worked_on_by is not None for item in self.too_late)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts, in the order in which they are written."""
        return (*self.judged, *self.void, *self.too_late)


def _read(
    db: Reader,
    files: SessionFiles,
    container: Container | None,
    now: int,
    settings: Settings,
    *,
    occupied: bool,
    floor: int,
    last_tool: ToolInFlight | None,
) -> _Found:
    stopping = CancelledTurns()
    with files.outbound() as out:
        raw = observe(db, out, now)
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
    too_late = [] if settings.fate.doubted else expired(judged.pending, acks, raw.charged, now, alive=alive)
    over = {item.message_id for item in too_late}
    seen = replace(
        raw,
        pending=tuple(message for message in judged.pending if message.id not in over),
        acks=acks,
        container=container,
        occupied=occupied,
        evidence_floor=floor,
        excused=questions.excused(db, [claim.message_id for claim in raw.claims], now),
        cancelled=stopping.going_on,
    )
    missed = [message for message in judged.pending if message.id in over and message.recurrence is not None]
    return _Found(seen, judged.verdicts, void, too_late, missed, news, stopping)


def _write(
    db: Writer, found: _Found, actions: Sequence[Action], settings: Settings
) -> tuple[list[MessageIn], list[questions.Asked]]:
    """Write all that was decided, in one transaction; none if nothing changes. Return rearmed messages and closed questions."""
    seen, now = found.seen, found.seen.now
    stale = _ended_attempts(db, seen)
    doubted = settings.fate.doubted
    to_close = questions.to_close(db, now, doubted=doubted)
    changes = found.verdicts or to_close or any(not isinstance(one, Wake | Stop) for one in actions)
    if not (messages.to_rearm(db, 1) or stale or changes or found.stopping.over):
        return [], []
    with db.transaction():
        _apply_all(db, seen, found.verdicts, actions, settings.fate)
        for attempt in stale:
            messages.end_attempt(db, attempt.message_id, attempt.incarnation, now, "released")
        for turn in found.stopping.over:
            note_stopped(db, turn, seen.container.incarnation if seen.container else None, now)
        closed = questions.close_overdue(db, now, doubted=doubted)  # after the messages have their statuses
        # After the loops above, so that a series whose occurrence was just settled is rearmed in this transaction.
        rearmed = recurrence.rearm(db, [*found.missed, *messages.to_rearm(db)], now, settings.timezone)
    return rearmed, closed


def _outcome(db: Reader, found: _Found, actions: Sequence[Action], now: int) -> Swept:
    """Return the decisions, and what is left to do after they were written."""
    seen = found.seen
    expiry = messages.next_expiry(db)
    return Swept(
        actions=tuple(actions),
        rearmed=(),
        # An answer that delivery has not recorded yet is work, so its session must not be retired.
        next_at=0 if found.news else next_work(db, now),
        due=messages.count_due(db, now),
        dead=count_dead(db),
        endings=endings(db, seen.pending, seen.acks, actions, now),
        tool=seen.container.tool if seen.container is not None else None,
        verdicts=found.verdicts,
        expires_at=expiry + EXPIRY_GRACE if expiry is not None else None,
        held=held_from(seen.pending, now) is not None,
        schedules=int(schedules.stored(db)),
        schedule_at=schedules.next_at(db),
        stop_at=now + STOP_LOOK if found.stopping.going_on or found.late else None,
        stopped=found.stopping.over,
    )


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


def observe(db: Reader, out: Reader | None, now: int) -> Observation:
    """Return what both files show of unfinished messages: their acks, and the claims of any incarnation."""
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
