"""State shared by the supervisor's parts: the slots, whether the runtime answers, and writes to central.db with retries.

It makes no decisions: `supervisor.py` says who is next, `spawner.py` starts containers, `adoption.py` adopts them,
`terminator.py` ends them. An exit is never recorded before it is confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup

from daemon.config.models import Runtime as RuntimeConfig
from daemon.core.clock import Clock
from daemon.core.errors import ContainerTroubleError, ImageError
from daemon.core.events import SpawnFailed
from daemon.core.schedules import CLOCK_SLACK_MS
from daemon.core.session_key import SessionKey
from daemon.engine.events import Events
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.needs import SessionKeeper, Specs
from daemon.engine.supervisor.slots import AgentImage, Slot, Timings
from daemon.engine.supervisor.spec_threads import SpecThreads
from daemon.engine.sweep_schedule import Schedule
from daemon.runtimes.engine_identity import EngineGuard
from daemon.runtimes.protocol import ContainerRuntime, Running
from daemon.store.registry import Registry
from daemon.store.session_rows import SessionRow
from schema.errors import ClawbusError

T = TypeVar("T")


class SupervisorState:
    """All slots, and the state that they share. Built by the supervisor.

    `keeper` and `tasks` are set while it runs.
    """

    def __init__(
        self,
        engine: EngineGuard,
        sessions: Sessions,
        config: RuntimeConfig,
        clock: Clock,
        specs: Specs,
        schedule: Schedule,
        events: Events,
        timings: Timings,
    ) -> None:
        self.engine = engine
        self.runtime: ContainerRuntime = engine.runtime
        self.sessions = sessions
        self.config = config
        self.clock = clock
        self.specs = specs
        self.spec_threads = SpecThreads(specs, timings.files_s)
        self.schedule = schedule
        self.events = events
        self.timings = timings
        self.log = structlog.get_logger("supervisor")
        self.slots: dict[SessionKey, Slot] = {}
        # Our containers in addition to a session's supervised one, by container id: they are being ended, but still count.
        self.extras: dict[str, Running] = {}
        self.changed = anyio.Event()  # set when `_dispatch` must check for spawns
        self.tasks: TaskGroup | None = None
        self._keeper: SessionKeeper | None = None
        self.accepting = False  # whether adoption has been done, so that spawning is safe
        self.unavailable: tuple[int, str] | None = None  # (since epoch ms, why)
        # Image -> (since epoch ms, why), until the image is found usable.
        self.bad_images: dict[AgentImage, tuple[int, str]] = {}
        # Until when (epoch ms) nothing starts for an agent, because its budget is used up.
        self.blocked_until: Callable[[str], int | None] = lambda _: None

    @property
    def keeper(self) -> SessionKeeper:
        """The keeper that settles the sessions' files."""
        assert self._keeper is not None
        return self._keeper

    @keeper.setter
    def keeper(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper

    def alive(self) -> tuple[Slot, ...]:
        """Return the slots whose exit is not confirmed."""
        return tuple(slot for slot in self.slots.values() if not slot.exited.is_set())

    def begin(self, work: Callable[..., Coroutine[Any, Any, object]], *args: object, name: str) -> None:
        """Start one of the supervisor's tasks in the background. Does nothing unless the supervisor is running."""
        if self.tasks is not None:
            self.tasks.start_soon(work, *args, name=name)

    def image_failed(self, image: AgentImage, why: str) -> None:
        """Record that no container can be started from this image."""
        since, _ = self.bad_images.get(image, (self.clock.now_ms(), ""))
        self.bad_images[image] = since, why

    async def check_images(self) -> None:
        """Forget images that were repaired or that no agent uses any longer. Raise RuntimeUnavailableError."""
        for image in list(self.bad_images):
            try:
                if image in self.specs.images():
                    await self.runtime.check(image[0], own_runner=image[1])
                self.bad_images.pop(image, None)
            except ImageError as error:
                self.image_failed(image, str(error))

    async def record(self, operation: Callable[[Registry], T]) -> T:
        """Run an operation on central.db, retrying until it succeeds: a full disk must delay an exit's record, not lose it."""
        wait_s = self.timings.retry_s
        while True:
            try:
                return await self.sessions.central(operation)
            except ClawbusError as error:
                self.log.warning("registry_not_written", error=str(error), hint=error.hint, retry_s=wait_s)
            except Exception:  # the slot depends on this, so it must not fail
                self.log.exception("registry_raised", retry_s=wait_s)
            await anyio.sleep(wait_s)
            wait_s = min(wait_s * 2, self.timings.retry_max_s)

    def release(self, slot: Slot) -> None:
        """Free the slot: its exit has been settled, or its container never started."""
        self.slots.pop(slot.session.key, None)
        slot.exited.set()
        slot.done.set()
        self.changed.set()

    def set_unavailable(self, error: ClawbusError) -> None:
        """Record that the runtime does not answer. Log it once, and let the dispatch loop probe it.

        A runtime that fails at one container alone goes on serving the others.
        """
        if isinstance(error, ContainerTroubleError):
            self.log.warning("container_call_failed", code=error.code, error=str(error), hint=error.hint)
            return
        if self.unavailable is None:
            self.unavailable = (self.clock.now_ms(), str(error))
            self.log.error("runtime_unavailable", runtime=self.runtime.name, error=str(error), hint=error.hint)
            self.changed.set()

    def set_available(self) -> None:
        """Record that the runtime answers again."""
        if self.unavailable is not None:
            self.log.info("runtime_available", runtime=self.runtime.name)
            self.unavailable = None
        self.changed.set()

    def begin_record_start(self, slot: Slot, running: Running) -> None:
        """Record a container's start in the background: a full disk must not keep the container from being watched."""

        def write(registry: Registry) -> None:
            registry.incarnation_started(slot.incarnation, running.container_id, running.started_at)

        self.begin(self.record, write, name=f"record start {slot.session.key}")

    def backs_off_until(self, row: SessionRow) -> int | None:
        """Return when the session's back-off ends, None if it has none. One that no rule makes was set by a clock ahead of ours."""
        longest_s = max(self.config.spawn_backoff_max_s, self.timings.soft_backoff_max_s)
        until, now = row.next_spawn_at or 0, self.clock.now_ms()
        return until if now < until <= now + longest_s * 1000 + CLOCK_SLACK_MS else None

    async def back_off(self, session: Session, error: ClawbusError, limit_s: float, *, started: bool) -> None:
        """Record a failed start, and when the next may be tried: at most `limit_s` seconds from now.

        `started`: a container ran, but exited by itself before it did anything.
        """
        key, now = session.key, self.clock.now_ms()
        row = await self.record(lambda registry: registry.session(key))
        failures = (row.spawn_failures if row is not None else 0) + 1
        wait_s = min(self.config.spawn_backoff_s * 2 ** min(failures - 1, 20), limit_s)
        until = now + int(wait_s * 1000)
        await self.record(lambda registry: registry.spawn_failed(key, failures, until, str(error)))
        self.events.publish(
            SpawnFailed(now, key.agent, key.session, error.code, str(error), error.hint, failures, wait_s, started)
        )
        self.schedule.at(session.key, until)
