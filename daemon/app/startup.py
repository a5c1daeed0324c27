"""Starts the parts of the daemon that `bus.py` has built, each in a named task.

The order loses nothing: first the parts that deliver and repair, then those that run agents, last those that accept messages.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import structlog

from daemon.api import server as control_server
from daemon.api.api import build_api
from daemon.api.daemon_operations import DaemonOperations
from daemon.api.deploying import deploy_routes
from daemon.api.events import EventHub, events_route
from daemon.api.reloading import Reloaded, reload_route
from daemon.app.bus import Bus
from daemon.channels.running import run_channel, run_channels
from daemon.core.errors import RuntimeUnavailableError
from daemon.deploy.conductor import Conductor
from daemon.engine.progress import Progress
from daemon.logs.pipeline import LogPipeline
from daemon.monitoring.monitoring import Monitoring
from daemon.systemd.notify import Notifier
from daemon.systemd.watchdog import Pulse, Watchdog


async def bring_up(
    bus: Bus,
    tasks: anyio.abc.TaskGroup,
    monitoring: Monitoring,
    reload_now: Callable[[], Awaitable[Reloaded]],
    pipeline: LogPipeline,
    pulse: Pulse,
    notifier: Notifier,
    conductor: Conductor | None,
) -> None:
    """Start everything, then report readiness in the log, at /readyz and to systemd. `reload_now` rereads the configuration."""
    config = bus.config
    await tasks.start(monitoring.run, config.telemetry.listen, name="monitoring")
    operations = await start_parts(bus, tasks)
    events = EventHub()
    pipeline.listen(events.publish)
    events.follow(bus.events)
    progress = Progress(bus.supervisor.live_sessions, lambda: events.watched, bus.events.publish, bus.clock)
    tasks.start_soon(progress.run, name="progress")
    routes = [*monitoring.routes, events_route(events), reload_route(reload_now)]
    if conductor is not None:
        routes += deploy_routes(conductor)
    api = build_api(operations, routes, max_attachment_bytes=config.limits.max_attachment_bytes)
    await tasks.start(partial(control_server.run, api, config.control_socket), name="control api")
    tasks.start_soon(Watchdog(pulse, notifier, bus.status_line).run, name="watchdog")
    # The objects made so far live as long as the process. Unless frozen, each full collection walks them: a 50 ms pause.
    # One collection before would delay the start by as much, for a few hundred objects.
    gc.freeze()
    if conductor is not None:
        tasks.start_soon(conductor.run, name="deploys")
    monitoring.health.started = True
    notifier.ready(bus.status_line())
    structlog.get_logger("daemon").info(
        "daemon_ready", socket=str(config.control_socket), agents=sorted(bus.agents),
        channels=sorted(bus.channels), active_sessions=len(bus.sessions),
    )  # fmt: skip


async def start_parts(bus: Bus, tasks: anyio.abc.TaskGroup) -> DaemonOperations:
    """Start every loop: first those that deliver and repair, then those that run agents, last those that accept messages."""
    channels_run = anyio.Event()
    await tasks.start(bus.background.run, name="background")
    await tasks.start(bus.delivery.run, channels_run, name="delivery")
    for key in await bus.sessions.finish_deletions():
        structlog.get_logger("daemon").info("session_deletion_finished", agent=key.agent, session=key.session)
    await bus.sessions.find_lost()
    await bus.router.load()  # before any container starts or any answer is planned: both depend on the routes
    for row in await bus.sessions.central(lambda registry: registry.with_work()):
        if row.active:
            bus.sessions.adopt(row)
        elif row.next_due_at is not None:
            bus.schedule.at(row.key, row.next_due_at)
    await tasks.start(bus.watch.run, name="watch")
    await tasks.start(bus.typing.run, name="typing signs")
    await _check_runtime(bus)
    if bus.gate is not None:
        await tasks.start(bus.gate.run, name="gate")
    await bus.budgets.load()
    await tasks.start(bus.supervisor.run, bus.session_sweep, name="supervisor")
    bus.budgets.enforce()
    await tasks.start(bus.sweeper.run, name="sweep")
    tasks.start_soon(bus.schedule.run, bus.sweeper.poke, name="schedule")
    running = {
        name: partial(run_channel, name, channel, bus.router, bus.problems.channels, bus.clock)
        for name, channel in bus.channels.items()
    }
    await tasks.start(partial(run_channels, running, bus.problems.channels, bus.clock), name="channels")
    channels_run.set()
    tasks.start_soon(bus.retention.run, name="retention")
    tasks.start_soon(bus.verification.run, name="verification")
    return bus.operations()


async def _check_runtime(bus: Bus) -> None:
    """Log unusable images now instead of at the first spawn. Neither a missing image nor a missing Docker is fatal."""
    try:
        for error in await bus.supervisor.check_images():
            structlog.get_logger("daemon").error("image_unusable", error=str(error), hint=error.hint)
    except RuntimeUnavailableError:
        return  # the supervisor also meets this error when it adopts containers; it logs it and keeps trying
