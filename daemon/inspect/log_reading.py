"""Reads what a run left in logs: its container's output, and the daemon's own events. Read-only, bounded, from the end.

A container's output is hostile input: it is shown, but never acted on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from daemon.logs.pipeline import LOG_FILE
from daemon.runtimes import output_log
from daemon.runtimes.spec import STDERR_LOG
from daemon.store.data_layout import Layout
from schema.instants import from_text
from schema.layout import SessionFolder

MAX_BYTES: Final = 2 * 1024**2
_SLACK_MS: Final = 2000  # the line that a container ends with may come after its confirmed exit was recorded
_LINE: Final = 1000
_TOLD: Final = frozenset({"turn_started", "turn_ended", "turn_failed", "tool_started", "tool_ended"})

Line = tuple[int | None, str]


def container_lines(
    folder: SessionFolder, incarnation: str, begun: int | None, ended: int | None, output: str | None = None
) -> list[str]:
    """Return what an incarnation's container wrote, oldest first; from `output` instead of the file when it is given.

    The file has the lines of all of them: a line is known by its stamp, else by its time, else by the line before it.
    """
    lines = _parsed(output) if output is not None else _of_files(folder.logs / STDERR_LOG)
    inside: list[str] = []
    current = output is not None
    for at, text in lines:
        stamp = _object(text).get("incarnation")
        if isinstance(stamp, str):
            current = stamp == incarnation
        elif at is not None:
            current = (begun is None or at >= begun) and (ended is None or at <= ended + _SLACK_MS)
        if current:
            inside.append(text[:_LINE])
    return inside


def turn_events(lines: list[str], message_id: str) -> Iterator[dict[str, Any]]:
    """Return the runner's events about this message among the lines: turns and tools, [{at, event, detail}]."""
    for line in lines:
        fields = _object(line)
        name = fields.get("event")
        named = fields.get("messages")
        if name not in _TOLD or not isinstance(named, list) or message_id not in cast("list[object]", named):
            continue
        hidden = ("event", "timestamp", "level", "messages", "agent", "session", "incarnation")
        detail = {key: value for key, value in fields.items() if key not in hidden}
        yield {"at": from_text(fields.get("timestamp")), "event": str(name), "detail": detail}


def daemon_lines(data_dir: Path, message_id: str, incarnation: str | None, limit: int) -> list[dict[str, Any]]:
    """Return the daemon's newest events about this message or this incarnation, oldest first."""
    found: list[dict[str, Any]] = []
    for _, text in _of_files(Layout(data_dir).logs_dir / LOG_FILE):
        if message_id not in text and (incarnation is None or incarnation not in text):
            continue
        event = _object(text)
        own = event.get("incarnation") == incarnation or event.get("incarnation") is None
        of_incarnation = incarnation is not None and event.get("incarnation") == incarnation and "message" not in event
        if (event.get("message") == message_id and own) or of_incarnation:
            found.append(event)
    return found[-limit:]


def _of_files(path: Path) -> list[Line]:
    """Return the end of a rotated log, its predecessor's included while there is room."""
    text = output_log.tail(path, start=0, max_bytes=MAX_BYTES)
    rest = MAX_BYTES - len(text)
    before = output_log.tail(path.with_name(f"{path.name}.1"), start=0, max_bytes=rest) if rest > 0 else ""
    return _parsed(before + text)


def _parsed(text: str) -> list[Line]:
    return [(from_text(_object(line).get("timestamp")), line) for line in text.splitlines() if line.strip()]


def _object(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        value = cast("object", json.loads(line))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
