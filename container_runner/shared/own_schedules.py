"""Reads the schedules that the agent has made in this session, from the host's inbound.db, and the check program of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

from schema.handles import Writer
from schema.instants import to_text

_MAX: Final = 1000
_RULES: Final = ("every_ms", "cron", "timezone", "until", "count", "catch_up")


def own_schedules(db: Writer) -> list[dict[str, object]]:
    """Return them by key, as an agent sees them. inbound.db is attached as `inbound`; an older host has none."""
    if not db.columns("schedules", "inbound"):
        return []
    rows = db.all(
        "SELECT key, times, content, state, next_at, sent FROM inbound.schedules WHERE origin = 'agent' ORDER BY key LIMIT ?",
        (_MAX,),
    )
    return [
        {
            "key": row["key"],
            "text": cast("dict[str, Any]", json.loads(row["content"])).get("text"),
            "state": row["state"],
            "next": to_text(row["next_at"]) if row["state"] == "active" and row["next_at"] is not None else None,
            "sent": row["sent"],
            **_rule(json.loads(row["times"])),
        }
        for row in rows
    ]


def check_program(db: Writer, tasks: Sequence[str]) -> str | None:
    """Return the check program of the schedule that sent one of these messages, or None.

    The host decides which schedule that is: a message's own content cannot name a program.
    """
    if not tasks or not db.columns("schedules", "inbound"):
        return None
    row = db.one(
        "SELECT s.check_program FROM inbound.messages_in AS m JOIN inbound.schedules AS s ON m.series_id = 'schedule:' || s.key"
        f" WHERE s.check_program IS NOT NULL AND m.id IN ({', '.join('?' * len(tasks))}) LIMIT 1",
        tuple(tasks),
    )
    return row["check_program"] if row is not None else None


def _rule(times: dict[str, Any]) -> dict[str, object]:
    found = {name: times[name] for name in _RULES if name in times}
    if "every_ms" in found:
        found["every_s"] = found.pop("every_ms") / 1000
    for name in ("at", "until"):
        if name in times:
            found[name] = to_text(times[name])
    return found
