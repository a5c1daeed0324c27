"""Turns committed decisions into events. Pure.

Polls, sweeps and container exits all settle messages; this is the one place that makes the events for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, cast

from daemon.core.attempt_end import AttemptEnd
from daemon.core.content import decode, preview
from daemon.core.delivery_plan import DeadLetterDecision
from daemon.core.events import (
    AckVoided,
    AgentSaid,
    AnswerDeadLettered,
    AnswerDeferred,
    AnswerNotWanted,
    AnswersDelivered,
    ContainerIdle,
    ContainerStuck,
    DeliveredAnswer,
    Event,
    MessageClaimed,
    MessageDeadLettered,
    MessageDeferred,
    MessageExpired,
    MessageRetried,
    MessageSettled,
    QuestionAsked,
    QuestionDecided,
    SendFailed,
    SendInDoubt,
    TurnsBegun,
)
from daemon.core.lifecycle import Action, Fail, Kill, Reset, Settle, Stop
from daemon.core.message_fate import Defer, Expire, GiveUp, Verdict, Void
from daemon.core.session_key import SessionKey
from daemon.engine.delivery_steps import Collected
from daemon.engine.hand_over import Outcome
from daemon.store.questions import Asked
from schema.questions import is_question
from schema.rows import AckStatus, MessageOut

_SAID: Final = 300  # characters of a mid-turn message that its event holds


def action_events(
    key: SessionKey, actions: Iterable[Action], attempts: Iterable[AttemptEnd], now: int, exit_code: int | None = None
) -> Iterator[Event]:
    """Yield the events of these committed actions. `exit_code` is that of the container whose exit caused them."""
    ended = {(attempt.message.id, attempt.incarnation): attempt for attempt in attempts}
    for action in actions:
        match action:
            case Settle(message_id=message_id, incarnation=incarnation, usage=usage):
                yield MessageSettled(now, key.agent, key.session, message_id, incarnation,
                                     action.status is AckStatus.COMPLETED, ended.get((message_id, incarnation)), usage)  # fmt: skip
            case Reset(message_id=message_id, incarnation=incarnation):
                yield MessageRetried(now, key.agent, key.session, message_id, incarnation, action.tries,
                                     action.process_after, exit_code, ended.get((message_id, incarnation)))  # fmt: skip
            case Fail(message_id=message_id, incarnation=incarnation):
                yield MessageDeadLettered(
                    now, key.agent, key.session, message_id, "TRIES_EXHAUSTED", action.tries, exit_code,
                    attempt=ended.get((message_id, incarnation)),
                )  # fmt: skip
            case Kill():
                yield stuck(key, action, now)
            case Stop():
                yield ContainerIdle(now, key.agent, key.session, action.quiet_ms)
            case _:
                pass


def stuck(key: SessionKey, action: Kill, now: int) -> ContainerStuck:
    """Return the event of a container that is to be ended by force."""
    return ContainerStuck(
        now, key.agent, key.session, action.reason, action.silent_ms, action.allowed_ms, action.message_id
    )


def verdict_events(key: SessionKey, verdicts: Iterable[Verdict], now: int) -> Iterator[Event]:
    """Yield the events of these committed verdicts."""
    for verdict in verdicts:
        at = (now, key.agent, key.session, verdict.message_id)
        match verdict:
            case Defer():
                yield MessageDeferred(*at, verdict.process_after, verdict.reason, verdict.number)
            case GiveUp():
                yield MessageDeadLettered(*at, "DEFERRED_TOO_LONG", reason=verdict.reason)
            case Void():
                yield AckVoided(*at, verdict.ack.incarnation)
            case Expire():
                yield MessageExpired(*at)


def question_decided(key: SessionKey, asked: Asked, now: int) -> QuestionDecided:
    """Return the event of a question's end. `asked` is the question as it is now."""
    decision = asked.decision
    return QuestionDecided(
        now, key.agent, key.session, asked.id, asked.message_id, decision.outcome.value if decision else "",
        decision.by if decision else None, asked.question.notify,
    )  # fmt: skip


def poll_events(key: SessionKey, found: Collected) -> Iterator[Event]:
    """Yield the events of what a poll of a session's files found and committed."""
    (agent, session), now = key, found.at
    for claim in found.claimed:
        yield MessageClaimed(
            now, agent, session, claim.message_id, claim.incarnation, found.places.get(claim.message_id)
        )
    if found.begun:
        yield TurnsBegun(now, agent, session, found.begun)
    yield from action_events(key, found.settled, found.endings, now)
    yield from verdict_events(key, found.verdicts, now)
    for asked in found.asked:
        yield QuestionAsked(now, agent, session, asked.id, asked.message_id, asked.deadline)
    for dead in found.dead_lettered:
        yield _dead_letter(key, dead, now)
    for send in found.sends:
        candidate = send.candidate
        if not candidate.row.final and candidate.attempts == 0 and not send.in_doubt:
            yield from _said(key, candidate.row, now)
        if send.in_doubt:
            yield SendInDoubt(now, agent, session, candidate.row.id, send.address.channel_type, candidate.attempts + 1)
    for item in found.deferred:
        yield AnswerDeferred(
            now, agent, session, item.candidate.row.id, item.address.channel_type, item.reason, item.error
        )


def send_events(
    key: SessionKey, outcomes: Sequence[Outcome], dead: Sequence[DeadLetterDecision], now: int
) -> Iterator[Event]:
    """Yield the events of recorded sends. `dead` are the answers among them that were given up."""
    agent, session = key
    delivered: list[DeliveredAnswer] = []
    rest: list[Event] = []
    dead_ids = {one.candidate.row.id for one in dead}
    for outcome in outcomes:
        if not outcome.sent:
            continue
        candidate, channel = outcome.send.candidate, outcome.send.address.channel_type
        row = candidate.row
        if outcome.not_wanted:
            rest.append(AnswerNotWanted(now, agent, session, row.id, row.in_reply_to, channel))
        elif outcome.error is None:
            delivered.append(
                DeliveredAnswer(
                    row.id, row.in_reply_to, channel, candidate.attempts + 1, candidate.cause, outcome.begun,
                    outcome.ended_at,
                )
            )  # fmt: skip
        else:
            rest.append(
                SendFailed(
                    now, agent, session, row.id, channel, candidate.attempts + 1, candidate.cause,
                    outcome.error_code or "DELIVERY_TRANSIENT", outcome.error, outcome.in_doubt, row.id in dead_ids,
                    outcome.begun, outcome.ended_at,
                )
            )  # fmt: skip
    if delivered:
        yield AnswersDelivered(now, agent, session, tuple(delivered))
    yield from rest
    for one in dead:
        yield _dead_letter(key, one, now)


def _said(key: SessionKey, row: MessageOut, now: int) -> Iterator[AgentSaid]:
    """Yield the event of a mid-turn message. A question has an event of its own."""
    content = decode(row.content)
    if is_question(row.kind, row.content):
        return
    edits = cast("dict[str, object]", content).get("edits") if isinstance(content, dict) else None
    yield AgentSaid(
        now,
        key.agent,
        key.session,
        row.id,
        row.in_reply_to,
        preview(row.content, _SAID),
        edits if isinstance(edits, str) else None,
    )


def _dead_letter(key: SessionKey, dead: DeadLetterDecision, now: int) -> AnswerDeadLettered:
    candidate = dead.candidate
    return AnswerDeadLettered(now, key.agent, key.session, candidate.row.id, candidate.cause, dead.reason, dead.error)
