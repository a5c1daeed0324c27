"""Reads one session's files for a report: bounded rows, no writes, and an error of one file is text, not an exception.

Works on files of older shapes (a missing column reads as absent). outbound.db is opened as hostile input only.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from daemon.core.content import preview
from daemon.inspect.answer_reading import retrying_example
from daemon.inspect.row_values import place, values_of
from daemon.store import questions
from daemon.store.backlog import NOT_CLOSED, dead_answers, failed_messages, read_answers
from daemon.store.dead_letters import CLOSED_TABLE
from daemon.store.pruned import read as read_pruned
from daemon.store.questions import Asked
from daemon.store.turn_usage import used
from schema.connect import Reader, ReadLimits, open_reader
from schema.errors import ClawbusError, SchemaTooNewError, UnusableFileError
from schema.instants import from_text, to_text
from schema.layout import HEARTBEAT, SessionFolder
from schema.migrate import VERSION
from schema.outbound_copy import open_outbound_copy

# The start of a content, to be shown. What is decided from a content needs all of it.
CONTENT: Final = "substr(content, 1, 65536) AS content"
_OLDEST: Final = 500  # rows looked at for the oldest age; ordered by seq, so the oldest is among the first
# Whether anything waits, is under way or is an open dead letter. What is finished costs nothing: indexes answer it, and a
# table of what is open or dead. A file of an older shape cannot answer it.
UNFINISHED: Final = (
    "SELECT EXISTS (SELECT 1 FROM messages_in WHERE status = 'pending')"
    " OR EXISTS (SELECT 1 FROM attempts WHERE outcome IS NULL)"
    " OR EXISTS (SELECT 1 FROM delivery_attempts WHERE state != 'dead')"
    " OR EXISTS (SELECT 1 FROM questions WHERE outcome IS NULL)"
    f" OR EXISTS (SELECT 1 {dead_answers()}) OR EXISTS (SELECT 1 {failed_messages()})"
)
_CRASHES: Final = 2  # one may be anybody's: a restart of the host, a container that was killed
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Holder:
    """A message that waits for its next try, at `until` (epoch ms), and holds back the later ones of its session."""

    message_id: str
    seq: int
    until: int
    why: str

    @property
    def sentence(self) -> str:
        """What it waits for."""
        return f"message {self.message_id} is tried again at {to_text(self.until)} ({self.why})"


@dataclass(slots=True)
class Queues:
    """How much of one session is unfinished. Times are epoch milliseconds."""

    pending: int = 0
    scheduled: int = 0  # of the pending ones: their time has not come, as their sender or their agent wants it
    backing_off: int = 0  # of the pending ones: wait for the next try after a container that ended too early
    oldest_pending_at: int | None = None  # of those that are not scheduled
    due: int = 0  # of the pending ones: could be worked on now
    held: int = 0  # of the pending ones: wait for the holder's next try
    oldest_held_at: int | None = None
    holder: Holder | None = None
    crashing: Holder | None = None  # the first one whose container ended several times before it was done
    oldest_due_at: int | None = None
    claimed: bool = False  # the host knows of a turn that has not ended
    failed: int = 0
    undelivered: int = 0  # due answers without a receipt
    oldest_undelivered_at: int | None = None
    scheduled_answers: int = 0  # those whose agent wants them sent later
    retrying: int = 0  # answers that have failed often, or wait for long, for their next attempt
    retrying_example: dict[str, Any] | None = None
    dead: int = 0
    questions: int = 0  # open ones
    question: Asked | None = None  # the most urgent of them
    failed_example: dict[str, Any] | None = None
    dead_example: dict[str, Any] | None = None
    error: str | None = None

    @property
    def dead_letters(self) -> int:
        """Messages given up on, in both directions."""
        return self.failed + self.dead


def read_queues(folder: SessionFolder, now_ms: int) -> Queues:
    """Queue depths of one session. `error` names a file that cannot be read."""
    queues = Queues()
    try:
        with open_inbound(folder) as reader:
            if holds_nothing_open(reader):
                return queues
            _count_messages(reader, now_ms, queues)
            _count_deliveries(reader, now_ms, queues)
            _count_questions(reader, queues)
    except ClawbusError as error:
        queues.error = f"{error.code}: {error}"
    return queues


def holds_nothing_open(reader: Reader) -> bool:
    """Whether nothing waits, is under way or is an open dead letter. Of a file of an older shape that is not known: False."""
    try:
        row = reader.one(UNFINISHED)
    except ClawbusError:  # the questions that allow for older shapes say what is wrong
        return False
    return row is not None and not row[0]


def open_inbound(folder: SessionFolder) -> Reader:
    """Open the host's own file read-only. Raise UnusableFileError when it is gone."""
    if not folder.inbound_db.exists():
        raise UnusableFileError(f"{folder.inbound_db} is gone.")
    return open_current(folder.inbound_db)


def open_current(path: Path) -> Reader:
    """Open a trusted file read-only. Raises SchemaTooNewError for one that a newer clawbus wrote."""
    reader = open_reader(path)
    try:
        row = reader.one("PRAGMA user_version")
    except BaseException:
        reader.close()
        raise
    found = int(row[0]) if row is not None else 0
    if found > VERSION:
        reader.close()
        raise SchemaTooNewError(f"{path} has schema version {found}; this clawbus knows {VERSION}.")
    return reader


def _count_messages(reader: Reader, now_ms: int, queues: Queues) -> None:
    wakes = " AND trigger = 1" if "trigger" in reader.columns("messages_in") else ""
    pending = f"FROM messages_in WHERE status = 'pending'{wakes}"
    queues.pending = _count(reader, f"SELECT count(*) {pending}")
    rows = reader.all(f"SELECT * {pending} ORDER BY seq LIMIT {_OLDEST}")
    opened = [_Open.of(row) for row in rows]
    queues.oldest_pending_at = min(
        (row.accepted for row in opened if row.accepted and not row.is_scheduled(now_ms)), default=None
    )
    later = f"SELECT count(*) {pending} AND julianday(process_after) > julianday(?)"
    waiting = _count(reader, later, to_text(now_ms))
    if "tries" in reader.columns("messages_in"):
        own = " AND deferrals = 0" if "deferrals" in reader.columns("messages_in") else ""
        queues.backing_off = _count(reader, f"{later} AND tries > 0{own}", to_text(now_ms))
    queues.scheduled = waiting - queues.backing_off
    _count_due(reader, opened, now_ms, queues)
    running = "SELECT 1 FROM attempts WHERE outcome IS NULL LIMIT ?"
    queues.claimed = bool(table_rows(reader, "attempts", running, 1))
    failed = failed_messages(closed=bool(reader.columns(CLOSED_TABLE)))
    queues.failed = _count(reader, f"SELECT count(*) {failed}")
    if queues.failed:
        row = reader.one(f"SELECT id, tries {failed} ORDER BY seq DESC LIMIT 1")
        if row is not None:
            queues.failed_example = {**values_of(row), "last_event": _last_event(reader, row["id"])}


def _count_deliveries(reader: Reader, now_ms: int, queues: Queues) -> None:
    if not reader.columns("delivery_attempts"):
        return
    answers = read_answers(reader, now_ms)
    queues.undelivered = sum(one.count for one in answers)
    queues.oldest_undelivered_at = min((one.oldest_at for one in answers if one.oldest_at is not None), default=None)
    queues.scheduled_answers = sum(one.scheduled for one in answers)
    queues.retrying, queues.retrying_example = retrying_example(reader, now_ms)
    buried = dead_answers(closed=bool(reader.columns(CLOSED_TABLE)))
    queues.dead = _count(reader, f"SELECT count(*) {buried}")
    if queues.dead:
        dead = reader.one(
            f"SELECT message_out_id, destination, attempts, last_error, last_error_code {buried}"
            " ORDER BY seq DESC LIMIT 1"
        )
        queues.dead_example = delivery_values(dead) if dead is not None else None


def _count_questions(reader: Reader, queues: Queues) -> None:
    if questions.has_table(reader):
        queues.questions = questions.count_open(reader)
        queues.question = next(iter(questions.open_ones(reader, 1)), None)


@dataclass(slots=True)
class SessionDetail:
    """Everything a report shows of one session's files."""

    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    undelivered: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    attempts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    destinations: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    routing: dict[str, Any] | None = None
    claims: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tool: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    heartbeat_at: int | None = None
    pruned: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    errors: list[str] = field(default_factory=list[str])


def read_detail(folder: SessionFolder, limit: int, limits: ReadLimits, held: str | None = None) -> SessionDetail:
    """Read the newest `limit` rows of each table of one session.

    With `held` (why) the container's file stays closed.
    """
    detail = SessionDetail()
    guarded(detail.errors, lambda: _read_inbound(folder, limit, detail))
    if held is None:
        guarded(detail.errors, lambda: _read_outbound(folder, limit, limits, detail))
    else:
        detail.errors.append(held)
    detail.heartbeat_at = _heartbeat(folder.outbox)
    return detail


def _read_inbound(folder: SessionFolder, limit: int, detail: SessionDetail) -> None:
    with open_inbound(folder) as reader:
        wanted = (
            "id",
            "seq",
            "kind",
            "status",
            "tries",
            "trigger",
            "timestamp",
            "process_after",
            "recurrence",
            "not_after",
            "deferrals",
        )
        columns = ", ".join(name for name in wanted if name in reader.columns("messages_in"))
        columns += f", {attempts_of(reader)} AS attempts"
        rows = reader.all(
            f"SELECT {columns}, {CONTENT} FROM messages_in ORDER BY seq DESC LIMIT ?",
            (limit,),
        )
        detail.messages = [_message(row, _last_event(reader, row["id"])) for row in rows]
        not_closed = _not_closed(reader, "message_out_id")
        undelivered = f"SELECT * FROM delivery_attempts WHERE true{not_closed} ORDER BY seq LIMIT ?"
        rows = table_rows(reader, "delivery_attempts", undelivered, limit)
        detail.undelivered = [delivery_values(row) for row in rows]
        newest = "SELECT * FROM attempts ORDER BY claimed_at DESC LIMIT ?"
        detail.attempts = [values_of(row) for row in table_rows(reader, "attempts", newest, limit)]
        named = "SELECT * FROM destinations ORDER BY name LIMIT ?"
        detail.destinations = [values_of(row) for row in table_rows(reader, "destinations", named, limit)]
        routing = table_rows(reader, "session_routing", "SELECT * FROM session_routing WHERE id = 1 LIMIT ?", 1)
        detail.routing = values_of(routing[0]) if routing else None
        detail.pruned = read_pruned(reader)


def _read_outbound(folder: SessionFolder, limit: int, limits: ReadLimits, detail: SessionDetail) -> None:
    reader = open_outbound_copy(folder.outbox, limits)
    if reader is None:
        return
    with reader:
        claims = "SELECT * FROM processing_ack WHERE status = 'processing' LIMIT ?"
        detail.claims = [ack_values(row) for row in table_rows(reader, "processing_ack", claims, limit)]
        usage = used(reader)
        detail.usage = asdict(usage) if usage is not None else None
        state = table_rows(reader, "container_state", "SELECT * FROM container_state WHERE id = 1 LIMIT ?", 1)
        tool = values_of(state[0]) if state else {}
        if tool.get("current_tool") is not None:
            declared = tool.get("tool_declared_timeout_ms")
            detail.tool = {
                "name": str(tool["current_tool"])[:200],
                "declared_timeout_ms": declared if isinstance(declared, int) else None,
                "started_at": from_text(tool.get("tool_started_at")),
            }


def attempts_of(reader: Reader) -> str:
    """Return the SQL of how often a row of messages_in was begun; `tries` counts only the containers that died."""
    counted = "(SELECT count(*) FROM attempts AS a WHERE a.message_id = messages_in.id)"
    return counted if reader.columns("attempts") else "coalesce(tries, 0)"


def table_rows(reader: Reader, table: str, sql: str, *params: object) -> list[sqlite3.Row]:
    """Return the rows, or none where an older file has no such table."""
    return reader.all(sql, params) if reader.columns(table) else []


@dataclass(frozen=True, slots=True)
class _Open:
    """An unfinished message, also of a file that lacks the newer columns."""

    message_id: str
    seq: int
    accepted: int
    since: int
    until: int
    holds: bool
    tries: int
    deferrals: int
    not_after: int | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> _Open:
        values = dict(row)
        until = from_text(values.get("process_after")) or 0
        accepted = from_text(values.get("timestamp")) or 0
        return cls(
            str(values.get("id")),
            values.get("seq") or 0,
            accepted,
            max(accepted, until),
            until,
            bool(values.get("holds")) and not values.get("on_wake"),
            values.get("tries") or 0,
            values.get("deferrals") or 0,
            from_text(values.get("not_after")),
        )

    def is_scheduled(self, now_ms: int) -> bool:
        """Whether it waits for a time that its sender or its agent chose. A message that is tried again is late, not scheduled."""
        return self.until > now_ms and (self.tries == 0 or self.deferrals > 0)


def _count_due(reader: Reader, rows: Sequence[_Open], now_ms: int, queues: Queues) -> None:
    """Count what could begin now, and what waits for an earlier message; `rows` in seq order."""
    latest, due, held = 0, list[int](), list[int]()
    for row in rows:
        if row.not_after is not None and row.not_after <= now_ms:
            continue
        if row.until > now_ms:
            if row.holds and queues.holder is None:
                queues.holder = Holder(row.message_id, row.seq, row.until, _why_later(reader, row))
            if row.tries >= _CRASHES and queues.crashing is None:
                queues.crashing = Holder(row.message_id, row.seq, row.until, _why_later(reader, row))
        elif queues.holder is not None:
            held.append(row.since)
        else:
            due.append(max(row.since, latest))
        if row.holds:
            latest = max(latest, row.until)
    queues.due, queues.oldest_due_at = len(due), min(due, default=None)
    queues.held, queues.oldest_held_at = len(held), min(held, default=None)


def _why_later(reader: Reader, row: _Open) -> str:
    event = _last_event(reader, row.message_id)
    if event is not None and event["event"] == "deferred":
        reason = event["detail"].get("reason")
        said = f': "{reason}"' if reason else ""
        return f"its agent asked for that, {_times(row.deferrals)}{said}"
    return f"its container ended before the work was done, {_times(row.tries)}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _not_closed(reader: Reader, key: str) -> str:
    return NOT_CLOSED.format(key) if reader.columns(CLOSED_TABLE) else ""


def history_of(reader: Reader, message_id: str) -> list[dict[str, Any]]:
    """Return the first 500 history rows of one id, oldest first: [{at, event, detail}]."""
    history = "SELECT * FROM message_history WHERE message_id = ? ORDER BY id LIMIT 500"
    return [history_row(row) for row in table_rows(reader, "message_history", history, message_id)]


def _count(reader: Reader, sql: str, *params: object) -> int:
    row = reader.one(sql, params)
    return int(row[0]) if row is not None else 0


def _last_event(reader: Reader, message_id: str) -> dict[str, Any] | None:
    if not reader.columns("message_history"):
        return None
    row = reader.one("SELECT * FROM message_history WHERE message_id = ? ORDER BY id DESC LIMIT 1", (message_id,))
    return history_row(row) if row is not None else None


def history_row(row: sqlite3.Row) -> dict[str, Any]:
    """Return one row of message_history: {at, event, detail}."""
    return {"at": row["at"], "event": row["event"], "detail": _history_detail(row)}


def _history_detail(row: sqlite3.Row) -> dict[str, Any]:
    detail: dict[str, Any] = {}
    if row["incarnation"] is not None:
        detail["incarnation"] = row["incarnation"]
    if isinstance(row["detail"], str):
        try:
            value = cast("object", json.loads(row["detail"]))
        except (ValueError, RecursionError):
            value = row["detail"]
        detail |= cast("dict[str, Any]", value) if isinstance(value, dict) else {"detail": value}
    return detail


def _message(row: sqlite3.Row, last_event: dict[str, Any] | None) -> dict[str, Any]:
    values = values_of(row)
    content = values.pop("content")
    return {
        **values,
        "timestamp": from_text(values["timestamp"]),
        "process_after": from_text(values.get("process_after")),
        "not_after": from_text(values.get("not_after")),
        "text": preview(str(content)),
        "last_event": last_event,
    }


def delivery_values(row: sqlite3.Row) -> dict[str, Any]:
    """Return a row of delivery_attempts, its destination as people read it."""
    values = values_of(row)
    values["destination"] = place(values["destination"])
    return values


def ack_values(row: sqlite3.Row) -> dict[str, Any]:
    """Return an ack whatever the container wrote into it: {message_id, status, changed_at, incarnation}."""
    values = values_of(row)
    incarnation = values.get("incarnation")
    return {
        "message_id": str(values.get("message_id"))[:200],
        "status": str(values.get("status"))[:20],
        "changed_at": from_text(values.get("status_changed")),
        "incarnation": str(incarnation)[:200] if incarnation is not None else None,
    }


def _heartbeat(outbox: Path) -> int | None:
    try:
        return (outbox / HEARTBEAT).lstat().st_mtime_ns // 1_000_000
    except OSError:
        return None


def guarded(errors: list[str], work: Callable[[], _T]) -> _T | None:
    """Return the work's result, or None after adding why it failed to `errors`."""
    try:
        return work()
    except ClawbusError as error:
        errors.append(f"{error.code}: {error}")
    return None
