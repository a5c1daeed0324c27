"""Reads rows of message_history from a session's inbound.db as JSON values."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, cast

from daemon.inspect.trusted_files import table_rows
from schema.handles import Reader


def history_of(reader: Reader, message_id: str) -> list[dict[str, Any]]:
    """Return the first 500 history rows of one id, oldest first: [{at, event, detail}]."""
    history = "SELECT * FROM message_history WHERE message_id = ? ORDER BY id LIMIT 500"
    return [history_row(row) for row in table_rows(reader, "message_history", history, message_id)]


def last_event(reader: Reader, message_id: str) -> dict[str, Any] | None:
    """Return the newest history row of one id, {at, event, detail}, or None."""
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
