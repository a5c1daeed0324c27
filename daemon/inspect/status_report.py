"""The report on the whole data folder: sessions by state, queues, dead letters, what needs attention.

It works while the daemon is down; the daemon's API answers with it too. Read-only and bounded in rows and time.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from daemon.core.clock import Clock
from daemon.inspect.agents_now import UNKNOWN, AgentsNow
from daemon.inspect.bounds import BUDGET_S, MAX_LISTED, MAX_SESSIONS
from daemon.inspect.central_reading import read_central
from daemon.inspect.explain import explain
from daemon.inspect.open_registry import LIVE_INCARNATIONS, open_registry
from daemon.inspect.queues import Queues, sum_queues
from daemon.inspect.session_report import Examined, examine, examine_registered, unregistered
from daemon.store.data_layout import Layout
from daemon.store.install import InstallFile
from daemon.store.pruned import read as read_pruned
from schema.errors import ClawbusError


def status_report(
    data_dir: Path, clock: Clock, *, budget_s: float = BUDGET_S, agents: AgentsNow = UNKNOWN
) -> dict[str, Any]:
    """Return sessions by state, queues, dead letters, live incarnations and what needs attention.

    Raise DataFolderError, RegistryGoneError.
    """
    now = clock.now_ms()
    with open_registry(data_dir) as central:
        install = central.one("SELECT install_id FROM install WHERE id = 1")
        total = _number(central.one("SELECT count(*) FROM sessions"))
        examined = examine_registered(data_dir, central, clock, MAX_SESSIONS, budget_s)
        live = [dict(row) for row in central.all(f"{LIVE_INCARNATIONS} ORDER BY created_at LIMIT 1000")]
        pruned = read_pruned(central)
    status = _status(data_dir, examined, now, agents)
    return {
        **status,
        "install_id": install["install_id"] if install is not None else None,
        "sessions": {"total": total, **status["sessions"]},
        "incarnations": live,
        "pruned": pruned,
        "not_examined": total - len(examined) + status["not_examined"],
    }


def status_without_registry(
    data_dir: Path, clock: Clock, why: str, *, budget_s: float = BUDGET_S, agents: AgentsNow = UNKNOWN
) -> dict[str, Any]:
    """Return what `status_report` returns, from the session folders, when central.db is missing or broken (`why`).

    Raise DataFolderError, SchemaTooNewError.
    """
    rows = [unregistered(*key) for key in read_central(data_dir).known()]
    examined = examine(data_dir, rows, {}, frozenset(), clock, budget_s)
    return {
        **_status(data_dir, examined, clock.now_ms(), agents),
        "registry_error": why,
        "sessions": {"total": len(rows)},
        "incarnations": [],
    }


def _status(data_dir: Path, examined: Sequence[Examined], now: int, agents: AgentsNow) -> dict[str, Any]:
    """Return what a status says of these sessions; `sessions` are their states alone."""
    needing = [entry for one in examined if (entry := _attention(one, agents)) is not None]
    return {
        "data_dir": str(data_dir),
        "install_id": None,
        **install_report(data_dir),
        "at": now,
        "sessions": dict(sorted(Counter(one.state for one in examined).items())),
        "queues": sum_queues([one.queues for one in examined if one.queues is not None], now),
        "attention": needing[:MAX_LISTED],
        "attention_total": len(needing),
        "working": [_named(one) for one in examined if one.state == "working"][:MAX_LISTED],
        "not_examined": sum(one.queues is None for one in examined),
    }


def install_report(data_dir: Path) -> dict[str, Any]:
    """Return the containers' engine and what the folder was copied from; None where it is not known."""
    try:
        found = InstallFile(Layout(data_dir).install_record).read()
    except ClawbusError:
        found = None
    engine, origin = (found.engine, found.origin) if found is not None else (None, None)
    return {
        "engine": asdict(engine) if engine is not None else None,
        "copied_from": asdict(origin) if origin is not None else None,
    }


def _attention(one: Examined, agents: AgentsNow) -> dict[str, Any] | None:
    sentence = explain(one.registry, one.live, one.queues or Queues(), one.at, agents)
    if sentence is None:
        return None
    return {**_named(one), "state": one.state, "explanation": sentence}


def _named(one: Examined) -> dict[str, Any]:
    return {"agent": one.registry["agent"], "session": one.registry["session"]}


def _number(row: sqlite3.Row | None) -> int:
    return int(row[0]) if row is not None else 0
