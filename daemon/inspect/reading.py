"""Reads the evidence about one session's runs from its two files. Bounded, read-only, the daemon up or down.

outbound.db is opened as hostile input only, and a file that cannot be read is a missing source, never an exception.
Inside the daemon this runs under the session's lock (`Session.call`); see daemon/inspect/reports.py for why.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from daemon.core.run_evidence import BoxRows, HostRows, MessageSeen, RunRead, Scene, runs_of
from daemon.core.run_state import (
    Answer,
    Ending,
    Source,
    outcome_of,
)
from daemon.inspect.content import answered_ids, error_of, preview
from daemon.inspect.session_reading import open_inbound, table_rows
from daemon.store import outbound
from daemon.store.messages import chunks, marks
from schema.connect import Reader, ReadLimits
from schema.errors import ClawbusError, SchemaTooNewError
from schema.ids import is_message_id
from schema.instants import from_text
from schema.layout import SessionFolder
from schema.migrate import VERSION
from schema.outbound_copy import open_outbound_copy
from schema.rows import Ack, MessageStatus, ToolInFlight

MAX_SUSPECTS: Final = 1000
_LOOK_BACK: Final = 5000  # how many of the newest messages are checked for a history
_NEWEST_ANSWERS: Final = 2000
_CONTENT: Final = "substr(content, 1, 8192) AS content"
_ENDINGS: Final = ("completed", "failed", "cancelled", "retry_scheduled", "released", "deferred", "migrated")
_FINAL: Final = "('completed', 'failed', 'cancelled', 'migrated')"


@dataclass(slots=True)
class RunsRead:
    """What a look found. `errors` name the files that could not be read."""

    runs: list[RunRead] = field(default_factory=list[RunRead])
    errors: list[str] = field(default_factory=list[str])
    heartbeat_at: int | None = None
    tool: ToolInFlight | None = None
    news: bool = False  # outbound.db has rows that the host has taken no note of


def read_runs_of(folder: SessionFolder, ids: Sequence[str], scene: Scene, limits: ReadLimits) -> RunsRead:
    """Every run of the named messages, in the order of their messages, then of their claims."""
    return _read(folder, scene, limits, lambda reader: read_messages(reader, ids))


def read_newest_runs(folder: SessionFolder, limit: int, scene: Scene, limits: ReadLimits) -> RunsRead:
    """Return the runs of the newest `limit` messages, and of every claimed message."""
    return _read(folder, scene, limits, lambda reader: _newest(reader, limit))


def read_suspect_runs(folder: SessionFolder, scene: Scene, limits: ReadLimits) -> RunsRead:
    """Return the runs that may disagree: unfinished messages, open attempts, statuses without history."""
    return _read(folder, scene, limits, _suspects)


def _read(
    folder: SessionFolder, scene: Scene, limits: ReadLimits, select: Callable[[Reader], list[sqlite3.Row]]
) -> RunsRead:
    found, host, box = RunsRead(), HostRows(), BoxRows()
    cursor: tuple[int, str] | None = None
    try:
        with open_inbound(folder) as reader:
            rows = select(reader)
            read_host_rows(reader, rows, host)
            cursor = _cursor(reader)
    except ClawbusError as error:
        found.errors.append(f"{error.code}: {error}")
        return found
    try:
        _read_box(folder, limits, [message.message_id for message in host.messages], box, found, cursor)
        if box.newest is not None:
            with open_inbound(folder) as reader:
                found.news = _any_unknown(reader, box.newest)
    except ClawbusError as error:
        found.errors.append(f"{error.code}: {error}")
        box = BoxRows(unreadable=frozenset({Source.TRACE, Source.FINISH}))
    for message in host.messages:
        found.runs += runs_of(message, host, box, scene)
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


def _suspects(reader: Reader) -> list[sqlite3.Row]:
    pending = "SELECT id FROM messages_in WHERE status IS NULL OR status = 'pending' ORDER BY trigger = 0, seq LIMIT ?"
    if "trigger" not in reader.columns("messages_in"):
        pending = pending.replace("trigger = 0, ", "")
    ids = [row["id"] for row in reader.all(pending, (MAX_SUSPECTS,))] + _open_attempts(reader)
    silent = (
        f"SELECT id FROM (SELECT id, status FROM messages_in ORDER BY seq DESC LIMIT {_LOOK_BACK}) AS m"
        " WHERE status IN ('completed', 'failed', 'cancelled') AND NOT EXISTS (SELECT 1 FROM message_history AS h"
        f" WHERE h.message_id = m.id AND h.event IN {_FINAL}) LIMIT ?"
    )
    ids += [row["id"] for row in table_rows(reader, "message_history", silent, MAX_SUSPECTS)]
    return read_messages(reader, ids)


def _open_attempts(reader: Reader) -> list[str]:
    sql = "SELECT message_id FROM attempts WHERE outcome IS NULL LIMIT ?"
    return [row["message_id"] for row in table_rows(reader, "attempts", sql, MAX_SUSPECTS)]


def _cursor(reader: Reader) -> tuple[int, str] | None:
    rows = table_rows(reader, "delivery_cursor", "SELECT * FROM delivery_cursor WHERE id = 1")
    return (int(rows[0]["seq"]), str(rows[0]["file_id"] or "")) if rows else None


def _any_unknown(reader: Reader, ids: Sequence[str]) -> bool:
    """Whether the host has neither a receipt of one of these answers nor tracks it: a restored file is another file."""
    known: set[str] = set()
    for chunk in chunks(ids):
        for name in ("delivered", "delivery_attempts"):
            sql = f"SELECT message_out_id FROM {name} WHERE message_out_id IN ({marks(chunk)})"
            known.update(str(row["message_out_id"]) for row in table_rows(reader, name, sql, *chunk))
    return not known.issuperset(ids)


def read_host_rows(reader: Reader, rows: Iterable[sqlite3.Row], host: HostRows) -> None:
    """Add these messages, their attempts in the order of their claims, and their endings to `host`."""
    host.messages = [_message(row) for row in rows]
    for chunk in chunks([message.message_id for message in host.messages]):
        attempts = f"SELECT * FROM attempts WHERE message_id IN ({marks(chunk)}) ORDER BY claimed_at, incarnation"
        for row in table_rows(reader, "attempts", attempts, *chunk):
            host.attempts.setdefault(row["message_id"], []).append(dict(row))
        history = (
            f"SELECT * FROM message_history WHERE message_id IN ({marks(chunk)})"
            f" AND event IN ({marks(_ENDINGS)}) ORDER BY id"
        )
        for row in table_rows(reader, "message_history", history, *chunk, *_ENDINGS):
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
    try:
        detail = cast("object", json.loads(row["detail"] or "{}"))
    except (ValueError, TypeError, RecursionError):
        detail = {}
    fields = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
    name = {"retry_scheduled": "orphaned", "migrated": str(fields.get("status"))}.get(row["event"], row["event"])
    status = outcome_of(name)
    if status is None:
        return None  # a message that was pending, or paused, when its folder was taken over
    reason = fields.get("reason") or fields.get("error") or fields.get("code")
    return Ending(status, row["at"], str(reason)[:500] if reason is not None else None)


# --- outbound.db


def _read_box(
    folder: SessionFolder,
    limits: ReadLimits,
    ids: Sequence[str],
    box: BoxRows,
    found: RunsRead,
    cursor: tuple[int, str] | None,
) -> None:
    found.heartbeat_at = outbound.heartbeat_at(folder)
    reader = open_outbound_copy(folder.outbox, limits)
    if reader is None:
        return
    with reader:
        row = reader.one("PRAGMA user_version")
        if row is not None and int(row[0]) > VERSION:  # the host reads on; this clawbus's runner refuses the file
            found.errors.append(
                f"{SchemaTooNewError.code}: outbound.db has schema version {row[0]}; a runner of this clawbus knows {VERSION}."
            )
        box.acks = read_acks(reader, ids)
        found.tool = outbound.tool_in_flight(reader)
        seen = cursor[0] if cursor is not None and cursor[1] in ("", reader.file_id) else 0
        found.news = outbound.has_after(reader, seen)
        if found.news and seen == 0 and reader.columns("messages_out"):
            newest = reader.all("SELECT id FROM messages_out ORDER BY seq DESC LIMIT ?", (_NEWEST_ANSWERS,))
            box.newest = [str(row["id"]) for row in newest]
        if reader.columns("messages_out") and ids:
            _read_answers(reader, frozenset(ids), box)


def read_acks(reader: Reader, ids: Sequence[str]) -> dict[str, Ack]:
    """Return the messages' acks. The container wrote the stamp: a value that cannot be an incarnation's id is dropped."""
    acks = outbound.acks_for(reader, ids).values()
    return {ack.message_id: ack if is_message_id(ack.incarnation) else replace(ack, incarnation=None) for ack in acks}


def _read_answers(reader: Reader, ids: frozenset[str], box: BoxRows) -> None:
    """Answers to these messages among the newest: by in_reply_to, or by the ids that an answer to several lists."""
    newest = (
        f"SELECT id, in_reply_to, timestamp, {_CONTENT} FROM messages_out ORDER BY seq DESC LIMIT {_NEWEST_ANSWERS}"
    )
    rows = reader.all(newest)
    if len(rows) == _NEWEST_ANSWERS:
        for chunk in chunks(sorted(ids)):
            older = (
                f"SELECT id, in_reply_to, timestamp, {_CONTENT} FROM messages_out WHERE in_reply_to IN ({marks(chunk)})"
            )
            rows += reader.all(f"{older} LIMIT {_NEWEST_ANSWERS}", chunk)
    known: set[tuple[str, str]] = set()
    for row in reversed(rows):
        content = str(row["content"])
        named = answered_ids(content) if '"answers"' in content else frozenset[str]()
        for message_id in ({str(row["in_reply_to"])} | named) & ids:
            identity = str(row["id"])[:200]
            if (message_id, identity) not in known:
                known.add((message_id, identity))
                error = error_of(content)
                answer = Answer(identity, from_text(row["timestamp"]), error[:500] if error is not None else None)
                box.answers.setdefault(message_id, []).append(answer)
