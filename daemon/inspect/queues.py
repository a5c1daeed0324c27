"""Counts what is unfinished in one session, from its inbound.db alone. An error of the file is text in the result."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from daemon.core.schedules import lost_zone
from daemon.inspect.answer_reading import retrying_example
from daemon.inspect.history_rows import last_event
from daemon.inspect.row_values import delivery_values, values_of
from daemon.inspect.trusted_files import open_inbound, table_rows
from daemon.store import questions, schedules
from daemon.store.backlog import dead_answers, failed_messages, read_answers
from daemon.store.dead_letters import CLOSED_TABLE
from daemon.store.questions import Asked
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.handles import Reader
from schema.instants import from_text, to_text
from schema.layout import SessionFolder

_OLDEST: Final = 500  # rows read for the oldest age; ordered by seq, so the oldest is among the first
# Schedules that follow the clock of a zone, which this machine may not have.
_ZONED: Final = (
    """FROM schedules WHERE state = 'active' AND times LIKE '%"cron"%' AND times NOT LIKE '%"timezone": "UTC"%'"""
)
# Whether anything waits, is under way, needs a zone or is an open dead letter. Finished rows cost nothing: indexes answer this. A file of
# an older shape lacks some of the tables.
UNFINISHED: Final = (
    "SELECT EXISTS (SELECT 1 FROM messages_in WHERE status = 'pending')"
    " OR EXISTS (SELECT 1 FROM attempts WHERE outcome IS NULL)"
    " OR EXISTS (SELECT 1 FROM delivery_attempts WHERE state != 'dead')"
    " OR EXISTS (SELECT 1 FROM questions WHERE outcome IS NULL)"
    f" OR EXISTS (SELECT 1 FROM schedules WHERE state = 'paused' AND failures > 0) OR EXISTS (SELECT 1 {_ZONED})"
    f" OR EXISTS (SELECT 1 {dead_answers()}) OR EXISTS (SELECT 1 {failed_messages()})"
)
_CRASHES: Final = 2  # a single one may have another cause: a restart of the host, a container that was killed


@frozen
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
    scheduled: int = 0  # pending messages whose time has not come, as their sender or agent wants it
    backing_off: int = 0  # pending messages that wait for the next try after a container ended too early
    oldest_pending_at: int | None = None  # leaves out the scheduled ones
    due: int = 0  # pending messages that could be worked on now
    held: int = 0  # pending messages that wait behind the holder's next try
    oldest_held_at: int | None = None
    holder: Holder | None = None
    crashing: Holder | None = None  # the first message whose container ended several times before the message was done
    oldest_due_at: int | None = None
    claimed: bool = False  # the host knows of a turn that has not ended
    failed: int = 0
    undelivered: int = 0  # due answers without a receipt
    oldest_undelivered_at: int | None = None
    scheduled_answers: int = 0  # answers whose agent wants them sent later
    retrying: int = 0  # answers whose next attempt waits, after many failures or for long
    retrying_example: dict[str, Any] | None = None
    dead: int = 0
    questions: int = 0  # how many questions are open
    question: Asked | None = None  # the most urgent of the open questions
    failing_schedules: tuple[
        tuple[str, int], ...
    ] = ()  # (key, failures in a row) of schedules that are paused because they keep failing
    zoneless_schedules: tuple[tuple[str, str], ...] = ()  # (key, zone) of active ones whose zone this machine lacks
    failed_example: dict[str, Any] | None = None
    dead_example: dict[str, Any] | None = None
    error: str | None = None

    @property
    def dead_letters(self) -> int:
        """Messages given up on, in both directions."""
        return self.failed + self.dead


def read_queues(folder: SessionFolder, now_ms: int) -> Queues:
    """Return the queue depths of one session. `error` names a file that cannot be read."""
    queues = Queues()
    try:
        with open_inbound(folder) as reader:
            if holds_nothing_open(reader):
                return queues
            _count_messages(reader, now_ms, queues)
            _count_deliveries(reader, now_ms, queues)
            _count_questions(reader, queues)
            _read_schedules(reader, queues)
    except ClawbusError as error:
        queues.error = f"{error.code}: {error}"
    return queues


def holds_nothing_open(reader: Reader) -> bool:
    """Return whether nothing waits, is under way or is an open dead letter. Return False for a file of an older shape."""
    try:
        row = reader.one(UNFINISHED)
    except ClawbusError:  # the queries that allow for older shapes report what is wrong
        return False
    return row is not None and not row[0]


def sum_queues(queues: list[Queues], now: int) -> dict[str, Any]:
    """Return the total depths of many sessions, and the ages of the oldest entries in milliseconds."""

    def age(stamps: Iterable[int | None]) -> int | None:
        known = [stamp for stamp in stamps if stamp is not None]
        return max(0, now - min(known)) if known else None

    return {
        "pending": sum(one.pending for one in queues),
        "scheduled": sum(one.scheduled for one in queues),
        "backing_off": sum(one.backing_off for one in queues),
        "oldest_pending_age_ms": age(one.oldest_pending_at for one in queues),
        "undelivered": sum(one.undelivered for one in queues),
        "scheduled_answers": sum(one.scheduled_answers for one in queues),
        "oldest_undelivered_age_ms": age(one.oldest_undelivered_at for one in queues),
        "failed": sum(one.failed for one in queues),
        "dead": sum(one.dead for one in queues),
        "dead_letters": sum(one.dead_letters for one in queues),
    }


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
            queues.failed_example = {**values_of(row), "last_event": last_event(reader, row["id"])}


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


def _read_schedules(reader: Reader, queues: Queues) -> None:
    if "failures" in reader.columns("schedules"):
        failing = "SELECT key, failures FROM schedules WHERE state = 'paused' AND failures > 0 ORDER BY key LIMIT 1000"
        queues.failing_schedules = tuple((row["key"], row["failures"]) for row in reader.all(failing))
        active = (row for row in schedules.all_(reader) if row.state is schedules.ScheduleState.ACTIVE)
        lost = ((row.key, lost_zone(row.what.times)) for row in active)
        queues.zoneless_schedules = tuple((key, zone) for key, zone in lost if zone is not None)


def _count_questions(reader: Reader, queues: Queues) -> None:
    if questions.has_table(reader):
        queues.questions = questions.count_open(reader)
        queues.question = next(iter(questions.open_ones(reader, 1)), None)


@frozen
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
        """Return whether it waits for a time that its sender or its agent chose. A message that is tried again is late, not scheduled."""
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
    event = last_event(reader, row.message_id)
    if event is not None and event["event"] == "deferred":
        reason = event["detail"].get("reason")
        said = f': "{reason}"' if reason else ""
        return f"its agent asked for that, {_times(row.deferrals)}{said}"
    return f"its container ended before the work was done, {_times(row.tries)}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _count(reader: Reader, sql: str, *params: object) -> int:
    row = reader.one(sql, params)
    return int(row[0]) if row is not None else 0
