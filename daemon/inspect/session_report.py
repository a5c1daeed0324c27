"""Reports on one session, and the list of all. They work while the daemon is down; its API returns them too.

Read-only and bounded in rows and time. A session whose file is missing, locked or corrupt is one line of the report and
does not end it. Times are epoch milliseconds; every value fits JSON.

Closing a file drops this process's POSIX locks on it (fcntl(2)). `session_report` opens outbound.db, so the daemon runs it
in the queue of the session's other reads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from daemon.core.clock import Clock
from daemon.core.errors import UnknownSessionError
from daemon.inspect.agents_now import UNKNOWN, AgentsNow
from daemon.inspect.bounds import BUDGET_S
from daemon.inspect.central_reading import Key, folder_of
from daemon.inspect.explain import explain, held_up, state_of
from daemon.inspect.open_registry import LIVE_INCARNATIONS, open_registry
from daemon.inspect.queues import Queues, read_queues
from daemon.inspect.session_detail import read_detail
from daemon.store.rebuild import is_session
from daemon.store.verified_idle import still_idle
from schema.frozen import frozen
from schema.handles import Reader
from schema.layout import SessionFolder
from schema.plain_file import ReadLimits


@frozen
class Examined:
    """One session as a report found it: its rows in central.db, its state and its queues."""

    registry: Mapping[str, Any]
    live: Mapping[str, Any] | None
    state: str
    queues: Queues | None  # None: there was no time to read them
    at: int
    changed_at: int | None  # when one of its files last changed, epoch ms


def sessions_report(
    data_dir: Path,
    clock: Clock,
    *,
    limit: int = 1000,
    budget_s: float = BUDGET_S,
    agents: AgentsNow = UNKNOWN,
) -> list[dict[str, Any]]:
    """Return one entry for each session, those with work first. Raise DataFolderError, RegistryGoneError."""
    with open_registry(data_dir) as central:
        return [_summary(one, agents) for one in examine_registered(data_dir, central, clock, limit, budget_s)]


def session_report(
    data_dir: Path,
    agent: str,
    session: str,
    clock: Clock,
    *,
    limit: int = 20,
    limits: ReadLimits | None = None,
    held: str | None = None,
    agents: AgentsNow = UNKNOWN,
) -> dict[str, Any]:
    """Return everything about one session, `limit` rows of each kind. Raise UnknownSessionError, DataFolderError, RegistryGoneError.

    `held` says why the container's file must not be opened now; the report then covers the host's own files alone.
    """
    folder = folder_of(data_dir, (agent, session))
    now = clock.now_ms()
    with open_registry(data_dir) as central:
        row, incarnations = _registered(central, (agent, session), limit)
    if row is None and not is_session(folder):
        raise UnknownSessionError(f"there is no session {agent}/{session}.")
    live = next((one for one in incarnations if one["ended_at"] is None), None)
    registry = row if row is not None else unregistered(agent, session)
    queues = read_queues(folder, now)
    examined = Examined(registry, live, state_of(registry, live, queues, now), queues, now, _changed_at(folder))
    detail = read_detail(folder, limit, limits or ReadLimits(), held)
    return {
        **_summary(examined, agents, shown=True, errors=detail.errors),
        "held_up": held_up(registry, live, examined.queues or Queues(), now, agents, errors=detail.errors),
        "folder": str(folder.root),
        "registry": registry,
        "incarnation": live,
        "incarnations": incarnations,
        "messages": detail.messages,
        "undelivered": detail.undelivered,
        "attempts": detail.attempts,
        "claims": detail.claims,
        "tool": detail.tool,
        "usage": detail.usage,
        "heartbeat_at": detail.heartbeat_at,
        "routing": detail.routing,
        "destinations": detail.destinations,
        "pruned": detail.pruned,
        "errors": detail.errors,
    }


def _registered(central: Reader, key: Key, limit: int) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return a session's row of central.db, None without one, and its newest incarnations."""
    row = central.one("SELECT * FROM sessions WHERE agent = ? AND session = ?", key)
    incarnations = central.all(
        "SELECT * FROM incarnations WHERE agent = ? AND session = ? ORDER BY created_at DESC LIMIT ?", (*key, limit)
    )
    return dict(row) if row is not None else None, [dict(one) for one in incarnations]


def examine_registered(data_dir: Path, central: Reader, clock: Clock, limit: int, budget_s: float) -> list[Examined]:
    """Return the registered sessions, those with work first, with the queues of as many as there is time for."""
    live = {(row["agent"], row["session"]): dict(row) for row in central.all(LIVE_INCARNATIONS)}
    rows = central.all(
        "SELECT * FROM sessions ORDER BY active DESC, quarantined_at IS NULL, agent, session LIMIT ?", (limit,)
    )
    idle = still_idle(central, data_dir / "sessions", clock.now_ms())
    return examine(data_dir, [dict(row) for row in rows], live, idle, clock, budget_s)


def examine(
    data_dir: Path,
    rows: Iterable[Mapping[str, Any]],
    live: Mapping[Key, Mapping[str, Any]],
    idle: AbstractSet[Key],
    clock: Clock,
    budget_s: float,
) -> list[Examined]:
    """Read the queues of as many of these sessions as the time allows; those of `idle` ones are known to be empty."""
    now, deadline = clock.now_ms(), clock.monotonic() + budget_s
    examined: list[Examined] = []
    for row in rows:
        key = (row["agent"], row["session"])
        queues = Queues() if key in idle else None
        if queues is None and (key in live or clock.monotonic() <= deadline):  # there are few containers
            queues = read_queues(folder_of(data_dir, key), now)
        state = state_of(row, live.get(key), queues, now)
        examined.append(Examined(row, live.get(key), state, queues, now, _changed_at(folder_of(data_dir, key))))
    return examined


def unregistered(agent: str, session: str) -> dict[str, Any]:
    """Return a row for a folder that central.db does not know. The next start registers it."""
    return {
        "agent": agent, "session": session, "created_at": None, "active": 1, "next_due_at": None, "quarantined_at": None,
        "quarantine_reason": None, "spawn_failures": 0, "next_spawn_at": None, "last_spawn_error": None,
        "dead_letters": 0,
    }  # fmt: skip


def _summary(one: Examined, agents: AgentsNow, *, shown: bool = False, errors: Sequence[str] = ()) -> dict[str, Any]:
    # How much a file that cannot be read holds is not known.
    queues = one.queues if one.queues is not None and one.queues.error is None else None
    return {
        "agent": one.registry["agent"],
        "session": one.registry["session"],
        "state": one.state,
        "explanation": explain(
            one.registry, one.live, one.queues or Queues(), one.at, agents, shown=shown, errors=errors
        ),
        "created_at": one.registry["created_at"],
        "changed_at": one.changed_at,
        "next_due_at": one.registry["next_due_at"],
        "incarnation_id": one.live["id"] if one.live is not None else None,
        "pending": queues.pending if queues else None,
        "scheduled": queues.scheduled if queues else None,
        "backing_off": queues.backing_off if queues else None,
        "oldest_pending_at": queues.oldest_pending_at if queues else None,
        "undelivered": queues.undelivered if queues else None,
        "scheduled_answers": queues.scheduled_answers if queues else None,
        "failed": queues.failed if queues else None,
        "dead": queues.dead if queues else None,
        "error": one.queues.error if one.queues else None,
    }


def _changed_at(folder: SessionFolder) -> int | None:
    """Return when one of a session's two files changed last, None where there is none."""
    found: list[int] = []
    for path in (folder.inbound_db, folder.outbound_db):
        with contextlib.suppress(OSError):
            found.append(os.lstat(path).st_mtime_ns // 1_000_000)
    return max(found, default=None)
