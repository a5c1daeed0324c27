"""Reads answers without a receipt, of one session or of all: which are retried, why, when, and what waits behind them.

Read-only, from the host's own files alone.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

from daemon.core.clock import Clock
from daemon.inspect.across_sessions import read_across_sessions
from daemon.inspect.bounds import BUDGET_S
from daemon.inspect.row_values import place, values_of
from daemon.inspect.trusted_files import open_inbound
from schema.frozen import frozen
from schema.handles import Reader
from schema.layout import SessionFolder
from schema.rows import DeliveryState

# Report a failing answer once it has failed this often, or waits this long.
NOTABLE_ATTEMPTS: Final = 3
NOTABLE_WAIT_MS: Final = 60_000
_OPEN: Final = "state IN ('queued', 'intended', 'retrying')"


@frozen
class AnswersWanted:
    """Which open answers to read: one by its `identity`, those in a `state` as lists name it, those that came `since` (epoch ms)."""

    identity: str | None = None
    state: str | None = None
    since: int | None = None


def read_open_answers(
    db: Reader, now: int, limit: int, wanted: AnswersWanted | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Return answers without a receipt, retried ones first, then in seq order; and how many match."""
    if not db.columns("delivery_attempts"):
        return [], 0
    which, params = _matching(wanted or AnswersWanted(), now)
    row = db.one(f"SELECT count(*) AS n FROM delivery_attempts WHERE {which}", params)
    rows = db.all(
        f"SELECT * FROM delivery_attempts WHERE {which} ORDER BY state = 'retrying' DESC, seq LIMIT ?",
        (*params, limit),
    )
    return [_answer(db, one, now) for one in rows], int(row["n"]) if row is not None else 0


def _matching(wanted: AnswersWanted, now: int) -> tuple[str, tuple[object, ...]]:
    which, params = [_OPEN], list[object]()
    if wanted.identity is not None:
        which.append("message_out_id = ?")
        params.append(wanted.identity)
    if wanted.since is not None:
        which.append("first_at >= ?")
        params.append(wanted.since)
    if wanted.state is not None:
        which.append("state = ?")
        params.append("queued" if wanted.state == "scheduled" else wanted.state)
    if wanted.state in ("scheduled", "queued"):
        which.append(f"coalesce(next_attempt_at, 0) {'>' if wanted.state == 'scheduled' else '<='} ?")
        params.append(now)
    return " AND ".join(which), tuple(params)


def retrying_example(db: Reader, now: int) -> tuple[int, dict[str, Any] | None]:
    """Return how many answers have failed often or wait long for their next attempt, and the one that failed most."""
    notable = (
        # Without an attempt it only waits for a limit of our own.
        "FROM delivery_attempts WHERE state = 'retrying' AND attempts > 0 AND (attempts >= ?1 OR next_attempt_at > ?2 + ?3"
        " OR first_at < ?2 - ?3)"
    )
    params = (NOTABLE_ATTEMPTS, now, NOTABLE_WAIT_MS)
    row = db.one(f"SELECT count(*) AS n {notable}", params)
    worst = db.one(f"SELECT * {notable} ORDER BY attempts DESC, seq LIMIT 1", params)
    return (int(row["n"]) if row is not None else 0), _answer(db, worst, now) if worst is not None else None


def _answer(db: Reader, row: sqlite3.Row, now: int) -> dict[str, Any]:
    values = values_of(row)
    waits = values["state"] == DeliveryState.QUEUED and (values["next_attempt_at"] or 0) > now
    return {
        "id": values["message_out_id"],
        "to": place(values["destination"]),
        "state": "scheduled" if waits else values["state"],
        "attempts": values["attempts"],
        "code": values["last_error_code"],
        "error": values["last_error"],
        "next_attempt_at": values["next_attempt_at"],
        "since": values["first_at"],
        "in_doubt": values.get("doubts") or 0,
        "holds_back": _behind(db, row, now) if values["state"] == DeliveryState.RETRYING else 0,
    }


def _behind(db: Reader, row: sqlite3.Row, now: int) -> int:
    """Return how many answers wait behind a failing one. None wait behind one that was set aside."""
    if "passed" in row.keys() and row["passed"] == 2:  # noqa: SIM118 - a Row has no `in` of its own
        return 0
    found = db.one(
        "SELECT count(*) AS n FROM delivery_attempts WHERE destination = ? AND state = 'queued'"
        " AND coalesce(next_attempt_at, 0) <= ?",
        (row["destination"], now),
    )
    return int(found["n"]) if found is not None else 0


def open_answers_report(
    data_dir: Path,
    clock: Clock,
    wanted: AnswersWanted | None = None,
    *,
    session: tuple[str, str] | None = None,
    agent: str | None = None,
    limit: int = 100,
    budget_s: float = BUDGET_S,
) -> dict[str, Any]:
    """Return {answers, total, not_examined, errors}: answers without a receipt, those that are retried first.

    Raise UnknownSessionError, DataFolderError, RegistryGoneError.
    """

    def read(folder: SessionFolder) -> tuple[list[dict[str, Any]], int]:
        with open_inbound(folder) as db:
            return read_open_answers(db, clock.now_ms(), limit, wanted)

    answers, rest = read_across_sessions(data_dir, clock, session, budget_s, read, agent=agent)
    answers.sort(key=lambda answer: answer["state"] != DeliveryState.RETRYING)
    return {"answers": answers[:limit], **rest}
