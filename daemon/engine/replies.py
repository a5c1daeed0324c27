"""Finds a reply to a question in a message's content and records it as the question's outcome.

A reply is `{"answer_to": ID}` with `text`, `choice` or `"declined": true`, in the content itself or in the JSON body of a
webhook. At a routed place, it may also be a plain text from the person who was asked. Synchronous; the caller holds the
session's lock.
"""

from __future__ import annotations

import re
from typing import Final, cast

from daemon.core.answering import AnswersFrom, Person, may_answer, may_answer_plainly, plain_answer, rule_of
from daemon.core.errors import AnswerForbiddenError, AnswerRefusedError
from daemon.store import messages, questions
from daemon.store.questions import Asked
from daemon.store.session_files import SessionFiles
from schema.frozen import frozen
from schema.rows import Address

_MAX_BY: Final = 200
_ID: Final = re.compile(r"q-[a-z2-7]{16}\Z")


@frozen
class Reply:
    """An answer to a question. `text` is None when the person declined to answer."""

    question_id: str
    text: str | None


def reply_in(content: object) -> Reply | None:
    """Return the reply in this content, or None if it has none. Raise AnswerRefusedError for a reply without an answer."""
    for value in (content, _body(content)):
        fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
        named = fields.get("answer_to")
        if isinstance(named, str) and _ID.match(named):
            return _reply(named, fields)
    return None


def _reply(named: str, fields: dict[str, object]) -> Reply:
    if fields.get("declined") is True:
        return Reply(named, None)
    text = fields.get("choice", fields.get("text"))
    if not isinstance(text, str):
        raise AnswerRefusedError(f"the answer to {named} has neither `text` nor `choice`.")
    return Reply(named, text)


def _body(content: object) -> object:
    return cast("dict[str, object]", content).get("body") if isinstance(content, dict) else None


def record_reply(
    files: SessionFiles,
    reply: Reply,
    message_id: str,
    place: Address | None,
    rule: AnswersFrom,
    person: Person,
    now: int,
) -> tuple[Asked, bool]:
    """Record the reply in one transaction. Return the decided question, and whether it was this reply that decided it.

    `rule` says who may answer; `person` is who answers. Raise UnknownQuestionError, QuestionClosedError, AnswerRefusedError or
    AnswerForbiddenError without changing anything.
    """
    at = f"{place.channel_type}:{place.platform_id}" if place is not None else "unknown"
    who = person.user or person.sender
    by = f"{who} at {at}"[:_MAX_BY] if who is not None else at
    with files.inbound() as db, db.transaction():
        before = questions.find(db, reply.question_id)
        if before is not None and not may_answer(rule_of(rule, before.question), questions.asker(db, before), person):
            raise AnswerForbiddenError(f"{who or 'the unnamed sender'} may not answer {reply.question_id}.")
        asked = questions.answer(db, reply.question_id, reply.text, by, now, place=place, answer_id=message_id)
    fresh = before is not None and before.decision is None
    if fresh:
        files.ring()
    return asked, fresh


def record_plain_reply(
    files: SessionFiles, text: str, message_id: str, place: Address, rule: AnswersFrom, person: Person, now: int
) -> tuple[Asked, bool] | None:
    """Record a plain text as the answer to the person's one open question at this place. Return what `record_reply` returns.

    Return None if the text is an ordinary message: this person has no open question here, or several, or the text does not
    answer it. A text that was already stored as a message stays one, however often its channel hands it in.
    """
    with files.inbound() as db:
        repeated = questions.decided_with(db, message_id)
        if repeated is not None:
            return repeated, False
        if messages.find(db, message_id) is not None:
            return None
        mine = [
            asked
            for asked in questions.open_at(db, place, now)
            if may_answer_plainly(rule_of(rule, asked.question), questions.asker(db, asked), person)
        ]
        said = plain_answer(mine[0].question, text) if len(mine) == 1 else None
    if said is None:
        return None
    return record_reply(files, Reply(mine[0].id, said.text), message_id, place, rule, person, now)


def is_known(files: SessionFiles, message_id: str) -> bool:
    """Return whether the session has taken this id, as a message or as the answer to a question."""
    with files.inbound() as db:
        return messages.find(db, message_id) is not None or questions.decided_with(db, message_id) is not None


def answer_by_operator(files: SessionFiles, question_id: str, said: str | None, by: str, now: int) -> dict[str, object]:
    """Record an operator's answer (None: declined). Return {id, outcome, choice, text, message_id, notify, asks_for}.

    Raise UnknownQuestionError, QuestionClosedError or AnswerRefusedError.
    """
    with files.inbound() as db, db.transaction():
        asked = questions.answer(db, question_id, said, by, now)
    files.ring()
    decision = asked.decision
    assert decision is not None
    return {
        "id": asked.id,
        "outcome": decision.outcome.value,
        "choice": decision.choice,
        "text": decision.text,
        "message_id": asked.message_id,
        "notify": asked.question.notify,
        "asks_for": asked.question.asks_for,
    }
