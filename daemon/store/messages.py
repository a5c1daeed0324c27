"""SQL over the message tables of one session's inbound.db. The host's side only.

Functions that write must be called inside `Writer.transaction()`; statuses change in `transitions.py` and nowhere else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from daemon.store.transitions import record
from schema.connect import Reader, Writer
from schema.ids import MAX_ID
from schema.instants import from_text, to_text
from schema.rows import Address, MessageIn, MessageStatus

# A container's seq may not be above this; the host's own go on above it, with room for 2**62 more in SQLite's 64 bits.
MAX_SEQ = 2**53

# The outcome of an attempt that its agent put off: it has cost nothing yet.
_DEFERRED = "deferred"

# How many unfinished messages one look at a session takes in.
WINDOW = 1000


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of attempts that has not ended."""

    message_id: str
    incarnation: str


def next_even_seq(db: Reader) -> int:
    """Return the host's next seq: even, and above every seq that either side is known to have used."""
    # Only the cursor is the container's doing. Our own maximum is never cut: the next seq would be taken.
    row = db.one(
        "SELECT max(coalesce((SELECT max(seq) FROM messages_in), 0), coalesce((SELECT max(seq) FROM host_messages), 0),"
        " min(coalesce((SELECT seq FROM delivery_cursor WHERE id = 1), 0), ?)) AS top",
        (MAX_SEQ,),
    )
    top = int(row["top"]) if row is not None else 0
    return top + 2 - top % 2


def find(db: Reader, message_id: str) -> MessageIn | None:
    """One message, or None."""
    row = db.one("SELECT * FROM messages_in WHERE id = ?", (message_id,))
    return to_message(row) if row is not None else None


def free_id(db: Reader, wanted: str) -> str:
    """`wanted`, or where that is taken `wanted+r1` and so on: the next one of the same story."""
    candidate, number = wanted, 0
    while db.one("SELECT 1 FROM messages_in WHERE id = ?", (candidate,)) is not None:
        number += 1
        suffix = f"+r{number}"
        candidate = wanted[: MAX_ID - len(suffix)] + suffix
    return candidate


def insert(
    db: Writer, message: MessageIn, at: int, event: str = "accepted", detail: Mapping[str, object] | None = None
) -> None:
    """Store a new message with its first history row, which carries `detail`."""
    record(db, message.id, event, at, detail={**_where(message), **(detail or {})})
    db.execute(
        "INSERT INTO messages_in(id, seq, kind, timestamp, status, process_after, recurrence, series_id, tries, trigger,"
        " platform_id, channel_type, thread_id, content, source_session_id, on_wake, traceparent, not_after, solo)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            message.id,
            message.seq,
            message.kind,
            message.timestamp,
            message.status.value,
            to_text(message.process_after) if message.process_after is not None else None,
            message.recurrence,
            message.series_id or message.id,
            int(message.trigger),
            message.platform_id,
            message.channel_type,
            message.thread_id,
            message.content,
            message.source_session_id,
            int(message.on_wake),
            message.traceparent,
            to_text(message.not_after) if message.not_after is not None else None,
            int(message.solo),
        ),
    )


def set_routing(db: Writer, address: Address) -> None:
    """Set the default reply route: where the last message came from."""
    db.execute(
        "INSERT INTO session_routing(id, channel_type, platform_id, thread_id) VALUES (1, ?, ?, ?)"
        " ON CONFLICT(id) DO UPDATE SET channel_type = excluded.channel_type, platform_id = excluded.platform_id,"
        " thread_id = excluded.thread_id",
        (address.channel_type, address.platform_id, address.thread_id),
    )


_NOT_EXPIRED = "coalesce(julianday(not_after), 1e9) > julianday(:now)"
# What `fate.held_from` says, in SQL.
_HOLDS = f"holds = 1 AND trigger = 1 AND on_wake = 0 AND julianday(process_after) > julianday(:now) AND {_NOT_EXPIRED}"
_HELD_FROM = f"SELECT min(seq) FROM messages_in WHERE status = 'pending' AND {_HOLDS}"
# Whether a pending row may be begun at :now.
DUE = (
    f"coalesce(julianday(process_after), 0) <= julianday(:now) AND {_NOT_EXPIRED}"
    f" AND seq < coalesce(({_HELD_FROM}), {2**63 - 1})"
)


def pending(db: Reader, now: int, limit: int = WINDOW) -> list[MessageIn]:
    """Messages that are not finished: first those that should wake an agent now, then context, then what is scheduled.

    So no backlog hides a message that is due, nor one that holds others back. Cost follows what is pending, not what was.
    """
    order = f"NOT (({DUE}) OR ({_HOLDS})), trigger = 0, seq"
    sql = f"SELECT * FROM messages_in WHERE status = 'pending' ORDER BY {order} LIMIT :limit"
    return [to_message(row) for row in db.all(sql, {"now": to_text(now), "limit": limit})]


def pending_of(db: Reader, message_ids: Sequence[str]) -> list[MessageIn]:
    """Those of the named messages that are not finished."""
    found: list[MessageIn] = []
    for chunk in chunks(message_ids):
        sql = f"SELECT * FROM messages_in WHERE status = 'pending' AND id IN ({marks(chunk)})"
        found.extend(to_message(row) for row in db.all(sql, chunk))
    return found


def count_due(db: Reader, now: int) -> int:
    """How many messages should wake an agent now."""
    sql = f"SELECT count(*) AS due FROM messages_in WHERE status = 'pending' AND trigger = 1 AND {DUE}"
    row = db.one(sql, {"now": to_text(now)})
    return int(row["due"]) if row is not None else 0


def next_due_at(db: Reader, now: int) -> int | None:
    """When the next message should wake an agent (epoch ms): 0 for now, None for never."""
    if count_due(db, now):
        return 0
    # One that is held back has no time of its own: it is due when the one that holds it is.
    row = db.one(
        "SELECT process_after FROM messages_in WHERE status = 'pending' AND trigger = 1"
        " AND julianday(process_after) > julianday(:now) ORDER BY julianday(process_after) LIMIT 1",
        {"now": to_text(now)},
    )
    return from_text(row["process_after"]) if row is not None else None


def next_expiry(db: Reader) -> int | None:
    """When the next unfinished message expires (epoch ms), or expired; None for never."""
    row = db.one(
        "SELECT not_after FROM messages_in WHERE status = 'pending' AND not_after IS NOT NULL"
        " ORDER BY julianday(not_after) LIMIT 1"
    )
    return from_text(row["not_after"]) if row is not None else None


def first_deferred_at(db: Reader, message_id: str) -> int | None:
    """When its agent asked for the first time that a message be tried later (epoch ms); None if it never did."""
    row = db.one("SELECT min(at) AS at FROM message_history WHERE message_id = ? AND event = 'deferred'", (message_id,))
    return row["at"] if row is not None else None


def ever_claimed(db: Reader, incarnation: str) -> bool:
    """Whether an incarnation is known to have worked on anything."""
    return db.one("SELECT 1 FROM attempts WHERE incarnation = ? LIMIT 1", (incarnation,)) is not None


def note_claim(db: Writer, message_id: str, incarnation: str, claimed_at: int, at: int) -> bool:
    """Record that an incarnation was seen working on a message. False if that is known already.

    `claimed_at` is the container's word: it may not lie in the future. One that it had put off is worked on again: the
    attempt is open again, and may yet cost its one try.
    """
    claimed_at = min(claimed_at, at)
    known = db.one("SELECT outcome FROM attempts WHERE message_id = ? AND incarnation = ?", (message_id, incarnation))
    if known is not None and known["outcome"] != _DEFERRED:
        return False
    db.execute(
        "INSERT INTO attempts(message_id, incarnation, claimed_at) VALUES (?, ?, ?) ON CONFLICT(message_id, incarnation)"
        " DO UPDATE SET claimed_at = excluded.claimed_at, ended_at = NULL, outcome = NULL",
        (message_id, incarnation, claimed_at),
    )
    record(db, message_id, "claimed", claimed_at, incarnation=incarnation, detail={"seen_at": to_text(at)})
    return True


def noted(db: Reader, message_ids: Sequence[str], incarnation: str) -> frozenset[str]:
    """Which of these messages an incarnation is known to have claimed."""
    found: set[str] = set()
    for chunk in chunks(message_ids):
        sql = (
            f"SELECT message_id FROM attempts WHERE incarnation = ? AND message_id IN ({marks(chunk)})"
            f" AND outcome IS NOT '{_DEFERRED}'"
        )
        found.update(row["message_id"] for row in db.all(sql, (incarnation, *chunk)))
    return frozenset(found)


def noted_at(db: Reader, message_ids: Sequence[str], incarnation: str) -> dict[str, int]:
    """When the host noted that an incarnation claimed each of these messages (epoch ms)."""
    found: dict[str, int] = {}
    for chunk in chunks(message_ids):
        sql = (
            f"SELECT message_id, claimed_at FROM attempts WHERE incarnation = ? AND message_id IN ({marks(chunk)})"
            f" AND outcome IS NOT '{_DEFERRED}'"
        )
        found.update((row["message_id"], row["claimed_at"]) for row in db.all(sql, (incarnation, *chunk)))
    return found


def claimed_at(db: Reader, message_id: str, incarnation: str | None) -> int | None:
    """When an incarnation claimed a message (epoch ms), or the last one of an unknown name; None if nothing is known."""
    row = db.one(
        "SELECT max(claimed_at) AS at FROM attempts WHERE message_id = ? AND incarnation = coalesce(?, incarnation)",
        (message_id, incarnation),
    )
    return row["at"] if row is not None else None


def end_attempt(db: Writer, message_id: str, incarnation: str, at: int, outcome: str) -> bool:
    """Close an attempt, making it if it was never seen open. False if it had ended: then it costs nothing more."""
    row = db.one("SELECT outcome FROM attempts WHERE message_id = ? AND incarnation = ?", (message_id, incarnation))
    if row is not None and row["outcome"] not in (None, _DEFERRED):
        return False
    db.execute(
        "INSERT INTO attempts(message_id, incarnation, claimed_at, ended_at, outcome) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT(message_id, incarnation) DO UPDATE SET ended_at = excluded.ended_at, outcome = excluded.outcome",
        (message_id, incarnation, at, at, outcome),
    )
    return True


def end_open_attempts(db: Writer, message_id: str, at: int, outcome: str) -> None:
    """Close whatever attempts of a message are open: its runner stamps no incarnation on its acks."""
    db.execute(
        "UPDATE attempts SET ended_at = ?, outcome = ? WHERE message_id = ? AND outcome IS NULL",
        (at, outcome, message_id),
    )


def open_attempts(db: Reader) -> list[Attempt]:
    """Return the attempts without a recorded end."""
    rows = db.all("SELECT message_id, incarnation FROM attempts WHERE outcome IS NULL LIMIT 10000")
    return [Attempt(row["message_id"], row["incarnation"]) for row in rows]


def charged(db: Reader, message_ids: Sequence[str]) -> frozenset[tuple[str, str]]:
    """Return the (message, incarnation) pairs whose attempt has ended: each has cost its one try."""
    pairs: set[tuple[str, str]] = set()
    for chunk in chunks(message_ids):
        rows = db.all(
            f"SELECT message_id, incarnation FROM attempts WHERE outcome IS NOT NULL AND outcome != '{_DEFERRED}'"
            f" AND message_id IN ({marks(chunk)})",
            chunk,
        )
        pairs.update((row["message_id"], row["incarnation"]) for row in rows)
    return frozenset(pairs)


def to_rearm(db: Reader, limit: int = 100) -> list[MessageIn]:
    """Finished occurrences whose series has not been armed again."""
    rows = db.all(
        "SELECT * FROM messages_in WHERE recurrence IS NOT NULL AND status IN ('completed', 'failed')"
        " ORDER BY seq LIMIT ?",
        (limit,),
    )
    return [to_message(row) for row in rows]


def clear_recurrence(db: Writer, message_id: str) -> None:
    """Clear the recurrence of this occurrence: its series was armed again or has ended."""
    db.execute("UPDATE messages_in SET recurrence = NULL WHERE id = ?", (message_id,))


def to_message(row: sqlite3.Row) -> MessageIn:
    """Convert a row of messages_in."""
    return MessageIn(
        id=row["id"],
        seq=row["seq"] or 0,
        kind=row["kind"],
        timestamp=row["timestamp"],
        status=MessageStatus(row["status"] or MessageStatus.PENDING),
        content=row["content"],
        process_after=from_text(row["process_after"]),
        recurrence=row["recurrence"],
        series_id=row["series_id"],
        tries=row["tries"] or 0,
        trigger=bool(row["trigger"]),
        channel_type=row["channel_type"],
        platform_id=row["platform_id"],
        thread_id=row["thread_id"],
        source_session_id=row["source_session_id"],
        on_wake=bool(row["on_wake"]),
        traceparent=row["traceparent"],
        not_after=from_text(row["not_after"]),
        solo=bool(row["solo"]),
        holds=bool(row["holds"]),
        deferrals=row["deferrals"] or 0,
        void_ack=row["void_ack"],
    )


def address_of(message: MessageIn) -> Address | None:
    """Where a message came from, if it says."""
    if message.channel_type is None or message.platform_id is None:
        return None
    return Address(message.channel_type, message.platform_id, message.thread_id)


def chunks(values: Sequence[str], size: int = 400) -> Iterable[Sequence[str]]:
    """Slices small enough for SQLite's variable limit."""
    return (values[start : start + size] for start in range(0, len(values), size))


def marks(values: Sequence[str]) -> str:
    """`?,?,?` for an IN list."""
    return ",".join("?" * len(values))


def _where(message: MessageIn) -> dict[str, object]:
    detail: dict[str, object] = {"seq": message.seq, "kind": message.kind}
    if message.channel_type is not None:
        detail["from"] = f"{message.channel_type}:{message.platform_id}"
    if message.process_after is not None:
        detail["process_after"] = to_text(message.process_after)
    return detail
