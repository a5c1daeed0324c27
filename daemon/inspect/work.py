"""Reads what a session's container works on now: the message, since when, and the declared tool. Changes nothing.

The host's own file says which turns are open. The container reports the tool, read from a copy of outbound.db: a file that cannot be
read now costs the tool's name and nothing else.
"""

from __future__ import annotations

from typing import Final

from daemon.core.content import preview
from daemon.inspect.row_values import CONTENT
from daemon.inspect.trusted_files import open_inbound
from daemon.store import outbound
from daemon.store.agent_words import agent_words
from schema.errors import ClawbusError
from schema.frozen import frozen
from schema.layout import SessionFolder
from schema.outbound_copy import open_outbound_copy
from schema.plain_file import ReadLimits
from schema.rows import ToolInFlight

_TEXT: Final = 120
# The turn that is open for longest, and how many messages are claimed in all.
_OPEN: Final = (
    "SELECT message_id, claimed_at, count(*) OVER () AS messages FROM attempts WHERE outcome IS NULL"
    " ORDER BY claimed_at, message_id LIMIT 1"
)


@frozen
class Work:
    """The oldest open turn of a session. Times are epoch milliseconds; `messages` counts all that are claimed."""

    message_id: str
    since: int
    messages: int
    text: str | None = None
    tool: str | None = None
    tool_since: int | None = None
    tool_timeout_ms: int | None = None
    progress_at: int | None = None
    said: str | None = None  # the agent's newest progress note or line of stderr, and when
    said_at: int | None = None


def read_work(folder: SessionFolder, limits: ReadLimits) -> Work | None:
    """Return what the session works on, or None when no turn is open or its file cannot be read."""
    try:
        with open_inbound(folder) as reader:
            row = reader.one(_OPEN) if reader.columns("attempts") else None
            if row is None:
                return None
            message = reader.one(f"SELECT {CONTENT} FROM messages_in WHERE id = ?", (row["message_id"],))
    except ClawbusError:
        return None
    tool = _tool(folder, limits)
    words = agent_words(folder, str(row["message_id"]))
    return Work(
        message_id=str(row["message_id"]),
        since=int(row["claimed_at"]),
        messages=int(row["messages"]),
        text=preview(str(message["content"]), _TEXT) if message is not None else None,
        tool=tool.name if tool is not None else None,
        tool_since=tool.started_at if tool is not None else None,
        tool_timeout_ms=tool.declared_timeout_ms if tool is not None else None,
        progress_at=outbound.heartbeat_at(folder),
        said=words[-1].text if words else None,
        said_at=words[-1].at if words else None,
    )


def _tool(folder: SessionFolder, limits: ReadLimits) -> ToolInFlight | None:
    try:
        reader = open_outbound_copy(folder.outbox, limits)
        if reader is None:
            return None
        with reader:
            return outbound.tool_in_flight(reader)
    except ClawbusError:
        return None
