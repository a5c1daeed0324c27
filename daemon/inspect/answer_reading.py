"""Reads one session's answers that are on their way: what is retried, why, when again, and what waits behind it. No writes."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from daemon.inspect.row_values import place, values_of
from schema.connect import Reader
from schema.rows import DeliveryState

# A failing answer is worth a word once it has failed so often, or waits for so long.
NOTABLE_ATTEMPTS: Final = 3
NOTABLE_WAIT_MS: Final = 60_000
_OPEN: Final = "state IN ('queued', 'intended', 'retrying')"


@dataclass(frozen=True, slots=True)
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
    """How many answers have failed often, or wait for long, for their next attempt; and the one that failed most."""
    notable = (
        "FROM delivery_attempts WHERE state = 'retrying' AND (attempts >= ?1 OR next_attempt_at > ?2 + ?3"
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
    """How many answers wait behind a failing one; none behind one that was set aside."""
    if "passed" in row.keys() and row["passed"] == 2:  # noqa: SIM118 - a Row has no `in` of its own
        return 0
    found = db.one(
        "SELECT count(*) AS n FROM delivery_attempts WHERE destination = ? AND state = 'queued'"
        " AND coalesce(next_attempt_at, 0) <= ?",
        (row["destination"], now),
    )
    return int(found["n"]) if found is not None else 0
