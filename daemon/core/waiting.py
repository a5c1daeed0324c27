"""Describes what an accepted message waits for, in one sentence. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daemon.core.diagnosis import span
from daemon.core.printable import counted
from schema.instants import to_text


def what_it_waits_for(messages: Sequence[Mapping[str, Any]], message_id: str, now: int) -> str | None:
    """Return why a message has no answer yet, or None if its row says nothing. `now` is epoch milliseconds.

    `messages` are the rows of a session's report: id, status, tries, deferrals, process_after, last_event.
    """
    row = next((one for one in messages if one["id"] == message_id), None)
    if row is None:
        return None
    due, tries = row["process_after"], row["tries"]
    if row["status"] == "paused":
        return "it is paused"
    if row["status"] == "pending" and due is not None and due > now:
        until = f"the next try is at {to_text(due)} (in {span(due - now)})"
        if row["deferrals"]:
            return f'its agent said "later" ({counted(row["deferrals"], "time", "times")} so far); {until}'
        if tries:
            return f"{counted(tries, 'try', 'tries')} failed; {until}"
        return f"it is scheduled for {to_text(due)} (in {span(due - now)})"
    event: Mapping[str, Any] = row["last_event"] or {}
    if row["status"] == "pending" and event.get("event") == "claimed":
        return f"its agent has worked on it for {span(max(0, now - int(event['at'])))}"
    return None
