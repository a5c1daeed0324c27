"""Runs a whole daemon in the test's process: `Bus` over a real folder, a fake host, fake channels and a controlled clock.

`BusKit` survives its daemons, as a machine does: leave `running()` and enter it again to restart the daemon.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from daemon.api.daemon_operations import DaemonOperations
from daemon.app.bus import Bus, Overrides
from daemon.app.main import stop_bus
from daemon.app.startup import start_parts
from daemon.channels.protocol import Accepted, Incoming
from daemon.channels.registry import GROUP, find_types
from daemon.config.agents import Agent as AgentConfig
from daemon.config.models import Config
from daemon.core.errors import NotConfirmedError
from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.engine.supervisor.slots import Slot, Timings
from daemon.store.data_folder import DataFolder
from daemon.store.session_rows import SessionRow
from daemon.systemd.watchdog import Pulse
from schema.plain_file import ReadLimits
from schema.rows import Address
from tests.support.clock import MovedClock
from tests.support.fake_agent import Agent
from tests.support.fake_channel import FakeChannel
from tests.support.fake_runtime import FakeHost, FakeRuntime

INSTALL = "01testinstall"
AGENT = "helper"
SECONDS = 30.0
QUICK = Timings(probe_s=0.02, retry_s=0.01, retry_max_s=0.02, drain_s=0.01)


class BusKit:
    """The machine, which survives a daemon's restart, and the daemon that runs now."""

    def __init__(self, root: Path, **tables: Any) -> None:
        self.root = root
        self.clock = MovedClock()
        self.host = FakeHost(self.clock)
        self.config = self.configure(**tables)
        self.bus: Bus
        self.operations: DaemonOperations
        self.runtime: FakeRuntime
        self.tasks: TaskGroup
        self.timings = QUICK
        self.used_at: int | None = None  # when a daemon on another boot of the machine was there last
        self.fences = 0
        self._lives_begun: set[tuple[str, int]] = set()

    def configure(self, **tables: Any) -> Config:
        """Build a configuration whose periodic work never comes due. `tables` override single keys of each table."""
        base: dict[str, dict[str, Any]] = {
            "runtime": {"kind": "process", "max_containers": 3, "stop_grace_s": 0.05, "kill_confirm_s": 2.0},
            "sweep": {"interval_s": 3600.0, "full_pass_s": 3600.0, "session_timeout_s": 25.0},
            "delivery": {"send_timeout_s": 25.0},
            "channels": {"fake": {"type": "fake"}},
        }
        for name, table in tables.items():
            base[name] = {**base.get(name, {}), **table} if name != "channels" else table
        agents = base.pop("agents", None) or {AGENT: AgentConfig(), "other": AgentConfig(), "third": AgentConfig()}
        return Config(data_dir=self.root, agents=agents, **base)  # pyright: ignore[reportArgumentType]

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Bus]:
        """Run a daemon from its start to an orderly stop."""
        types = {**find_types(), "fake": EntryPoint("fake", "tests.support.fake_channel:FakeChannel", GROUP)}
        pulse = Pulse(self.clock)
        pulse.register("sweep", 30.0)
        with DataFolder.open(self.root, self.clock) as folder:
            self.runtime = FakeRuntime(INSTALL, self.host)
            self.bus = Bus(
                self.config,
                folder,
                self.runtime,
                INSTALL,
                self.clock,
                pulse,
                Overrides(self.timings, types, used_at=self.used_at),
            )
            async with anyio.create_task_group() as tasks:
                self.tasks = tasks
                with anyio.fail_after(SECONDS):
                    self.operations = await start_parts(self.bus, tasks)
                yield self.bus
                await self.stop()

    async def stop(self, grace_s: float = 1.0) -> None:
        """Stop the daemon as SIGTERM does."""
        with anyio.fail_after(SECONDS):
            await stop_bus(self.bus, self.tasks, grace_s)

    def crash(self) -> None:
        """End the daemon at once, as a crash would."""
        self.tasks.cancel_scope.cancel()

    # --- what others do to the daemon

    @property
    def fake(self) -> FakeChannel:
        """The fake channel of the running bus."""
        found = self.bus.channels["fake"]
        assert isinstance(found, FakeChannel)
        return found

    async def send(self, session: str = "main", text: str = "hello", *, agent: str = AGENT, **more: Any) -> Accepted:
        """Accept a message that comes from the fake channel."""
        address = more.pop("address", Address("fake", "room"))
        return await self.bus.ingress.accept(Incoming(agent, session, {"text": text}, address=address, **more))

    def advance(self, seconds: float) -> None:
        """Move the clock forward, and wake the sleepers that wait for an instant."""
        self.clock.advance(seconds)
        self.bus.schedule._changed.set()

    def agent(self, session: str = "main") -> Agent:
        """Return an agent that acts inside the session's running container."""
        container = self.host.of_session(session)
        life = (container.id, container.started_at)
        made = Agent(container.spec, self.clock)
        if life not in self._lives_begun:
            self._lives_begun.add(life)
            made.store.start()
        return made

    # --- inspecting the state

    async def session(self, session: str = "main", agent: str = AGENT) -> Session:
        return await self.bus.sessions.get(SessionKey(agent, session))

    def slot(self, session: str = "main", agent: str = AGENT) -> Slot | None:
        return self.bus.supervisor.slot(SessionKey(agent, session))

    async def row(self, session: str = "main", agent: str = AGENT) -> SessionRow:
        found = await self.bus.sessions.central(lambda registry: registry.session(SessionKey(agent, session)))
        assert found is not None
        return found

    async def inbound(
        self, sql: str, *params: object, session: str = "main", agent: str = AGENT
    ) -> list[dict[str, Any]]:
        """Return rows of a session's inbound.db."""
        found = self.bus.sessions.files_of(SessionKey(agent, session))

        def read() -> list[dict[str, Any]]:
            with found.inbound() as db:
                return [dict(row) for row in db.all(sql, params)]

        holder = await self.session(session, agent)
        return await holder.call(read)

    async def message(self, message_id: str, session: str = "main") -> dict[str, Any]:
        return (await self.inbound("SELECT * FROM messages_in WHERE id = ?", message_id, session=session))[0]

    async def started(self, session: str = "main") -> None:
        """Wait until the session's container runs."""
        await until(lambda: any(c.spec.session == session and c.exit is None for c in self.host.containers.values()))

    async def gone(self, session: str = "main", agent: str = AGENT) -> None:
        """Wait until the session's container is gone and its exit is settled."""
        await until(lambda: self.slot(session, agent) is None)

    async def rest(self) -> None:
        """Have one message answered, and wait until the container and the session's object are gone."""
        await self.send()
        await self.started()
        batch = self.agent().claim()
        assert batch is not None
        self.agent().answer(batch)
        self.bus.delivery.poke(await self.session())
        await until(lambda: bool(self.fake.sent))
        await self.bus.supervisor.end(SessionKey(AGENT, "main"), "a test", graceful=True)
        await self.gone()
        await until(lambda: len(self.bus.sessions) == 0)

    async def ended(self, session: str = "main") -> None:
        """Kill the session's container, and wait until it is gone and its exit is settled."""
        with suppress(NotConfirmedError):  # the kit's timeout is short; the end continues anyway
            await self.bus.supervisor.end(SessionKey(AGENT, session), "a test", graceful=False)
        await self.gone(session)

    def spawned(self, session: str = "main") -> int:
        """Return how many containers were requested."""
        return self.host.calls.count(("spawn", session))

    async def fence(self) -> None:
        """Wake a new session and wait for its container: every earlier wake has then been served or never will be.

        This needs a free slot.
        """
        await self.settle()
        self.fences += 1
        name = f"fence-{self.fences}"
        await self.bus.supervisor.wake(await self.bus.sessions.create(SessionKey(AGENT, name)))
        await self.started(name)
        container = self.host.of_session(name)
        await self.ended(name)
        assert container.exit is not None
        await self.settle()

    async def settle_collects(self) -> None:
        """Wait until no poll of the delivery is under way. Sends may be."""
        await until(lambda: not self.bus.delivery._dirty)

    async def settle(self) -> None:
        """Wait until the bus has nothing under way."""
        await until(lambda: not self.bus.delivery._dirty and not self.bus.delivery.senders)
        await until(lambda: not self.bus.sweeper._busy)


async def until(holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until `holds()` is true. Raise TimeoutError after `seconds`."""
    with anyio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await anyio.sleep(0.002)


def text_of(content: str) -> Any:
    """Return the text that the echo agent echoed."""
    return json.loads(content)["echo"]["text"]


LIMITS = ReadLimits()
