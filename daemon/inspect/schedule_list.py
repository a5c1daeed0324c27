"""Schedules of all sessions, and the occurrences of one. From the files alone; read-only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from daemon.core.clock import Clock
from daemon.core.content import text_of
from daemon.core.errors import UnknownScheduleError
from daemon.core.schedules import lost_zone, upcoming
from daemon.inspect.across_sessions import visit_sessions
from daemon.inspect.central_reading import Key, folder_of, read_central
from daemon.inspect.trusted_files import open_inbound
from daemon.store import schedules
from daemon.store.schedules import ScheduleRow
from schema.handles import Reader

_BUDGET_S: Final = 60.0
_RUNS: Final = 20
_UPCOMING: Final = 3


def schedules_report(
    data_dir: Path, clock: Clock, *, agent: str | None = None, key: str | None = None
) -> dict[str, Any]:
    """Return {schedules, not_examined, errors}, the next to fire first; only those of one agent or key, if named.

    Each is {agent, session, key, times, state, next_at, sent, failures, paused_after, origin, to, text, check, changed_at, changed_by}. Raises
    DataFolderError, SchemaTooNewError.
    """
    deadline = clock.monotonic() + _BUDGET_S
    keys = [one for one in sessions_with_schedules(data_dir) if agent in (None, one[0])]
    found: list[dict[str, Any]] = []

    def visit(session: Key) -> None:
        with open_inbound(folder_of(data_dir, session)) as db:
            found.extend(_values(db, session, row) for row in stored_schedules(db) if key in (None, row.key))

    left, errors = visit_sessions(keys, clock, deadline, visit)
    found.sort(key=lambda one: (one["state"] != "active", one["next_at"] or 0, one["key"]))
    return {"schedules": found, "not_examined": left, "errors": errors}


def schedule_report(data_dir: Path, session: Key, key: str, limit: int = _RUNS) -> dict[str, Any]:
    """Return one schedule as in `schedules_report`, with {upcoming, runs}.

    `upcoming` are its next occurrences, epoch ms; `runs` its newest ones, each {due, at, message_id, detail, status}. Raise UnknownScheduleError and what opening the file raises.
    """
    with open_inbound(folder_of(data_dir, session)) as db:
        row = next((one for one in stored_schedules(db) if one.key == key), None)
        if row is None:
            raise UnknownScheduleError(f"there is no schedule {key!r:.80} in session {'/'.join(session)}.")
        values, times = _values(db, session, row), row.what.times
        known = lost_zone(times) is None
        return {
            **values,
            "upcoming": list(upcoming(times, values["next_at"], row.sent, _UPCOMING)) if known else [],
            "runs": [dict(one) for one in schedules.runs(db, key, limit)],
        }


def sessions_with_schedules(data_dir: Path) -> list[Key]:
    """Return the sessions that may have schedules: central.db knows it of a session at rest."""
    central = read_central(data_dir)
    return [*(key for key, row in central.sessions.items() if _may_have(row)), *central.folders]


def _may_have(row: Mapping[str, Any]) -> bool:
    return bool(row.get("active") or row.get("next_due_at") or row.get("schedules"))


def stored_schedules(db: Reader) -> list[ScheduleRow]:
    """Return the schedules of a session's open file; none where an earlier version made it."""
    if db.one("SELECT 1 FROM sqlite_schema WHERE name = 'schedules'") is None:
        return []  # an earlier version's file, which the daemon has not opened yet
    return schedules.all_(db)


def _values(db: Reader, session: Key, row: ScheduleRow) -> dict[str, Any]:
    address = row.what.address
    return {
        "agent": session[0],
        "session": session[1],
        "key": row.key,
        "times": row.what.times.words,
        "catch_up": row.what.times.catch_up.value,
        "state": row.state.value,
        "next_at": row.next_at if row.state == "active" else None,
        "sent": row.sent,
        "failures": schedules.failures_in_a_row(db, row.key),
        "paused_after": row.failures or None,
        "origin": row.origin,
        "to": "/".join(part for part in (address.channel_type, address.platform_id, address.thread_id) if part),
        "text": text_of(row.what.content),
        "check": row.what.check,
        "changed_at": row.changed_at,
        "changed_by": row.changed_by,
    }
