"""A container runtime in memory, driven by a test. Held by the same contract suite as docker and process.

`FakeHost` is the machine: it survives the runtime objects, as dockerd survives a daemon. A test scripts it: `exit_now`,
`refuse_next`, `lose_next_answer`, `available`, and by session `ignores_term` and `unkillable`. With `run_agents` each
container runs a coroutine as its program; its exit is confirmed once that has ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from daemon.core.clock import Clock
from daemon.core.errors import (
    ClawbusError,
    ContainerGoneError,
    EngineChangedError,
    NotConfirmedError,
    RuntimeUnavailableError,
    SpawnError,
)
from daemon.runtimes.protocol import ContainerSpec, Exit, Running


@dataclass(slots=True)
class FakeContainer:
    """One container. `exit` is None while it runs. `signals` are those it got, in order."""

    id: str
    spec: ContainerSpec
    started_at: int
    ignores_term: bool = False
    exit: Exit | None = None
    program: anyio.CancelScope | None = None
    ending: Exit | None = None
    output: str = ""
    signals: list[str] = field(default_factory=list[str])
    restart_policy: bool = False
    paused: bool = False


Program = Callable[[FakeContainer], Awaitable[int]]


class FakeHost:
    """What runs, and how it is to behave."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.containers: dict[str, FakeContainer] = {}
        self.removed: list[str] = []
        self.spawns = 0
        self.ignores_term: set[str] = set()  # sessions whose containers do not end on SIGTERM
        self.unkillable: set[str] = set()  # sessions whose containers survive SIGKILL until `exit_now`
        self.check_error: ClawbusError | None = None
        self.calls: list[tuple[str, str]] = []  # (what a runtime was asked, container or session)
        self.errors: dict[str, Exception] = {}  # by method name: what every such call raises, until taken out
        self.spawn_gate: anyio.Event | None = None  # spawns wait for it
        self.identity = "engine-a"
        self._lost: list[ClawbusError] = []
        self._agents: tuple[TaskGroup, Program] | None = None
        self._available = True
        self._refusals: list[ClawbusError] = []
        self._numbers = itertools.count(1)
        self._changed = anyio.Event()

    @property
    def available(self) -> bool:
        """Whether the runtime answers. Set it to False and containers live on unseen."""
        return self._available

    @available.setter
    def available(self, value: bool) -> None:
        self._available = value
        self.notify()

    def refuse_next(self, *errors: ClawbusError) -> None:
        """The next spawns raise these, one each."""
        self._refusals.extend(errors)

    def lose_next_answer(self, error: ClawbusError) -> None:
        """The next spawn makes its container and raises this all the same."""
        self._lost.append(error)

    def run_agents(self, tasks: TaskGroup, program: Program) -> None:
        """From now on each container runs `program(container)` in this task group; what it returns is the exit code."""
        self._agents = (tasks, program)

    def exit_now(self, container_id: str, code: int = 0, *, out_of_memory: bool = False) -> None:
        """The container ends by itself. With a program: at its next wait."""
        container = self.containers[container_id]
        if container.exit is not None:
            return
        if container.program is not None:
            container.ending = container.ending or Exit(code, out_of_memory)
            container.program.cancel()
            return
        container.exit = Exit(code, out_of_memory)
        if container.restart_policy:
            self._begin_life(container)
        self.notify()

    def restart(self, container_id: str, code: int = 137) -> None:
        """`docker restart` by others: the life ends, and the same container lives again at once."""
        container = self.containers[container_id]
        if container.program is not None:
            container.program.cancel()
        self._begin_life(container)
        self.notify()

    def start_again(self, container_id: str) -> None:
        """`docker start` of an exited container by others."""
        assert self.containers[container_id].exit is not None
        self.restart(container_id)

    def recreate(self, container_id: str) -> FakeContainer:
        """`docker run` by others with the labels of this container, under another name."""
        spec = self.containers[container_id].spec
        container = FakeContainer(f"fake-{next(self._numbers)}", spec, self.clock.now_ms())
        self.containers[container.id] = container
        self.notify()
        return container

    def _begin_life(self, container: FakeContainer) -> None:
        container.exit = None
        container.started_at = max(self.clock.now_ms(), container.started_at + 1)

    async def _live(self, container: FakeContainer, program: Program) -> None:
        assert container.program is not None
        code = 1
        with container.program:
            code = await program(container)
        container.exit = container.ending or Exit(code)
        self.notify()

    def of_session(self, session: str) -> FakeContainer:
        """The running container of a session; the test fails when there is none."""
        return next(c for c in self.containers.values() if c.spec.session == session and c.exit is None)

    def start(self, spec: ContainerSpec) -> FakeContainer:
        """What spawn does."""
        self.spawns += 1
        if self._refusals:
            raise self._refusals.pop(0)
        for container in [c for c in self.containers.values() if c.spec.name == spec.name]:
            if container.exit is None:
                raise SpawnError(f"{spec.name} still lives as incarnation {container.spec.incarnation}.")
            del self.containers[container.id]
        container = FakeContainer(
            f"fake-{next(self._numbers)}", spec, self.clock.now_ms(), ignores_term=spec.session in self.ignores_term
        )
        self.containers[container.id] = container
        if self._agents is not None:
            tasks, program = self._agents
            container.program = anyio.CancelScope()
            tasks.start_soon(self._live, container, program, name=f"agent {container.id}")
        if self._lost:
            raise self._lost.pop(0)
        return container

    def notify(self) -> None:
        """Wake every waiter to look again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self) -> None:
        """Until the next change."""
        await self._changed.wait()


class FakeRuntime:
    """ContainerRuntime over a FakeHost."""

    def __init__(self, install_id: str, host: FakeHost) -> None:
        self.name = "fake"
        self.host = host
        self.closed = False
        self._install_id = install_id
        self._pinned: str | None = None

    @property
    def address(self) -> str:
        """Where there is one."""
        return "memory"

    async def identity(self) -> str:
        """The host's."""
        await self._answer("identity")
        return self.host.identity

    def pin(self, identity: str | None) -> None:
        """See the protocol."""
        self._pinned = identity

    async def may_live(self, incarnation: str) -> bool:
        """Of whichever install."""
        await self._answer("may_live", incarnation)
        return any(c.spec.incarnation == incarnation and c.exit is None for c in self.host.containers.values())

    async def check(self, image: str | None = None, *, own_runner: bool = False) -> None:
        """Raises what the test set."""
        del image, own_runner
        await self._answer()
        if self.host.check_error is not None:
            raise self.host.check_error

    async def spawn(self, spec: ContainerSpec) -> Running:
        """Starts at once, or raises what `refuse_next` was given."""
        await self._answer("spawn", spec.session)
        self._believe()
        if self.host.spawn_gate is not None:
            await self.host.spawn_gate.wait()
        return _running(self.host.start(spec))

    async def stop(self, container_id: str) -> None:
        """SIGTERM: exit 0, unless it ignores that."""
        await self._answer("stop", container_id)
        container = self._living(container_id)
        if container is not None:
            container.restart_policy = False
            container.signals.append("TERM")
            if not container.ignores_term:
                self.host.exit_now(container_id)

    async def kill(self, container_id: str) -> None:
        """SIGKILL: exit 137."""
        await self._answer("kill", container_id)
        container = self._living(container_id)
        if container is not None:
            container.restart_policy = False
            container.signals.append("KILL")
            if container.spec.session not in self.host.unkillable:
                self.host.exit_now(container_id, 137)

    async def wait(self, container_id: str, started_at: int | None = None) -> Exit:
        """Until it has ended, or lives another life, and the runtime answers."""
        while True:
            await anyio.lowlevel.checkpoint()
            if "wait" in self.host.errors:
                raise self.host.errors["wait"]
            if self.host.available:
                container = self.host.containers.get(container_id)
                if container is None:
                    if self._is_other_engine():
                        raise self._other_engine()
                    return Exit(code=None)
                another = started_at is not None and container.started_at != started_at
                if container.exit is not None:
                    return Exit(code=None) if another else container.exit
                if another:
                    return Exit(code=None, restarted=True)
            await self.host.changed()

    async def forbid_restart(self, container_id: str) -> None:
        """`docker update --restart=no`."""
        await self._answer("forbid_restart", container_id)
        if (container := self._living(container_id)) is not None:
            container.restart_policy = False

    async def changed(self) -> None:
        """Until the host's next change."""
        await self.host.changed()

    async def list_running(self) -> list[Running]:
        """Those of this install."""
        await self._answer("list_running")
        self._believe()
        return [
            _running(container)
            for container in self.host.containers.values()
            if container.exit is None and container.spec.install_id == self._install_id
        ]

    async def find_or_cancel_spawn(self, incarnation: str) -> Running | None:
        """Starting is one step here: it is there or it never will be."""
        await self._answer("find_or_cancel_spawn", incarnation)
        for container in self.host.containers.values():
            if container.spec.incarnation == incarnation and container.spec.install_id == self._install_id:
                return _running(container)
        self._believe()
        return None

    async def logs(self, container_id: str, *, max_bytes: int = 65_536) -> str:
        """What the test put into `output`."""
        await self._answer()
        container = self.host.containers.get(container_id)
        if container is None:
            raise ContainerGoneError(f"no container {container_id}.")
        return container.output.encode()[-max_bytes:].decode(errors="replace")

    async def remove(self, container_id: str) -> None:
        """Forget an ended one."""
        await self._answer("remove", container_id)
        if container_id not in self.host.containers:
            self._believe()
        if self._living(container_id) is not None:
            raise NotConfirmedError(f"container {container_id} still lives.")
        if self.host.containers.pop(container_id, None) is not None:
            self.host.removed.append(container_id)
            self.host.notify()

    async def aclose(self) -> None:
        """Kills nothing."""
        self.closed = True
        await anyio.lowlevel.checkpoint()

    async def _answer(self, method: str = "", about: str = "") -> None:
        await anyio.lowlevel.checkpoint()
        self.host.calls.append((method, about))
        if method in self.host.errors:
            raise self.host.errors[method]
        if not self.host.available:
            raise RuntimeUnavailableError("the fake runtime is away.")

    def _is_other_engine(self) -> bool:
        return self._pinned not in {None, "", self.host.identity}

    def _other_engine(self) -> EngineChangedError:
        return EngineChangedError(f"the engine is {self.host.identity}, and the containers run on {self._pinned}.")

    def _believe(self) -> None:
        if self._is_other_engine():
            raise self._other_engine()

    def _living(self, container_id: str) -> FakeContainer | None:
        container = self.host.containers.get(container_id)
        return container if container is not None and container.exit is None else None


def _running(container: FakeContainer) -> Running:
    spec = container.spec
    return Running(
        container.id, spec.agent, spec.session, spec.incarnation, spec.fingerprint, container.started_at,
        restarts=container.restart_policy, paused=container.paused,
    )  # fmt: skip
