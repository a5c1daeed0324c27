"""A simulated dockerd and the runners in its containers: they outlive the daemon, die, freeze, and may answer to nobody.

The runner in a container is the real `container_runner.loop.Runner` with a simulated agent. The runtime keeps the promises
of daemon.runtimes.protocol and no others; the order of its steps is that of the Docker runtime (create, start, inspect).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import structlog

from container_runner.__main__ import _exit_code
from container_runner.loop import Identity, Runner, Upkeep
from container_runner.retention import Retention
from container_runner.store import Store
from container_runner.watch import InboundWatch
from daemon.core.errors import ContainerGoneError, ImageError, NotConfirmedError, RuntimeUnavailableError, SpawnError
from daemon.core.session_key import SessionKey
from daemon.runtimes.protocol import ContainerSpec, Exit, Running
from schema.layout import HEARTBEAT
from schema.rows import RunnerSettings
from tests.simulation.agent import SimProvider
from tests.simulation.loop import PROCESS, Process
from tests.simulation.talking import Talking
from tests.simulation.world import World

T = TypeVar("T")

_CALL_TIMEOUT_S: Final = 30.0


@dataclass(eq=False)
class Container:
    """One container, from its creation to its removal."""

    id: str
    spec: ContainerSpec
    state: str = "created"  # created | running | exited
    started_at: int = 0
    exit: Exit | None = None
    process: Process | None = None
    runner: Runner | None = None
    restarts: bool = False  # a restart policy that somebody set

    @property
    def folder(self) -> Path:
        """Its session's folder on the host."""
        return self.spec.mounts[0].source.parent


class SimHost:
    """The machine's dockerd. Survives daemons. `available`: whether it answers; containers live on when it does not."""

    def __init__(self, world: World, runner_settings: Callable[[], RunnerSettings]) -> None:
        self.world = world
        self.available = True
        self.containers: dict[str, Container] = {}
        self.on_exit: Callable[[str, str], None] = lambda _, __: None  # agent, session
        self.on_created: Callable[[Container], None] = lambda _: None
        self.on_asked: Callable[[SessionKey, str], None] = lambda _, __: None  # session, name of the daemon's process
        self._starting: dict[str, Process] = {}  # incarnations whose start is under way, and whose it is
        self._runner_settings = runner_settings
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def living(self, folder: Path) -> Container | None:
        """The running container of the session with this folder."""
        for container in self.containers.values():
            if container.state == "running" and container.folder == folder:
                return container
        return None

    def running(self) -> list[Container]:
        """All that run."""
        return [container for container in self.containers.values() if container.state == "running"]

    def notify(self) -> None:
        """Wake who waits for a change."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def changed(self) -> None:
        """Until the next change."""
        await self._changed.wait()

    def set_available(self, available: bool) -> None:
        """Docker goes away or comes back."""
        if self.available != available:
            self.available = available
            self.world.step("dockerd", "answers again" if available else "AWAY")
            self.notify()

    # --- starting: two requests, each of which goes on when its client is gone

    async def create(self, spec: ContainerSpec, answer: asyncio.Future[str]) -> None:
        """`docker create`: the leftover of its name goes, a running one of that name stays."""
        try:
            container_id = await self._create(spec)
        except (SpawnError, ImageError) as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(container_id)

    async def _create(self, spec: ContainerSpec) -> str:
        world = self.world
        for other in [item for item in self.containers.values() if item.spec.name == spec.name]:
            if other.state == "running":
                raise SpawnError(f"{spec.name} still runs as incarnation {other.spec.incarnation}.")
            self._forget(other)
        if world.chance(world.faults.spawn):
            world.fault("spawn_refused", "dockerd")
            raise world.rng.choice((SpawnError("no cgroup"), ImageError("no image")))
        await self._pause(0.02, 0.2)
        if any(item.spec.name == spec.name for item in self.containers.values()):
            raise SpawnError(f"the name {spec.name} is taken.")
        container = Container(f"c{next(self._numbers)}", spec)
        self.containers[container.id] = container
        world.step("dockerd", f"created {container.id} for {spec.session} as {spec.incarnation[-6:]}")
        self.on_created(container)
        return container.id

    async def start(self, container_id: str, answer: asyncio.Future[Running]) -> None:
        """`docker start`: a removed container never starts."""
        world = self.world
        await self._pause(0.02, 0.3)
        container = self.containers.get(container_id)
        if container is None:
            if not answer.done():
                answer.set_exception(SpawnError(f"{container_id} was removed before its start."))
        elif world.chance(world.faults.spawn):
            world.fault("start_refused", "dockerd")
            self._forget(container)
            if not answer.done():
                answer.set_exception(SpawnError("no start"))
        else:
            self._start(container)
            await self._pause(0.01, 0.05)
            if not answer.done():
                answer.set_result(running_of(container))

    # --- who starts what

    @contextmanager
    def starting(self, incarnation: str) -> Generator[None]:
        """A daemon asks for a container and waits for its start. A daemon that dies in it is over with that."""
        process = PROCESS.get()
        assert process is not None
        self._starting[incarnation] = process
        try:
            yield
        finally:
            self._starting.pop(incarnation, None)

    def check_not_starting(self, container: Container, what: str) -> None:
        """A daemon ends no container that it is starting at this moment, for whichever session it does so."""
        process = PROCESS.get()
        if process is not None and self._starting.get(container.spec.incarnation) is process:
            spec = container.spec
            self.world.broken(f"{spec.session}: {container.id} is {what} by {process.name}, which is starting it")

    def withdraw(self, container: Container) -> None:
        """`docker rm` of what was created and not started."""
        self.world.step("dockerd", f"removes {container.id}, never started")
        self.check_not_starting(container, "withdrawn")
        self._forget(container)

    async def _pause(self, low: float, high: float) -> None:
        slow = self.world.chance(self.world.faults.runtime_slow)
        if slow:
            self.world.counts["runtime_slow"] += 1
        await anyio.sleep(self.world.between(1.0, 60.0) if slow else self.world.between(low, high))

    def _start(self, container: Container) -> None:
        world, spec = self.world, container.spec
        other = self.living(container.folder)
        if other is not None:
            world.broken(f"{spec.session}: {container.id} starts while {other.id} of the same session lives")
        container.exit, container.runner = None, None
        container.state, container.started_at = "running", max(world.clock.now_ms(), container.started_at + 1)
        container.process = process = world.loop.new_process(f"runner {container.id}", "runner")
        world.on_death[process] = lambda: self.exited(container, 137)
        world.step("dockerd", f"started {container.id} of {spec.session}")
        world.counts["containers"] += 1
        world.loop.spawn(process, self._run(container), f"runner {container.id}")

    async def _run(self, container: Container) -> None:
        """The container's program."""
        world = self.world
        await anyio.sleep(world.between(0.05, 0.4))
        if world.chance(world.faults.boot):
            if world.rng.random() < 0.5:
                world.fault("boot_crash", container.id)
                return self._ends(container, 1)
            world.fault("boot_hang", container.id)
            await anyio.sleep_forever()
        settings, spec = self._runner_settings(), container.spec
        in_folder, out_folder = container.folder / "in", container.folder / "out"
        log = structlog.get_logger(container.id)
        talking = Talking(world, container.id, SessionKey(spec.agent, spec.session), (in_folder, out_folder))
        container.runner = Runner(
            settings,
            Identity(spec.agent, spec.session, spec.incarnation),
            store=Store(in_folder, out_folder, spec.incarnation, world.clock.now_ms),
            provider=SimProvider(world, container.id, talking, lambda why: self.kill_now(container, why)),
            heartbeat=SimHeartbeat(out_folder, world),  # pyright: ignore[reportArgumentType]
            watch=InboundWatch(in_folder, step_ms=5, poll_s=settings.poll_s, log=log),
            log=log,
            upkeep=Upkeep(self._retention(settings, in_folder, out_folder)),
        )
        code = await _exit_code(container.runner, log)
        self._ends(container, code)

    def _retention(self, settings: RunnerSettings, in_folder: Path, out_folder: Path) -> Retention | None:
        if not settings.keep_s:
            return None
        keep_ms, batch = int(settings.keep_s * 1000), settings.prune_batch
        return Retention(in_folder, out_folder, keep_ms=keep_ms, batch=batch, now_ms=self.world.clock.now_ms)

    # --- ending

    def _ends(self, container: Container, code: int) -> None:
        process = container.process
        assert process is not None
        self.world.step(container.id, f"ends with {code}")
        self.world.loop.world_later(0.01, self._ended, container, process, code)

    def _ended(self, container: Container, process: Process, code: int) -> None:
        if not process.dead:
            self.world.on_death.pop(process, None)
            process.dead = True
            self.exited(container, code)

    def kill_now(self, container: Container, why: str, *, out_of_memory: bool = False) -> None:
        """SIGKILL by whoever."""
        process = container.process
        if process is not None and not process.dead:
            if out_of_memory:
                container.exit = Exit(137, out_of_memory=True)
            self.world.kill(process, why)

    def exited(self, container: Container, code: int) -> None:
        """Its last process is gone; from here on dockerd can confirm it."""
        container.state = "exited"
        if container.restarts:
            self.world.loop.world_later(self.world.between(0.1, 2.0), self._start_again, container)
        container.exit = container.exit or Exit(code)
        self.world.trace("dockerd", f"{container.id} of {container.spec.session} has exited with {code}")
        self.on_exit(container.spec.agent, container.spec.session)
        self.world.loop.world_later(self.world.between(0.0, 0.05), self.notify)

    def restart(self, container: Container) -> None:
        """`docker restart -t 0` by somebody else: the container's next life begins when dockerd has ended the first."""
        self.kill_now(container, "by docker restart")
        self.world.loop.world_later(self.world.rng.choice((0.0, 0.02, 0.3)), self._start_again, container)

    def set_restart_policy(self, container: Container) -> None:
        """`docker update --restart=always` by somebody else."""
        self.world.step("dockerd", f"{container.id} gets a restart policy")
        container.restarts = True
        self.notify()

    def _start_again(self, container: Container) -> None:
        # What was removed meanwhile can never start: dockerd takes the removal and the start one after the other.
        if container.state == "exited" and container.id in self.containers:
            self.world.counts["second_lives"] += 1
            self._start(container)
            self.notify()

    def vanish(self, container: Container) -> None:
        """`docker rm -f` by somebody else."""
        self.kill_now(container, "by docker rm -f")
        self.world.loop.world_later(0.01, self._forget, container)

    def _forget(self, container: Container) -> None:
        if container.state != "running" and self.containers.pop(container.id, None) is not None:
            self.notify()

    def terminate(self, container: Container) -> None:
        """SIGTERM."""
        process, runner = container.process, container.runner
        if process is None or process.dead:
            return
        self.world.step("dockerd", f"SIGTERM to {container.id}")
        if runner is not None:
            self.world.loop.call_soon(runner.stop, context=process.context.copy())
        else:
            self.kill_now(container, "by SIGTERM before it listened")

    def remove(self, container_id: str) -> None:
        """Forget an ended one."""
        container = self.containers.get(container_id)
        if container is not None and container.state == "running":
            raise NotConfirmedError(f"{container_id} lives.")
        if container is not None:
            self.check_not_starting(container, "removed")
            self._forget(container)


class SimHeartbeat:
    """container_runner.heartbeat.Heartbeat with the virtual clock's time."""

    def __init__(self, out_folder: Path, world: World) -> None:
        self._path = out_folder / HEARTBEAT
        self._world = world

    def touch(self, at_ms: int | None = None) -> None:
        """Progress was made now, or then."""
        self._path.touch()
        at = (self._world.clock.now_ms() if at_ms is None else at_ms) * 1_000_000
        os.utime(self._path, ns=(at, at))


class SimRuntime:
    """daemon.runtimes.protocol.ContainerRuntime over a SimHost. A client of dockerd: it dies with its daemon."""

    def __init__(self, host: SimHost, install_id: str) -> None:
        self.name = "simulated"
        self._host = host
        self._world = host.world
        self._install_id = install_id
        process = PROCESS.get()
        self._process = process.name if process is not None else ""

    @property
    def address(self) -> str:
        """Nowhere."""
        return "simulated"

    async def identity(self) -> str:
        """There is one dockerd."""
        await self._call("info")
        return "the-dockerd"

    def pin(self, identity: str | None) -> None:
        """There is one dockerd."""

    async def may_live(self, incarnation: str) -> bool:
        """Of whichever install."""
        await self._call("find")
        return any(
            item.spec.incarnation == incarnation and (item.state != "exited" or item.restarts)
            for item in self._host.containers.values()
        )

    async def check(self, image: str | None = None, *, own_runner: bool = False) -> None:
        """Whether dockerd answers."""
        del image, own_runner
        await self._call("check")

    async def spawn(self, spec: ContainerSpec) -> Running:
        """Create, then start; a request that was sent goes on without us."""
        self._host.on_asked(SessionKey(spec.agent, spec.session), self._process)
        with self._host.starting(spec.incarnation):
            return await self._spawn(spec)

    async def _spawn(self, spec: ContainerSpec) -> Running:
        world, loop = self._world, asyncio.get_running_loop()
        await self._call("spawn")
        world.step("daemon", f"asks for a container of {spec.session} as {spec.incarnation[-6:]}")
        created: asyncio.Future[str] = loop.create_future()
        world.loop.spawn(None, self._host.create(spec, created), "docker create")
        await world.crash_point("spawn, with the creation asked for", 2)
        container_id = await self._answer(created)
        await self._call(f"start {container_id}")
        started: asyncio.Future[Running] = loop.create_future()
        world.loop.spawn(None, self._host.start(container_id, started), "docker start")
        await world.crash_point("spawn, with the start asked for", 4)
        running = await self._answer(started)
        await world.crash_point("spawn, with the container running")
        if world.chance(world.faults.spawn):
            world.fault("start_unanswered", "dockerd")
            raise RuntimeUnavailableError("dockerd was lost sight of after the start.")
        return running

    async def _answer(self, future: asyncio.Future[T]) -> T:
        try:
            with anyio.fail_after(_CALL_TIMEOUT_S):
                return await future
        except TimeoutError as error:
            raise RuntimeUnavailableError("dockerd did not answer in time.") from error

    async def find_or_cancel_spawn(self, incarnation: str) -> Running | None:
        """As the Docker runtime does it: what was created and not started is removed."""
        await self._call("find")
        for container in list(self._host.containers.values()):
            if container.spec.incarnation == incarnation:
                if container.state != "created":
                    return running_of(container)
                self._host.withdraw(container)
        return None

    async def stop(self, container_id: str) -> None:
        """SIGTERM."""
        await self._call(f"stop {container_id}")
        container = self._host.containers.get(container_id)
        if container is not None:
            container.restarts = False
        if container is not None and container.state == "running":
            self._host.check_not_starting(container, "stopped")
            self._host.terminate(container)
        await self._crash_point("stop")

    async def kill(self, container_id: str) -> None:
        """SIGKILL; a process in uninterruptible sleep takes its time."""
        await self._call(f"kill {container_id}")
        container = self._host.containers.get(container_id)
        if container is not None:
            container.restarts = False
        if container is not None and container.state == "running":
            self._host.check_not_starting(container, "killed")
            slow = self._world.chance(self._world.faults.unkillable)
            if slow:
                self._world.fault("unkillable", container_id)
            delay = self._world.between(20, 90) if slow else self._world.between(0.0, 0.05)
            self._world.loop.world_later(delay, self._host.kill_now, container, "by docker kill")
        await self._crash_point("kill")

    async def wait(self, container_id: str, started_at: int | None = None) -> Exit:
        """Until dockerd confirms the exit of that life."""
        while True:
            await anyio.lowlevel.checkpoint()
            if self._host.available:
                container = self._host.containers.get(container_id)
                if container is None or container.state == "created":
                    return Exit(code=None)
                another = started_at is not None and container.started_at != started_at
                if container.state == "exited":
                    assert container.exit is not None
                    await self._world.crash_point("a confirmed exit")
                    return Exit(code=None) if another else container.exit
                if another:
                    return Exit(code=None, restarted=True)
            elif self._world.chance(0.2):
                raise RuntimeUnavailableError("dockerd is away.")
            with anyio.move_on_after(30.0):
                await self._host.changed()

    async def forbid_restart(self, container_id: str) -> None:
        """`docker update --restart=no`."""
        await self._call(f"update {container_id}")
        if container_id in self._host.containers:
            self._host.containers[container_id].restarts = False

    async def changed(self) -> None:
        """Until something changes in dockerd."""
        await self._host.changed()

    async def list_running(self) -> list[Running]:
        """What runs, once dockerd answers."""
        await self._call("list")
        return [running_of(item) for item in self._host.running() if item.spec.install_id == self._install_id]

    async def logs(self, container_id: str, *, max_bytes: int = 65_536) -> str:
        """Nothing to read here."""
        raise ContainerGoneError(container_id)

    async def remove(self, container_id: str) -> None:
        """Forget an exited one."""
        await self._call(f"remove {container_id}")
        self._host.remove(container_id)

    async def aclose(self) -> None:
        """Kills nothing."""

    async def _crash_point(self, where: str) -> None:
        await self._world.crash_point(where)

    async def _call(self, what: str) -> None:
        world = self._world
        world.step("daemon", f"dockerd: {what}")
        await world.crash_point(f"dockerd {what}")
        slow = world.chance(world.faults.runtime_slow)
        await anyio.sleep(world.between(1.0, _CALL_TIMEOUT_S) if slow else world.rng.expovariate(200.0))
        if not self._host.available:
            raise RuntimeUnavailableError("dockerd is away.")


def running_of(container: Container) -> Running:
    """As the listing has it."""
    spec: Any = container.spec
    return Running(
        container.id, spec.agent, spec.session, spec.incarnation, spec.fingerprint, container.started_at,
        restarts=container.restarts,
    )  # fmt: skip
