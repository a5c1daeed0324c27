"""Reads the evidence about one session's runs from its two files. Bounded, read-only, the daemon up or down.

outbound.db is opened as hostile input only, and a file that cannot be read is a missing source, never an exception.
Inside the daemon this runs under the session's lock (`Session.call`); see daemon/inspect/session_report.py for why.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from daemon.core.content import answered_ids, error_of, preview
from daemon.core.run_evidence import InboundRows, MessageSeen, OutboundRows, RunRead, RuntimeContext, runs_of
from daemon.core.run_state import (
    Answer,
    Ending,
    Source,
    outcome_of,
)
from daemon.inspect.history_rows import history_row
from daemon.inspect.trusted_files import open_inbound, table_rows
from daemon.store import outbound
from daemon.store.messages import chunks, marks
from schema.errors import ClawbusError, HostileFileError, SchemaTooNewError
from schema.handles import Reader
from schema.ids import is_message_id
from schema.instants import from_text
from schema.layout import SessionFolder
from schema.migrate import VERSION
from schema.outbound_copy import open_outbound_copy
from schema.plain_file import ReadLimits
from schema.rows import Ack, MessageStatus, ToolInFlight

MAX_SUSPECTS: Final = 1000
_LOOK_BACK: Final = 5000  # how many of the newest messages are checked for a history
_NEWEST_ANSWERS: Final = 2000
_KEPT_ANSWERS: Final = 1000  # the most answers to one message
_CHARACTERS: Final = 16 * 1024**2
_CONTENT: Final = "substr(content, 1, 8192) AS content"
ENDINGS: Final = ("completed", "failed", "cancelled", "retry_scheduled", "released", "deferred", "migrated")


@dataclass(slots=True)
class RunsRead:
    """The runs that were read. `errors` name the files that could not be read."""

    runs: list[RunRead] = field(default_factory=list[RunRead])
    errors: list[str] = field(default_factory=list[str])
    heartbeat_at: int | None = None
    tool: ToolInFlight | None = None
    news: bool = False  # outbound.db has rows that the host has not recorded


def read_runs_of(folder: SessionFolder, ids: Sequence[str], context: RuntimeContext, limits: ReadLimits) -> RunsRead:
    """Return every run of the named messages, in the order of their messages, then of their claims."""
    return _read(folder, context, limits, lambda reader: read_messages(reader, ids))


def read_newest_runs(folder: SessionFolder, limit: int, context: RuntimeContext, limits: ReadLimits) -> RunsRead:
    """Return the runs of the newest `limit` messages, and of every claimed message."""
    return _read(folder, context, limits, lambda reader: _newest(reader, limit))


def read_suspect_runs(folder: SessionFolder, context: RuntimeContext, limits: ReadLimits) -> RunsRead:
    """Return the runs that may disagree: see `suspects`."""
    return _read(folder, context, limits, suspects)


def _read(
    folder: SessionFolder, context: RuntimeContext, limits: ReadLimits, select: Callable[[Reader], list[sqlite3.Row]]
) -> RunsRead:
    try:
        with open_inbound(folder) as reader:
            return runs_over(reader, select(reader), folder, context, limits)
    except ClawbusError as error:
        return RunsRead(errors=[f"{error.code}: {error}"])


def runs_over(
    reader: Reader, rows: Iterable[sqlite3.Row], folder: SessionFolder, context: RuntimeContext, limits: ReadLimits
) -> RunsRead:
    """Return the runs of these rows of messages_in, read over an open inbound.db: the one reader of what is judged.

    Raise the errors of reading inbound.db; an outbound.db that cannot be read is a missing source.
    """
    found, host = RunsRead(), InboundRows()
    read_host_rows(reader, rows, host)
    try:
        box = _read_box(reader, folder, limits, [message.message_id for message in host.messages], found)
    except ClawbusError as error:
        found.errors.append(f"{error.code}: {error}")
        box = OutboundRows(unreadable=frozenset({Source.TRACE, Source.FINISH}))
    for message in host.messages:
        found.runs += runs_of(message, host, box, context)
    return found


# --- inbound.db


def read_messages(reader: Reader, ids: Sequence[str]) -> list[sqlite3.Row]:
    """Return the named messages, in the order of their arrival within each chunk of ids."""
    found: list[sqlite3.Row] = []
    for chunk in chunks(list(dict.fromkeys(ids))):
        found += reader.all(f"SELECT *, {_CONTENT} FROM messages_in WHERE id IN ({marks(chunk)}) ORDER BY seq", chunk)
    return found


def _newest(reader: Reader, limit: int) -> list[sqlite3.Row]:
    newest = [row["id"] for row in reader.all("SELECT id FROM messages_in ORDER BY seq DESC LIMIT ?", (limit,))]
    return read_messages(reader, [*newest, *_open_attempts(reader)])


def suspects(reader: Reader, limit: int = MAX_SUSPECTS, newest: int = _LOOK_BACK) -> list[sqlite3.Row]:
    """Return the messages whose runs may disagree, in the order of their arrival, at most `limit` of each kind.

    They are open, or have an attempt without an end, or are finished and among the `newest` (-1: all) and their history
    does not say so.
    """
    pending = (
        "SELECT id FROM messages_in WHERE status IS NULL OR status IN ('pending', 'paused')"
        " ORDER BY trigger = 0, seq LIMIT ?"
    )
    if "trigger" not in reader.columns("messages_in"):
        pending = pending.replace("trigger = 0, ", "")
    ids = [row["id"] for row in reader.all(pending, (limit,))] + _open_attempts(reader, limit)
    silent = (
        "SELECT id FROM (SELECT id, status FROM messages_in ORDER BY seq DESC LIMIT ?) AS m"
        " WHERE status IN ('completed', 'failed', 'cancelled') AND NOT EXISTS (SELECT 1 FROM message_history AS h"
        " WHERE h.message_id = m.id AND h.event IN (m.status, 'migrated')) LIMIT ?"
    )
    ids += [row["id"] for row in table_rows(reader, "message_history", silent, newest, limit)]
    return sorted(read_messages(reader, ids), key=lambda row: row["seq"] or 0)


def _open_attempts(reader: Reader, limit: int = MAX_SUSPECTS) -> list[str]:
    sql = "SELECT message_id FROM attempts WHERE outcome IS NULL LIMIT ?"
    return [row["message_id"] for row in table_rows(reader, "attempts", sql, limit)]


def _cursor(reader: Reader) -> tuple[int, str] | None:
    rows = table_rows(reader, "delivery_cursor", "SELECT * FROM delivery_cursor WHERE id = 1")
    return (int(rows[0]["seq"]), str(rows[0]["file_id"] or "")) if rows else None


def _any_unknown(reader: Reader, ids: Sequence[str]) -> bool:
    """Return whether the host has neither a receipt of one of these answers nor tracks it: a restored file is another file."""
    known: set[str] = set()
    for chunk in chunks(ids):
        for name in ("delivered", "delivery_attempts"):
            sql = f"SELECT message_out_id FROM {name} WHERE message_out_id IN ({marks(chunk)})"
            known.update(str(row["message_out_id"]) for row in table_rows(reader, name, sql, *chunk))
    return not known.issuperset(ids)


def read_host_rows(reader: Reader, rows: Iterable[sqlite3.Row], host: InboundRows) -> None:
    """Add these messages, their attempts in the order of their claims, and their endings to `host`."""
    host.messages = [_message(row) for row in rows]
    for chunk in chunks([message.message_id for message in host.messages]):
        attempts = f"SELECT * FROM attempts WHERE message_id IN ({marks(chunk)}) ORDER BY claimed_at, incarnation"
        for row in table_rows(reader, "attempts", attempts, *chunk):
            host.attempts.setdefault(row["message_id"], []).append(dict(row))
        history = (
            f"SELECT * FROM message_history WHERE message_id IN ({marks(chunk)})"
            f" AND event IN ({marks(ENDINGS)}) ORDER BY id"
        )
        for row in table_rows(reader, "message_history", history, *chunk, *ENDINGS):
            ending = _ending(row)
            if ending is not None:
                host.endings.setdefault(row["message_id"], []).append((row["incarnation"], ending))


def _message(row: sqlite3.Row) -> MessageSeen:
    values = dict(row)
    return MessageSeen(
        message_id=str(values["id"]),
        seq=values.get("seq") or 0,
        kind=str(values.get("kind")),
        status=_status(values.get("status")),
        text=preview(str(row[-1]), 120),
        accepted_at=from_text(values.get("timestamp")),
        process_after=from_text(values.get("process_after")),
        tries=values.get("tries") or 0,
        trigger=bool(values.get("trigger", 1)),
        void_ack=values.get("void_ack"),
    )


def _status(value: object) -> MessageStatus:
    try:
        return MessageStatus(cast("str", value))
    except ValueError:
        return MessageStatus.PENDING


def _ending(row: sqlite3.Row) -> Ending | None:
    fields = history_row(row)["detail"]
    name = {"retry_scheduled": "orphaned", "migrated": str(fields.get("status"))}.get(row["event"], row["event"])
    status = outcome_of(name)
    if status is None:
        return None  # a message that was pending, or paused, when its folder was taken over
    reason = fields.get("reason") or fields.get("error") or fields.get("code")
    return Ending(status, row["at"], str(reason)[:500] if reason is not None else None)


# --- outbound.db


def _read_box(
    inbound: Reader, folder: SessionFolder, limits: ReadLimits, ids: Sequence[str], found: RunsRead
) -> OutboundRows:
    found.heartbeat_at = outbound.heartbeat_at(folder)
    reader = open_outbound_copy(folder.outbox, limits)
    if reader is None:
        return OutboundRows()
    with reader:
        row = reader.one("PRAGMA user_version")
        if row is not None and int(row[0]) > VERSION:  # the host reads on; this clawbus's runner refuses the file
            found.errors.append(
                f"{SchemaTooNewError.code}: outbound.db has schema version {row[0]}; a runner of this clawbus knows {VERSION}."
            )
        found.tool = outbound.tool_in_flight(reader)
        found.news = any_news(inbound, reader)
        return OutboundRows(read_acks(reader, ids), answers_to(reader, frozenset(ids)))


def any_news(inbound: Reader, reader: Reader) -> bool:
    """Return whether outbound.db has rows that the host has taken no note of."""
    cursor = _cursor(inbound)
    seen = cursor[0] if cursor is not None and cursor[1] in ("", reader.file_id) else 0
    news = outbound.has_after(reader, seen)
    if not news or seen != 0 or not reader.columns("messages_out"):
        return news
    newest = reader.all("SELECT id FROM messages_out ORDER BY seq DESC LIMIT ?", (_NEWEST_ANSWERS,))
    return _any_unknown(inbound, [str(row["id"]) for row in newest])


def read_acks(reader: Reader, ids: Sequence[str]) -> dict[str, Ack]:
    """Return the messages' acks. The container wrote the stamp: a value that cannot be an incarnation's id is dropped."""
    acks = outbound.acks_for(reader, ids).values()
    return {ack.message_id: ack if is_message_id(ack.incarnation) else replace(ack, incarnation=None) for ack in acks}


def answers_to(reader: Reader, ids: frozenset[str]) -> dict[str, list[Answer]]:
    """Return the answers to these messages, oldest first, each judged by its whole content.

    They name the message in `in_reply_to`, or, one turn having answered several, in their content: those only among
    the newest.
    """
    found: dict[str, dict[str, tuple[int, Answer]]] = {}
    if not ids or not reader.columns("messages_out"):
        return {}
    several = (
        "instr(content, '\"answers\"') AND seq >= coalesce((SELECT seq FROM messages_out ORDER BY seq DESC"
        f" LIMIT 1 OFFSET {_NEWEST_ANSWERS}), 0)"
    )
    # A question, or a message before the turn's end, answers nothing.
    final = " AND final <> 0" if "final" in reader.columns("messages_out") else ""
    queries = [(f"in_reply_to IN ({marks(chunk)}){final}", chunk) for chunk in chunks(sorted(ids))]
    queries.append((several + final, ()))
    for where, params in queries:
        for row in whole_rows(reader, where, params):
            content = row["content"] if isinstance(row["content"], str) else ""
            identity = str(row["id"])[:200]
            for message_id in ({row["in_reply_to"]} | answered_ids(content)) & ids:
                answers = found.setdefault(message_id, {})
                if identity not in answers and len(answers) < _KEPT_ANSWERS:
                    error = error_of(content)
                    answer = Answer(identity, from_text(row["timestamp"]), error[:500] if error is not None else None)
                    answers[identity] = row["seq"], answer
    return {message_id: [one for _, one in sorted(answers.values(), key=lambda pair: pair[0])]
            for message_id, answers in found.items()}  # fmt: skip


def whole_rows(reader: Reader, where: str, params: Sequence[str]) -> Iterator[sqlite3.Row]:
    """Yield outbound rows with their whole content in seq order, a bounded part of them in memory at a time."""
    sql = f"SELECT seq, id, in_reply_to, timestamp, content FROM messages_out WHERE seq > ? AND {where} ORDER BY seq LIMIT 500"
    seq = 0
    while rows := reader.some(sql, (seq, *params), budget=_CHARACTERS, column="content"):
        yield from rows
        last: object = rows[-1]["seq"]
        if not isinstance(last, int) or last <= seq:
            raise HostileFileError("messages_out does not give its rows in the order of their seqs.")
        seq = last
