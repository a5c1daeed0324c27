"""Runs the daemon from start to stop, and handles its signals. Stopping the daemon ends no agent.

`bus.py` builds the parts, `startup.py` starts each in a task of one task group, `reload.py` applies a changed configuration.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import aclosing, suppress

import anyio
import structlog

from daemon.api import server as control_server
from daemon.app.bus import Bus, Overrides
from daemon.app.deploy_engine import BusEngine
from daemon.app.lease import Lease
from daemon.app.registration import Registration
from daemon.app.reload import Reloader
from daemon.app.signals import RELOAD, SignalInbox
from daemon.app.startup import bring_up
from daemon.config.models import Config
from daemon.config.policies import read_limits
from daemon.core.clock import Clock, SystemClock
from daemon.core.deploy_errors import FencedError, NotServingError
from daemon.core.errors import DataFolderLockedError
from daemon.deploy.conductor import Conductor, Place
from daemon.deploy.state_file import read_state, state_path
from daemon.engine.installation import Start, settle_install
from daemon.engine.supervisor.changed_runtime import refuse_changed_engine, refuse_changed_runtime
from daemon.logs.pipeline import LogPipeline, configure
from daemon.monitoring.monitoring import Monitoring
from daemon.runtimes.engine_identity import EngineGuard
from daemon.runtimes.factory import build_runtime
from daemon.store.data_folder import DataFolder
from daemon.store.install import InstallFile
from daemon.store.registry import Registry
from daemon.systemd.notify import Notifier
from daemon.systemd.watchdog import Pulse
from daemon.workers.source import Origin
from schema.errors import ClawbusError
from schema.frozen import frozen

_SHUTDOWN_GRACE_S = 5.0
_SWEEP_ALLOWED_S = 30.0
_THREADS_END_S = 1.0
_LOCK_CHECK_S = 2.0
_TERMINAL_CHECKS = 10
_TERMINAL_CHECK_S = 0.5


def run(
    config: Config,
    reload: Callable[[], Config] | None,
    signals: SignalInbox,
    source: Origin | None = None,
    lease: Lease | None = None,
) -> int:
    """Run the daemon until SIGTERM or SIGINT and return the exit code. `reload` reads the configuration again on SIGHUP.

    `source` says which release this process runs from. `lease` is its slot's claim to the data folder, None without
    slots. `signals` must be installed already, so that it holds the signals that arrived earlier. After this returns, no
    signal ends the process.

    Raise ClawbusError when something prevents the start (a data folder that is locked or not ours, the socket path, a
    channel's configuration).
    """
    control_server.check_path(config.control_socket)
    clock = SystemClock()
    with DataFolder.open(config.data_dir, clock, is_daemon=True) as folder:
        control_server.check_unanswered(config.control_socket)
        if lease is None:
            _refuse_beside_slots(config)
        else:
            lease.take(Registry(folder.central_db).last_epoch() if folder.central_db.exists() else 0)
        folder.make_agents(config.agents)
        pipeline = configure(config.logs, config.data_dir, sys.stderr, clock)
        try:
            anyio.run(_main, _Start(config, folder, pipeline, clock, reload, signals, source, lease))
        except BaseExceptionGroup as group:
            refusal = _refusal(group)
            if refusal is None:
                raise
            structlog.get_logger("daemon").critical(
                "daemon_failed", code=refusal.code, error=str(refusal), hint=refusal.hint
            )
            raise refusal from group
        finally:
            signals.close()
            pipeline.close()
        if lease is not None and lease.handed_over:
            return 0
        if lease is not None:
            lease.note_stop()
        _leave_hung_threads()
    return 0


def _refuse_beside_slots(config: Config) -> None:
    """Raise NotServingError where a slot serves: a daemon without a slot has no epoch to mark its work with."""
    serving = read_state(config.data_dir).serving
    if serving is not None:
        raise NotServingError(
            f"slot {serving} serves {config.data_dir}, and this daemon was started without --slot.",
            hint=f"Start the slot: `systemctl start clawbus@{serving}`, or `clawbus serve --slot {serving}`. To do without slots"
            f" from now on, stop both and remove {state_path(config.data_dir)}.",
        )


def _leave_hung_threads() -> None:
    """Exit the process at once if a thread hangs, for example on a fifo in the place of a file.

    Otherwise the interpreter would wait for that thread, and the daemon could not be stopped. Call this last.
    """
    deadline = time.monotonic() + _THREADS_END_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stderr.flush()
                os._exit(0)


def _refusal(group: BaseExceptionGroup[BaseException]) -> ClawbusError | None:
    """Return the ClawbusError that a task group wrapped (a port in use, say), or None if the group holds any other error."""
    refusals, rest = group.split(ClawbusError)
    if refusals is None or rest is not None:
        return None
    first = refusals
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


@frozen
class _Start:
    """What `run` hands to the event loop: the parts that exist before the bus does."""

    config: Config
    folder: DataFolder
    pipeline: LogPipeline
    clock: Clock
    reload: Callable[[], Config] | None
    signals: SignalInbox
    source: Origin | None
    lease: Lease | None


async def _main(start: _Start) -> None:
    """Build the bus, serve until a signal, and close what was opened."""
    config, folder, clock = start.config, start.folder, start.clock
    log = structlog.get_logger("daemon")
    if folder.was_open:
        log.warning("data_folder_was_open", data=str(folder.root), closed=list(folder.was_open))
    used_at, registry = folder.used_at, Registry(folder.central_db)
    with start.signals.interruptible_start() as beginning:
        install_id = await _take_installation(config, folder, registry, clock, start.lease)
    if beginning.cancelled_caught:
        log.info("daemon_stopped")
        return
    runtime = build_runtime(config, folder, install_id, clock)
    pulse = Pulse(clock)
    # A sweep waits for its slowest session, which may take its whole timeout.
    pulse.register("sweep", _SWEEP_ALLOWED_S + config.sweep.session_timeout_s)
    overrides = Overrides(registry=registry, source=start.source, used_at=used_at)
    bus = Bus(config, folder, runtime, install_id, clock, pulse, overrides)
    epoch = start.lease.epoch if start.lease is not None else 0
    registration = Registration(bus, registry, start.source, epoch, install_id)
    await registration.begin()
    bus.registration = registration
    log.info("daemon_starting", data=str(config.data_dir), runtime=runtime.name, pid=os.getpid())
    try:
        await _serve(start, bus, registration, registry)
    finally:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_SHUTDOWN_GRACE_S):
                await runtime.aclose()
            await registration.end()
            await bus.telemetry.tracer.aclose()
    log.info("daemon_stopped")


async def _serve(start: _Start, bus: Bus, registration: Registration, registry: Registry) -> None:
    """Start every part in one task group, serve until a signal or a hand-over, then stop them in order."""
    pipeline, signals, lease = start.pipeline, start.signals, start.lease
    notifier = Notifier(os.environ)
    reloader = Reloader(bus, pipeline, notifier, start.reload)
    monitoring = Monitoring(bus.watched(), bus.telemetry)
    async with anyio.create_task_group() as tasks:
        with signals.interruptible_start() as starting:
            fence = registry.confirm_epoch if lease is not None else None
            tasks.start_soon(_keep_lock, start.folder, start.clock, fence, name="data folder lock")
            await bring_up(
                bus,
                tasks,
                monitoring,
                reloader.as_asked,
                pipeline,
                bus.pulse,
                notifier,
                _conductor(bus, lease, signals),
            )
        if not starting.cancelled_caught:
            tasks.start_soon(registration.run, name="registration")
            await _serve_signals(reloader, signals, tasks)
        if lease is None or not lease.handed_over:
            notifier.stopping()
        left = len(bus.supervisor.alive())
        hint = {"hint": "`clawbus session kill --all` ends them, too"} if left else {}
        structlog.get_logger("daemon").info("daemon_stopping", containers_left_running=left, **hint)
        monitoring.health.started = False
        await stop_bus(bus, tasks, _SHUTDOWN_GRACE_S)


async def _take_installation(
    config: Config, folder: DataFolder, registry: Registry, clock: Clock, lease: Lease | None
) -> str:
    """Check that this daemon may start containers, and return the id of this installation.

    Raise ClawbusError if another slot's daemon has taken over, or if recorded containers may run on another engine.
    """
    install_id = await settle_install(
        Start(folder, registry, clock, read_limits(config)),
        lambda kind, of_install: build_runtime(config, folder, of_install, clock, kind),
    )
    await anyio.to_thread.run_sync(registry.take_epoch, lease.epoch if lease is not None else None)
    live = await anyio.to_thread.run_sync(registry.live_incarnations)
    known = await anyio.to_thread.run_sync(InstallFile(folder.install_record).engine)
    await refuse_changed_runtime(
        config.runtime.kind, live, lambda kind: build_runtime(config, folder, install_id, clock, kind), known
    )
    async with aclosing(build_runtime(config, folder, install_id, clock)) as asked:
        await refuse_changed_engine(live, EngineGuard(InstallFile(folder.install_record), install_id, asked))
    return install_id


def _conductor(bus: Bus, lease: Lease | None, signals: SignalInbox) -> Conductor | None:
    """Return the conductor of deploys, or None where there are no slots."""
    if lease is None:
        return None

    def leave() -> None:
        lease.handed_over = True
        signals.hang_up()

    place = Place(bus.config, lease.slot, bus.clock, leave, lease.release, lease.epoch)
    return Conductor(place, BusEngine(bus))


async def _keep_lock(folder: DataFolder, clock: Clock, fence: Callable[[], None] | None) -> None:
    """Take the data folder's lock again whenever its lock file was removed.

    Raise DataFolderLockedError or FencedError, which ends the daemon, when another process has taken it.
    """
    log = structlog.get_logger("daemon")
    trouble: str | None = None
    while True:
        await anyio.sleep(_LOCK_CHECK_S)
        try:
            retaken = await anyio.to_thread.run_sync(folder.retake_lock, clock)
            if fence is not None:
                await anyio.to_thread.run_sync(fence)
        except (DataFolderLockedError, FencedError):
            raise
        except (OSError, ClawbusError, RuntimeError) as error:  # the host lacks a resource now: try again
            if str(error) != trouble:
                log.warning("data_folder_lock_lost", error=str(error))
            trouble = str(error)
            continue
        trouble = None
        if retaken:
            log.warning("data_folder_lock_retaken", lock=str(folder.lock_file))


async def stop_bus(bus: Bus, tasks: anyio.abc.TaskGroup, grace_s: float) -> None:
    """Start nothing new, let running sends finish within `grace_s` seconds, cancel every task. Containers keep running."""
    bus.supervisor.close()
    await bus.delivery.close(grace_s)
    with suppress(ClawbusError), anyio.move_on_after(grace_s):
        await bus.budgets.flush()
    tasks.cancel_scope.cancel()


async def _serve_signals(reloader: Reloader, signals: SignalInbox, tasks: anyio.abc.TaskGroup) -> None:
    """Reload on SIGHUP. Return on SIGTERM, on SIGINT, and when the terminal that the daemon was started in is closed."""
    log = structlog.get_logger("daemon")
    while True:
        number = await signals.next()
        if signals.terminal_closed():
            log.warning("terminal_closed", signal=number.name)
            return
        if number != RELOAD:
            return
        tasks.start_soon(reloader.at_signal, name="reload")
        if signals.has_terminal:
            tasks.start_soon(_await_terminal_end, signals, name="terminal")


async def _await_terminal_end(signals: SignalInbox) -> None:
    """Check for some seconds whether the terminal has closed: some shells send SIGHUP to their jobs just before that."""
    for _ in range(_TERMINAL_CHECKS):
        await anyio.sleep(_TERMINAL_CHECK_S)
        if signals.terminal_closed():
            signals.hang_up()
            return
