"""Questions as reports show them, from the host's own files alone. Read-only."""

from __future__ import annotations

from typing import Any

from daemon.inspect.session_reading import open_inbound
from daemon.store import questions
from daemon.store.questions import Asked
from schema.layout import SessionFolder
from schema.questions import options_json


def read_questions(folder: SessionFolder, limit: int, *, every: bool) -> tuple[list[dict[str, Any]], int]:
    """Return up to `limit` open questions of one session (with `every` the newest, open or not), and how many are open.

    Raise ClawbusError when the file cannot be read.
    """
    with open_inbound(folder) as db:
        if not questions.has_table(db):
            return [], 0
        found = questions.newest(db, limit) if every else questions.open_ones(db, limit)
        return [question_values(one) for one in found], questions.count_open(db)


def read_question(folder: SessionFolder, question_id: str) -> dict[str, Any] | None:
    """Return one question, or None. Raise ClawbusError when the file cannot be read."""
    with open_inbound(folder) as db:
        found = questions.find(db, question_id)
    return question_values(found) if found is not None else None


def question_values(asked: Asked) -> dict[str, Any]:
    """Return a question as JSON values; times are epoch milliseconds."""
    decision, address = asked.decision, asked.address
    return {
        "id": asked.id,
        "state": decision.outcome.value if decision is not None else "open",
        "text": asked.question.text,
        "options": options_json(asked.question.options),
        "free_text": asked.question.free_text,
        "default": asked.question.default,
        "message_id": asked.message_id,
        "where": f"{address.channel_type}:{address.platform_id}" if address is not None else None,
        "asked_at": asked.asked_at,
        "deadline": asked.deadline,
        "choice": decision.choice if decision is not None else None,
        "answer": decision.text if decision is not None else None,
        "by": decision.by if decision is not None else None,
        "decided_at": asked.decided_at,
    }
