"""Builds and runs monitoring: loop lag, health, the exporter and their HTTP routes.

Only wiring: the other files of this folder measure, judge and render.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus
from starlette.routing import BaseRoute

from daemon.core.clock import Clock
from daemon.core.slots import SlotState
from daemon.engine.delivery import Delivery
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.monitoring.backlog import BacklogWatch
from daemon.monitoring.collector import Sources
from daemon.monitoring.health import Health, Views
from daemon.monitoring.http import Exporter, run_listener, telemetry_routes
from daemon.monitoring.looplag import LoopLag
from daemon.systemd.watchdog import Pulse
from daemon.telemetry.telemetry import Telemetry
from schema.frozen import frozen


@frozen
class Watched:
    """The parts of a running daemon that are monitored. `problems` returns (what, since in epoch ms, why) of degraded parts."""

    data_dir: Path
    clock: Clock
    sessions: Sessions
    supervisor: Supervisor
    delivery: Delivery
    pulse: Pulse
    channels: Sequence[str]
    agents: Callable[[], Sequence[str]]
    problems: Callable[[], Sequence[tuple[str, int, str]]]
    max_containers: int
    worker: Callable[[], Mapping[str, Any]]
    slots: Callable[[], SlotState]


class Monitoring:
    """The daemon's monitoring. `routes` are served on the control socket; `run` does the rest."""

    def __init__(self, watched: Watched, telemetry: Telemetry) -> None:
        clock, metrics = watched.clock, telemetry.metrics
        self.lag = LoopLag(clock, metrics.lag.observe)

        async def probe() -> None:
            await watched.sessions.storage.look()
            await watched.sessions.central(lambda registry: registry.probe())

        views = Views(watched.problems, lambda: [stall.name for stall in watched.pulse.stale()], probe, watched.worker)
        self.health = Health(views, self.lag, clock)
        sources = Sources(
            clock=clock,
            supervisor=watched.supervisor,
            backlog=BacklogWatch(watched.sessions, watched.data_dir),
            health=self.health,
            pulse=watched.pulse,
            degraded=lambda: [what for what, _, _ in watched.problems()],
            channels=watched.channels,
            channel=metrics.channel,
            agents=watched.agents,
            max_containers=watched.max_containers,
            senders=lambda: watched.delivery.senders,
            slots=watched.slots,
        )
        self.exporter = Exporter(metrics.registry, sources, clock)
        self.routes: list[BaseRoute] = telemetry_routes(self.exporter, self.health)

    async def run(self, listen: str, *, task_status: TaskStatus[None]) -> None:
        """Measure until cancelled. With `listen`, serve the routes on TCP too. Raise ListenError."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.lag.run, name="loop lag")
            tasks.start_soon(self.health.run, name="health")
            tasks.start_soon(self.exporter.run, name="exporter")
            if listen:
                await tasks.start(partial(run_listener, listen, self.routes), name="telemetry")
            task_status.started()
