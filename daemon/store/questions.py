"""SQL over the questions of one session's inbound.db: what agents have asked, and how each ended.

A question is decided once: the first decision is final. Functions that write must be called inside `Writer.transaction()`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, cast

from daemon.core.answering import Person
from daemon.core.errors import AnswerRefusedError, QuestionClosedError, UnknownQuestionError
from daemon.store.messages import chunks, free_id, insert, marks, next_even_seq
from daemon.store.transitions import record
from schema import questions
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.instants import to_text
from schema.questions import Decision, Outcome, Question, QuestionError
from schema.rows import Address, Kind, MessageIn, MessageOut, MessageStatus

MAX_OPEN: Final = 20  # the most open questions of one session
_OPEN: Final = "SELECT * FROM questions WHERE outcome IS NULL"


@frozen
class Asked:
    """A recorded question. Times are epoch milliseconds; `decision` is None while it is open."""

    id: str
    message_id: str | None
    question: Question
    address: Address | None
    asked_at: int
    deadline: int
    decision: Decision | None = None
    decided_at: int | None = None
    answer_id: str | None = None


def has_table(db: Reader) -> bool:
    """Return whether the file knows questions; one of an older shape does not."""
    return bool(db.columns("questions"))


def note_asked(
    db: Writer, row: MessageOut, question: Question, address: Address | None, now: int, *, shortest: int = 0
) -> Asked | None:
    """Record a new question and return it. One that is known already stays as it is; then return None.

    `shortest` (ms) is the least time that a question with `notify` stays open: its end wakes the agent, which could
    otherwise wake itself for ever.
    """
    lasts = max(int(question.timeout_s * 1000), shortest if question.notify else 0)
    asked = Asked(row.id, row.in_reply_to, question, address, now, now + lasts)
    fresh = db.execute(
        "INSERT INTO questions(id, message_id, text, options, free_text, fallback, notify, channel_type, platform_id,"
        " thread_id, asked_at, deadline, asks_for) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO NOTHING",
        (
            row.id,
            row.in_reply_to,
            question.text,
            json.dumps(questions.options_json(question.options), ensure_ascii=False),
            int(question.free_text),
            question.default,
            int(question.notify),
            address.channel_type if address else None,
            address.platform_id if address else None,
            address.thread_id if address else None,
            now,
            asked.deadline,
            question.asks_for,
        ),
    )
    if fresh and row.in_reply_to is not None:
        record(db, row.in_reply_to, "question_asked", now, detail={"question": row.id})
    return asked if fresh else None


def find(db: Reader, question_id: str) -> Asked | None:
    """Return one question, or None."""
    row = db.one("SELECT * FROM questions WHERE id = ?", (question_id,)) if has_table(db) else None
    return _asked(row) if row is not None else None


def asker(db: Reader, asked: Asked) -> Person:
    """Return who sent the message that the agent asks about, by the message's first history row."""
    sql = "SELECT detail FROM message_history WHERE message_id = ? ORDER BY id LIMIT 1"
    row = db.one(sql, (asked.message_id,)) if asked.message_id is not None else None
    detail: object = json.loads(row["detail"]) if row is not None and row["detail"] else None
    fields = cast("dict[str, object]", detail) if isinstance(detail, dict) else {}
    sender, user = fields.get("sender"), fields.get("user")
    return Person(sender if isinstance(sender, str) else None, user if isinstance(user, str) else None)


def open_ones(db: Reader, limit: int = 1000) -> list[Asked]:
    """Return the open questions, the most urgent first."""
    return [_asked(row) for row in db.all(f"{_OPEN} ORDER BY deadline LIMIT ?", (limit,))]


def newest(db: Reader, limit: int) -> list[Asked]:
    """Return questions, open or decided, newest first."""
    return [_asked(row) for row in db.all("SELECT * FROM questions ORDER BY asked_at DESC, id LIMIT ?", (limit,))]


def count_open(db: Reader) -> int:
    """Return how many questions are open."""
    row = db.one("SELECT count(*) AS n FROM questions WHERE outcome IS NULL")
    return int(row["n"]) if row is not None else 0


def next_deadline(db: Reader) -> int | None:
    """Return the earliest deadline of an open question (epoch milliseconds), or None."""
    row = db.one("SELECT min(deadline) AS soonest FROM questions WHERE outcome IS NULL")
    return row["soonest"] if row is not None else None


def excused(db: Reader, message_ids: Sequence[str], now: int) -> dict[str, int]:
    """Return, by message, until when its turn's silence is excused: now while it waits for an answer, else the latest one."""
    found: dict[str, int] = {}
    for chunk in chunks(message_ids):
        rows = db.all(
            "SELECT message_id, max(coalesce(decided_at, ?)) AS until FROM questions WHERE notify = 0"
            f" AND message_id IN ({marks(chunk)}) GROUP BY message_id",
            (now, *chunk),
        )
        found.update((row["message_id"], row["until"]) for row in rows)
    return found


def answer(
    db: Writer, question_id: str, said: str | None, by: str, now: int, *, place: Address | None = None, answer_id: str | None = None
) -> Asked:  # fmt: skip
    """Decide an open question by a person's answer (None: declined). Return the question as it is then.

    With `place`, only a question that was asked there. Repeating the same `answer_id` changes nothing. Raise
    UnknownQuestionError, QuestionClosedError or AnswerRefusedError; nothing has changed then.
    """
    asked = find(db, question_id)
    if asked is None or (place is not None and asked.address is not None and _place(asked.address) != _place(place)):
        raise UnknownQuestionError(f"there is no question {question_id!r} in this session.")
    if asked.decision is not None:
        if answer_id is not None and asked.answer_id == answer_id:
            return asked
        who = f" by {asked.decision.by}" if asked.decision.by else ""
        raise QuestionClosedError(
            f"{question_id} was {asked.decision.outcome.value}{who} at {to_text(asked.decided_at or now)}.",
            hint=f"`clawbus question show {question_id}` says how it ended. Send the agent a message instead.",
        )
    if now >= asked.deadline:
        raise QuestionClosedError(f"{question_id} had to be answered by {to_text(asked.deadline)}.")
    if said is None:
        decision = Decision(Outcome.DECLINED)
    else:
        try:
            decision = questions.choose(asked.question, said)
        except QuestionError as error:
            raise AnswerRefusedError(f"the answer to {question_id} {error}.") from error
    return decide(db, asked, replace(decision, by=by), now, answer_id)


def decide(db: Writer, asked: Asked, decision: Decision, now: int, answer_id: str | None = None) -> Asked:
    """Record how a question ended: history first, once. If no turn waits for it, write the message that wakes the agent."""
    if asked.message_id is not None:
        detail = {"question": asked.id, "outcome": decision.outcome.value, "choice": decision.choice, "by": decision.by}
        record(db, asked.message_id, "question_decided", now, detail=detail)
    done = db.execute(
        "UPDATE questions SET outcome = ?, choice = ?, answer = ?, answered_by = ?, decided_at = ?, answer_id = ?"
        " WHERE id = ? AND outcome IS NULL",
        (decision.outcome.value, decision.choice, decision.text, decision.by, now, answer_id, asked.id),
    )
    if done and asked.question.notify:
        _notify_agent(db, asked, decision, now)
    return replace(asked, decision=decision, decided_at=now, answer_id=answer_id)


def decided_with(db: Reader, answer_id: str) -> Asked | None:
    """Return the question that this message has answered, or None."""
    row = db.one("SELECT * FROM questions WHERE answer_id = ?", (answer_id,)) if has_table(db) else None
    return _asked(row) if row is not None else None


def open_at(db: Reader, place: Address, now: int) -> list[Asked]:
    """Return the open questions that were asked at exactly this place and thread."""
    if not has_table(db):
        return []
    return [asked for asked in open_ones(db) if asked.address == place and now < asked.deadline]


def close_overdue(db: Writer, now: int, *, doubted: bool = False) -> list[Asked]:
    """End the open questions whose deadline has come, and those whose message ended while its turn should have waited.

    With `doubted`, the clock may be wrong, and no deadline has come.
    """
    ended: list[Asked] = []
    for asked in open_ones(db):
        if now >= asked.deadline and not doubted:
            ended.append(decide(db, asked, Decision(Outcome.TIMEOUT, asked.question.default), now))
        elif not asked.question.notify and _is_over(db, asked.message_id):
            ended.append(decide(db, asked, Decision(Outcome.CANCELLED), now))
    return ended


def to_close(db: Reader, now: int, *, doubted: bool = False) -> bool:
    """Return whether `close_overdue` has anything to do."""
    return any(
        (now >= asked.deadline and not doubted) or (not asked.question.notify and _is_over(db, asked.message_id))
        for asked in open_ones(db)
    )


def _is_over(db: Reader, message_id: str | None) -> bool:
    if message_id is None:
        return False
    row = db.one("SELECT status FROM messages_in WHERE id = ?", (message_id,))
    return row is None or row["status"] not in (None, MessageStatus.PENDING, MessageStatus.PAUSED)


def _notify_agent(db: Writer, asked: Asked, decision: Decision, now: int) -> None:
    said = decision.text or decision.choice
    told = f"{decision.outcome.value}: {said}" if said is not None else decision.outcome.value
    content = {
        "text": f"Your question {asked.id} ({asked.question.text[:200]}) was {told}.",
        "type": "question_answered",
        "question": asked.id,
        **decision.to_json(),
    }
    address = asked.address
    insert(
        db,
        MessageIn(
            id=free_id(db, f"answer:{asked.id}"),
            seq=next_even_seq(db),
            kind=Kind.SYSTEM,
            timestamp=to_text(now),
            status=MessageStatus.PENDING,
            content=json.dumps(content, ensure_ascii=False),
            channel_type=address.channel_type if address else None,
            platform_id=address.platform_id if address else None,
            thread_id=address.thread_id if address else None,
        ),
        now,
    )


def _asked(row: sqlite3.Row) -> Asked:
    outcome, deadline, asked_at = row["outcome"], row["deadline"], row["asked_at"]
    decision = None
    if outcome is not None:
        decision = Decision(Outcome(outcome), row["choice"], row["answer"], row["answered_by"])
    address = None
    if row["channel_type"] is not None and row["platform_id"] is not None:
        address = Address(row["channel_type"], row["platform_id"], row["thread_id"])
    question = Question(
        text=row["text"],
        options=questions.options_from(json.loads(row["options"])),
        free_text=bool(row["free_text"]),
        # It may stay open for longer than an agent may ask for (agents.NAME.min_schedule_s): `deadline` is what counts.
        timeout_s=min(max((deadline - asked_at) / 1000, questions.MIN_TIMEOUT_S), questions.MAX_TIMEOUT_S),
        default=row["fallback"],
        notify=bool(row["notify"]),
        asks_for=row["asks_for"],
    )
    return Asked(
        row["id"], row["message_id"], question, address, asked_at, deadline, decision, row["decided_at"], row["answer_id"]
    )  # fmt: skip


def _place(address: Address) -> tuple[str, str]:
    return address.channel_type, address.platform_id
