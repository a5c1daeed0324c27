"""Reads the newest rows of one session's two files for `session show`. It treats outbound.db as hostile input.

It reads a bounded number of rows and writes nothing. An error in one file becomes a text in the result; the other file is
still read.
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from daemon.core.content import preview
from daemon.inspect.history_rows import last_event
from daemon.inspect.row_values import CONTENT, ack_values, delivery_values, values_of
from daemon.inspect.trusted_files import guarded, open_inbound, table_rows
from daemon.store.backlog import NOT_CLOSED
from daemon.store.dead_letters import CLOSED_TABLE
from daemon.store.pruned import read as read_pruned
from daemon.store.turn_usage import used
from schema.handles import Reader
from schema.instants import from_text
from schema.layout import HEARTBEAT, SessionFolder
from schema.outbound_copy import open_outbound_copy
from schema.plain_file import ReadLimits


@dataclass(slots=True)
class SessionDetail:
    """What a report shows of one session's files. Times are epoch milliseconds. `errors`: one text for each unread file."""

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
    """Read at most `limit` rows of each table of one session, the newest where the table has an order.

    `held`: why outbound.db must not be opened, or None. It then appears among the errors.
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
        detail.messages = [_message(row, last_event(reader, row["id"])) for row in rows]
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
        detail.usage = {name: value for name, value in asdict(usage).items() if name != "tools"} if usage else None
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
    """Return an SQL expression: how many attempts a row of messages_in has had. `tries` counts only those that cost a try."""
    counted = "(SELECT count(*) FROM attempts AS a WHERE a.message_id = messages_in.id)"
    return counted if reader.columns("attempts") else "coalesce(tries, 0)"


def _not_closed(reader: Reader, key: str) -> str:
    return NOT_CLOSED.format(key) if reader.columns(CLOSED_TABLE) else ""


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


def _heartbeat(outbox: Path) -> int | None:
    try:
        return (outbox / HEARTBEAT).lstat().st_mtime_ns // 1_000_000
    except OSError:
        return None
