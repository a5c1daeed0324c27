"""SQL that counts what is open in one session's inbound.db, for reports, metrics and the sweep.

It only reads. The cost depends on what is open, not on what was ever stored.
"""

from __future__ import annotations

from typing import Final

from daemon.store.messages import DUE
from schema.frozen import frozen
from schema.handles import Reader
from schema.instants import to_text

_DESTINATIONS: Final = 1000
_SEPARATOR: Final = "char(31)"  # between the parts of a destination (schema.rows.Address.key)
_SCHEDULED: Final = "(state = 'queued' AND coalesce(next_attempt_at, 0) > ?1)"
_DUE_AT: Final = "coalesce(julianday(process_after), julianday(timestamp))"
# A condition on `{}`, a dead letter's id: it is not closed. Use it only if the table exists.
NOT_CLOSED: Final = " AND NOT EXISTS (SELECT 1 FROM dead_letters_closed c WHERE c.id = {})"
_CLAIMED: Final = "EXISTS (SELECT 1 FROM attempts a WHERE a.message_id = m.id AND a.outcome IS NULL)"


@frozen
class Queued:
    """Answers of one channel that have no receipt yet: those that are due, and those that wait for a time of their own.

    `oldest_at` is epoch milliseconds, of the due ones; None when there is none.
    """

    channel: str
    count: int
    oldest_at: int | None
    scheduled: int = 0


@frozen
class Backlog:
    """What one session has open. `waiting` messages are due and unclaimed; `oldest_at` is when the first was due."""

    waiting: int = 0
    oldest_at: int | None = None
    claimed: int = 0
    answers: tuple[Queued, ...] = ()
    dead: int = 0


def read_backlog(db: Reader, now: int) -> Backlog:
    """Return the figures at `now` (epoch milliseconds)."""
    waiting = db.one(
        f"SELECT count(*) AS n, min({_DUE_AT}) AS oldest FROM messages_in m WHERE status = 'pending' AND trigger = 1"
        f" AND {DUE} AND NOT {_CLAIMED}",
        {"now": to_text(now)},
    )
    claimed = db.one("SELECT count(*) AS n FROM attempts WHERE outcome IS NULL")
    return Backlog(
        waiting=int(waiting["n"]) if waiting is not None else 0,
        oldest_at=_from_julian(waiting["oldest"]) if waiting is not None else None,
        claimed=int(claimed["n"]) if claimed is not None else 0,
        answers=read_answers(db, now),
        dead=count_dead(db),
    )


def read_answers(db: Reader, now: int) -> tuple[Queued, ...]:
    """Return the answers without a receipt by channel, at `now` (epoch milliseconds)."""
    rows = db.all(
        f"SELECT substr(destination, 1, instr(destination, {_SEPARATOR}) - 1) AS channel,"
        f" count(*) FILTER (WHERE NOT {_SCHEDULED}) AS n, count(*) FILTER (WHERE {_SCHEDULED}) AS later,"
        f" min(first_at) FILTER (WHERE NOT {_SCHEDULED}) AS oldest"
        " FROM delivery_attempts WHERE state IN ('queued', 'intended', 'retrying') GROUP BY channel LIMIT ?2",
        (now, _DESTINATIONS),
    )
    return tuple(Queued(str(row["channel"]), row["n"], row["oldest"], row["later"]) for row in rows)


def failed_messages(*, closed: bool = True) -> str:
    """Return the FROM and WHERE of the messages that are open dead letters. `closed`: the file has dead_letters_closed."""
    return "FROM messages_in WHERE status = 'failed'" + (NOT_CLOSED.format("messages_in.id") if closed else "")


def dead_answers(*, closed: bool = True) -> str:
    """Return the FROM and WHERE of the answers that are open dead letters. `closed`: as above."""
    return "FROM delivery_attempts WHERE state = 'dead'" + (NOT_CLOSED.format("message_out_id") if closed else "")


def count_dead(db: Reader) -> int:
    """Return the number of open dead letters, in and out."""
    row = db.one(f"SELECT (SELECT count(*) {dead_answers()}) + (SELECT count(*) {failed_messages()}) AS n")
    return int(row["n"]) if row is not None else 0


def _from_julian(day: object) -> int | None:
    return round((day - 2_440_587.5) * 86_400_000) if isinstance(day, float) else None
