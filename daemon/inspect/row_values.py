"""A row's values as a report shows them. Pure."""

from __future__ import annotations

import sqlite3
from typing import Any


def values_of(row: sqlite3.Row) -> dict[str, Any]:
    """Return a row as JSON can hold it: a blob in a text column (SQLite allows it) is shown, not passed on."""
    names = row.keys()
    return {name: repr(row[name])[:200] if isinstance(row[name], bytes) else row[name] for name in names}


def place(destination: object) -> str:
    """Format a destination's key for people: `webhook/hook/thread`."""
    return "/".join(part for part in str(destination).split("\x1f") if part)
