"""`python -m container_runner`: reads the environment, builds the runner and runs it until a signal. Exit codes below.

0 stopped by SIGTERM or SIGINT · 64 invalid environment · 65 outbound.db is from a newer version · 70 a bug ·
71 this container cannot start programs · 75 another incarnation took over.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import anyio

from container_runner.egress import WayOut, with_way_out
from container_runner.heartbeat import Heartbeat
from container_runner.logs import Logger, build_logger
from container_runner.loop import Identity, Runner, Upkeep
from container_runner.providers import PROVIDERS
from container_runner.providers.checked import CheckedProvider
from container_runner.providers.in_folder import InFolderProvider
from container_runner.providers.protocol import ProviderContext
from container_runner.retention import Retention
from container_runner.room import used_up
from container_runner.settings import Environment, read_environment
from container_runner.shared.children import Children, become_subreaper
from container_runner.shared.errors import CannotStartError, ClaimLostError, SettingsError
from container_runner.shared.sent_files import FileSource
from container_runner.shared.tool_server import tool_server
from container_runner.store import Store
from container_runner.watch import InboundWatch
from container_runner.words import Words
from schema.errors import SchemaTooNewError
from schema.layout import CANNOT_START_CODE, CONTAINER_HOME, ENV_IN
from schema.os_faults import passes

EXIT_SETTINGS: Final = 64
EXIT_TOO_NEW: Final = 65
EXIT_DEFECT: Final = 70
EXIT_CANNOT_START: Final = CANNOT_START_CODE
EXIT_SUPERSEDED: Final = 75


def main() -> int:
    """Run the runner until a signal stops it. Return the exit code."""
    try:
        environment = read_environment(os.environ, tuple(PROVIDERS))
    except SettingsError as error:
        sys.stderr.write(f"{error.code}: {error}\n{error.hint}\n")
        return EXIT_SETTINGS
    log = build_logger(sys.stderr, environment.incarnation, environment.settings.log_level)
    try:
        return anyio.run(_serve, environment, log)
    except OSError as error:  # before the first claim: creating the event loop needs file descriptors
        if not passes(error):
            raise
        log.critical("runner_cannot_begin", error=str(error))
        return EXIT_CANNOT_START


async def _serve(environment: Environment, log: Logger) -> int:
    code = EXIT_DEFECT
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        children = _children_to_end(environment, log)
        async with anyio.create_task_group() as group:
            environ: Mapping[str, str] = os.environ
            if (way_out := _way_out(environment, log)) is not None:
                address: str | None = await group.start(way_out.run, name="way out")
                if address is not None:
                    environ = with_way_out(environ, address, environment.settings.egress_env)
            runner = _build(environment, log, children, environ)
            gc.freeze()  # start-up objects live as long as the process: keep the garbage collector from walking them
            group.start_soon(_stop_on_signal, signals, runner, log)
            if children is not None:
                group.start_soon(_reap_on_signal, children)
            code = await _exit_code(runner, log)
            group.cancel_scope.cancel()
    return code


def _way_out(environment: Environment, log: Logger) -> WayOut | None:
    """Return the way to the host's gate, if the agent has one."""
    port = environment.settings.egress_port
    return WayOut(environment.gate_folder, port, log) if port >= 0 else None


async def _stop_on_signal(signals: AsyncIterator[signal.Signals], runner: Runner, log: Logger) -> None:
    async for number in signals:
        log.info("signal_received", signal=number.name)
        runner.stop()


def _children_to_end(environment: Environment, log: Logger) -> Children | None:
    """Return what ends a turn's leftover processes. None when they may live on, or cannot be found on this system."""
    if environment.settings.leftovers == "keep":
        return None
    if not become_subreaper():
        log.warning("leftovers_not_found", hint="this kernel has no subreapers: a turn ends its process group alone")
        return None
    return Children()


async def _reap_on_signal(children: Children) -> None:
    with anyio.open_signal_receiver(signal.SIGCHLD) as signals:
        async for _ in signals:
            children.reap()


async def _exit_code(runner: Runner, log: Logger) -> int:
    try:
        await runner.run()
    except SchemaTooNewError as error:
        log.critical("runner_refused", code=error.code, error=str(error), hint=error.hint)
        return EXIT_TOO_NEW
    except CannotStartError as error:
        log.critical("runner_cannot_start_programs", code=error.code, error=str(error), hint=error.hint)
        return EXIT_CANNOT_START
    except ClaimLostError as error:
        log.critical("runner_superseded", code=error.code, error=str(error), hint=error.hint)
        return EXIT_SUPERSEDED
    except Exception:
        # A bug: log the traceback before exiting.
        log.critical("runner_crashed", exc_info=True)
        return EXIT_DEFECT
    return 0


def _build(environment: Environment, log: Logger, children: Children | None, environ: Mapping[str, str]) -> Runner:
    settings, home = environment.settings, _home()
    context = ProviderContext(
        settings=settings,
        agent_folder=environment.agent_folder,
        environ=environ,
        children=children or Children(),
        tools=tool_server(
            settings.tools,
            (environment.in_folder.resolve(), environment.out_folder.resolve()),
            (environment.agent, environment.session),
            environment.incarnation,
            FileSource(home, settings.max_files, settings.max_file_bytes),
        ),
        home=home,
    )
    return Runner(
        settings,
        Identity(environment.agent, environment.session, environment.incarnation),
        store=Store(environment.in_folder, environment.out_folder, environment.incarnation, _now_ms),
        provider=InFolderProvider(
            CheckedProvider(PROVIDERS[settings.provider](context), context),
            environment.agent_folder,
            mounted=ENV_IN not in os.environ,
        ),
        heartbeat=Heartbeat(environment.out_folder, log),
        watch=InboundWatch(environment.in_folder, step_ms=settings.watch_step_ms, poll_s=settings.poll_s, log=log),
        log=log,
        upkeep=Upkeep(
            _retention(environment),
            children,
            # With named folders there are no mounts: /tmp is the machine's, so a new container would have no more room.
            used_up=None if ENV_IN in os.environ else used_up,
            words=Words(environment.out_folder, environment.incarnation, _now_ms),
            home=home,
        ),
    )


def _home() -> Path:
    return Path(os.environ.get("HOME") or CONTAINER_HOME)


def _retention(environment: Environment) -> Retention | None:
    settings = environment.settings
    if settings.keep_s == 0:
        return None
    keep_ms = int(settings.keep_s * 1000)
    return Retention(
        environment.in_folder, environment.out_folder, keep_ms=keep_ms, batch=settings.prune_batch, now_ms=_now_ms
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    sys.exit(main())
