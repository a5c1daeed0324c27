"""A row's values as a report shows them. Pure."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from schema.instants import from_text

# The start of a content, to be shown. What is decided from a content needs all of it.
CONTENT: Final = "substr(content, 1, 65536) AS content"


def values_of(row: sqlite3.Row) -> dict[str, Any]:
    """Return a row as JSON can hold it: a blob in a text column (SQLite allows it) is shown, not passed on."""
    names = row.keys()
    return {name: repr(row[name])[:200] if isinstance(row[name], bytes) else row[name] for name in names}


def place(destination: object) -> str:
    """Format a destination's key for people: `webhook/hook/thread`."""
    return "/".join(part for part in str(destination).split("\x1f") if part)


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
