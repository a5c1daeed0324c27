"""SQL over one session's outbound.db, read-only, as untrusted input. Missing tables and columns read as empty.

Every value's type is checked here, or HostileFileError is raised. Nothing from this file is used as a path or in SQL text.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from daemon.store.messages import MAX_SEQ, chunks, marks
from schema.errors import HostileFileError
from schema.handles import Reader
from schema.instants import from_text
from schema.layout import HEARTBEAT, SessionFolder
from schema.rows import Ack, AckStatus, Deferral, MessageOut, ToolInFlight, TurnNote

_MAX_CLAIMS = 1000
_MAX_DEFERRAL = 2**31
_NOTE_CODE = re.compile(r"[A-Z][A-Z0-9_]*\Z")
_BATCH_CHARACTERS = 16 * 1024**2


def rows_after(db: Reader, seq: int, limit: int) -> list[MessageOut]:
    """Return new outbound rows in seq order."""
    if not db.columns("messages_out"):
        return []
    sql = "SELECT * FROM messages_out WHERE seq > ? ORDER BY seq LIMIT ?"
    found = [_message(row) for row in db.some(sql, (seq, limit), budget=_BATCH_CHARACTERS)]
    # With a broken index the order may be wrong, and without the key several rows may share a seq: the cursor would then
    # skip rows that were never read.
    if any(later.seq <= earlier.seq for earlier, later in pairwise(found)):
        raise HostileFileError("messages_out does not give its rows in the order of their seqs.")
    return found


def has_after(db: Reader, seq: int) -> bool:
    """Return whether there are outbound rows above `seq`."""
    return bool(db.columns("messages_out")) and db.one("SELECT 1 FROM messages_out WHERE seq > ?", (seq,)) is not None


def rows_by_id(db: Reader, ids: Sequence[str]) -> tuple[dict[str, MessageOut], int]:
    """Return the named rows that still exist, and how many of `ids` were read: fewer than all when rows are large."""
    if not ids or not db.columns("messages_out"):
        return {}, len(ids)
    found: dict[str, MessageOut] = {}
    budget = _BATCH_CHARACTERS
    for looked, identity in enumerate(ids):
        if budget < 0:
            return found, looked
        row = db.one("SELECT * FROM messages_out WHERE id = ? LIMIT 1", (identity,))
        if row is not None:
            message = _message(row)
            found[message.id] = message
            budget -= len(message.content)
    return found, len(ids)


def acks_for(db: Reader, message_ids: Sequence[str]) -> dict[str, Ack]:
    """Return the container's acks for these messages. The cost depends on their number, not on how many were ever acked."""
    columns = db.columns("processing_ack")
    if not message_ids or not columns:
        return {}
    found: dict[str, Ack] = {}
    for chunk in chunks(message_ids):
        rows = db.all(f"SELECT {_ack_columns(columns)} FROM processing_ack WHERE message_id IN ({marks(chunk)})", chunk)
        found.update((ack.message_id, ack) for row in rows if (ack := _ack(row)) is not None)
    put_off = [message_id for message_id, ack in found.items() if ack.status is AckStatus.LATER]
    for message_id, deferral in _deferrals(db, put_off).items():
        found[message_id] = replace(found[message_id], deferral=deferral)
    return found


def is_answered(db: Reader, message_id: str, above: int) -> bool:
    """Return whether an outbound row above the given seq answers the message."""
    columns = db.columns("messages_out")
    if "in_reply_to" not in columns:
        return False
    final = " AND final <> 0" if "final" in columns else ""
    sql = f"SELECT 1 FROM messages_out WHERE in_reply_to = ? AND seq > ?{final} LIMIT 1"
    return db.one(sql, (message_id, above)) is not None


def _deferrals(db: Reader, message_ids: Sequence[str]) -> dict[str, Deferral]:
    """Return the deferrals of these `later` acks. An ack without a deferrals row is its message's first."""
    found = dict.fromkeys(message_ids, Deferral(1))
    if message_ids and {"message_id", "deferral"} <= db.columns("deferrals"):
        for chunk in chunks(message_ids):
            for row in db.all(f"SELECT * FROM deferrals WHERE message_id IN ({marks(chunk)})", chunk):
                values: dict[str, object] = dict(row)
                message_id, number = values["message_id"], values["deferral"]
                if isinstance(message_id, str) and isinstance(number, int) and 0 < number <= _MAX_DEFERRAL:
                    reason = _text(values.get("reason"))
                    reason = _one_line(reason) if reason is not None else None
                    found[message_id] = Deferral(number, from_text(values.get("retry_at")), reason or None)
    return found


def with_notes(db: Reader, acks: Mapping[str, Ack]) -> dict[str, Ack]:
    """Return the same acks; final ones carry their turn's note for the operator, if that incarnation wrote one."""
    final = [message_id for message_id, ack in acks.items() if ack.status is not AckStatus.PROCESSING]
    found = dict(acks)
    if final and {"message_id", "incarnation", "code", "message"} <= db.columns("turn_notes"):
        for chunk in chunks(final):
            sql = "SELECT message_id, incarnation, substr(code, 1, 64) AS code, substr(message, 1, 2000) AS message"
            for row in db.all(f"{sql} FROM turn_notes WHERE message_id IN ({marks(chunk)})", chunk):
                ack = found.get(row["message_id"])
                note = _note(row)
                if ack is not None and note is not None and row["incarnation"] == ack.incarnation:
                    found[ack.message_id] = replace(ack, note=note)
    return found


def _note(row: sqlite3.Row) -> TurnNote | None:
    """Return the note as one line of printable text: a container wrote it, and people read it."""
    code, message = row["code"], row["message"]
    if not isinstance(code, str) or not isinstance(message, str) or not _NOTE_CODE.match(code):
        return None
    return TurnNote(code, _one_line(message))


def _one_line(text: str) -> str:
    shown = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(shown.split())


def claims(db: Reader) -> list[Ack]:
    """Return the container's claims, at most 1,000."""
    columns = db.columns("processing_ack")
    if not columns:
        return []
    rows = db.all(f"SELECT {_ack_columns(columns)} FROM processing_ack WHERE status = 'processing' LIMIT {_MAX_CLAIMS}")
    return [ack for row in rows if (ack := _ack(row)) is not None]


def recently_acked(db: Reader, limit: int) -> list[str]:
    """Return the ids of the messages that the container acked last, newest first."""
    if not db.columns("processing_ack"):
        return []
    rows = db.all("SELECT message_id FROM processing_ack ORDER BY rowid DESC LIMIT ?", (limit,))
    return [row["message_id"] for row in rows if isinstance(row["message_id"], str)]


def acked(db: Reader, message_ids: Sequence[str]) -> set[str]:
    """Return those of the given messages that have an ack of any kind, even with an unknown status."""
    return _there(db, "processing_ack", "message_id", message_ids)


def present(db: Reader, ids: Sequence[str]) -> set[str]:
    """Return those of the given outbound rows that exist."""
    return _there(db, "messages_out", "id", ids)


def _there(db: Reader, table: str, key: str, values: Sequence[str]) -> set[str]:
    found: set[str] = set()
    if values and db.columns(table):
        for chunk in chunks(values):
            rows = db.all(f"SELECT {key} AS id FROM {table} WHERE {key} IN ({marks(chunk)})", chunk)
            found.update(row["id"] for row in rows if isinstance(row["id"], str))
    return found


def replied_to(db: Reader, ids: Sequence[str]) -> set[str]:
    """Return the messages that the given outbound rows reply to."""
    found: set[str] = set()
    if ids and "in_reply_to" in db.columns("messages_out"):
        for chunk in chunks(ids):
            rows = db.all(f"SELECT in_reply_to FROM messages_out WHERE id IN ({marks(chunk)})", chunk)
            found.update(row["in_reply_to"] for row in rows if isinstance(row["in_reply_to"], str))
    return found


def tool_in_flight(db: Reader) -> ToolInFlight | None:
    """Return the tool that the container declared, or None. Older shapes have no such table."""
    if not db.columns("container_state"):
        return None
    row = db.one("SELECT * FROM container_state WHERE id = 1")
    values: dict[str, object] = dict(row) if row is not None else {}
    name, declared = values.get("current_tool"), values.get("tool_declared_timeout_ms")
    if not isinstance(name, str):
        return None
    return ToolInFlight(
        name=name[:200],
        declared_timeout_ms=declared if isinstance(declared, int) and declared > 0 else None,
        started_at=from_text(values.get("tool_started_at")),
    )


def heartbeat_at(folder: SessionFolder) -> int | None:
    """Return when the container last made progress (epoch milliseconds), or None. A symbolic link is not accepted."""
    try:
        status = os.lstat(folder.outbox / HEARTBEAT)
    except OSError:
        return None
    return status.st_mtime_ns // 1_000_000 if stat.S_ISREG(status.st_mode) else None


def _ack_columns(columns: frozenset[str]) -> str:
    incarnation = "incarnation" if "incarnation" in columns else "NULL AS incarnation"
    return f"message_id, status, status_changed, {incarnation}"


def _ack(row: sqlite3.Row) -> Ack | None:
    """Return a typed ack, or None for an ack with an unknown status, which is ignored."""
    try:
        status = AckStatus(row["status"])
    except ValueError:
        return None
    if not isinstance(row["message_id"], str):
        return None
    incarnation = row["incarnation"]
    return Ack(
        message_id=row["message_id"],
        status=status,
        changed_at=from_text(row["status_changed"]),
        incarnation=incarnation if isinstance(incarnation, str) else None,
        changed_text=_text(row["status_changed"]),
    )


def _message(row: sqlite3.Row) -> MessageOut:
    values: dict[str, object] = dict(row)  # the table may lack any column
    identity, seq = values.get("id"), values.get("seq")
    if not isinstance(identity, str) or not 0 < len(identity) <= 200 or "\0" in identity:
        raise HostileFileError("messages_out holds a row whose id is not a text of 1 to 200 characters.")
    if not isinstance(seq, int) or not 0 < seq <= MAX_SEQ:
        raise HostileFileError(f"messages_out row {identity!r} has seq {seq!r}, which is not a seq.")
    return MessageOut(
        id=identity,
        seq=seq,
        kind=_text(values.get("kind")) or "",
        timestamp=_text(values.get("timestamp")) or "",
        content=_text(values.get("content"), None) or "",
        in_reply_to=_text(values.get("in_reply_to")),
        deliver_after=from_text(values.get("deliver_after")),
        channel_type=_text(values.get("channel_type")),
        platform_id=_text(values.get("platform_id")),
        thread_id=_text(values.get("thread_id")),
        final=values.get("final", 1) != 0,
    )


def _text(value: object, limit: int | None = 1000) -> str | None:
    return value[:limit] if isinstance(value, str) else None
