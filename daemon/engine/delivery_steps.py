"""One poll of a session: read what its container wrote, decide, and commit acks, claims, intents and the cursor together.

Synchronous; the caller holds the session's lock. Nothing is sent here; `outcome_steps.py` records what came of the sends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import TypeGuard

from daemon.core.attempt_end import AttemptEnd
from daemon.core.clock import Clock
from daemon.core.content import is_runner_error
from daemon.core.delivery_plan import (
    OF_CONTAINER,
    CarryOut,
    DeadLetterDecision,
    Decision,
    Defer,
    Queue,
    Send,
    plan,
)
from daemon.core.lifecycle import Observation, Settle, settled
from daemon.core.message_fate import Verdict, claimed_by
from daemon.engine.decision_steps import write_decision, write_receipts
from daemon.engine.delivery_batch import Batch, read_batch, read_rules, with_sent_files, without_cut, without_repeats
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.endings import endings
from daemon.engine.fate_steps import Judged, apply_verdict, judge
from daemon.engine.hand_over import Outcome, with_receipt
from daemon.engine.settle_steps import Claims, settle, turns_begun, unfinished
from daemon.store import dead_letters, deliveries, messages, questions
from daemon.store.session_files import SessionFiles
from schema.errors import HostileFileError
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.ids import time_of
from schema.questions import is_question
from schema.rows import Ack, AckStatus, Address, DeliveryState, MessageIn


@frozen
class Collected:
    """What one poll of a session found and committed. `sends` are intended and must be sent now. `at` is when, epoch ms."""

    at: int
    sends: tuple[Send, ...] = ()
    dead_lettered: tuple[DeadLetterDecision, ...] = ()
    deferred: tuple[Defer, ...] = ()
    settled: tuple[Settle, ...] = ()
    claimed: tuple[Ack, ...] = ()
    begun: int = 0  # turns that this poll saw first, running or over
    endings: tuple[AttemptEnd, ...] = ()
    more: bool = False
    later: bool = False  # something waits for a known time, or a recurring series must be rearmed
    queued: frozenset[str] = frozenset()  # destinations with rows that wait only for their turn
    verdicts: tuple[Verdict, ...] = ()
    asked: tuple[questions.Asked, ...] = ()
    # The id of each claimed trigger -> the place that it came from.
    places: Mapping[str, Address | None] = field(default_factory=dict[str, Address | None])


@frozen
class _Findings:
    """What a session's files show, and what was decided about it. Nothing of it is written yet.

    `now`: the time for which it was decided, epoch ms.
    """

    now: int
    pending: list[MessageIn]
    judged: Judged
    settles: list[Settle]
    claims: list[Ack]
    begun: int
    batch: Batch
    cut: list[str]  # error answers that are never sent: of void acks, and of a schedule that keeps failing
    planned: list[Decision]

    @property
    def decisions(self) -> list[Decision]:
        """The decisions to write. A row that stays queued needs no write."""
        return [one for one in self.planned if not (isinstance(one, Queue) and one.candidate.state is not None)]

    @property
    def later(self) -> bool:
        """Whether something waits for a known time, or a recurring series must be rearmed."""
        judged = self.judged
        return (
            _waits(self.decisions)
            or _ends_occurrence(self.pending, self.settles)
            or judged.suspect
            or bool(judged.verdicts)
        )

    @property
    def queued(self) -> frozenset[str]:
        """The destinations with rows that wait only for their turn."""
        return frozenset(
            one.address.key
            for one in self.planned
            if isinstance(one, Queue) and one.not_before is None and not one.blocked
        )


def collect(
    files: SessionFiles,
    means: DeliveryContext,
    live: str | None,
    clock: Clock,
    take_fresh: Callable[[Sequence[Send]], Sequence[Outcome]] = lambda _: (),
    own_channels: Collection[str] = (),
) -> Collected:
    """Settle final acks, record claims, plan deliveries and commit all of it with the cursor, in one transaction.

    `take_fresh` may hand new rows for `own_channels`, which are their own receivers, over before the commit. It returns
    their outcomes; those with a receipt are committed as delivered and never intended. If the commit fails or a crash
    prevents it, the rows are new again, and the channel recognises them.

    The clock is read once, after outbound.db was: so nothing that the container did is dated after what the host did about it.

    Raise ReadRaceError, FileBusyError, HostileFileError, ReadDeadlineError or StorageError; then nothing has changed.
    """
    if means.unconfirmed:
        _revert_unconfirmed(files, means.unconfirmed)
    with files.inbound() as db, db.looking():
        found = _examine(db, files, means, live, clock)
        now, decisions, judged = found.now, found.decisions, found.judged
        _check_dead(db, decisions, means.config.max_dead_letters)
        taken = with_receipt(take_fresh(_fresh_sends(decisions, own_channels)))
        if not (decisions or found.settles or found.claims or judged.verdicts) and found.batch.top_seq is None:
            return Collected(now, more=found.batch.more, queued=found.queued, later=judged.suspect)
        means.unconfirmed.update(_newly_intended(decisions, taken))
        with db.transaction():
            asked = _write(db, found, decisions, taken, means, live, now)
            ended = endings(db, found.pending, judged.acks, found.settles, now)
    means.unconfirmed.clear()
    return Collected(
        now,
        sends=tuple(item for item in decisions if isinstance(item, Send)),
        dead_lettered=tuple(item for item in decisions if isinstance(item, DeadLetterDecision)),
        deferred=tuple(item for item in decisions if isinstance(item, Defer)),
        settled=tuple(found.settles),
        claimed=tuple(found.claims),
        begun=found.begun,
        endings=ended,
        more=found.batch.more,
        later=found.later,
        queued=found.queued,
        verdicts=judged.verdicts,
        asked=tuple(asked),
        places=_places(found),
    )


def _places(found: _Findings) -> Mapping[str, Address | None]:
    """Return where the triggers among the claimed messages came from."""
    claimed = {claim.message_id for claim in found.claims}
    return {one.id: messages.address_of(one) for one in found.pending if one.id in claimed and one.trigger}


def _examine(db: Reader, files: SessionFiles, means: DeliveryContext, live: str | None, clock: Clock) -> _Findings:
    """Read both files and decide: judge the acks, plan the rows, take the slots for sends."""
    with files.outbound() as out:
        now = clock.now_ms()
        pending, acks = unfinished(db, out, now)
        batch = read_batch(db, out, means, now)
    judged = judge(db, pending, acks, means.fate, now)
    settles = settled(Observation(now=now, pending=judged.pending, acks=judged.acks))
    claims, joins = _new_claims(db, judged.pending, judged.acks, live)
    begun = turns_begun(db, settles, judged.acks, live, Claims(known=joins, new=bool(claims)))
    batch, cut = without_cut(batch, judged)
    batch, repeated = without_repeats(db, batch)
    batch = with_sent_files(db, batch, files.sent, means.intake)
    planned = plan(batch.candidates, read_rules(db, batch, means, now)) if batch.candidates else []
    planned = _with_slots(planned, means.take)
    for channel, place in {(d.address.channel_type, d.address.platform_id) for d in planned if _blocked(d)}:
        means.wait(channel, place)
    return _Findings(now, pending, judged, settles, claims, begun, batch, [*cut, *repeated], planned)


def _newly_intended(decisions: Sequence[Decision], taken: Collection[str]) -> Iterator[str]:
    """Return the rows whose first intent the next commit writes.

    A row that was intended before is not among them: an earlier send of it may have begun, so it stays in doubt.
    """
    for one in decisions:
        row_id = one.candidate.row.id
        if isinstance(one, Send) and one.candidate.state is not DeliveryState.INTENDED and row_id not in taken:
            yield row_id


def _write(
    db: Writer,
    found: _Findings,
    decisions: Sequence[Decision],
    taken: Mapping[str, Outcome],
    means: DeliveryContext,
    live: str | None,
    now: int,
) -> list[questions.Asked]:
    """Write all that was decided, in the caller's transaction. Return the questions that are new."""
    for verdict in found.judged.verdicts:
        apply_verdict(db, verdict, means.fate, now)
    for action in found.settles:
        settle(db, action, now)
    for claim in found.claims:
        messages.note_claim(db, claim.message_id, live or "", claim.changed_at or now, now)
    asked = [
        question
        for decision in decisions
        if decision.candidate.row.id not in taken and (question := write_decision(db, decision, means, now)) is not None
    ]
    write_receipts(db, taken, now)
    for row_id in found.cut:
        deliveries.not_wanted(db, row_id, now)
    if found.batch.top_seq is not None:
        deliveries.advance(db, found.batch.top_seq, found.batch.file_id)
    return asked


def _fresh_sends(decisions: Sequence[Decision], channels: Collection[str]) -> list[Send]:
    """Return the sends to the destinations whose sends are all fresh: the order within a destination must hold."""
    sends = [one for one in decisions if isinstance(one, Send) and one.address.channel_type in channels]
    others = {one.address.key for one in sends if not _is_fresh(one)}
    return [one for one in sends if one.address.key not in others]


def _is_fresh(send: Send) -> bool:
    """Return whether a row may be delivered and recorded in one commit, without an intent.

    A question must be recorded before anyone can answer it. An error answer must be intended, because after a crash its
    message may be tried again, and then an error answer without any record would be dropped.
    """
    row = send.candidate.row
    return send.candidate.state is None and not is_question(row.kind, row.content) and not is_runner_error(row.content)


def _revert_unconfirmed(files: SessionFiles, unconfirmed: set[str]) -> None:
    """Put the rows of a failed commit back into their queue: the commit failed before any send.

    A commit may report an error after it has reached the file (if syncing the folder fails once the journal is deleted).
    """
    with files.inbound() as db, db.transaction():
        for row_id in unconfirmed:
            deliveries.revert_intent(db, row_id)
    unconfirmed.clear()


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


def _check_dead(db: Reader, decisions: Sequence[Decision], limit: int) -> None:
    """Raise HostileFileError when the container has written too many answers that cannot be sent.

    Each of them adds rows to the host's file, which a container must not fill. Answers that a channel refuses are not the
    session's fault and never quarantine it.
    """
    refused = any(isinstance(item, DeadLetterDecision) and item.reason in OF_CONTAINER for item in decisions)
    if refused and dead_letters.too_many_dead(db, limit, OF_CONTAINER):
        raise HostileFileError(
            f"more than {limit} answers of this session cannot be delivered (delivery.max_dead_letters); `clawbus dead list`"
        )


def _new_claims(
    db: Reader, pending: Sequence[MessageIn], acks: Mapping[str, Ack], live: str | None
) -> tuple[list[Ack], bool]:
    """Return the claims of the live incarnation that are not recorded yet, and whether it has others that are."""
    if live is None:
        return [], False
    ids = {message.id for message in pending}
    working = [
        ack for ack in acks.values()
        if ack.status is AckStatus.PROCESSING and ack.message_id in ids and claimed_by(ack, live, time_of(live))
    ]  # fmt: skip
    if not working:
        return [], False
    noted = messages.noted(db, [ack.message_id for ack in working], live)
    return [ack for ack in working if ack.message_id not in noted], bool(noted)


def _waits(decisions: Sequence[Decision]) -> bool:
    return any(
        isinstance(item, Defer | CarryOut) or (isinstance(item, Queue) and item.not_before) for item in decisions
    )


def _ends_occurrence(pending: Sequence[MessageIn], settles: Sequence[Settle]) -> bool:
    finished = {action.message_id for action in settles}
    return any(message.recurrence is not None and message.id in finished for message in pending)
