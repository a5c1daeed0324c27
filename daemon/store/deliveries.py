"""SQL over the delivery tables of one session's inbound.db: cursor, open rows, attempts and receipts.

A row at or below the cursor is in `delivered` or in `delivery_attempts`, always. Functions that write must be called
inside `Writer.transaction()`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from daemon.store.messages import chunks, free_id, insert, marks, next_even_seq
from daemon.store.transitions import record
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.instants import to_text
from schema.rows import DeliveryState, Kind, MessageIn, MessageOut, MessageStatus

_RECEIPT: Final = (
    "INSERT INTO delivered(message_out_id, platform_message_id, status, delivered_at) VALUES (?, ?, ?, ?)"
    " ON CONFLICT(message_out_id) DO UPDATE SET platform_message_id = excluded.platform_message_id,"
    " status = excluded.status, delivered_at = excluded.delivered_at"
)


@frozen
class Tracked:
    """A row of delivery_attempts that is not dead. Times are epoch milliseconds."""

    message_out_id: str
    from_host: bool
    seq: int
    destination: str
    state: DeliveryState
    attempts: int
    next_attempt_at: int | None
    first_at: int
    doubts: int = 0


def cursor(db: Reader, file_id: str) -> int:
    """Return the highest seq recorded for this outbound.db file; 0 for a recreated one (ids already known are skipped)."""
    row = db.one("SELECT seq FROM delivery_cursor WHERE id = 1 AND file_id IS ?", (file_id,))
    return int(row["seq"]) if row is not None else 0


def advance(db: Writer, seq: int, file_id: str) -> None:
    """Move the cursor forward. It moves back only when the container's file was replaced by another one."""
    db.execute(
        "INSERT INTO delivery_cursor(id, seq, file_id) VALUES (1, ?, ?) ON CONFLICT(id) DO UPDATE SET"
        " seq = CASE WHEN file_id IS excluded.file_id THEN max(seq, excluded.seq) ELSE excluded.seq END,"
        " file_id = excluded.file_id",
        (seq, file_id),
    )


def due(
    db: Reader,
    now: int,
    held: frozenset[str],
    limit: int,
    *,
    full: frozenset[tuple[str, str]] = frozenset(),
    only: tuple[str, str] | None = None,
) -> list[Tracked]:
    """Return open rows that are due and whose destination is not in `held`, in seq order.

    Leave out every (channel, place) in `full`. With `only`, return the rows for that one alone.
    """
    blocked = tuple(held)
    # A destination's key begins with its channel and place, each followed by a separator (schema.rows.Address.key).
    places = [f"{channel}\x1f{place}" for channel, place in ((only,) if only is not None else full)]
    bounds = [edge for place in places for edge in (f"{place}\x1f", f"{place}\x20")]
    within = (
        " AND (destination >= ? AND destination < ?)"
        if only is not None
        else (" AND NOT (destination >= ? AND destination < ?)" * len(places))
    )
    rows = db.all(
        "SELECT * FROM delivery_attempts WHERE state IN ('queued', 'intended', 'retrying')"
        " AND coalesce(next_attempt_at, 0) <= ?"
        f" AND destination NOT IN ({marks(blocked)})"
        f"{within}"
        " ORDER BY seq LIMIT ?",
        (now, *blocked, *bounds, limit),
    )
    return [
        Tracked(
            message_out_id=row["message_out_id"],
            from_host=row["source"] == "host",
            seq=row["seq"],
            destination=row["destination"],
            state=DeliveryState(row["state"]),
            attempts=row["attempts"],
            next_attempt_at=row["next_attempt_at"],
            first_at=row["first_at"],
            doubts=row["doubts"],
        )
        for row in rows
    ]


def retrying_destinations(db: Reader, now: int) -> frozenset[str]:
    """Return destinations that are held back by a failed head whose next attempt is not due yet."""
    rows = db.all(
        "SELECT DISTINCT destination FROM delivery_attempts WHERE state = 'retrying' AND passed = 0"
        " AND next_attempt_at > ?",
        (now,),
    )
    return frozenset(row["destination"] for row in rows)


def probing_destinations(db: Reader) -> frozenset[str]:
    """Return destinations whose failing head lets one later row try."""
    rows = db.all("SELECT DISTINCT destination FROM delivery_attempts WHERE state = 'retrying' AND passed = 1")
    return frozenset(row["destination"] for row in rows)


def count_open(db: Reader, *, of_agent: bool = False) -> int:
    """Return how many rows are neither delivered nor dead. `of_agent`: do not count the host's own."""
    own = " AND source = 'agent'" if of_agent else ""
    row = db.one(f"SELECT count(*) AS n FROM delivery_attempts WHERE state IN ('queued', 'intended', 'retrying'){own}")
    return int(row["n"]) if row is not None else 0


def count_scheduled(db: Reader, now: int) -> int:
    """Return how many rows wait for a time that their agent set."""
    row = db.one(
        "SELECT count(*) AS n FROM delivery_attempts WHERE state IN ('queued', 'intended', 'retrying')"
        " AND state = 'queued' AND next_attempt_at > ?",
        (now,),
    )
    return int(row["n"]) if row is not None else 0


def scheduled_of_agent(db: Reader, now: int, after: int, limit: int) -> list[MessageOut]:
    """Return the container's rows that wait for a time they set, with a seq above `after`, in seq order, without content."""
    rows = db.all(
        "SELECT message_out_id, seq FROM delivery_attempts WHERE state IN ('queued', 'intended', 'retrying')"
        " AND state = 'queued' AND source = 'agent' AND next_attempt_at > ? AND seq > ? ORDER BY seq LIMIT ?",
        (now, after, limit),
    )
    return [MessageOut(row["message_out_id"], row["seq"], "", "", "") for row in rows]


def next_attempt_at(db: Reader) -> int | None:
    """Return the earliest time at which an open row is due (epoch milliseconds); 0 for at once, None if none is open.

    A row behind a head that is being retried is not due before that head.
    """
    row = db.one(
        "SELECT min(coalesce(next_attempt_at, 0)) AS soonest FROM delivery_attempts"
        " WHERE state IN ('queued', 'intended', 'retrying') AND (state = 'retrying'"
        " OR destination NOT IN (SELECT destination FROM delivery_attempts WHERE state = 'retrying' AND passed = 0))"
    )
    return row["soonest"] if row is not None else None


def known(db: Reader, ids: Sequence[str]) -> frozenset[str]:
    """Return the ids that have a receipt or are tracked already: a container that reuses an id gets no second send."""
    found: set[str] = set()
    for chunk in chunks(ids):
        for table in ("delivered", "delivery_attempts"):
            rows = db.all(f"SELECT message_out_id FROM {table} WHERE message_out_id IN ({marks(chunk)})", chunk)
            found.update(row["message_out_id"] for row in rows)
    return frozenset(found)


def arrived(db: Reader, ids: Sequence[str]) -> frozenset[str]:
    """Return the ids that have a receipt and are not tracked any more: nothing sends them again."""
    found: set[str] = set()
    for chunk in chunks(ids):
        rows = db.all(f"SELECT message_out_id FROM delivered WHERE message_out_id IN ({marks(chunk)})", chunk)
        of_chunk = {row["message_out_id"] for row in rows}
        rows = db.all(f"SELECT message_out_id FROM delivery_attempts WHERE message_out_id IN ({marks(chunk)})", chunk)
        found |= of_chunk - {row["message_out_id"] for row in rows}
    return frozenset(found)


def track(
    db: Writer,
    row: MessageOut,
    *,
    from_host: bool,
    destination: str,
    state: DeliveryState,
    not_before: int | None,
    at: int,
) -> None:
    """Record a new row. The state `intended` counts as its first attempt."""
    db.execute(
        "INSERT INTO delivery_attempts(message_out_id, source, seq, destination, state, attempts, next_attempt_at, first_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.id,
            "host" if from_host else "agent",
            row.seq,
            destination,
            state.value,
            int(state is DeliveryState.INTENDED),
            not_before,
            at,
        ),
    )


def intend(db: Writer, message_out_id: str, destination: str) -> None:
    """Record, before the send, that an attempt begins.

    `destination` is where it goes now; a row without its own address may not have had one when it was first recorded. The
    row's next attempt time is cleared: if a crash leaves it in doubt it is due at once, even if the clock is set back.
    """
    db.execute(
        "UPDATE delivery_attempts SET state = 'intended', attempts = attempts + 1, destination = ?,"
        " next_attempt_at = NULL WHERE message_out_id = ?",
        (destination, message_out_id),
    )


def state_of(db: Reader, message_out_id: str) -> str | None:
    """Return the state of a tracked row; None when it is no longer tracked."""
    row = db.one("SELECT state FROM delivery_attempts WHERE message_out_id = ?", (message_out_id,))
    return str(row["state"]) if row is not None else None


def revert_intent(db: Writer, message_out_id: str) -> None:
    """Put a row back into its queue: the intended attempt did not begin."""
    db.execute(
        "UPDATE delivery_attempts SET state = 'queued', attempts = max(attempts - 1, 0), next_attempt_at = NULL"
        " WHERE message_out_id = ? AND state = 'intended'",
        (message_out_id,),
    )


def retry(
    db: Writer,
    message_out_id: str,
    at: int,
    not_before: int,
    code: str,
    error: str,
    *,
    in_doubt: bool = False,
    lets_try: bool = False,
) -> None:
    """Record a failed attempt; the next is due at `not_before`.

    `in_doubt`: it may have arrived. `lets_try`: it has failed for so long that one later row of its destination is
    tried.
    """
    db.execute(
        "UPDATE delivery_attempts SET state = 'retrying', next_attempt_at = ?, last_error_code = ?, last_error = ?,"
        " doubts = doubts + ?, passed = CASE WHEN passed = 0 THEN ? ELSE passed END WHERE message_out_id = ?",
        (not_before, code, error[:1000], int(in_doubt), int(lets_try), message_out_id),
    )
    detail = {"code": code, "error": error[:1000], "next_attempt_at": to_text(not_before)}
    record(db, message_out_id, "delivery_failed", at, detail={**detail, **({"in_doubt": True} if in_doubt else {})})


def wait_turn(db: Writer, message_out_id: str, at: int, not_before: int, code: str, error: str) -> None:
    """Have a row wait for a limit of our own until `not_before`, before the later ones of its destination. That is no attempt.

    The time for its retries begins with its first attempt. The history has the first of its waits.
    """
    waited = "SELECT 1 FROM message_history WHERE message_id = ? AND event = 'delivery_waits' LIMIT 1"
    if db.one(waited, (message_out_id,)) is None:
        record(db, message_out_id, "delivery_waits", at, detail={"reason": error[:1000]})
    db.execute(
        "UPDATE delivery_attempts SET state = 'retrying', attempts = max(attempts - 1, 0), next_attempt_at = ?,"
        " first_at = CASE WHEN attempts > 1 THEN first_at ELSE ? END, last_error_code = ?, last_error = ?"
        " WHERE message_out_id = ?",
        (not_before, at, code, error[:1000], message_out_id),
    )


def head_that_lets_try(db: Reader, destination: str, message_out_id: str) -> bool:
    """Return whether another row of this destination keeps failing and lets this one try."""
    sql = (
        "SELECT 1 FROM delivery_attempts WHERE destination = ? AND state = 'retrying' AND passed = 1"
        " AND message_out_id <> ?"
    )
    return db.one(sql, (destination, message_out_id)) is not None


def probe_failed(
    db: Writer, message_out_id: str, destination: str, at: int, code: str, error: str, *, in_doubt: bool = False
) -> None:
    """Record that a later row failed too: both wait, in order, for the head's next attempt."""
    db.execute(
        "UPDATE delivery_attempts SET state = 'queued', next_attempt_at = NULL, last_error_code = ?, last_error = ?,"
        " doubts = doubts + ? WHERE message_out_id = ?",
        (code, error[:1000], int(in_doubt), message_out_id),
    )
    db.execute(
        "UPDATE delivery_attempts SET passed = 0 WHERE destination = ? AND state = 'retrying' AND passed = 1",
        (destination,),
    )
    detail: dict[str, object] = {"code": code, "error": error[:1000], "waits_behind": "the first of its destination"}
    record(db, message_out_id, "delivery_failed", at, detail={**detail, **({"in_doubt": True} if in_doubt else {})})


def set_aside(db: Writer, destination: str, message_out_id: str, at: int) -> None:
    """Record that the receiver accepted a later row: the one that keeps failing no longer holds back others."""
    passed = db.all(
        "SELECT message_out_id FROM delivery_attempts WHERE destination = ? AND state = 'retrying' AND passed = 1",
        (destination,),
    )
    for row in passed:
        db.execute("UPDATE delivery_attempts SET passed = 2 WHERE message_out_id = ?", (row["message_out_id"],))
        record(db, row["message_out_id"], "delivery_passed", at, detail={"by": message_out_id})


def resend(db: Writer, message_out_id: str, at: int, attempt: int, *, deduplicates: bool) -> None:
    """Record that a row is sent again because a crash left its last attempt without a receipt."""
    db.execute("UPDATE delivery_attempts SET doubts = doubts + 1 WHERE message_out_id = ?", (message_out_id,))
    effect = "the receiver knows the key" if deduplicates else "the receiver may have it twice"
    record(db, message_out_id, "delivery_in_doubt", at, detail={"attempt": attempt, "sent_again": effect})


def delivered(db: Writer, receipts: Sequence[tuple[str, str | None]], at: int, *, tracked: bool = True) -> None:
    """Record receipts: (id of the row, the platform's id). The rows are no longer open; not `tracked`, they never were."""
    text = to_text(at)
    db.executemany(_RECEIPT, [(row_id, platform_id, "delivered", text) for row_id, platform_id in receipts])
    if tracked:
        db.executemany("DELETE FROM delivery_attempts WHERE message_out_id = ?", [(row_id,) for row_id, _ in receipts])


def not_wanted(db: Writer, message_out_id: str, at: int) -> None:
    """Close an answer that its channel's configuration does not want. It does not become a dead letter."""
    _receipt(db, message_out_id, "not_wanted", None, at)
    record(db, message_out_id, "not_wanted", at)
    db.execute("DELETE FROM delivery_attempts WHERE message_out_id = ?", (message_out_id,))


def carried_out(db: Writer, message_out_id: str, at: int) -> None:
    """Close a row that was a request to the host: nothing is sent."""
    _receipt(db, message_out_id, "carried_out", None, at)
    record(db, message_out_id, "carried_out", at)
    db.execute("DELETE FROM delivery_attempts WHERE message_out_id = ?", (message_out_id,))


def make_dead_letter(db: Writer, row: MessageOut, at: int, code: str, error: str, *, notify_agent: bool) -> None:
    """Make a tracked row a dead letter, and inform the agent with a row that does not wake it."""
    db.execute(
        "UPDATE delivery_attempts SET state = 'dead', next_attempt_at = NULL, last_error_code = ?, last_error = ?"
        " WHERE message_out_id = ?",
        (code, error[:1000], row.id),
    )
    record(db, row.id, "dead_lettered", at, detail={"code": code, "error": error[:1000]})
    _receipt(db, row.id, "failed", None, at)
    if notify_agent:
        # Do not pass on the channel's error text: it may hold a receiver's address, and an agent may repeat what it reads.
        why = f"it was not delivered, and will not be without an operator ({code})"
        content = {
            "text": f"Your answer {row.id}: {why}.",
            "type": "delivery_failed",
            "message_out_id": row.id,
            "in_reply_to": row.in_reply_to,
            "code": code,
            "error": why,
        }
        notice = MessageIn(
            id=free_id(db, f"dead-letter:{row.id}"),
            seq=next_even_seq(db),
            kind=Kind.SYSTEM,
            timestamp=to_text(at),
            status=MessageStatus.PENDING,
            content=json.dumps(content, ensure_ascii=False),
            trigger=False,
        )
        insert(db, notice, at, event="notice_written")


def _receipt(db: Writer, message_out_id: str, status: str, platform_message_id: str | None, at: int) -> None:
    db.execute(_RECEIPT, (message_out_id, platform_message_id, status, to_text(at)))
