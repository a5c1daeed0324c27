"""Finds where a session's answers may go, and which messages they reply to. Reads inbound.db."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from daemon.store.messages import chunks, marks
from schema.frozen import frozen
from schema.handles import Reader
from schema.instants import from_text
from schema.rows import Address, Cause


def routing(db: Reader) -> Address | None:
    """Return the session's default reply route."""
    row = db.one("SELECT * FROM session_routing WHERE id = 1")
    if row is None or row["channel_type"] is None or row["platform_id"] is None:
        return None
    return Address(row["channel_type"], row["platform_id"], row["thread_id"])


@frozen
class Origin:
    """A message that a row replies to: where it came from, and its cause for traces and metrics."""

    address: Address | None
    cause: Cause


def origins(db: Reader, message_ids: Sequence[str]) -> dict[str, Origin]:
    """Return the messages that rows reply to, as far as they exist."""
    found: dict[str, Origin] = {}
    for chunk in chunks(message_ids):
        rows = db.all(
            "SELECT id, channel_type, platform_id, thread_id, timestamp, process_after, tries, traceparent"
            f" FROM messages_in WHERE id IN ({marks(chunk)})",
            chunk,
        )
        for row in rows:
            known = row["channel_type"] is not None and row["platform_id"] is not None
            address = Address(row["channel_type"], row["platform_id"], row["thread_id"]) if known else None
            found[row["id"]] = Origin(address, Cause(row["id"], _due_at(row), row["traceparent"]))
    return found


def _due_at(row: sqlite3.Row) -> int | None:
    """Return when a message's wait began: at its acceptance or its scheduled time. A retry's back-off is part of the wait."""
    accepted, scheduled = from_text(row["timestamp"]), from_text(row["process_after"])
    if accepted is None or scheduled is None or row["tries"]:
        return accepted
    return max(accepted, scheduled)
