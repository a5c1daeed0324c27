"""The engine's events as log lines, under the names that docs/log-events.md lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog

from daemon.core.command_words import two_words
from daemon.core.events import (
    EGRESS_CLIENT_GONE,
    AckVoided,
    AnswerDeadLettered,
    AnswerDeferred,
    AnswerNotWanted,
    AnswersDelivered,
    BudgetUsedUp,
    ContainerAdopted,
    ContainerExited,
    ContainerIdle,
    ContainerSpawned,
    ContainerStuck,
    EgressRequest,
    EventRefused,
    JournalRecovered,
    MessageAccepted,
    MessageClaimed,
    MessageDeadLettered,
    MessageDeferred,
    MessageExpired,
    MessageRequeued,
    MessageRetried,
    MessageSettled,
    QuestionAsked,
    QuestionDecided,
    ScheduleFired,
    SchedulePaused,
    SendFailed,
    SendInDoubt,
    SeriesRearmed,
    SessionEvent,
    SessionQuarantined,
    SpawnFailed,
    Subscriptions,
    SweepFinished,
)
from daemon.core.routing import RefusalReason
from daemon.logs.render import MAX_ITEMS
from schema.instants import to_text

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

# Not the agent's doing: the target, the network, or a secret file.
_TROUBLE_OF_OURS: Final = frozenset(
    {"EGRESS_UPSTREAM", "EGRESS_UPSTREAM_TIMEOUT", "EGRESS_SECRET", "EGRESS_HOST", "EGRESS_BUSY"}
)
_ONE_BY_ONE: Final = 20  # answers delivered in one commit; above it, one line names up to MAX_ITEMS of them


class EngineLog:
    """Built once. Each handler writes the lines of one kind of event."""

    def __init__(self, events: Subscriptions) -> None:
        self._ingress = structlog.get_logger("ingress")
        self._delivery = structlog.get_logger("delivery")
        self._sweep = structlog.get_logger("sweep")
        self._supervisor = structlog.get_logger("supervisor")
        self._quarantine = structlog.get_logger("quarantine")
        self._subscribe_messages(events)
        self._subscribe_answers(events)
        self._subscribe_containers(events)
        events.subscribe(EgressRequest, self._egress)
        events.subscribe(BudgetUsedUp, self._budget_used_up)

    def _budget_used_up(self, event: BudgetUsedUp) -> None:
        structlog.get_logger("budget").warning(
            "budget_used_up", agent=event.agent, spent=event.spent, until=to_text(event.until)
        )

    def _egress(self, event: EgressRequest) -> None:
        if event.unlogged is None:
            return
        log = _of(structlog.get_logger("egress"), event)
        fields: dict[str, Any] = {
            "method": event.method, "target": event.target or None, "status": event.status, "code": event.code,
            "error": event.error or None, "unlogged": event.unlogged or None,
        }  # fmt: skip
        given = {name: value for name, value in fields.items() if value is not None}
        if event.code is None or event.code == EGRESS_CLIENT_GONE:
            log.info(
                "egress_request", route=event.name, bytes_up=event.bytes_up, bytes_down=event.bytes_down,
                duration_ms=event.duration_ms, tokens=(event.usage.tokens_in + event.usage.tokens_out) or None, **given,
            )  # fmt: skip
        elif event.code in _TROUBLE_OF_OURS:
            log.warning("egress_failed", route=event.name, **given)
        else:
            log.warning("egress_refused", route=event.name, **given)

    # --- messages

    def _subscribe_messages(self, events: Subscriptions) -> None:
        events.subscribe(MessageAccepted, self._accepted)
        events.subscribe(EventRefused, self._event_refused)
        events.subscribe(MessageRequeued, self._requeued)
        events.subscribe(MessageClaimed, self._claimed)
        events.subscribe(MessageSettled, self._settled)
        events.subscribe(MessageRetried, self._retried)
        events.subscribe(MessageDeadLettered, self._dead_lettered)
        events.subscribe(MessageDeferred, self._deferred)
        events.subscribe(MessageExpired, self._expired)
        events.subscribe(AckVoided, self._ack_voided)
        events.subscribe(SeriesRearmed, self._rearmed)
        events.subscribe(ScheduleFired, self._fired)
        events.subscribe(SchedulePaused, self._failing)
        events.subscribe(QuestionAsked, self._asked)
        events.subscribe(QuestionDecided, self._decided)

    def _event_refused(self, event: EventRefused) -> None:
        # Messages of a group that concern no agent are normal; a stranger, or a place without a route, is not.
        say = self._ingress.debug if event.reason == RefusalReason.NOT_ENGAGED else self._ingress.info
        say(
            "event_refused", channel=event.channel, place=event.place, sender=event.sender or None,
            agent=event.agent or None, route=event.route or None, reason=event.reason, why=event.why, times=event.times,
        )  # fmt: skip

    def _accepted(self, event: MessageAccepted) -> None:
        if not event.duplicate:
            _of(self._ingress, event).info(
                "message_accepted", message=event.message_id, seq=event.seq, kind=event.kind, channel=event.channel,
                trigger=event.trigger,
            )  # fmt: skip

    def _requeued(self, event: MessageRequeued) -> None:
        _of(self._ingress, event).warning(
            "dead_letter_requeued", message=event.message_id, requeued_as=event.requeued_as, by=event.by,
            reason=event.reason,
        )  # fmt: skip

    def _claimed(self, event: MessageClaimed) -> None:
        log = _of(self._delivery, event)
        log.info("message_claimed", message=event.message_id, incarnation=event.incarnation)

    def _settled(self, event: MessageSettled) -> None:
        log = _of(self._delivery, event)
        name = "message_completed" if event.completed else "message_failed"
        log.info(name, message=event.message_id, incarnation=event.incarnation)

    def _retried(self, event: MessageRetried) -> None:
        _of(self._sweep, event).warning(
            "message_retry_scheduled", message=event.message_id, incarnation=event.incarnation, tries=event.tries,
            exit_code=event.exit_code, wait_ms=event.process_after - event.at,
        )  # fmt: skip

    def _dead_lettered(self, event: MessageDeadLettered) -> None:
        fields = {"tries": event.tries, "exit_code": event.exit_code, "reason": event.reason}
        _of(self._sweep, event).error(
            "message_dead_lettered", message=event.message_id, code=event.code,
            **{name: value for name, value in fields.items() if value is not None},
        )  # fmt: skip

    def _deferred(self, event: MessageDeferred) -> None:
        log = _of(self._sweep, event)
        log.info("message_deferred", message=event.message_id, until=to_text(event.until), reason=event.reason,
                 times=event.times)  # fmt: skip

    def _expired(self, event: MessageExpired) -> None:
        _of(self._sweep, event).warning("message_expired", message=event.message_id)

    def _ack_voided(self, event: AckVoided) -> None:
        _of(self._sweep, event).warning("ack_void", message=event.message_id, incarnation=event.incarnation)

    def _fired(self, event: ScheduleFired) -> None:
        _of(self._sweep, event).info("schedule_fired", message=event.message_id, series=event.series_id)

    def _failing(self, event: SchedulePaused) -> None:
        _of(self._sweep, event).warning("schedule_failing", schedule=event.schedule, failures=event.failures)

    def _rearmed(self, event: SeriesRearmed) -> None:
        log = _of(self._sweep, event)
        log.info("series_rearmed", message=event.message_id, series=event.series_id, at=event.process_after)

    def _asked(self, event: QuestionAsked) -> None:
        log = _of(self._delivery, event)
        log.info(
            "question_asked", question=event.question_id, message=event.message_id, deadline=to_text(event.deadline)
        )

    def _decided(self, event: QuestionDecided) -> None:
        _of(self._sweep, event).info(
            "question_decided", question=event.question_id, message=event.message_id, outcome=event.outcome, by=event.by
        )

    # --- answers

    def _subscribe_answers(self, events: Subscriptions) -> None:
        events.subscribe(AnswersDelivered, self._delivered)
        events.subscribe(AnswerNotWanted, self._not_wanted)
        events.subscribe(SendFailed, self._send_failed)
        events.subscribe(SendInDoubt, self._in_doubt)
        events.subscribe(AnswerDeferred, self._answer_deferred)
        events.subscribe(AnswerDeadLettered, self._answer_dead_lettered)

    def _delivered(self, event: AnswersDelivered) -> None:
        log = _of(self._delivery, event)
        if len(event.answers) > _ONE_BY_ONE:
            for start in range(0, len(event.answers), MAX_ITEMS):  # a line shows no more of a list
                part = [answer.message_out_id for answer in event.answers[start : start + MAX_ITEMS]]
                log.info("messages_delivered", count=len(part), channel=event.answers[0].channel, messages_out=part)
            return
        for answer in event.answers:
            log.info("message_delivered", message_out=answer.message_out_id, in_reply_to=answer.in_reply_to,
                     channel=answer.channel, attempt=answer.attempt)  # fmt: skip

    def _not_wanted(self, event: AnswerNotWanted) -> None:
        log = _of(self._delivery, event)
        log.debug("answer_not_wanted", message_out=event.message_out_id, in_reply_to=event.in_reply_to,
                  channel=event.channel)  # fmt: skip

    def _send_failed(self, event: SendFailed) -> None:
        if not event.final:
            _of(self._delivery, event).warning(
                "delivery_failed", message_out=event.message_out_id, code=event.code, error=event.error,
                channel=event.channel, attempt=event.attempt, in_doubt=event.in_doubt,
            )  # fmt: skip

    def _in_doubt(self, event: SendInDoubt) -> None:
        log = _of(self._delivery, event)
        log.warning("delivery_in_doubt", message_out=event.message_out_id, channel=event.channel,
                    attempt=event.attempt)  # fmt: skip

    def _answer_deferred(self, event: AnswerDeferred) -> None:
        log = _of(self._delivery, event)
        log.warning("delivery_deferred", message_out=event.message_out_id, code=event.code, error=event.error)

    def _answer_dead_lettered(self, event: AnswerDeadLettered) -> None:
        log = _of(self._delivery, event)
        log.error("delivery_dead_lettered", message_out=event.message_out_id, code=event.code, error=event.error)

    # --- containers, sessions, the sweep

    def _subscribe_containers(self, events: Subscriptions) -> None:
        events.subscribe(ContainerSpawned, self._spawned)
        events.subscribe(ContainerAdopted, self._adopted)
        events.subscribe(SpawnFailed, self._spawn_failed)
        events.subscribe(ContainerExited, self._exited)
        events.subscribe(ContainerStuck, self._stuck)
        events.subscribe(ContainerIdle, self._idle)
        events.subscribe(JournalRecovered, self._recovered)
        events.subscribe(SessionQuarantined, self._quarantined)
        events.subscribe(SweepFinished, self._swept)

    def _spawned(self, event: ContainerSpawned) -> None:
        _of(self._supervisor, event).info(
            "container_spawned", incarnation=event.incarnation, container=event.container_id, runtime=event.runtime
        )

    def _adopted(self, event: ContainerAdopted) -> None:
        log = _of(self._supervisor, event)
        log.info("container_adopted", incarnation=event.incarnation, container=event.container_id)

    def _spawn_failed(self, event: SpawnFailed) -> None:
        _of(self._supervisor, event).error(
            "spawn_failed", code=event.code, error=event.error, hint=event.hint, failures=event.failures,
            retry_s=event.retry_s,
        )  # fmt: skip

    def _exited(self, event: ContainerExited) -> None:
        _of(self._supervisor, event).info(
            "container_exited", incarnation=event.incarnation, reason=event.reason, exit_code=event.exit_code,
            out_of_memory=event.out_of_memory,
        )  # fmt: skip

    def _stuck(self, event: ContainerStuck) -> None:
        _of(self._sweep, event).error(
            "container_stuck", reason=event.reason, silent_ms=event.silent_ms, allowed_ms=event.allowed_ms,
            message=event.message_id,
        )  # fmt: skip

    def _idle(self, event: ContainerIdle) -> None:
        _of(self._sweep, event).info("container_idle", quiet_ms=event.quiet_ms)

    def _recovered(self, event: JournalRecovered) -> None:
        _of(self._sweep, event).warning("journal_recovered")

    def _quarantined(self, event: SessionQuarantined) -> None:
        release = f"clawbus session release {two_words(event.agent, event.session)}"
        _of(self._quarantine, event).error(
            "session_quarantined", reason=event.reason, hint=f"check the session's out/ folder, then `{release}`"
        )

    def _swept(self, event: SweepFinished) -> None:
        self._sweep.debug(
            "swept", sessions=event.sessions, errors=event.errors, duration_ms=int(event.duration_s * 1000)
        )


def _of(log: Any, event: SessionEvent) -> FilteringBoundLogger:
    return log.bind(agent=event.agent, session=event.session)
