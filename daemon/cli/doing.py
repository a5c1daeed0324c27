"""Describes what sessions do now: what they work on and since when, or what they wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from daemon.cli.present import age, table
from daemon.core.short_ids import shortened

if TYPE_CHECKING:
    from daemon.cli.listing import Listing

_COLUMNS: Final = ("session", "state", "queue", "answers", "dead", "what")


def doing(one: Mapping[str, Any], now_ms: int) -> str:
    """Return what a session works on, waits for or needs, in one line; empty when there is nothing to say. `one` has `work`."""
    said = [_work(one["work"], now_ms)] if one["work"] is not None else []
    if one.get("explanation"):
        said.append(str(one["explanation"]))
    if not said:
        said.append(_wait(one, now_ms))
    return "; ".join(part for part in said if part)


def sessions_table(title: str, reports: Sequence[Mapping[str, Any]], now_ms: int) -> Listing:
    """Return the table of sessions: state, unfinished messages, undelivered answers, dead letters, and what each does."""
    rows = [
        (
            f"{one['agent']}/{one['session']}",
            one["state"],
            one["pending"],
            one["undelivered"],
            None if one["failed"] is None and one["dead"] is None else (one["failed"] or 0) + (one["dead"] or 0),
            doing(one, now_ms),
        )
        for one in reports
    ]
    return table(title, _COLUMNS, rows)


def _work(work: Mapping[str, Any], now_ms: int) -> str:
    more = f" and {work['messages'] - 1} more" if work["messages"] > 1 else ""
    text = f"{_short(work['message_id'])}{more} for {age(max(0, now_ms - work['since']))}"
    if work["tool"] is not None:
        since = f" for {age(max(0, now_ms - work['tool_since']))}" if work["tool_since"] is not None else ""
        most = f" of {age(work['tool_timeout_ms'])}" if since and work["tool_timeout_ms"] is not None else ""
        text += f", tool {work['tool']}{since}{most}"
    text = f"{text}: {work['text']}" if work["text"] else text
    if work.get("said"):
        at = work["said_at"]
        text += (
            f"; said {age(max(0, now_ms - at))} ago: {work['said']}" if at is not None else f"; said: {work['said']}"
        )
    return text


def _wait(one: Mapping[str, Any], now_ms: int) -> str:
    state, due = one.get("state"), one.get("next_due_at")
    if state in ("scheduled", "backing_off") and due is not None and due > now_ms:
        return f"{'next work' if state == 'scheduled' else 'tried again'} in {age(due - now_ms)}"
    if state in ("waiting", "backing_off") and one.get("oldest_pending_at") is not None:
        return f"oldest {age(max(0, now_ms - one['oldest_pending_at']))}"
    return ""


def _short(message_id: str) -> str:
    return shortened([message_id])[0]
