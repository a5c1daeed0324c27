"""Reads the questions of one session or of all, from the host's own files alone. Read-only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daemon.core.clock import Clock
from daemon.inspect.across_sessions import read_across_sessions
from daemon.inspect.bounds import BUDGET_S
from daemon.inspect.trusted_files import open_inbound
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
        "asks_for": asked.question.asks_for,
        "message_id": asked.message_id,
        "where": f"{address.channel_type}:{address.platform_id}" if address is not None else None,
        "asked_at": asked.asked_at,
        "deadline": asked.deadline,
        "choice": decision.choice if decision is not None else None,
        "answer": decision.text if decision is not None else None,
        "by": decision.by if decision is not None else None,
        "decided_at": asked.decided_at,
    }


def questions_report(
    data_dir: Path,
    clock: Clock,
    *,
    session: tuple[str, str] | None = None,
    agent: str | None = None,
    every: bool = False,
    limit: int = 100,
    budget_s: float = BUDGET_S,
) -> dict[str, Any]:
    """Return {questions, total, not_examined, errors}: the open questions, the most urgent first; `total` is how many.

    With `every` also those that have ended, the newest first; of sessions without work only when one is named. Raises
    UnknownSessionError, DataFolderError, RegistryGoneError.
    """
    found, rest = read_across_sessions(
        data_dir, clock, session, budget_s, lambda folder: read_questions(folder, limit, every=every), agent=agent
    )
    found.sort(key=lambda one: -one["asked_at"] if every else one["deadline"])
    return {"questions": found[:limit], **rest}
