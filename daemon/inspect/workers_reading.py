"""Reads which daemons are registered for what, and when each agent last completed a turn. From the files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from daemon.config.models import Config
from daemon.core.cadence import due_by, is_behind
from daemon.core.clock import Clock
from daemon.core.ownership import AGENT, CHANNEL, ROLES, Ownership
from daemon.inspect.across_sessions import visit_sessions
from daemon.inspect.central_reading import Key, check_data_folder, folder_of
from daemon.inspect.schedule_list import sessions_with_schedules, stored_schedules
from daemon.inspect.trusted_files import open_current, open_inbound
from daemon.store import schedules, workers
from daemon.store.data_layout import Layout
from daemon.store.schedules import ScheduleRow, ScheduleState
from daemon.store.workers import WorkerRow
from schema.handles import Reader

CONFIRMED_WITHIN_MS: Final = 120_000  # a running daemon confirms every half minute
_BUDGET_S: Final = 20.0
_RUNS: Final = 200


def workers_report(config: Config, ownership: Ownership, clock: Clock) -> dict[str, Any]:
    """Return {role, groups, workers, agents, not_examined, errors}. Raise DataFolderError, SchemaTooNewError.

    A worker is {id, role, release, slot, host, pid, epoch, state, registered_at, confirmed_at, ended_at, end_reason,
    agents, channels}; `state` is registered, unconfirmed or ended. An agent is {agent, role, worker, last_completed_at,
    session, cadence}; `cadence` is its schedule that is furthest behind, or None where nothing regular is scheduled.
    """
    check_data_folder(config.data_dir)
    now = clock.now_ms()
    rows: list[WorkerRow] = []
    owned: dict[str, list[tuple[str, str]]] = {}
    turns: dict[str, tuple[str, int]] = {}
    path = Layout(config.data_dir).central_db
    if path.is_file():
        with open_current(path) as db:
            rows = workers.read_workers(db)
            owned = {one.id: workers.read_owned(db, one.id) for one in rows}
            turns = workers.read_turns(db)
    live = {name: one.id for one in rows if one.ended_at is None for kind, name in owned[one.id] if kind == AGENT}
    cadences, left, errors = _cadences(config, clock, now)
    return {
        "role": config.role,
        "groups": {
            role: {"agents": _of(ownership.agents, role), "channels": _of(ownership.channels, role)} for role in ROLES
        }
        if ownership.role
        else {},
        "workers": [_worker(one, owned[one.id], now) for one in rows],
        "agents": [
            {
                "agent": name,
                "role": ownership.agents.get(name, ""),
                "worker": live.get(name),
                "last_completed_at": turns[name][1] if name in turns else None,
                "session": turns[name][0] if name in turns else None,
                "cadence": cadences.get(name),
            }
            for name in sorted(config.agents)
        ],
        "not_examined": left,
        "errors": errors,
    }


def _of(roles: Mapping[str, str], role: str) -> list[str]:
    return sorted(name for name, one in roles.items() if one == role)


def _worker(row: WorkerRow, owned: list[tuple[str, str]], now: int) -> dict[str, Any]:
    state = "ended"
    if row.ended_at is None:
        fresh = row.confirmed_at is not None and now - row.confirmed_at <= CONFIRMED_WITHIN_MS
        state = "registered" if fresh else "unconfirmed"
    return {
        "id": row.id, "role": row.role, "state": state, "release": row.release or None, "slot": row.slot or None,
        "source_digest": row.source_digest or None, "host": row.host, "pid": row.pid, "epoch": row.epoch,
        "registered_at": row.registered_at, "confirmed_at": row.confirmed_at, "ended_at": row.ended_at,
        "end_reason": row.end_reason,
        "agents": [name for kind, name in owned if kind == AGENT],
        "channels": [name for kind, name in owned if kind == CHANNEL],
    }  # fmt: skip


def _cadences(config: Config, clock: Clock, now: int) -> tuple[dict[str, dict[str, Any]], int, list[dict[str, str]]]:
    """Return each agent's schedule that is furthest behind, how many sessions there was no time for, and errors."""
    deadline = clock.monotonic() + _BUDGET_S
    found: dict[str, dict[str, Any]] = {}

    def visit(key: Key) -> None:
        with open_inbound(folder_of(config.data_dir, key)) as db:
            for row in stored_schedules(db):
                one = _cadence(db, key, row, now)
                if one is not None and _worse(one, found.get(key[0])):
                    found[key[0]] = one

    return found, *visit_sessions(sessions_with_schedules(config.data_dir), clock, deadline, visit)


def _cadence(db: Reader, key: Key, row: ScheduleRow, now: int) -> dict[str, Any] | None:
    times = row.what.times
    if row.state is not ScheduleState.ACTIVE:
        return None
    completed = next((one["due"] for one in schedules.runs(db, row.key, _RUNS) if one["status"] == "completed"), None)
    since = completed if completed is not None else row.changed_at
    limit = due_by(times, since)
    if limit is None:
        return None
    return {
        "schedule": row.key,
        "session": key[1],
        "times": times.words,
        "last_completed_due": completed,
        "due_by": limit,
        "behind": is_behind(times, since, now),
    }


def _worse(one: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    return other is None or one["due_by"] < other["due_by"]
