"""The SQL of a turn's other rows: reads its routing and destinations; writes its note, usage, state and tool in flight.

`store.py` calls these inside its transactions. inbound.db is attached as `inbound`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from container_runner.providers.protocol import DeclaredTimeout, Destination
from container_runner.tool_times import calls_text
from schema.handles import Writer
from schema.instants import to_text
from schema.rows import Address, TurnNote, TurnUsage

INBOUND: Final = "inbound"
MAX_NOTE: Final = 2000


def routing(db: Writer) -> Address | None:
    """Return the place that the session's answers go to by default."""
    if not db.columns("session_routing", INBOUND):
        return None
    row = db.one("SELECT channel_type, platform_id, thread_id FROM inbound.session_routing WHERE id = 1")
    if row is None or row["channel_type"] is None or row["platform_id"] is None:
        return None
    return Address(row["channel_type"], row["platform_id"], row["thread_id"])


def destinations(db: Writer) -> tuple[Destination, ...]:
    """Return the other places that the agent may write to."""
    if not db.columns("destinations", INBOUND):
        return ()
    return tuple(_destination(row) for row in db.all("SELECT * FROM inbound.destinations ORDER BY name"))


def _destination(row: sqlite3.Row) -> Destination:
    """Return a row's destination. Another agent is a place on the channel `agent`, with the id of its agent group."""
    channel, place = row["channel_type"], row["platform_id"]
    if row["type"] == "agent" and channel is None:
        channel, place = "agent", row["agent_group_id"]
    return Destination(row["name"], row["type"], row["display_name"], channel, place)


def keep_note(db: Writer, acked: Sequence[str], note: TurnNote | None, incarnation: str, now: str) -> None:
    """Replace the notes for the operator on these messages by this turn's note, if it has one."""
    db.executemany("DELETE FROM turn_notes WHERE message_id = ?", [(message_id,) for message_id in acked])
    if note is not None:
        db.executemany(
            "INSERT INTO turn_notes(message_id, incarnation, at, code, message) VALUES (?, ?, ?, ?, ?)",
            [(message_id, incarnation, now, note.code, _storable(note.message)) for message_id in acked],
        )


def keep_usage(db: Writer, usage: tuple[str, TurnUsage] | None, incarnation: str, now: str) -> None:
    """Record what a turn used, under the id of one of its messages."""
    if usage is None:
        return
    message_id, used = usage
    db.execute(
        "INSERT OR REPLACE INTO turn_usage(message_id, incarnation, at, input_tokens, output_tokens, cached_tokens,"
        " cost, currency, tools) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(message_id, incarnation, now),
            *(used.input_tokens, used.output_tokens, used.cached_tokens, used.cost, used.currency),
            calls_text(used.tools),
        ),
    )


def keep_state(db: Writer, state: Mapping[str, str | None], now: str) -> None:
    """Write the provider's state; a value of None deletes its key."""
    for key, value in state.items():
        if value is None:
            db.execute("DELETE FROM session_state WHERE key = ?", (key,))
        else:
            db.execute(
                "INSERT INTO session_state(key, value, updated_at) VALUES (?, ?, ?)"
                " ON CONFLICT(key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
                (key, value, now),
            )


def write_tool(db: Writer, tool: DeclaredTimeout | None, now: int, started_at: int | None = None) -> None:
    """Record the tool in flight, None for no tool. Times are epoch milliseconds; it started `now` unless `started_at` is given."""
    declared = None if tool is None or tool.timeout_s is None else int(tool.timeout_s * 1000)
    started = None if tool is None else to_text(now if started_at is None else started_at)
    db.execute(
        "INSERT INTO container_state(id, current_tool, tool_declared_timeout_ms, tool_started_at, updated_at)"
        " VALUES (1, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET current_tool = excluded.current_tool,"
        " tool_declared_timeout_ms = excluded.tool_declared_timeout_ms,"
        " tool_started_at = excluded.tool_started_at, updated_at = excluded.updated_at",
        (None if tool is None else tool.name, declared, started, to_text(now)),
    )


def _storable(text: str) -> str:
    """Return the text, cut to MAX_NOTE characters, as SQLite can store it: an exception may quote any bytes."""
    return text[:MAX_NOTE].encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
