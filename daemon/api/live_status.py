"""The part of the status report that only the running daemon knows. It comes from memory; no file is read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from daemon.config.agents import Agent
from daemon.core.clock import Clock
from daemon.engine.problems import Problems
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.engine.sweeper import Sweeper
from daemon.inspect.agents_now import AgentsNow
from daemon.maintenance.retention import Retention
from daemon.store.folder_use import SessionLimits


class LiveStatus:
    """Reports the daemon's state. Build it once, at the daemon's start: that time is reported as `started_at`."""

    def __init__(
        self,
        clock: Clock,
        agents: Mapping[str, Agent],
        sessions: Sessions,
        supervisor: Supervisor,
        sweeper: Sweeper,
        retention: Retention,
        problems: Problems,
        limits: SessionLimits,
    ) -> None:
        self.problems = problems
        self.source: Mapping[str, Any] | None = None  # which release runs; None if the composition root does not know
        self.worker: Callable[[], Mapping[str, Any]] = dict  # this daemon's registration; empty without one
        self.budgets: Callable[[], Mapping[str, str]] = dict  # see AgentsNow.stopped
        self._agents = agents
        self._sessions = sessions
        self._supervisor = supervisor
        self._sweeper = sweeper
        self._retention = retention
        self._limits = limits
        self._started_at = clock.now_ms()

    def agents_now(self) -> AgentsNow:
        """Return which agents are configured, and which have used up their daily budget."""
        return AgentsNow(dict(self.budgets()), frozenset(self._agents))

    def report(self) -> dict[str, Any]:
        """Return the status report's `live` object."""
        last = self._sweeper.last
        sweep = {"at": last.at, "duration_ms": last.duration_ms, "sessions": last.sessions, "errors": last.errors}
        return {
            "pid": os.getpid(),
            "version": _version(),
            "source": self.source,
            "worker": self.worker(),
            "budgets": dict(self.budgets()),
            "started_at": self._started_at,
            "agents": sorted(self._agents),
            "runtime": {
                "name": self._supervisor.runtime_name,
                "state": "unavailable" if self._supervisor.unavailable is not None else "available",
            },
            "degraded": self.problems.degraded(),
            "troubles": self._sessions.troubles.listing(),
            "running": [
                {
                    "agent": slot.session.key.agent,
                    "session": slot.session.key.session,
                    "incarnation": slot.incarnation,
                    "container_id": slot.container_id,
                    "phase": slot.phase.value,
                }
                for slot in self._supervisor.slots()
            ],
            "waiting_spawns": [str(key) for key in self._supervisor.waiting()],
            "last_sweep": sweep if last.at is not None else None,
            "retention": self._retention_report(),
            "clock": self._sweeper.clock_jump,
            "near_limits": self.near_limits(),
        }

    def near_limits(self) -> list[dict[str, Any]]:
        """Return the sessions with a folder that was close to a limit at the last sweep. Over it, they are quarantined."""
        return [
            {"agent": one.key.agent, "session": one.key.session, "sentence": sentence}
            for one in self._sessions
            if one.quarantined is None
            for use, limits in ((one.use, self._limits.out), (one.home_use, self._limits.home))
            if use is not None and (sentence := use.near(limits)) is not None
        ]

    def _retention_report(self) -> dict[str, Any]:
        """Return how long finished data is kept (seconds; None: unlimited), and what the last retention pass removed."""
        last = self._retention.last
        took = {"at": last.at, "duration_ms": last.duration_ms, "sessions": last.sessions, "errors": last.errors,
                "given_back_bytes": last.given_back, "taken": dict(last.taken)}  # fmt: skip
        return {"keep_s": dict(self._retention.ages), "last_pass": took if last.at is not None else None}


@functools.cache
def _version() -> str:
    """Return the installed version. Cached, so that a status request opens no file when descriptors have run out."""
    return version("clawbus")
