"""Delivery's two transactions over one session's files: record news and intend sends; then record the outcomes.

Synchronous; the caller holds the session's lock. Nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, TypeGuard

from daemon.config.models import Delivery as DeliveryConfig
from daemon.core.attempt_end import AttemptEnd
from daemon.core.content import is_runner_error
from daemon.core.delivery_plan import (
    OF_CONTAINER,
    Candidate,
    ChannelRules,
    DeadLetterDecision,
    Decision,
    Defer,
    Queue,
    Reason,
    Rules,
    Send,
    plan,
    retry_at,
)
from daemon.core.lifecycle import Observation, Settle, settled
from daemon.core.message_fate import Fate, Verdict, Void, claimed_by
from daemon.core.trace import SpanStart
from daemon.engine.endings import endings
from daemon.engine.fate_steps import Judged, apply_verdict, judge
from daemon.store import deliveries, messages, outbound, questions
from daemon.store.dead_letters import expire
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import change_status
from daemon.store.turn_usage import with_usage
from schema.connect import Reader, Writer
from schema.errors import HostileFileError
from schema.ids import time_of
from schema.questions import from_content, is_question
from schema.rows import Ack, AckStatus, DeliveryState, MessageIn, MessageOut, MessageStatus

_UNSENDABLE: Final = frozenset({Reason.BAD_CONTENT, Reason.UNKNOWN_KIND})
_LARGE: Final = 1024**2  # characters; a batch of new rows is cut short well above this


@dataclass(frozen=True, slots=True)
class Collected:
    """What one poll of a session found and committed. `sends` are intended and must be sent now."""

    sends: tuple[Send, ...] = ()
    dead_lettered: tuple[DeadLetterDecision, ...] = ()
    deferred: tuple[Defer, ...] = ()
    settled: tuple[Settle, ...] = ()
    claimed: tuple[Ack, ...] = ()
    endings: tuple[AttemptEnd, ...] = ()
    more: bool = False
    later: bool = False  # something waits for a known time, or a recurring series must be rearmed
    queued: frozenset[str] = frozenset()  # destinations with rows that wait only for their turn
    verdicts: tuple[Verdict, ...] = ()
    asked: tuple[questions.Asked, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one intended send. Not `sent`: it never began. `sent` without `error`: there is a receipt."""

    send: Send
    sent: bool
    platform_message_id: str | None = None
    error_code: str | None = None
    error: str | None = None
    permanent: bool = False
    retry_after_s: float | None = None
    in_doubt: bool = False  # for a failure: the answer may have arrived
    not_wanted: bool = False  # the channel reports that it does not want it
    begun: SpanStart | None = None
    ended_at: int = 0

    def at(self, begun: SpanStart, ended_at: int) -> Outcome:
        """Return the outcome with its times.

        Draining a backlog calls this for every row, and `dataclasses.replace` takes three times as long.
        """
        return Outcome(
            self.send, self.sent, self.platform_message_id, self.error_code, self.error, self.permanent,
            self.retry_after_s, self.in_doubt, self.not_wanted, begun, ended_at,
        )  # fmt: skip


@dataclass(slots=True)
class HandOver:
    """The outcomes of handing one destination's rows to its channel.

    `dead` are the rows that were given up; None until the outcomes are recorded.
    """

    outcomes: list[Outcome]
    dead: Sequence[DeadLetterDecision] | None = None

    @property
    def lane(self) -> tuple[str, str]:
        """The channel and the place of its rows."""
        address = self.outcomes[0].send.address
        return address.channel_type, address.platform_id


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """What a session's delivery depends on.

    `held`: destinations with a send under way. `take(channel, place)` takes a slot for a send, if one is free. No slot is
    free at the places in `full`; `wait(channel, place)` registers that something waits there. `few`: the most tracked rows
    to read, since no more can be sent. `unconfirmed`: rows whose intent's commit failed but may have reached the file,
    although nothing was sent; `collect` maintains it.
    """

    channels: Mapping[str, ChannelRules]
    config: DeliveryConfig
    max_content_bytes: int
    held: frozenset[str]
    under_way: frozenset[str]
    jitter: float
    take: Callable[[str, str], bool] = lambda _channel, _place: True
    full: frozenset[tuple[str, str]] = frozenset()
    wait: Callable[[str, str], None] = lambda _channel, _place: None
    few: int | None = None
    fate: Fate = field(default_factory=Fate)
    unconfirmed: set[str] = field(default_factory=set[str])


@dataclass(frozen=True, slots=True)
class _Batch:
    candidates: tuple[Candidate, ...]
    held: frozenset[str]
    top_seq: int | None
    file_id: str
    more: bool


def collect(
    files: SessionFiles,
    means: DeliveryContext,
    live: str | None,
    now: int,
    take_fresh: Callable[[Sequence[Send]], Sequence[Outcome]] = lambda _: (),
    own_channels: Collection[str] = (),
) -> Collected:
    """Settle final acks, record claims, plan deliveries and commit all of it with the cursor, in one transaction.

    `take_fresh` may hand new rows for `own_channels`, which are their own receivers, over before the commit. It returns their outcomes; those
    with a receipt are committed as delivered and never intended. If the commit fails or a crash prevents it, the rows are
    new again, and the channel recognises them.

    Raise ReadRaceError, FileBusyError, HostileFileError, ReadDeadlineError or StorageError; then nothing has changed.
    """
    if means.unconfirmed:
        _revert_unconfirmed(files, means.unconfirmed)
    with files.inbound() as db, db.looking():
        with files.outbound() as out:
            pending, acks = unfinished(db, out, now)
            batch = _read_batch(db, out, means, now)
        judged = judge(db, pending, acks, means.fate, now)
        acks = judged.acks
        settles = settled(Observation(now=now, pending=judged.pending, acks=acks))
        claims = _new_claims(db, judged.pending, acks, live)
        batch, cut = _without_cut(batch, judged)
        planned = plan(batch.candidates, _rules(db, batch, means, now)) if batch.candidates else []
        planned = _with_slots(planned, means.take)
        for channel, place in {(d.address.channel_type, d.address.platform_id) for d in planned if _blocked(d)}:
            means.wait(channel, place)
        # A row that is already queued and stays so needs no write.
        decisions = [d for d in planned if not (isinstance(d, Queue) and d.candidate.state is not None)]
        _check_dead(db, decisions, means.config.max_dead_letters)
        taken = with_receipt(take_fresh(_fresh_sends(decisions, own_channels)))
        queued = frozenset(
            d.address.key for d in planned if isinstance(d, Queue) and d.not_before is None and not d.blocked
        )
        if not decisions and not settles and not claims and not judged.verdicts and batch.top_seq is None:
            return Collected(more=batch.more, queued=queued, later=judged.suspect)
        # Not rows that were intended before: an earlier send of theirs may have begun, so they stay in doubt.
        means.unconfirmed.update(
            d.candidate.row.id
            for d in decisions
            if isinstance(d, Send)
            and d.candidate.state is not DeliveryState.INTENDED
            and d.candidate.row.id not in taken
        )
        with db.transaction():
            for verdict in judged.verdicts:
                apply_verdict(db, verdict, means.fate, now)
            for action in settles:
                settle(db, action, now)
            for claim in claims:
                messages.note_claim(db, claim.message_id, live or "", claim.changed_at or now, now)
            asked = [
                one
                for decision in decisions
                if decision.candidate.row.id not in taken and (one := _commit(db, decision, means, now)) is not None
            ]
            _record_taken(db, taken, now)
            for row_id in cut:
                deliveries.not_wanted(db, row_id, now)
            if batch.top_seq is not None:
                deliveries.advance(db, batch.top_seq, batch.file_id)
            ended = endings(db, pending, acks, settles, now)
    means.unconfirmed.clear()
    return Collected(
        sends=tuple(item for item in decisions if isinstance(item, Send)),
        dead_lettered=tuple(item for item in decisions if isinstance(item, DeadLetterDecision)),
        deferred=tuple(item for item in decisions if isinstance(item, Defer)),
        settled=tuple(settles),
        claimed=tuple(claims),
        endings=ended,
        more=batch.more,
        later=_waits(decisions) or _ends_occurrence(pending, settles) or judged.suspect or bool(judged.verdicts),
        queued=queued,
        verdicts=judged.verdicts,
        asked=tuple(asked),
    )


def _fresh_sends(decisions: Sequence[Decision], channels: Collection[str]) -> list[Send]:
    """Return the sends to the destinations whose sends are all fresh: the order within a destination must hold."""
    sends = [one for one in decisions if isinstance(one, Send) and one.address.channel_type in channels]
    others = {one.address.key for one in sends if not _is_fresh(one)}
    return [one for one in sends if one.address.key not in others]


def _is_fresh(send: Send) -> bool:
    """Return whether a row may be delivered and recorded in one commit, without an intent.

    A question must be recorded before anybody can answer it. An error answer must be intended, because after a crash its
    message may be tried again, and then an error answer without any record would be dropped.
    """
    row = send.candidate.row
    return send.candidate.state is None and not is_question(row.kind, row.content) and not is_runner_error(row.content)


def with_receipt(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """Return the outcomes with a receipt, by row id."""
    return {
        one.send.candidate.row.id: one
        for one in outcomes
        if one.sent and one.error is None and not one.not_wanted
    }  # fmt: skip


def _record_taken(db: Writer, taken: Mapping[str, Outcome], now: int) -> None:
    last = {outcome.send.address.key: row_id for row_id, outcome in taken.items()}
    receipts = [(row_id, outcome.platform_message_id) for row_id, outcome in taken.items()]
    deliveries.delivered(db, receipts, now, tracked=False)
    for destination, row_id in last.items():
        deliveries.set_aside(db, destination, row_id, now)


def _revert_unconfirmed(files: SessionFiles, unconfirmed: set[str]) -> None:
    """Put the rows of a failed commit back into their queue: the commit failed before any send.

    A commit may report an error after it has reached the file (if syncing the folder fails once the journal is deleted).
    """
    with files.inbound() as db, db.transaction():
        for row_id in unconfirmed:
            deliveries.revert_intent(db, row_id)
    unconfirmed.clear()


def _without_cut(batch: _Batch, judged: Judged) -> tuple[_Batch, list[str]]:
    """Return the batch without the error answers of void acks, and their ids: those messages are tried again."""
    void = {verdict.message_id for verdict in judged.verdicts if isinstance(verdict, Void)}
    void |= {message.id for message in judged.pending if message.void_ack is not None}
    cut = [
        one.row.id for one in batch.candidates
        if one.state is None and one.row.in_reply_to in void and is_runner_error(one.row.content)
    ]  # fmt: skip
    if not cut:
        return batch, []
    kept = tuple(one for one in batch.candidates if one.row.id not in cut)
    return replace(batch, candidates=kept), cut


def _blocked(item: Decision) -> TypeGuard[Queue]:
    return isinstance(item, Queue) and item.blocked


def _with_slots(planned: Sequence[Decision], take: Callable[[str, str], bool]) -> list[Decision]:
    """Take a slot for each destination with a send. If there is none, its rows stay queued and are not intended."""
    has: dict[str, bool] = {}
    found: list[Decision] = []
    for item in planned:
        if isinstance(item, Send):
            key = item.address.key
            if key not in has:
                has[key] = take(item.address.channel_type, item.address.platform_id)
            found.append(item if has[key] else Queue(item.candidate, item.address, None, blocked=True))
        elif isinstance(item, Queue) and has.get(item.address.key) is False:
            found.append(replace(item, blocked=True))
        else:
            found.append(item)
    return found


def unfinished(
    db: Reader, out: Reader | None, now: int, also: Sequence[str] = ()
) -> tuple[list[MessageIn], dict[str, Ack]]:
    """Return the unfinished messages (those of `also` in any case) and the container's acks for them.

    If the backlog exceeds the window, also include the messages that the container acked last: it claims the context next
    to its trigger, which may be anywhere in the backlog.
    """
    pending = messages.pending(db, now)
    wanted = dict.fromkeys(also)
    if out is not None and len(pending) == messages.WINDOW:
        wanted.update(dict.fromkeys(outbound.recently_acked(out, messages.WINDOW)))
    have = {message.id for message in pending}
    pending += messages.pending_of(db, [message_id for message_id in wanted if message_id not in have])
    if out is None:
        return pending, {}
    acks = outbound.with_notes(out, outbound.acks_for(out, [message.id for message in pending]))
    return pending, with_usage(out, acks)


def _check_dead(db: Reader, decisions: Sequence[Decision], limit: int) -> None:
    """Raise HostileFileError when the container has written too many answers that cannot be sent.

    Each of them adds rows to the host's file, which a container must not fill. Answers that a channel refuses are not the
    session's fault and never quarantine it.
    """
    refused = any(isinstance(item, DeadLetterDecision) and item.reason in OF_CONTAINER for item in decisions)
    if refused and deliveries.too_many_dead(db, limit, OF_CONTAINER):
        raise HostileFileError(
            f"more than {limit} answers of this session cannot be delivered (delivery.max_dead_letters); `clawbus dead list`"
        )


def settle(db: Writer, action: Settle, now: int) -> None:
    """Turn a final ack into the message's status, and end its attempt."""
    done = action.status is AckStatus.COMPLETED
    target = MessageStatus.COMPLETED if done else MessageStatus.FAILED
    detail = settled_detail(action)
    change_status(db, action.message_id, target, target.value, now, incarnation=action.incarnation, detail=detail)
    if action.incarnation is not None:
        messages.end_attempt(db, action.message_id, action.incarnation, now, target.value)
    else:
        messages.end_open_attempts(db, action.message_id, now, target.value)


def settled_detail(action: Settle) -> dict[str, object] | None:
    """Return the history detail for a turn's end: what it used; for a failure, the reason that the runner noted."""
    note = action.note
    if action.status is AckStatus.COMPLETED:
        told: dict[str, object] = {} if note is None else {"note": note.code, "reason": note.message}
        if action.usage is not None:
            told |= {name: value for name, value in asdict(action.usage).items() if value is not None}
        return told or None
    if note is None:
        return {"code": "AGENT_FAILED", "reason": "the agent answered with an error"}
    return {"code": "AGENT_FAILED", "error_code": note.code, "reason": note.message}


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
    for letter_id in deliveries.open_dead_beyond(db, limit, OF_CONTAINER):
        expire(db, letter_id, now, "delivery.max_dead_letters")


def _failed(db: Writer, outcome: Outcome, means: DeliveryContext, now: int) -> DeadLetterDecision | None:
    send = outcome.send
    code, error = outcome.error_code or "DELIVERY_TRANSIENT", outcome.error or ""
    state = deliveries.state_of(db, send.candidate.row.id)
    if state != "intended":  # recorded already, or an operator has dropped it meanwhile
        return DeadLetterDecision(send.candidate, code, error, send.address) if state == "dead" else None
    attempts = send.candidate.attempts + 1
    first_at = send.candidate.first_at or now
    if outcome.permanent or now - first_at > means.config.retry_for_s * 1000:
        text = error if outcome.permanent else f"gave up after {attempts} attempts: {error}"
        deliveries.make_dead_letter(db, send.candidate.row, now, code, text, tell_agent=not send.candidate.from_host)
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


def _read_batch(db: Reader, out: Reader | None, means: DeliveryContext, now: int) -> _Batch:
    """Read the rows to plan. Read new ones only if no tracked row was left out, so that the order is kept."""
    batch = means.config.batch
    limit = batch if means.few is None else min(batch, means.few)
    held = means.held | deliveries.retrying_destinations(db, now)
    every_due = deliveries.due(db, now, held, limit, full=means.full)
    for channel, place in means.full:
        if deliveries.due(db, now, held, 1, only=(channel, place)):
            means.wait(channel, place)
    due = [row for row in every_due if row.message_out_id not in means.under_way]
    host = deliveries.host_rows(db, [row.message_out_id for row in due if row.from_host])
    agent, due, left_out = _agent_rows(out, due)
    new: list[MessageOut] = []
    if out is not None and len(every_due) < limit and not left_out:
        new = outbound.rows_after(out, deliveries.cursor(db, out.file_id), batch)
    room = means.config.max_open_answers
    if new:  # rows beyond the limit wait in the container's file
        room = max(0, room - deliveries.count_open(db))
    held_back, new = len(new) > room, new[:room]
    known = deliveries.known(db, [row.id for row in new])
    tracked = [(row, _row_of(row, host if row.from_host else agent)) for row in due]
    fresh = _first_of_each(new, known)
    asked = {row.in_reply_to for row in (*fresh, *(found for _, found in tracked if found)) if row.in_reply_to}
    origins = deliveries.origins(db, sorted(asked))
    return _Batch(
        candidates=(
            *(_tracked(row, found, origins) for row, found in tracked),
            *(_fresh(row, now, origins) for row in fresh),
        ),
        held=held,
        top_seq=new[-1].seq if new else None,
        file_id=out.file_id if out is not None else "",
        more=left_out
        or len(every_due) == limit
        or len(new) == batch
        or (sum(len(row.content) for row in new) > _LARGE and not held_back),
    )


def _agent_rows(
    out: Reader | None, due: list[deliveries.Tracked]
) -> tuple[dict[str, MessageOut], list[deliveries.Tracked], bool]:
    """Return the container's rows for the tracked ones, the leading part of `due` that was read, and whether more is left."""
    ours = [row.message_out_id for row in due if not row.from_host]
    if out is None:
        return {}, due, False
    found, looked = outbound.rows_by_id(out, ours)
    if looked == len(ours):
        return found, due, False
    end = next(index for index, row in enumerate(due) if row.message_out_id == ours[looked])
    return found, due[:end], True


def _first_of_each(new: Sequence[MessageOut], known: frozenset[str]) -> list[MessageOut]:
    """Return the rows whose id is new: an id that the container uses again is the same message and is not sent again.

    This also holds within one batch: a file without the contract's keys may hold an id twice.
    """
    first: dict[str, MessageOut] = {}
    for row in new:
        if row.id not in known:
            first.setdefault(row.id, row)
    return list(first.values())


_Origins = Mapping[str, deliveries.Origin]


def _row_of(row: deliveries.Tracked, rows: Mapping[str, MessageOut]) -> MessageOut | None:
    """Return the row with the seq that was recorded first: the container may have rewritten the row since."""
    found = rows.get(row.message_out_id)
    return found if found is None or found.seq == row.seq else replace(found, seq=row.seq)


def _tracked(row: deliveries.Tracked, found: MessageOut | None, origins: _Origins) -> Candidate:
    origin = origins.get(found.in_reply_to) if found is not None and found.in_reply_to is not None else None
    return Candidate(
        row=found or MessageOut(row.message_out_id, row.seq, "", "", ""),
        from_host=row.from_host,
        state=row.state,
        attempts=row.attempts,
        first_at=row.first_at,
        doubts=row.doubts,
        origin=origin.address if origin is not None else None,
        gone=found is None,
        cause=origin.cause if origin is not None else None,
    )


def _fresh(row: MessageOut, now: int, origins: _Origins) -> Candidate:
    origin = origins.get(row.in_reply_to) if row.in_reply_to is not None else None
    return Candidate(
        row=row,
        from_host=False,
        state=None,
        first_at=now,
        origin=origin.address if origin is not None else None,
        cause=origin.cause if origin is not None else None,
    )


def _rules(db: Reader, batch: _Batch, means: DeliveryContext, now: int) -> Rules:
    return Rules(
        now=now,
        routing=deliveries.routing(db),
        allowed=deliveries.allowed_places(db),
        channels=means.channels,
        held=batch.held,
        max_content_bytes=means.max_content_bytes,
        full=means.full,
        probing=deliveries.probing_destinations(db),
        scheduled_room=_scheduled_room(db, batch, means, now),
        max_ahead_ms=int(means.config.max_ahead_s * 1000),
        question_room=_question_room(db, batch),
    )


def _scheduled_room(db: Reader, batch: _Batch, means: DeliveryContext, now: int) -> int:
    """Return how many more scheduled rows are allowed. They are counted only if a new row asks for a delivery time."""
    limit = means.config.max_scheduled_answers
    asked = any(one.state is None and (one.row.deliver_after or 0) > now for one in batch.candidates)
    return limit - deliveries.count_scheduled(db, now) if asked else limit


def _question_room(db: Reader, batch: _Batch) -> int:
    """Return how many more questions may be open. They are counted only if a new row asks one."""
    asks = any(one.state is None and is_question(one.row.kind, one.row.content) for one in batch.candidates)
    return questions.MAX_OPEN - questions.count_open(db) if asks else questions.MAX_OPEN


def _new_claims(db: Reader, pending: Sequence[MessageIn], acks: Mapping[str, Ack], live: str | None) -> list[Ack]:
    """Return the claims of the live incarnation that are not recorded yet."""
    if live is None:
        return []
    ids = {message.id for message in pending}
    working = [
        ack for ack in acks.values()
        if ack.status is AckStatus.PROCESSING and ack.message_id in ids and claimed_by(ack, live, time_of(live))
    ]  # fmt: skip
    if not working:
        return []
    noted = messages.noted(db, [ack.message_id for ack in working], live)
    return [ack for ack in working if ack.message_id not in noted]


def _commit(db: Writer, decision: Decision, means: DeliveryContext, now: int) -> questions.Asked | None:
    """Write one decision. Return the question that its row asks, if that is new."""
    candidate, asked = decision.candidate, None
    if candidate.state is None:
        _track_new(db, decision, now)
        asked = _note_question(db, decision, now)
    elif isinstance(decision, Send):
        deliveries.intend(db, candidate.row.id, decision.address.key)
        if decision.in_doubt:
            traits = means.channels.get(decision.address.channel_type)
            known = traits is not None and traits.deduplicates
            deliveries.resend(db, candidate.row.id, now, candidate.attempts + 1, deduplicates=known)
    if isinstance(decision, DeadLetterDecision):
        deliveries.make_dead_letter(
            db, candidate.row, now, decision.reason, decision.error, tell_agent=not candidate.from_host
        )
        _tell_of_unsendable(db, decision, now)
    elif isinstance(decision, Defer):
        not_before = retry_at(
            now, candidate.attempts + 1, base_s=means.config.retry_base_s, max_s=means.config.retry_max_s,
            retry_after_s=None, jitter=means.jitter,
        )  # fmt: skip
        if now - candidate.first_at > means.config.retry_for_s * 1000:
            deliveries.make_dead_letter(
                db, candidate.row, now, decision.reason, decision.error, tell_agent=not candidate.from_host
            )
        else:
            deliveries.intend(db, candidate.row.id, decision.address.key)
            deliveries.retry(db, candidate.row.id, now, not_before, decision.reason, decision.error)
    return asked


def _note_question(db: Writer, decision: Decision, now: int) -> questions.Asked | None:
    """Record the question that a new row asks, also when no channel can show it: an operator may answer it."""
    row = decision.candidate.row
    if not is_question(row.kind, row.content):
        return None
    if isinstance(decision, DeadLetterDecision) and decision.reason != Reason.NO_ROUTE:
        return None
    return questions.note_asked(db, row, from_content(row.id, row.content), decision.address, now)


def _tell_of_unsendable(db: Writer, decision: DeadLetterDecision, now: int) -> None:
    """Inform the sender that an answer cannot be sent. The message counts as completed, so nothing else informs it."""
    candidate = decision.candidate
    answered = candidate.row.in_reply_to
    if decision.reason not in _UNSENDABLE or candidate.from_host or answered is None:
        return
    message = messages.find(db, answered)
    address = messages.address_of(message) if message is not None else None
    if message is not None and address is not None:
        deliveries.tell_sender(db, message, address, decision.reason, "The answer to this message cannot be sent.", now)


def _waits(decisions: Sequence[Decision]) -> bool:
    return any(isinstance(item, Defer) or (isinstance(item, Queue) and item.not_before) for item in decisions)


def _ends_occurrence(pending: Sequence[MessageIn], settles: Sequence[Settle]) -> bool:
    finished = {action.message_id for action in settles}
    return any(message.recurrence is not None and message.id in finished for message in pending)


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
