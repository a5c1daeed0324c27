"""The life of one message, from its acceptance to its answers' receipts: what the files say, in order. Read-only.

`session show --message` and `run show` both use it; `life.py` selects one run's events from it.
outbound.db is opened as hostile input, and a file that cannot be read is a line among the errors. Closing a file drops this
process's POSIX locks on it (fcntl(2)), so the daemon calls `message_life` where a session's readers run one at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from daemon.core.content import answered_ids, preview
from daemon.core.errors import UnknownMessageError, UnknownSessionError
from daemon.inspect.central_reading import folder_of
from daemon.inspect.history_rows import history_of, history_row
from daemon.inspect.reading import whole_rows
from daemon.inspect.row_values import CONTENT, ack_values, delivery_values, values_of
from daemon.inspect.trusted_files import guarded, open_inbound, table_rows
from daemon.store import outbound
from schema.handles import Reader
from schema.instants import from_text
from schema.layout import SessionFolder
from schema.outbound_copy import open_outbound_copy
from schema.plain_file import ReadLimits
from schema.rows import Ack, AckStatus

_ANSWERS: Final = 1000
# Events of the same millisecond are listed in the order in which they must have happened.
_ORDER: Final = (
    *(
        "accepted",
        "told_to_wait",
        "woken",
        "container_found",
        "spawned",
        "claimed",
        "turn_started",
        "tool_started",
        "tool_ended",
    ),
    *("turn_failed", "turn_ended", "answered", "acked_completed", "acked_failed", "completed", "failed"),
    *("exited", "released", "deferred", "retry_scheduled", "attempt_orphaned", "attempt_released", "attempt_deferred"),
)


def order_of(event: Mapping[str, Any]) -> tuple[bool, int, int]:
    """Return the key that puts events in time order: undatable ones last, those of one millisecond in causal order."""
    name = event["event"]
    return event["at"] is None, event["at"] or 0, _ORDER.index(name) if name in _ORDER else len(_ORDER)


def read_life(folder: SessionFolder, message_id: str, limits: ReadLimits) -> tuple[list[dict[str, Any]], list[str]]:
    """Return all that is known of one message, in time order: [{at, event, detail}], and what could not be read."""
    events: list[dict[str, Any]] = []
    errors: list[str] = []
    answers: list[str] = []
    guarded(errors, lambda: answers.extend(_outbound_life(folder, message_id, limits, events)))
    guarded(errors, lambda: _inbound_life(folder, message_id, answers, events))
    return sorted(events, key=order_of), errors


def _outbound_life(
    folder: SessionFolder, message_id: str, limits: ReadLimits, events: list[dict[str, Any]]
) -> list[str]:
    reader = open_outbound_copy(folder.outbox, limits)
    if reader is None:
        return []
    with reader:
        for row in table_rows(
            reader, "processing_ack", "SELECT * FROM processing_ack WHERE message_id = ?", message_id
        ):
            ack = ack_values(row)
            detail = {"incarnation": ack["incarnation"], **_noted(reader, message_id, ack["incarnation"])}
            events.append({"at": ack["changed_at"], "event": f"acked_{ack['status']}", "detail": detail})
        if not reader.columns("messages_out"):
            return []
        # One turn may answer a batch: the first by in_reply_to, the others by the ids in its content.
        rows = whole_rows(reader, "(in_reply_to = ? OR instr(content, ?))", (message_id, message_id))
        return [
            _answer(row, events)
            for row in islice(rows, _ANSWERS)
            if row["in_reply_to"] == message_id or message_id in answered_ids(str(row["content"]))
        ]


def _noted(reader: Reader, message_id: str, incarnation: str | None) -> dict[str, str]:
    """Return the runner's note for the operator about this message's last turn; empty without one."""
    ack = Ack(message_id, AckStatus.FAILED, None, incarnation)
    note = outbound.with_notes(reader, {message_id: ack})[message_id].note
    return {} if note is None else {"code": note.code, "reason": note.message}


def _answer(row: sqlite3.Row, events: list[dict[str, Any]], event: str = "answered") -> str:
    identity = str(row["id"])[:200]
    detail = {"message_out_id": identity, "text": preview(str(row["content"]))}
    events.append({"at": from_text(row["timestamp"]), "event": event, "detail": detail})
    return identity


def _inbound_life(folder: SessionFolder, message_id: str, answers: list[str], events: list[dict[str, Any]]) -> None:
    with open_inbound(folder) as reader:
        events += history_of(reader, message_id)
        for row in table_rows(reader, "attempts", "SELECT * FROM attempts WHERE message_id = ? LIMIT 500", message_id):
            detail = {"incarnation": row["incarnation"]}
            # A quick turn's claim is seen only with its end: when it was claimed is not known then, so nothing is reported.
            if row["claimed_at"] != row["ended_at"] and not _told(events, "claimed", row["incarnation"]):
                events.append({"at": row["claimed_at"], "event": "claimed", "detail": detail})
            if row["outcome"] is not None and not _told(events, row["outcome"], row["incarnation"]):
                events.append({"at": row["ended_at"], "event": f"attempt_{row['outcome']}", "detail": detail})
        final = "final" if "final" in reader.columns("host_messages") else "1 AS final"
        notices = f"SELECT id, timestamp, {CONTENT}, {final} FROM host_messages WHERE in_reply_to = ? LIMIT 50"
        for row in table_rows(reader, "host_messages", notices, message_id):
            if row["final"]:
                answers.append(_answer(row, events))
            else:  # its answer is still to come
                _answer(row, events, "told_to_wait")
        for identity in answers[:50]:
            _delivery_life(reader, identity, events)


def _told(events: list[dict[str, Any]], name: str, incarnation: str) -> bool:
    """Return whether the history contains the event already."""
    return any(event["event"] == name and event["detail"].get("incarnation") == incarnation for event in events)


def _delivery_life(reader: Reader, message_out_id: str, events: list[dict[str, Any]]) -> None:
    history = "SELECT * FROM message_history WHERE message_id = ? ORDER BY id LIMIT 100"
    for row in table_rows(reader, "message_history", history, message_out_id):
        event = history_row(row)
        event["detail"]["message_out_id"] = message_out_id
        events.append(event)
    for row in table_rows(reader, "delivered", "SELECT * FROM delivered WHERE message_out_id = ?", message_out_id):
        values = values_of(row)
        status = values.get("status", "delivered")
        event = status if status in ("delivered", "not_wanted", "carried_out") else "delivery_failed"
        detail = {"message_out_id": message_out_id, "platform_message_id": values.get("platform_message_id")}
        events.append({"at": from_text(row["delivered_at"]), "event": event, "detail": detail})
    open_rows = "SELECT * FROM delivery_attempts WHERE message_out_id = ?"
    events += [
        {"at": row["first_at"], "event": f"delivery_{row['state']}", "detail": delivery_values(row)}
        for row in table_rows(reader, "delivery_attempts", open_rows, message_out_id)
    ]


def message_life(
    data_dir: Path, agent: str, session: str, message_id: str, *, limits: ReadLimits | None = None
) -> dict[str, Any]:
    """Return one message's life, from its acceptance to its answer's delivery: {agent, session, message_id, life, errors}.

    `life` is [{at, event, detail}] in time order. Raise UnknownSessionError, UnknownMessageError.
    """
    folder = folder_of(data_dir, (agent, session))
    if not folder.root.is_dir():
        raise UnknownSessionError(f"there is no session {agent}/{session}.")
    events, errors = read_life(folder, message_id, limits or ReadLimits())
    if not events and not errors:
        raise UnknownMessageError(f"session {agent}/{session} has no message {message_id!r}.")
    return {"agent": agent, "session": session, "message_id": message_id, "life": events, "errors": errors}
