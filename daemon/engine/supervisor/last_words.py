"""Finds why a runner exited by itself, or never began: the last log line with the reason. Hostile text, shortened to one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, cast

from daemon.runtimes import output_log

_TAIL: Final = 16 * 1024
_LONGEST: Final = 300
_EVENTS: Final = frozenset(
    {
        *("runner_refused", "runner_superseded", "runner_crashed", "start_failed", "poll_failed"),
        *("runner_cannot_begin", "runner_cannot_start_programs"),
    }
)


def last_words(log: Path) -> str | None:
    """Return the runner's last log line about its end, or its failed start, as `CODE: text`, or None if there is none."""
    for line in reversed(output_log.tail(log, start=0, max_bytes=_TAIL).splitlines()):
        found = _event(line)
        if found is not None and found.get("event") in _EVENTS:
            said = ": ".join(str(found[key]) for key in ("code", "error") if found.get(key))
            text = "".join(letter if letter.isprintable() else " " for letter in said or str(found["event"]))
            return " ".join(text.split())[:_LONGEST]
    return None


def _event(line: str) -> dict[str, Any] | None:
    try:
        found: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None
