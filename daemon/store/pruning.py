"""Retention's SQL over one session's inbound.db: finds rows that are finished and old, and deletes them.

It never deletes an unfinished message, an open dead letter, a row that an answer on its way still needs, a row that the
container's file still refers to (its ack or answer prevents a repeated id or a replaced file from repeating work), or the
row with the highest seq. Synchronous; the caller holds the session's lock. One step is one read and one short transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from daemon.store import deliveries, outbound
from daemon.store.attachments import remove_attachments, remove_unnamed
from daemon.store.messages import chunks, marks
from daemon.store.pruned import note
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import SESSION
from schema.frozen import frozen
from schema.handles import Reader, Writer
from schema.instants import from_text
from schema.rows import DeliveryState, MessageStatus

_OVER: Final = frozenset({MessageStatus.COMPLETED, MessageStatus.FAILED, MessageStatus.CANCELLED})
# With more answers than this on their way or dead, it is too much work to find what they reply to; nothing is pruned then.
_MAX_ON_THEIR_WAY: Final = 20_000


@frozen
class Step:
    """One step's result. `taken`: rows deleted. The next step begins after `position`; with `done` there is none."""

    taken: int
    position: int
    done: bool


def prune_messages(
    files: SessionFiles,
    cutoff: int,
    after: int,
    limit: int,
    now: int,
    forget: Callable[[Sequence[str]], object] = lambda _: None,
) -> Step:
    """Delete those of the next `limit` messages after seq `after` that ended before `cutoff` (epoch milliseconds).

    Delete their history, attempts and closed dead letters too. `forget` is called with their ids before: whatever else is
    found by them must not be found by a new message of the id. Raise its errors and those of opening the files; then
    nothing is deleted.
    """
    with files.inbound() as db:
        if after == 0:
            remove_unnamed(db, files.folder, cutoff)
        rows = db.all(
            "SELECT seq, id, status, recurrence, series_id, timestamp FROM messages_in"
            " WHERE seq > ? AND seq < (SELECT max(seq) FROM messages_in) ORDER BY seq LIMIT ?",
            (after, limit),
        )
        old = [row for row in rows if (from_text(row["timestamp"]) or 0) < cutoff]
        if not old:
            return Step(0, after, done=True)
        with files.outbound() as out:
            if out is not None and outbound.has_after(out, deliveries.cursor(db, out.file_id)):
                return Step(0, after, done=True)  # a new answer may reply to any of them; it must be recorded first
            taken = _finished(db, out, old, cutoff)
        if taken:
            forget(taken)
            remove_attachments(db, files.folder, taken)
            with db.transaction():
                for table, key in (
                    ("message_history", "message_id"), ("attempts", "message_id"), ("messages_in", "id"),
                    ("dead_letters_closed", "id"),
                ):  # fmt: skip
                    _delete(db, table, key, taken)
                # An open question is still to be answered, and a message then notifies its agent.
                _delete(db, "questions", "outcome IS NOT NULL AND message_id", taken)
                note(db, "messages", len(taken), now, cutoff)
    return Step(len(taken), rows[-1]["seq"], done=len(rows) < limit)


def prune_receipts(files: SessionFiles, cutoff: int, after: int, limit: int, now: int) -> Step:
    """Delete those of the next `limit` receipts after rowid `after` that are older than `cutoff` (epoch milliseconds).

    Only when the answer is gone from the container's file, or is the host's own; its other records are deleted too. A
    receipt also stays while a message that was accepted before it and was in a turn is not over: after a reset the next
    turn may ask and say the same, under the same ids. Raise the errors of opening the files; then nothing is deleted.
    """
    with files.inbound() as db:
        cutoff = min(cutoff, _oldest_in_work(db, cutoff))
        if after == 0:
            files.sent.remove_unnamed(db, cutoff)
        rows = db.all(
            "SELECT rowid AS position, message_out_id AS id, delivered_at FROM delivered WHERE rowid > ?"
            " ORDER BY rowid LIMIT ?",
            (after, limit),
        )
        old = [row["id"] for row in rows if (from_text(row["delivered_at"]) or 0) < cutoff]
        if not old:
            return Step(0, after, done=True)
        own = _in_table(db, "host_messages", "id", old)
        with files.outbound() as out:
            # A missing file proves nothing: it may have been moved away and come back.
            kept = outbound.present(out, old) if out is not None else set(old) - own
        kept |= _unfinished_answers(db, old, cutoff) | _highest_notice(db) | _in_table(db, "messages_in", "id", old)
        taken = [identity for identity in old if identity not in kept]
        if taken:
            files.sent.remove(taken)
            with db.transaction():
                for table, key in (
                    ("message_history", "message_id"), ("delivery_attempts", "message_out_id"),
                    ("dead_letters_closed", "id"), ("host_messages", "id"), ("delivered", "message_out_id"),
                ):  # fmt: skip
                    _delete(db, table, key, taken)
                note(db, "receipts", len(taken), now, cutoff)
    return Step(len(taken), rows[-1]["position"], done=len(rows) < limit)


# What no message and no answer takes along. ?1: the cutoff, ?2: how many rows. A schedule of the configuration stays: without its
# row the next sweep would make it anew.
_RECORDS: Final = (
    (
        "schedules",
        "key",
        (
            "SELECT key FROM schedules AS s WHERE state = 'over' AND origin <> 'config' AND changed_at < ?1 AND NOT EXISTS"
            " (SELECT 1 FROM schedule_runs AS r LEFT JOIN messages_in AS m ON m.id = r.message_id WHERE r.key = s.key"
            " AND (r.at >= ?1 OR m.status IN ('pending', 'paused'))) LIMIT ?2"
        ),
    ),
    (
        "schedule_runs",
        "(key, due)",
        "SELECT key, due FROM schedule_runs WHERE at < ?1 AND key NOT IN (SELECT key FROM schedules) LIMIT ?2",
    ),
    ("message_history", "id", f"SELECT id FROM message_history WHERE message_id = '{SESSION}' AND at < ?1 LIMIT ?2"),
    (
        "questions",
        "id",
        (
            "SELECT id FROM questions AS q WHERE outcome IS NOT NULL AND decided_at < ?1"
            " AND NOT EXISTS (SELECT 1 FROM messages_in AS m WHERE m.id = q.message_id) LIMIT ?2"
        ),
    ),
)


def prune_records(files: SessionFiles, cutoff: int, after: int, limit: int, now: int) -> Step:
    """Delete old schedules that are over, their runs, the session's own history, and questions whose message is gone.

    At most `limit` rows of each. Raise the errors of opening the file; then nothing is deleted.
    """
    with files.inbound() as db:
        found = [record for record in _RECORDS if db.one(record[2], (cutoff, 1)) is not None]
        if not found:
            return Step(0, after, done=True)
        with db.transaction():
            counts = [
                db.execute(f"DELETE FROM {table} WHERE {key} IN ({sql})", (cutoff, limit)) for table, key, sql in found
            ]
            note(db, "records", sum(counts), now, cutoff)
    return Step(sum(counts), after, done=max(counts) < limit)


def _finished(db: Reader, out: Reader | None, rows: Sequence[sqlite3.Row], cutoff: int) -> list[str]:
    """Return the ids of the `rows` that ended before `cutoff` and that nothing needs any longer."""
    over = [row for row in rows if row["status"] in _OVER and not _to_rearm(row)]
    ids = [row["id"] for row in over]
    ended = _last_events(db, ids)
    kept = _open_or_requeued(db, over) | _first_of_live_series(db, over) | _open_attempts(db, ids)
    # A container may give an answer a message's id; then reports about that id concern both.
    kept |= _in_table(db, "delivery_attempts", "message_out_id", ids)
    if out is not None:
        kept |= outbound.acked(out, ids)
    answered = _answered_by_unfinished(db, out)
    if answered is None:
        return []
    return [one for one in ids if one not in kept and one not in answered and ended.get(one, cutoff) < cutoff]


def _to_rearm(row: sqlite3.Row) -> bool:
    """Return whether a finished occurrence still carries its recurrence, so that its series is not armed again yet."""
    return row["recurrence"] is not None and row["status"] != MessageStatus.CANCELLED


def _last_events(db: Reader, ids: Sequence[str]) -> dict[str, int]:
    """Return the time of each message's last history row. A message without history has none, and is kept."""
    found: dict[str, int] = {}
    for chunk in chunks(ids):
        rows = db.all(
            f"SELECT message_id, max(at) AS at FROM message_history WHERE message_id IN ({marks(chunk)})"
            " GROUP BY message_id",
            chunk,
        )
        found.update((row["message_id"], row["at"]) for row in rows)
    return found


def _open_or_requeued(db: Reader, rows: Sequence[sqlite3.Row]) -> set[str]:
    """Return failed messages that are open dead letters, and ended ones whose requeued copy still exists: it refers to them."""
    kept = {row["id"] for row in rows if row["status"] == MessageStatus.FAILED}
    ended = [row["id"] for row in rows if row["status"] in (MessageStatus.FAILED, MessageStatus.CANCELLED)]
    for chunk in chunks(ended):
        closed = db.all(
            "SELECT id, requeued_as IN (SELECT id FROM messages_in) AS refers FROM dead_letters_closed"
            f" WHERE id IN ({marks(chunk)})",
            chunk,
        )
        for row in closed:
            (kept.add if row["refers"] else kept.discard)(row["id"])
    return kept


def _first_of_live_series(db: Reader, rows: Sequence[sqlite3.Row]) -> set[str]:
    """Return first occurrences whose series is still active: if that id was sent again, the series would start twice."""
    kept: set[str] = set()
    for chunk in chunks([row["id"] for row in rows if row["series_id"] == row["id"]]):
        found = db.all(
            f"SELECT DISTINCT series_id FROM messages_in WHERE series_id IN ({marks(chunk)}) AND id <> series_id"
            " AND (status IN ('pending', 'paused') OR (recurrence IS NOT NULL AND status IN ('completed', 'failed')))",
            chunk,
        )
        kept.update(row["series_id"] for row in found)
    return kept


def _open_attempts(db: Reader, ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for chunk in chunks(ids):
        sql = f"SELECT message_id FROM attempts WHERE outcome IS NULL AND message_id IN ({marks(chunk)})"
        found.update(row["message_id"] for row in db.all(sql, chunk))
    return found


def _answered_by_unfinished(db: Reader, out: Reader | None) -> frozenset[str] | None:
    """Return the messages that unsent answers and dead letters reply to: these give them permission for their destination.

    None when there are too many to check.
    """
    rows = db.all(
        "SELECT message_out_id FROM delivery_attempts WHERE message_out_id NOT IN (SELECT id FROM dead_letters_closed)"
        " LIMIT ?",
        (_MAX_ON_THEIR_WAY + 1,),
    )
    if len(rows) > _MAX_ON_THEIR_WAY:
        return None
    ids = [row["message_out_id"] for row in rows]
    found = set(outbound.replied_to(out, ids)) if out is not None else set[str]()
    for chunk in chunks(ids):
        notices = db.all(f"SELECT in_reply_to FROM host_messages WHERE id IN ({marks(chunk)})", chunk)
        found.update(row["in_reply_to"] for row in notices if row["in_reply_to"] is not None)
    return frozenset(found)


def _unfinished_answers(db: Reader, ids: Sequence[str], cutoff: int) -> set[str]:
    """Return the answers that are still tracked, except dead letters that were closed before `cutoff`."""
    found: set[str] = set()
    for chunk in chunks(ids):
        rows = db.all(
            "SELECT message_out_id FROM delivery_attempts AS t LEFT JOIN dead_letters_closed AS c"
            f" ON c.id = t.message_out_id WHERE message_out_id IN ({marks(chunk)})"
            " AND NOT (t.state = ? AND coalesce(c.at, ?) < ?)",
            (*chunk, DeliveryState.DEAD.value, cutoff, cutoff),
        )
        found.update(row["message_out_id"] for row in rows)
    return found


def _oldest_in_work(db: Reader, default: int) -> int:
    """Return when the oldest message that was in a turn and is not over was accepted (epoch ms); `default` without one."""
    row = db.one(
        "SELECT min(timestamp) AS at FROM messages_in AS m WHERE status IN ('pending', 'paused') AND (tries > 0"
        " OR EXISTS (SELECT 1 FROM attempts AS a WHERE a.message_id = m.id))"
    )
    return default if row is None or row["at"] is None else from_text(row["at"]) or 0


def _highest_notice(db: Reader) -> set[str]:
    """Return the id of the highest notice: the host's next seq is derived from it."""
    return {row["id"] for row in db.all("SELECT id FROM host_messages ORDER BY seq DESC LIMIT 1")}


def _in_table(db: Reader, table: str, key: str, ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for chunk in chunks(ids):
        found.update(
            row["id"] for row in db.all(f"SELECT {key} AS id FROM {table} WHERE {key} IN ({marks(chunk)})", chunk)
        )
    return found


def _delete(db: Writer, table: str, key: str, ids: Sequence[str]) -> None:
    if db.one(f"SELECT 1 FROM {table} LIMIT 1") is None:
        return  # most tables of most sessions are empty, and a search for each id costs as much as its deletion
    for chunk in chunks(ids):
        db.execute(f"DELETE FROM {table} WHERE {key} IN ({marks(chunk)})", chunk)
