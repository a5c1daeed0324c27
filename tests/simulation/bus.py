"""The daemon under simulation: its real composition, built anew by every start, killed and stopped by the run.

It wires what `daemon.app.main.run` wires, without signals, socket and log files; the loops and their order are `daemon.app.startup.start_parts`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.to_thread

from daemon.api.daemon_operations import DaemonOperations
from daemon.app.bus import Bus
from daemon.app.startup import start_parts
from daemon.channels.protocol import Accepted, Incoming
from daemon.config.agents import Agent
from daemon.config.models import Config, Delivery, Runtime, Sweep
from daemon.config.policies import read_limits
from daemon.core.errors import DataFolderError, RuntimeUnavailableError
from daemon.core.events import ContainerExited, ExitSettled
from daemon.core.session_key import SessionKey
from daemon.core.verb import Verb
from daemon.engine.installation import Start, settle_install
from daemon.store.data_layout import VERSION_NAME, Layout
from daemon.store.registry import Registry
from daemon.systemd.watchdog import Pulse
from schema.errors import FileBusyError, StorageError
from schema.migrate import VERSION
from tests.simulation.host import SimHost, SimRuntime
from tests.simulation.loop import Process
from tests.simulation.programs import Program, ProgramRuntime, carry_out_offline
from tests.simulation.pruning import draw_retention
from tests.simulation.world import World


class _RefusedError(Exception):
    """The daemon does not start on this folder now. systemd tries again."""


AGENTS = ("alice", "bob")


def draw_config(world: World) -> Config:
    """A configuration with small figures, so that a run is short; which ones differs from run to run."""
    rng = world.rng
    retention = draw_retention(world.seed)
    return Config(
        data_dir=world.root,
        runtime=Runtime(
            kind="process",
            max_containers=rng.choice((1, 2, 8)),
            idle_stop_s=rng.choice((5.0, 20.0, 40.0)),
            stop_grace_s=rng.choice((2.0, 10.0)),
            kill_confirm_s=rng.choice((5.0, 30.0)),
            spawn_backoff_s=rng.choice((1.0, 5.0)),
            spawn_backoff_max_s=60.0,
        ),
        sweep=Sweep(
            interval_s=rng.choice((20.0, 60.0, 60.0)),
            ceiling_s=rng.choice((90.0, 300.0)),
            claim_stuck_s=rng.choice((20.0, 60.0)),
            max_declared_s=600.0,
            max_tries=rng.choice((2, 3, 5)),
            backoff_base_s=rng.choice((1.0, 5.0)),
            session_timeout_s=30.0,
            full_pass_s=rng.choice((200.0, 3600.0, 3600.0)),
        ),
        delivery=Delivery(
            send_timeout_s=rng.choice((5.0, 30.0)),
            retry_base_s=rng.choice((1.0, 5.0)),
            retry_max_s=rng.choice((20.0, 120.0)),
            retry_for_s=rng.choice((300.0, 3600.0)),
            batch=rng.choice((1, 3, 200)),
            # From the seed itself: a draw more would make another run of every seed.
            head_blocks_attempts=1 + world.seed % 4,
            head_blocks_s="always" if retention.messages_s or world.seed % 3 == 0 else 300.0,
            max_sends_per_session=1 + world.seed % 2,
            max_sends_per_place=1 + world.seed % 3,
            max_sends_per_channel=2 + world.seed % 5,
        ),
        retention=retention,
        agents={name: Agent(min_schedule_s=1) for name in AGENTS},
    )


class SimDaemon:
    """What systemd would do with the daemon: start it, and start it again whenever it ended."""

    def __init__(self, world: World, host: SimHost, config: Config) -> None:
        self.world = world
        self.host = host
        self.config = config
        self.bus: Bus | None = None
        self.operations: DaemonOperations | None = None
        self.process: Process | None = None
        self.layout = Layout(world.root)
        self.starts = 0
        self.enabled = True
        self.left_behind: Callable[[], None] = lambda: None  # told of every end
        self._stop = anyio.Event()
        self.folder_held = False  # by a command that works on the files
        self._commands = itertools.count(1)
        self._rng = Random(f"commands {world.seed}")
        self._prepare()

    @property
    def ready(self) -> bool:
        """Whether it takes messages."""
        return self.bus is not None and self.process is not None and not self.process.dead

    def _prepare(self) -> None:
        """Make the data folder's folders, as `DataFolder.open` does at each start: a restored one may lack some."""
        for folder in (self.layout.sessions_dir, self.layout.agents_dir, self.layout.run_dir):
            folder.mkdir(parents=True, exist_ok=True)
        (self.world.root / VERSION_NAME).write_text(f"{VERSION}\n", encoding="ascii")

    def start(self) -> None:
        """A new process."""
        self._prepare()
        self.starts += 1
        name = f"daemon {self.starts}"
        self.process = process = self.world.loop.new_process(name, "daemon")
        self.bus = None
        self._stop = anyio.Event()
        self.world.on_death[process] = self._died
        self.world.step("systemd", f"starts {name}")
        self.world.loop.spawn(process, self._main(process), name)

    def stop(self) -> None:
        """SIGTERM; SIGKILL when it does not end in time, as systemd does."""
        process = self.process
        if process is None or process.dead:
            return
        self.world.step("systemd", f"SIGTERM to {process.name}")
        self.world.loop.call_soon(self._stop.set, context=process.context.copy())
        self.world.loop.world_later(90.0, self.world.kill, process, "by systemd after SIGTERM")

    def request(self, incoming: Incoming, answered: Callable[[Accepted | Exception], None]) -> bool:
        """Hand a message to the daemon that runs now. False when none does; `answered` is never called if it dies."""
        if not self.ready:
            return False
        assert self.bus is not None
        bus = self.bus

        async def accept() -> None:
            try:
                result: Accepted | Exception = await bus.ingress.accept(incoming)
            except Exception as error:
                result = error
            answered(result)

        self.world.loop.spawn(self.process, accept(), "accept")
        return True

    def execute(self, verb: Verb, answered: Callable[[dict[str, Any] | Exception], None]) -> bool:
        """Have the daemon that serves now carry a verb out, as its control API does; otherwise as `request`."""
        if self.process is not None and self.process.dead and not self.folder_held:
            self._execute_offline(verb, answered)
            return True
        if not self.ready or self.operations is None:
            return False
        operations = self.operations

        async def execute() -> None:
            try:
                result: dict[str, Any] | Exception = await operations.execute(verb)
            except Exception as error:
                result = error
            answered(result)

        self.world.loop.spawn(self.process, execute(), "operator's verb")
        return True

    def _execute_offline(self, verb: Verb, answered: Callable[[dict[str, Any] | Exception], None]) -> None:
        """Have a command carry a verb out on the files. It holds the folder: no daemon starts meanwhile."""
        world, name = self.world, f"command {next(self._commands)}"

        def work() -> dict[str, Any]:
            return carry_out_offline(world, self.host, self.config, program, verb)

        def ended() -> None:
            self.folder_held = False
            if isinstance(program.error, Exception):
                answered(program.error)
            elif program.error is None and program.result is not None:
                answered(program.result)

        def runtime(_config: Config, _folder: object, install_id: str, *_: object) -> ProgramRuntime:
            return ProgramRuntime(self.host, install_id, program, self.config.runtime.kill_confirm_s)

        program = Program(world, name, self._rng, work)
        self.folder_held, program.ended, program.runtime = True, ended, runtime
        world.counts["offline_verbs"] += 1
        program.start()

    async def _main(self, process: Process) -> None:
        """The process. Ends by SIGTERM, or by an error that a daemon cannot start with."""
        world = self.world
        graceful = True
        try:
            await self._serve()
        except* (StorageError, FileBusyError) as group:
            # The daemon cannot start without its registry; systemd tries again.
            world.counts["daemon_exit_storage"] += 1
            world.trace(process.name, f"ends: {group.exceptions[0]!r}")
            graceful = False
        except* _RefusedError as group:
            world.counts["daemon_refuses_folder"] += 1
            world.trace(process.name, f"ends: {group.exceptions[0].__cause__!r}")
            graceful = False
        except* Exception as group:
            world.broken(f"the daemon ended by {_leaf(group)!r}")
            graceful = False
        world.on_death.pop(process, None)
        process.dead = True
        self.world.counts["daemon_stopped"] += graceful
        self._died()

    def _end_originals(self) -> None:
        """`docker rm -f` of what belongs to the installation before. No daemon serves, so all that there is does."""
        if not self.ready:
            for container in list(self.host.containers.values()):
                container.restarts = False
                if container.state == "created":
                    self.host.withdraw(container)
                else:
                    self.host.vanish(container)

    async def _serve(self) -> None:
        world = self.world
        if self.folder_held:
            raise _RefusedError from DataFolderError("a command holds the folder.")
        start = Start(self.layout, Registry(self.layout.central_db), world.clock, read_limits(self.config))
        try:
            install_id = await settle_install(start, lambda _, of_install: SimRuntime(self.host, of_install))
        except DataFolderError as error:
            # The daemon names the containers of the original; its operator ends them.
            world.loop.world_later(1.0, self._end_originals)
            raise _RefusedError from error
        except RuntimeUnavailableError as error:
            raise _RefusedError from error
        pulse = Pulse(world.clock)
        pulse.register("sweep", 1e9)
        folder: Any = self.layout
        bus = Bus(self.config, folder, SimRuntime(self.host, install_id), install_id, world.clock, pulse)
        _count_exits(world, bus)
        async with anyio.create_task_group() as tasks:
            self.operations = await start_parts(bus, tasks)
            self.bus = bus
            world.step("daemon", "READY")
            await self._stop.wait()
            bus.supervisor.close()
            await bus.delivery.close(5.0)
            tasks.cancel_scope.cancel()

    def _died(self) -> None:
        self.bus = None
        self.left_behind()
        if self.enabled:
            world = self.world
            soon = world.healing or world.rng.random() < 0.4
            world.loop.world_later(0.1 if soon else world.rng.expovariate(0.1), self._restart)

    def _restart(self) -> None:
        if self.enabled and (self.process is None or self.process.dead):
            self.start()


def session_root(layout: Layout, key: SessionKey) -> Path:
    """A session's folder."""
    return layout.sessions_dir / key.agent / key.session


def _count_exits(world: World, bus: Bus) -> None:
    """One container has one exit, and its work is settled once: two supervisors of one container would settle two."""
    seen: Counter[tuple[str, str]] = Counter()

    def exited(event: ContainerExited | ExitSettled) -> None:
        what = type(event).__name__
        seen[what, event.incarnation] += 1
        if seen[what, event.incarnation] > 1:
            world.broken(f"{event.agent}/{event.session}: {what} of {event.incarnation} comes a second time")

    bus.events.subscribe(ContainerExited, exited)
    bus.events.subscribe(ExitSettled, exited)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
