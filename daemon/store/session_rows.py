"""The rows of `sessions` in central.db: which sessions exist, which have work, which are out of service. The caller opens the file.

Functions that write must be called inside `Writer.transaction()`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Final

from daemon.core.session_key import SessionKey
from schema.frozen import frozen
from schema.handles import Reader, Writer

_FIRST: Final = SessionKey("", "")  # before every session


@frozen
class SessionRow:
    """A row of sessions. Times are epoch milliseconds."""

    key: SessionKey
    active: bool
    next_due_at: int | None
    quarantine_reason: str | None
    spawn_failures: int
    next_spawn_at: int | None
    last_spawn_error: str | None


@frozen
class Totals:
    """What the registry knows without opening sessions: the quarantined ones, and open dead letters by session."""

    quarantined: tuple[SessionKey, ...] = ()
    dead_letters: Mapping[SessionKey, int] = field(default_factory=dict[SessionKey, int])


def read(db: Reader, key: SessionKey) -> SessionRow | None:
    """Return one session, or None."""
    row = db.one("SELECT * FROM sessions WHERE agent = ? AND session = ?", key)
    return _session(row) if row is not None else None


def with_work(db: Reader) -> list[SessionRow]:
    """Return the sessions that are marked active, or that will have work at a known time."""
    sql = "SELECT * FROM sessions WHERE active = 1 UNION SELECT * FROM sessions WHERE next_due_at IS NOT NULL"
    return [_session(row) for row in db.all(sql)]


def page(db: Reader, after: SessionKey | None, limit: int) -> list[SessionKey]:
    """Return a page of all sessions in key order."""
    return _keys(
        db.all(
            "SELECT agent, session FROM sessions WHERE (agent, session) > (?, ?) ORDER BY agent, session LIMIT ?",
            (*(after or _FIRST), limit),
        )
    )


def idle_page(db: Reader, after: SessionKey | None, limit: int, created_before: int) -> list[SessionKey]:
    """Return a page of sessions without work, quarantine, open dead letters or container, created before a time."""
    return _keys(
        db.all(
            "SELECT agent, session FROM sessions WHERE (agent, session) > (?, ?) AND active = 0 AND next_due_at IS NULL"
            " AND quarantined_at IS NULL AND dead_letters = 0 AND created_at < ?"
            " AND NOT EXISTS (SELECT 1 FROM incarnations AS one WHERE one.agent = sessions.agent"
            " AND one.session = sessions.session AND one.ended_at IS NULL) ORDER BY agent, session LIMIT ?",
            (*(after or _FIRST), created_before, limit),
        )
    )


def count(db: Reader) -> int:
    """Return the number of sessions."""
    row = db.one("SELECT count(*) AS n FROM sessions")
    return int(row["n"]) if row is not None else 0


def totals(db: Reader) -> Totals:
    """Return the totals. The cost depends on the number of quarantines and dead letters."""
    dead = db.all("SELECT agent, session, dead_letters FROM sessions WHERE dead_letters > 0")
    return Totals(
        tuple(_keys(db.all("SELECT agent, session FROM sessions WHERE quarantined_at IS NOT NULL"))),
        {SessionKey(row["agent"], row["session"]): int(row["dead_letters"]) for row in dead},
    )


def unknown(db: Reader, keys: Iterable[SessionKey]) -> list[SessionKey]:
    """Return those of the sessions that have no row."""
    return sorted(set(keys) - set(_keys(db.all("SELECT agent, session FROM sessions"))))


def insert(db: Writer, keys: Iterable[SessionKey], now_ms: int) -> None:
    """Record sessions as having work. One that has a row keeps it."""
    db.executemany(
        "INSERT INTO sessions(agent, session, created_at, active) VALUES (?, ?, ?, 1)"
        " ON CONFLICT(agent, session) DO NOTHING",
        [(*key, now_ms) for key in keys],
    )


def activate(db: Writer, key: SessionKey, now_ms: int) -> None:
    """Record the session and that it has work."""
    db.execute(
        "INSERT INTO sessions(agent, session, created_at, active) VALUES (?, ?, ?, 1)"
        " ON CONFLICT(agent, session) DO UPDATE SET active = 1",
        (*key, now_ms),
    )


def deactivate(
    db: Writer, key: SessionKey, next_due_at: int | None, dead_letters: int | None, schedules: int | None
) -> None:
    """Record that the session has no work, or none before `next_due_at`, and two counts; None leaves a count unchanged.

    Write nothing if nothing changes: the slow full pass calls this for every session, and the commits would be most of its
    cost.
    """
    db.execute(
        "UPDATE sessions SET active = 0, next_due_at = ?1, dead_letters = coalesce(?2, dead_letters),"
        " schedules = coalesce(?3, schedules) WHERE agent = ?4 AND session = ?5"
        " AND (active <> 0 OR next_due_at IS NOT ?1 OR dead_letters IS NOT coalesce(?2, dead_letters)"
        " OR schedules IS NOT coalesce(?3, schedules))",
        (next_due_at, dead_letters, schedules, *key),
    )


def quarantine(db: Writer, key: SessionKey, reason: str, now_ms: int) -> None:
    """Take the session out of service until an operator releases it."""
    _update(db, key, "quarantined_at = ?, quarantine_reason = ?", (now_ms, reason))


def quarantine_again(db: Writer, reasons: Mapping[SessionKey, str], now_ms: int) -> None:
    """Keep sessions out of service that were so before their rows were lost; a row that says since when keeps that."""
    for key, reason in reasons.items():
        _update(db, key, "quarantined_at = coalesce(quarantined_at, ?), quarantine_reason = ?", (now_ms, reason))


def release(db: Writer, key: SessionKey) -> None:
    """Put a quarantined session back into service, and clear its spawn failures."""
    _update(
        db,
        key,
        "quarantined_at = NULL, quarantine_reason = NULL, spawn_failures = 0, next_spawn_at = NULL, active = 1",
        (),
    )


def spawn_failed(db: Writer, key: SessionKey, failures: int, next_spawn_at: int, error: str) -> None:
    """Record a failed spawn and when the next may be tried."""
    _update(
        db, key, "spawn_failures = ?, next_spawn_at = ?, last_spawn_error = ?", (failures, next_spawn_at, error[:500])
    )


def spawn_recovered(db: Writer, key: SessionKey) -> None:
    """Forget past spawn failures."""
    _update(db, key, "spawn_failures = 0, next_spawn_at = NULL, last_spawn_error = NULL", ())


def _update(db: Writer, key: SessionKey, assignments: str, values: tuple[object, ...]) -> None:
    db.execute(f"UPDATE sessions SET {assignments} WHERE agent = ? AND session = ?", (*values, *key))


def _keys(rows: Iterable[sqlite3.Row]) -> list[SessionKey]:
    return [SessionKey(row["agent"], row["session"]) for row in rows]


def _session(row: sqlite3.Row) -> SessionRow:
    return SessionRow(
        key=SessionKey(row["agent"], row["session"]),
        active=bool(row["active"]),
        next_due_at=row["next_due_at"],
        quarantine_reason=row["quarantine_reason"],
        spawn_failures=row["spawn_failures"],
        next_spawn_at=row["next_spawn_at"],
        last_spawn_error=row["last_spawn_error"],
    )
