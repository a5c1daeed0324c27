"""SQL over the message tables of one session's inbound.db. The host's side only.

Functions that write must be called inside `Writer.transaction()`; statuses change in `transitions.py` and nowhere else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from daemon.core.message_fate import latest_moment
from daemon.store.transitions import record
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.ids import MAX_ID
from schema.instants import from_text, to_text
from schema.rows import Address, MessageIn, MessageStatus

# The highest seq that a container may use. The host's own continue above it; SQLite's 64 bits have room for 2**62 more.
MAX_SEQ = 2**53

# The outcome of an attempt that ended with `later`: no try has been charged yet.
_DEFERRED = "deferred"
_CLOCK_SLACK_MS = 2_000  # two readings of one clock may differ, by as much as core/lifecycle.py allows

# How many unfinished messages one poll or sweep of a session reads.
WINDOW = 1000


@frozen
class Attempt:
    """An open attempt: a row of `attempts` that has not ended."""

    message_id: str
    incarnation: str


def next_even_seq(db: Reader) -> int:
    """Return the host's next seq: even, and above every seq that either side is known to have used."""
    # Limit only the cursor, which the container controls. Limiting our own maximum would make the next seq a duplicate.
    row = db.one(
        "SELECT max(coalesce((SELECT max(seq) FROM messages_in), 0), coalesce((SELECT max(seq) FROM host_messages), 0),"
        " min(coalesce((SELECT seq FROM delivery_cursor WHERE id = 1), 0), ?)) AS top",
        (MAX_SEQ,),
    )
    top = int(row["top"]) if row is not None else 0
    return top + 2 - top % 2


def find(db: Reader, message_id: str) -> MessageIn | None:
    """Return one message, or None."""
    row = db.one("SELECT * FROM messages_in WHERE id = ?", (message_id,))
    return to_message(row) if row is not None else None


def free_id(db: Reader, wanted: str) -> str:
    """Return `wanted`, or, if that id is taken, the next free one of `wanted+r1`, `wanted+r2` and so on."""
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
        " platform_id, channel_type, thread_id, content, source_session_id, on_wake, traceparent, not_after, solo,"
        " stop_late, relay) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            int(message.stop_late),
            message.relay,
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
# Whether a turn may begin with a pending row at :now.
DUE = (
    f"coalesce(julianday(process_after), 0) <= julianday(:now) AND {_NOT_EXPIRED}"
    f" AND seq < coalesce(({_HELD_FROM}), {2**63 - 1})"
)


def pending(db: Reader, now: int, limit: int = WINDOW) -> list[MessageIn]:
    """Return unfinished messages: first those that should wake an agent now, then context, then scheduled ones.

    So no backlog hides a due message, or one that holds others back. The cost depends only on the pending messages.
    """
    order = f"NOT (({DUE}) OR ({_HOLDS})), trigger = 0, seq"
    sql = f"SELECT * FROM messages_in WHERE status = 'pending' ORDER BY {order} LIMIT :limit"
    return [to_message(row) for row in db.all(sql, {"now": to_text(now), "limit": limit})]


def pending_of(db: Reader, message_ids: Sequence[str]) -> list[MessageIn]:
    """Return those of the given messages that are not finished."""
    found: list[MessageIn] = []
    for chunk in chunks(message_ids):
        sql = f"SELECT * FROM messages_in WHERE status = 'pending' AND id IN ({marks(chunk)})"
        found.extend(to_message(row) for row in db.all(sql, chunk))
    return found


def count_due(db: Reader, now: int) -> int:
    """Return how many messages should wake an agent now."""
    sql = f"SELECT count(*) AS due FROM messages_in WHERE status = 'pending' AND trigger = 1 AND {DUE}"
    row = db.one(sql, {"now": to_text(now)})
    return int(row["due"]) if row is not None else 0


def next_due_at(db: Reader, now: int) -> int | None:
    """Return when the next message should wake an agent (epoch milliseconds): 0 for now, None for never."""
    if count_due(db, now):
        return 0
    # Ignore a message that is held back: it is due only when the one that holds it back is.
    row = db.one(
        "SELECT process_after FROM messages_in WHERE status = 'pending' AND trigger = 1"
        " AND julianday(process_after) > julianday(:now) ORDER BY julianday(process_after) LIMIT 1",
        {"now": to_text(now)},
    )
    return from_text(row["process_after"]) if row is not None else None


def next_expiry(db: Reader) -> int | None:
    """Return when the next unfinished message expires or expired (epoch milliseconds); None for never."""
    row = db.one(
        "SELECT not_after FROM messages_in WHERE status = 'pending' AND not_after IS NOT NULL"
        " ORDER BY julianday(not_after) LIMIT 1"
    )
    return from_text(row["not_after"]) if row is not None else None


def first_deferred_at(db: Reader, message_id: str) -> int | None:
    """Return when the agent first answered a message with `later` (epoch milliseconds); None if it never did."""
    row = db.one("SELECT min(at) AS at FROM message_history WHERE message_id = ? AND event = 'deferred'", (message_id,))
    return row["at"] if row is not None else None


def ever_claimed(db: Reader, incarnation: str) -> bool:
    """Return whether an incarnation is known to have claimed anything."""
    return db.one("SELECT 1 FROM attempts WHERE incarnation = ? LIMIT 1", (incarnation,)) is not None


def note_claim(db: Writer, message_id: str, incarnation: str, claimed_at: int, at: int) -> bool:
    """Record that an incarnation has claimed a message. Return False if that is already known.

    The container reports `claimed_at`, so it is limited to the present. If it lies clearly before the message was accepted or due
    again, the container's clock is behind: the claim then counts from now. If the attempt had ended with `later`, it is open again
    and may still be charged its one try.
    """
    behind = latest_moment(claimed_at) + _CLOCK_SLACK_MS < _claimable_since(db, message_id)
    claimed_at = at if behind else min(claimed_at, at)
    known = db.one("SELECT outcome FROM attempts WHERE message_id = ? AND incarnation = ?", (message_id, incarnation))
    if known is not None and known["outcome"] != _DEFERRED:
        return False
    db.execute(
        "INSERT INTO attempts(message_id, incarnation, claimed_at) VALUES (?, ?, ?) ON CONFLICT(message_id, incarnation)"
        " DO UPDATE SET claimed_at = excluded.claimed_at, ended_at = NULL, outcome = NULL",
        (message_id, incarnation, claimed_at),
    )
    # Of a runner that writes whole seconds, the life of a message must not show the claim before the acceptance.
    shown = min(latest_moment(claimed_at), at)
    record(db, message_id, "claimed", shown, incarnation=incarnation, detail={"seen_at": to_text(at)})
    return True


def _claimable_since(db: Reader, message_id: str) -> int:
    """Return since when the message could be claimed at all (epoch milliseconds); 0 if unknown."""
    row = db.one("SELECT timestamp, process_after FROM messages_in WHERE id = ?", (message_id,))
    instants = (from_text(row["timestamp"]), from_text(row["process_after"])) if row is not None else ()
    return max((instant for instant in instants if instant is not None), default=0)


def noted(db: Reader, message_ids: Sequence[str], incarnation: str) -> frozenset[str]:
    """Return those of these messages that an incarnation is known to have claimed."""
    found: set[str] = set()
    for chunk in chunks(message_ids):
        sql = (
            f"SELECT message_id FROM attempts WHERE incarnation = ? AND message_id IN ({marks(chunk)})"
            f" AND outcome IS NOT '{_DEFERRED}'"
        )
        found.update(row["message_id"] for row in db.all(sql, (incarnation, *chunk)))
    return frozenset(found)


def noted_at(db: Reader, message_ids: Sequence[str], incarnation: str) -> dict[str, int]:
    """Return when the host recorded an incarnation's claim of each of these messages (epoch milliseconds)."""
    found: dict[str, int] = {}
    for chunk in chunks(message_ids):
        sql = (
            f"SELECT message_id, claimed_at FROM attempts WHERE incarnation = ? AND message_id IN ({marks(chunk)})"
            f" AND outcome IS NOT '{_DEFERRED}'"
        )
        found.update((row["message_id"], row["claimed_at"]) for row in db.all(sql, (incarnation, *chunk)))
    return found


def claimed_at(db: Reader, message_id: str, incarnation: str | None) -> int | None:
    """Return when an incarnation (None: the last one) claimed a message (epoch milliseconds); None if unknown."""
    row = db.one(
        "SELECT max(claimed_at) AS at FROM attempts WHERE message_id = ? AND incarnation = coalesce(?, incarnation)",
        (message_id, incarnation),
    )
    return row["at"] if row is not None else None


def end_attempt(db: Writer, message_id: str, incarnation: str, at: int, outcome: str) -> bool:
    """End an attempt, creating it if it was never seen open. Return False if it had ended: then nothing more is charged."""
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
    """End all open attempts of a message, for a runner that stamps no incarnation on its acks."""
    db.execute(
        "UPDATE attempts SET ended_at = ?, outcome = ? WHERE message_id = ? AND outcome IS NULL",
        (at, outcome, message_id),
    )


def open_attempts(db: Reader) -> list[Attempt]:
    """Return the attempts without a recorded end."""
    rows = db.all("SELECT message_id, incarnation FROM attempts WHERE outcome IS NULL LIMIT 10000")
    return [Attempt(row["message_id"], row["incarnation"]) for row in rows]


def cancelled_attempts(db: Reader, incarnation: str) -> dict[str, int]:
    """Return, by message, when (epoch milliseconds) it was cancelled while this incarnation worked on it, until that has ended."""
    rows = db.all(
        "SELECT a.message_id, max(h.at) AS since FROM attempts AS a JOIN messages_in AS m ON m.id = a.message_id"
        " JOIN message_history AS h ON h.message_id = a.message_id AND h.event = 'cancelled'"
        " WHERE a.outcome IS NULL AND a.incarnation = ? AND m.status = 'cancelled' GROUP BY a.message_id LIMIT 1000",
        (incarnation,),
    )
    return {row["message_id"]: row["since"] for row in rows}


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
    """Return finished occurrences whose series has not been rearmed yet."""
    rows = db.all(
        "SELECT * FROM messages_in WHERE recurrence IS NOT NULL AND status IN ('completed', 'failed')"
        " ORDER BY seq LIMIT ?",
        (limit,),
    )
    return [to_message(row) for row in rows]


def clear_recurrence(db: Writer, message_id: str) -> None:
    """Clear the recurrence of this occurrence: its series was rearmed or has ended."""
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
        stop_late=bool(row["stop_late"]),
        relay=row["relay"],
    )


def address_of(message: MessageIn) -> Address | None:
    """Return the address that a message came from, or None."""
    if message.channel_type is None or message.platform_id is None:
        return None
    return Address(message.channel_type, message.platform_id, message.thread_id)


def chunks(values: Sequence[str], size: int = 400) -> Iterable[Sequence[str]]:
    """Yield slices that are small enough for SQLite's limit of variables."""
    return (values[start : start + size] for start in range(0, len(values), size))


def marks(values: Sequence[str]) -> str:
    """Return `?,?,?` for an IN list."""
    return ",".join("?" * len(values))


def _where(message: MessageIn) -> dict[str, object]:
    detail: dict[str, object] = {"seq": message.seq, "kind": message.kind}
    if message.channel_type is not None:
        detail["from"] = f"{message.channel_type}:{message.platform_id}"
    if message.process_after is not None:
        detail["process_after"] = to_text(message.process_after)
    return detail
