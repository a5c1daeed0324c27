"""Invariants of one session's rows, over both files. Rules are generators from the loaded rows to violations, as text.

Written from docs/contract.md, not from the product: what the product decides with is nothing to judge it by. It imports
how a file is opened and what things are called.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from schema.connect import open_reader
from schema.handles import Reader
from schema.layout import SessionFolder
from schema.rows import AckStatus, DeliveryState, MessageStatus

Row = dict[str, Any]

BIRTHS: Final = frozenset({"accepted", "rearmed", "scheduled", "notice_written"})
# Events that do not speak of the status.
SILENT: Final = frozenset(
    {
        *("claimed", "released", "delivery_failed", "dead_lettered", "series_ended", "requeued", "dropped"),
        *("ack_void", "question_asked", "question_decided", "turn_stopped"),
        *("schedule_set", "schedule_paused", "schedule_resumed", "schedule_removed", "schedule_run"),
        *(
            "delivery_in_doubt",
            "delivery_passed",
            "delivery_waits",
            "delivery_retried",
            "not_wanted",
            "carried_out",
            "expired",
            "brought_forward",
        ),
        *("swept", "sweep_undone", "session_killed", "session_reset", "session_quarantined", "session_released"),
    }
)
# Which status may follow which. A finished message never comes back; a retry goes from pending to pending.
STEPS: Final = {
    MessageStatus.PENDING: {"pending", "completed", "failed", "paused", "cancelled"},
    MessageStatus.PAUSED: {"pending", "completed", "cancelled"},
}
CANONICAL: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
# Events whose name is not the status they lead to.
LEADS_TO: Final = {
    "retry_scheduled": MessageStatus.PENDING,
    "resumed": MessageStatus.PENDING,
    "retry_requested": MessageStatus.PENDING,
    "deferred": MessageStatus.PENDING,
}


@dataclass(frozen=True, slots=True)
class SessionRows:
    """Every row of both files; `outbound` and `acks` are empty when the container has made no file or is hostile.

    `before` are the answers, and `acked_before` the finished messages, in what resets of the session have put aside.
    """

    hostile: bool
    messages: list[Row]
    history: dict[str, list[Row]]
    attempts: list[Row]
    delivered: list[Row]
    delivery_attempts: list[Row]
    host_messages: list[Row]
    cursor: int
    outbound: list[Row]
    acks: dict[str, Row]
    before: list[Row]
    acked_before: dict[str, Row]

    @property
    def migrated(self) -> frozenset[str]:
        """Messages from before there was a history: their past cannot be asked for."""
        return frozenset(name for name, rows in self.history.items() if rows[0]["event"] == "migrated")


def load_session(root: Path, *, hostile: bool) -> SessionRows:
    """Read both files. Raises ClawbusError."""
    folder = SessionFolder(root)
    history: dict[str, list[Row]] = defaultdict(list)
    with open_reader(folder.inbound_db) as db:
        for row in _rows(db, "message_history", "id"):
            history[row["message_id"]].append(row)
        cursor = db.one("SELECT max(seq) AS seq FROM delivery_cursor")
        found = {
            "messages": _rows(db, "messages_in", "seq"),
            "attempts": _rows(db, "attempts", "message_id"),
            "delivered": _rows(db, "delivered", "message_out_id"),
            "delivery_attempts": _rows(db, "delivery_attempts", "seq"),
            "host_messages": _rows(db, "host_messages", "seq"),
        }
    outbound: list[Row] = []
    acks: list[Row] = []
    if not hostile and folder.outbound_db.exists() and folder.outbound_db.stat().st_size:
        with open_reader(folder.outbound_db) as db:
            outbound = _rows(db, "messages_out", "seq")
            acks = _rows(db, "processing_ack", "message_id")
    before, acked_before = ([], {}) if hostile else _put_aside(root)
    top = cursor["seq"] if cursor is not None else None
    return SessionRows(
        hostile=hostile, history=dict(history), cursor=top or 0, outbound=outbound,
        acks={row["message_id"]: row for row in acks}, before=before, acked_before=acked_before, **found,
    )  # fmt: skip


def _put_aside(root: Path) -> tuple[list[Row], dict[str, Row]]:
    """What resets have put aside, as far as it can be read: one that was discarded may be no database at all.

    An ack that finished its message counts before others: a clock that was set back mixes up the order of the names.
    """
    before: list[Row] = []
    acked: dict[str, Row] = {}
    for path in sorted(root.glob("out.reset-*/outbound.db")):
        if not path.is_symlink() and path.is_file() and path.stat().st_size:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
                db.row_factory = sqlite3.Row
                try:
                    before += [dict(row) for row in db.execute("SELECT * FROM messages_out ORDER BY seq")]
                    for row in db.execute("SELECT * FROM processing_ack"):
                        if acked.get(row["message_id"], {}).get("status") != AckStatus.COMPLETED:
                            acked[row["message_id"]] = dict(row)
                except sqlite3.Error:
                    continue
    return before, acked


def _rows(db: Reader, table: str, order: str) -> list[Row]:
    if not db.columns(table):
        return []
    return [dict(row) for row in db.all(f"SELECT * FROM {table} ORDER BY {order}")]


def row_violations(rows: SessionRows, *, at_rest: bool, pruned: bool = False, restored: bool = False) -> Iterator[str]:
    """Every violation of the rules below."""
    yield from statuses(rows)
    yield from sequences(rows)
    yield from identities(rows)
    yield from times(rows)
    yield from acks(rows, at_rest=at_rest, pruned=pruned)
    yield from attempts(rows, at_rest=at_rest)
    yield from receipts(rows, at_rest=at_rest, pruned=pruned, restored=restored)


def statuses(rows: SessionRows) -> Iterator[str]:
    """History first: every status is the last one its history tells, and every step to it was allowed."""
    for message in rows.messages:
        where = f"messages_in: {message['id']}"
        told = rows.history.get(message["id"], [])
        if not told:
            yield f"{where} has no history"
            continue
        status: MessageStatus | None = None
        for row in told:
            if row["event"] in SILENT:
                continue
            following, problem = _step(status, row)
            if problem is not None:
                yield f"{where}: {problem}"
                break
            status = following
        else:
            if status != message["status"]:
                yield f"{where} is {message['status']}, and its history says {status}"
        if message["status"] == MessageStatus.FAILED and not _reason(told):
            yield f"{where} failed, and no history row says why"


def _step(status: MessageStatus | None, row: Row) -> tuple[MessageStatus | None, str | None]:
    """The status after one history row, or what is wrong with it."""
    event = row["event"]
    if event in BIRTHS or event == "migrated":
        if status is not None:
            return status, f"is born a second time ({event})"
        told = json.loads(row["detail"]).get("status") if event == "migrated" else None
        return MessageStatus(told or MessageStatus.PENDING), None
    if status is None:
        return status, f"has {event} before its first row"
    target = LEADS_TO.get(event)
    if target is None:
        try:
            target = MessageStatus(event)
        except ValueError:
            return status, f"has the unknown event {event}"
    if target not in STEPS.get(status, ()):
        return status, f"went from {status} to {target}"
    return target, None


def _reason(told: list[Row]) -> bool:
    last = [row for row in told if row["event"] in ("failed", "migrated")]
    return bool(last) and (last[-1]["event"] == "migrated" or "reason" in json.loads(last[-1]["detail"] or "{}"))


def sequences(rows: SessionRows) -> Iterator[str]:
    """Even for the host, odd for the runner, unique over both."""
    host = [*rows.messages, *rows.host_messages]
    for row in host:
        if not isinstance(row["seq"], int) or row["seq"] <= 0 or row["seq"] % 2:
            yield f"inbound.db: {row['id']} has seq {row['seq']}, which is not even"
    for row in rows.outbound:
        if not isinstance(row["seq"], int) or row["seq"] <= 0 or row["seq"] % 2 == 0:
            yield f"messages_out: {row['id']} has seq {row['seq']}, which is not odd"
    for seq, count in Counter(row["seq"] for row in (*host, *rows.outbound, *rows.before)).items():
        if count > 1:
            yield f"seq {seq} is used {count} times"


def identities(rows: SessionRows) -> Iterator[str]:
    """An id names one row of the session."""
    for identity, count in Counter(r["id"] for r in (*rows.messages, *rows.host_messages, *rows.outbound)).items():
        if count > 1:
            yield f"id {identity} is used {count} times"


def times(rows: SessionRows) -> Iterator[str]:
    """Text times are instants; what the host wrote itself is canonical."""
    columns = [(row, "messages_in", name) for row in rows.messages for name in ("timestamp", "process_after")]
    columns += [(row, "host_messages", "timestamp") for row in rows.host_messages]
    columns += [(row, "delivered", "delivered_at") for row in rows.delivered]
    for row, table, column in columns:
        text = row[column]
        if text is None and column == "process_after":
            continue
        who = row.get("id") or row.get("message_out_id")
        if not is_instant(text):
            yield f"{table}: {who}: {column} is no instant: {text!r}"
        elif not CANONICAL.fullmatch(str(text)) and not (
            who in rows.migrated or (table == "delivered" and rows.migrated)
        ):
            yield f"{table}: {who}: {column} is not canonical: {text!r}"
    theirs = [(row, "messages_out", row["id"], "timestamp") for row in rows.outbound]
    theirs += [(row, "processing_ack", name, "status_changed") for name, row in rows.acks.items()]
    for row, table, who, column in theirs:
        if not is_instant(row[column]):
            yield f"{table}: {who}: {column} is no instant: {row[column]!r}"


def epoch_ms(text: object) -> int | None:
    """Read an instant as the contract writes it, or as another runner may: UTC where it names no zone; else None."""
    try:
        moment = datetime.fromisoformat(str(text).strip())
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def messages_due(messages: Iterable[Row]) -> Iterator[tuple[Row, int]]:
    """When each waiting message has to be looked at (epoch ms, 0 for now): not before one that waits for its next try and
    holds the later ones back."""
    waiting = [row for row in messages if row["status"] == MessageStatus.PENDING and row["trigger"]]
    for row in waiting:
        holders = [one for one in waiting if one["holds"] and one["seq"] < row["seq"]]
        yield row, max(epoch_ms(one["process_after"]) or 0 for one in (row, *holders))


def sends_due(tracked: Iterable[Row]) -> Iterator[tuple[Row, int]]:
    """When each open answer has to be looked at (epoch ms, 0 for now), where it is not another one's turn.

    Behind an answer that is being retried the others of its destination wait, unless that one was set aside.
    """
    places: dict[str, list[Row]] = defaultdict(list)
    for row in tracked:
        if row["state"] != DeliveryState.DEAD:
            places[row["destination"]].append(row)
    for rows in places.values():
        retried = [row for row in rows if row["state"] == DeliveryState.RETRYING]
        blocked = any(not row["passed"] for row in retried)
        yield from ((row, row["next_attempt_at"] or 0) for row in (retried if blocked else rows))


def is_instant(text: object) -> bool:
    """Whether it is one."""
    return isinstance(text, str) and epoch_ms(text) is not None


def acks(rows: SessionRows, *, at_rest: bool, pruned: bool) -> Iterator[str]:
    """Nothing is marked done that was not: a completed message has a completed ack, and in the end the other way round."""
    if rows.hostile:
        return
    by_id = {message["id"]: message for message in rows.messages}
    for identity, message in by_id.items():
        ack = _finished(rows, identity)
        done = message["status"] == MessageStatus.COMPLETED and identity not in rows.migrated
        if done and ((ack is None and not pruned) or (ack is not None and ack["status"] != AckStatus.COMPLETED)):
            yield f"messages_in: {identity} is completed, and its ack is {ack and ack['status']}"
    for identity, ack in rows.acks.items():
        message = by_id.get(identity)
        if message is None:
            yield f"processing_ack: {identity} is no message of this session"
        elif at_rest and message["status"] == MessageStatus.PENDING and not _may_be_pending(ack, message):
            yield f"processing_ack: {identity} is {ack['status']}, and the message is still pending"


def _may_be_pending(ack: Row, message: Row) -> bool:
    """Whether a pending message may have this ack at rest: it is worked on, or was put off and starts no turn of its own."""
    put_off = ack["status"] == AckStatus.LATER and message["deferrals"] and not message["trigger"]
    return ack["status"] == AckStatus.PROCESSING or bool(put_off)


def _finished(rows: SessionRows, identity: str) -> Row | None:
    """Return the ack that finished a message, also one that a reset has put aside, or else the one that there is."""
    before = rows.acked_before.get(identity)
    return before if before is not None and before["status"] == AckStatus.COMPLETED else rows.acks.get(identity)


def attempts(rows: SessionRows, *, at_rest: bool) -> Iterator[str]:
    """One incarnation costs a message at most one try, and a try is never taken without an ended attempt."""
    ended: Counter[str] = Counter()
    for (message_id, incarnation), count in Counter(_pair(row) for row in rows.attempts).items():
        if count > 1:
            yield f"attempts: {message_id} has {count} rows of incarnation {incarnation}"
    for row in rows.attempts:
        if (row["ended_at"] is None) != (row["outcome"] is None):
            yield f"attempts: {_pair(row)} has an end without an outcome, or an outcome without an end"
        if row["outcome"] not in (None, "completed", "failed", "orphaned", "released", "deferred"):
            yield f"attempts: {_pair(row)} has the unknown outcome {row['outcome']}"
        if at_rest and row["outcome"] is None:
            yield f"attempts: {_pair(row)} is open, and nothing runs"
        ended[row["message_id"]] += row["outcome"] == "orphaned"
    for message in rows.messages:
        if message["id"] not in rows.migrated and (message["tries"] or 0) > ended[message["id"]]:
            yield f"messages_in: {message['id']} has {message['tries']} tries and {ended[message['id']]} orphaned attempts"


def receipts(rows: SessionRows, *, at_rest: bool, pruned: bool, restored: bool) -> Iterator[str]:
    """Every outbound row the host took note of has a receipt or is tracked, and nothing else has."""
    receipt = {row["message_out_id"]: row["status"] for row in rows.delivered}
    tracked = {row["message_out_id"]: row for row in rows.delivery_attempts}
    written = {row["id"] for row in (*rows.outbound, *rows.before, *rows.host_messages)}
    for identity, status in receipt.items():
        if status not in ("delivered", "failed", "not_wanted", "carried_out"):
            yield f"delivered: {identity} has the unknown status {status}"
        if identity in tracked and (status, tracked[identity]["state"]) != ("failed", DeliveryState.DEAD):
            yield f"delivered: {identity} is {status}, and still tracked as {tracked[identity]['state']}"
        gone = pruned or (identity in tracked and tracked[identity]["last_error_code"] == "ROW_GONE")
        if not rows.hostile and not gone and not rows.migrated and identity not in written:
            yield f"delivered: {identity} is a receipt for a row that is not there"
    for row in rows.outbound:
        if row["seq"] <= rows.cursor and row["id"] not in receipt and row["id"] not in tracked:
            yield f"messages_out: {row['id']} is below the cursor, and neither delivered nor tracked"
        if at_rest and row["seq"] > rows.cursor:
            yield f"messages_out: {row['id']} is above the cursor: nobody took note of it"
    for row in rows.host_messages:
        if row["id"] not in receipt and row["id"] not in tracked:
            yield f"host_messages: {row['id']} is neither delivered nor tracked"
    yield from _tracked(rows, receipt, at_rest=at_rest, restored=restored)


def _tracked(rows: SessionRows, receipt: dict[str, str], *, at_rest: bool, restored: bool) -> Iterator[str]:
    for row in rows.delivery_attempts:
        where = f"delivery_attempts: {row['message_out_id']}"
        state = row["state"]
        if state not in tuple(DeliveryState):
            yield f"{where} has the unknown state {state}"
        if row["source"] == "agent" and row["seq"] > rows.cursor and (at_rest or not restored):
            yield f"{where} is tracked and above the cursor"
        if state == DeliveryState.INTENDED and (at_rest or row["attempts"] < 1):
            yield f"{where} is intended after {row['attempts']} attempts"
        if at_rest and state in (DeliveryState.QUEUED, DeliveryState.RETRYING):
            yield f"{where} is {state}, and nothing runs that would send it: {row['last_error']}"
        if state == DeliveryState.RETRYING and (row["next_attempt_at"] is None or not row["last_error_code"]):
            yield f"{where} retries without a time or a reason"
        if state == DeliveryState.DEAD and (
            not row["last_error_code"] or receipt.get(row["message_out_id"]) != "failed"
        ):
            yield f"{where} is dead without a reason or without its failed receipt"


def _pair(row: Row) -> tuple[str, str]:
    return row["message_id"], row["incarnation"]
