"""SQL over the schedules of one session's inbound.db. The host's side only.

Functions that write must be called inside `Writer.transaction()`. Instants are epoch milliseconds.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from enum import StrEnum
from itertools import takewhile
from typing import Any, Final, cast

from daemon.core.schedules import Times
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.rows import Address

CONFIG: Final = "config"
OPERATOR: Final = "operator"
AGENT: Final = "agent"
SERIES: Final = "schedule:"  # how the ids of occurrences begin: schedule:KEY@DUE
_FINISHED: Final = (
    "SELECT m.status FROM schedule_runs AS r JOIN messages_in AS m ON m.id = r.message_id WHERE r.key = ?"
    " AND m.status IN ('completed', 'cancelled', 'failed')"
)
# How many occurrences of each schedule are remembered.
KEPT_RUNS: Final = 200


class ScheduleState(StrEnum):
    """schedules.state."""

    ACTIVE = "active"
    PAUSED = "paused"
    OVER = "over"  # no occurrence is left


@frozen
class Scheduled:
    """What a schedule sends, when, and where the answers go. `content` is JSON text.

    `check`: a program that runs in the container and decides whether the agent is woken.
    """

    times: Times
    content: str
    address: Address
    check: str | None = None


@frozen
class ScheduleRow:
    """A row of schedules."""

    key: str
    what: Scheduled
    origin: str
    state: ScheduleState
    next_at: int | None
    sent: int
    changed_at: int
    changed_by: str
    failures: int = 0  # above 0: it was paused after this many failures in a row


def find(db: Reader, key: str) -> ScheduleRow | None:
    """Return one schedule, or None."""
    row = db.one("SELECT * FROM schedules WHERE key = ?", (key,))
    return _row(row) if row is not None else None


def all_(db: Reader) -> list[ScheduleRow]:
    """Return every schedule of the session, by key."""
    return [_row(row) for row in db.all("SELECT * FROM schedules ORDER BY key")]


def configured(db: Reader) -> list[ScheduleRow]:
    """Return the schedules that the configuration owns."""
    return [_row(row) for row in db.all("SELECT * FROM schedules WHERE origin = ?", (CONFIG,))]


def due(db: Reader, now: int) -> list[ScheduleRow]:
    """Return the schedules with an occurrence to fire, the longest overdue first."""
    sql = "SELECT * FROM schedules WHERE state = 'active' AND next_at <= ? ORDER BY next_at, key"
    return [_row(row) for row in db.all(sql, (now,))]


def dated_ahead(db: Reader, later: int) -> list[ScheduleRow]:
    """Return the active schedules that were changed, or have fired, after `later`: a clock ahead of ours did it."""
    sql = (
        "SELECT * FROM schedules AS s WHERE state = 'active' AND next_at > ?1 AND (changed_at > ?1 OR EXISTS"
        " (SELECT 1 FROM schedule_runs AS r WHERE r.key = s.key AND r.at > ?1)) ORDER BY key"
    )
    return [_row(row) for row in db.all(sql, (later,))]


def next_at(db: Reader) -> int | None:
    """Return when the next occurrence is due, or None."""
    row = db.one("SELECT min(next_at) AS at FROM schedules WHERE state = 'active'")
    return row["at"] if row is not None else None


def count(db: Reader) -> int:
    """Return how many schedules the session has that are not over."""
    row = db.one("SELECT count(*) AS n FROM schedules WHERE state IN ('active', 'paused')")
    return int(row["n"]) if row is not None else 0


def count_of_agent(db: Reader, *, besides: str) -> int:
    """Return how many schedules the session's agent has made that are not over, besides the one of a key."""
    row = db.one(
        "SELECT count(*) AS n FROM schedules WHERE origin = ? AND state IN ('active', 'paused') AND key <> ?",
        (AGENT, besides),
    )
    return int(row["n"]) if row is not None else 0


def stored(db: Reader) -> bool:
    """Return whether the session has any schedule, also one that is over: lists show it."""
    return db.one("SELECT 1 FROM schedules WHERE state IN ('active', 'paused', 'over') LIMIT 1") is not None


def put(db: Writer, row: ScheduleRow) -> None:
    """Store a schedule in place of the one of its key, if there is one."""
    address = row.what.address
    db.execute(
        "INSERT OR REPLACE INTO schedules(key, times, content, channel_type, platform_id, thread_id, origin, state, next_at,"
        " sent, changed_at, changed_by, failures, check_program) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.key, json.dumps(row.what.times.as_json()), row.what.content, address.channel_type, address.platform_id,
            address.thread_id, row.origin, row.state.value, row.next_at, row.sent, row.changed_at, row.changed_by,
            row.failures, row.what.check,
        ),
    )  # fmt: skip


def remove(db: Writer, key: str) -> None:
    """Delete a schedule. The record of its occurrences stays."""
    db.execute("DELETE FROM schedules WHERE key = ?", (key,))


def part_with_runs(db: Writer, key: str) -> None:
    """Detach the recorded occurrences of a removed schedule from their messages: they say nothing about a later one of its key."""
    db.execute(
        "UPDATE schedule_runs SET message_id = NULL, detail = 'of the schedule that was cancelled; message ' || message_id"
        " WHERE key = ? AND message_id IS NOT NULL",
        (key,),
    )


def note_run(
    db: Writer, key: str, instant: int, now: int, *, message_id: str | None, detail: str | None = None
) -> bool:
    """Record an occurrence, and forget old ones. Return False if it is on record: it must not come again."""
    done = db.execute(
        "INSERT OR IGNORE INTO schedule_runs(key, due, at, message_id, detail) VALUES (?, ?, ?, ?, ?)",
        (key, instant, now, message_id, detail),
    )
    db.execute(
        "DELETE FROM schedule_runs WHERE key = ?1 AND due <> ?3 AND due <= (SELECT due FROM schedule_runs WHERE key = ?1"
        " ORDER BY due DESC LIMIT 1 OFFSET ?2)",
        (key, KEPT_RUNS, instant),
    )
    return done > 0


def runs(db: Reader, key: str, limit: int) -> list[Mapping[str, Any]]:
    """Return a schedule's newest occurrences: {due, at, message_id, detail, status, tries}; status is the message's."""
    sql = (
        "SELECT r.due, r.at, r.message_id, r.detail, m.status, m.tries FROM schedule_runs AS r"
        " LEFT JOIN messages_in AS m ON m.id = r.message_id WHERE r.key = ? ORDER BY r.due DESC LIMIT ?"
    )
    return [dict(row) for row in db.all(sql, (key, limit))]


def unfinished(db: Reader, key: str) -> str | None:
    """Return the id of an occurrence's message that is not finished, or None."""
    row = db.one(
        "SELECT r.message_id AS id FROM schedule_runs AS r JOIN messages_in AS m ON m.id = r.message_id"
        " WHERE r.key = ? AND m.status IN ('pending', 'paused') LIMIT 1",
        (key,),
    )
    return row["id"] if row is not None else None


def failures_in_a_row(db: Reader, key: str) -> int:
    """Return how many of the newest finished occurrences failed one after the other."""
    failed = 0
    for run in runs(db, key, KEPT_RUNS):
        if run["status"] in ("completed", "cancelled"):
            break
        failed += run["status"] == "failed"
    return failed


def failing_streak(db: Reader, row: ScheduleRow, most: int) -> int:
    """Return how many of the newest finished occurrences failed one after the other since the schedule was last changed.

    It counts up to `most`.
    """
    newest = db.all(f"{_FINISHED} AND r.at >= ? ORDER BY r.due DESC LIMIT ?", (row.key, row.changed_at, most))
    return sum(1 for _ in takewhile(lambda one: one["status"] == "failed", newest))


def repeats_failure(db: Reader, message_id: str) -> bool:
    """Return whether a message is an occurrence whose predecessor failed: then its failure needs no notice."""
    key, _, due = message_id.removeprefix(SERIES).rpartition("@")
    if not message_id.startswith(SERIES) or not (due.isascii() and due.isdigit() and len(due) < 16):
        return False
    row = find(db, key)
    if row is None:
        return False
    before = db.one(
        f"{_FINISHED} AND r.at >= ? AND r.due < ? ORDER BY r.due DESC LIMIT 1", (key, row.changed_at, int(due))
    )
    return before is not None and before["status"] == "failed"


def _row(row: sqlite3.Row) -> ScheduleRow:
    times = Times.from_json(cast("dict[str, Any]", json.loads(row["times"])))
    address = Address(row["channel_type"], row["platform_id"], row["thread_id"])
    return ScheduleRow(
        row["key"], Scheduled(times, row["content"], address, row["check_program"]), row["origin"], ScheduleState(row["state"]),
        row["next_at"], row["sent"], row["changed_at"], row["changed_by"], row["failures"],
    )  # fmt: skip
