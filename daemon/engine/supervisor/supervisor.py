"""Decides which session gets a container, and when: one per session, capped, fair, with back-off after failures.

`spawner.py` starts a container, `room.py` makes room for it under the caps, `adoption.py` adopts the containers that already
run, `terminator.py` ends those that must end. Nothing starts for a session until the exit of its last container has been settled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskStatus

from daemon.config.models import Runtime as RuntimeConfig
from daemon.core.clock import Clock
from daemon.core.errors import ImageError, NotConfirmedError
from daemon.core.session_key import SessionKey
from daemon.engine.events import Events
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.adoption import Adoption
from daemon.engine.supervisor.draining import Draining
from daemon.engine.supervisor.needs import SessionKeeper, Specs
from daemon.engine.supervisor.reconcile import Reconciler
from daemon.engine.supervisor.room import Room
from daemon.engine.supervisor.slots import Slot, Timings
from daemon.engine.supervisor.spawner import Spawner
from daemon.engine.supervisor.state import SupervisorState
from daemon.engine.supervisor.terminator import Terminator
from daemon.engine.supervisor.wake_queue import WakeQueue
from daemon.engine.sweep_schedule import Schedule
from daemon.runtimes.engine_identity import EngineGuard
from daemon.runtimes.protocol import ContainerRuntime
from daemon.store.incarnations import IncarnationRow
from schema.errors import ClawbusError
from schema.ids import new_id


class Supervisor:
    """Starts and ends containers. `wake` may be called from anywhere in the event loop.

    No error of the runtime, of the session keeper or of central.db escapes from this class's tasks: a session's failure
    affects only that session.
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
        timings: Timings | None = None,
    ) -> None:
        self._state = SupervisorState(engine, sessions, config, clock, specs, schedule, events, timings or Timings())
        self._terminator = Terminator(self._state)
        self._adoption = Adoption(self._state, self._terminator)
        self._reconciler = Reconciler(self._state, self._terminator, self._adoption)
        self._runtime: ContainerRuntime = engine.runtime
        self._sessions = sessions
        self._config = config
        self._clock = clock
        self._specs = specs
        self._schedule = schedule
        self._events = events
        self._timings = self._state.timings
        self._log = self._state.log
        self._queue = WakeQueue()
        self._closed = False
        self._held = False
        self._draining = Draining(self._state, self._terminator)
        self._spawner = Spawner(self._state, self._terminator, self._draining)
        self._room = Room(self._state, self._terminator)
        self._tell_waiting: Callable[[Session], Awaitable[None]] | None = None

    # --- what others ask

    @property
    def unavailable(self) -> tuple[int, str] | None:
        """Since when (epoch milliseconds) and why the runtime does not answer; None while it does."""
        return self._state.unavailable

    @property
    def runtime_name(self) -> str:
        """The runtime's name, such as docker or process."""
        return self._runtime.name

    @property
    def image_problem(self) -> tuple[int, str] | None:
        """Since when (epoch milliseconds) and why images cannot be used; None when every agent's image can."""
        bad = self._state.bad_images.values()
        return (min(since for since, _ in bad), " ".join(dict.fromkeys(why for _, why in bad))) if bad else None

    async def check_images(self) -> list[ImageError]:
        """Check every image that agents use and return the errors. Raise RuntimeUnavailableError."""
        found: list[ImageError] = []
        for image, own_runner in self._specs.images():
            try:
                await self._runtime.check(image, own_runner=own_runner)
            except ImageError as error:
                self._state.image_failed((image, own_runner), str(error))
                found.append(error)
        return found

    async def run(self, keeper: SessionKeeper, *, task_status: TaskStatus[None]) -> None:
        """Adopt the running containers, report that the supervisor has started, then spawn on request until cancelled."""
        self._state.keeper = keeper
        try:
            async with anyio.create_task_group() as tasks:
                self._state.tasks = tasks
                await self._adoption.adopt()
                tasks.start_soon(self._dispatch, name="dispatch spawns")
                tasks.start_soon(self._reconciler.run, name="reconcile containers")
                task_status.started()
        finally:
            self._state.tasks = None  # while the daemon stops, other tasks still run and may ask to end a container

    @property
    def knows(self) -> bool:
        """Return whether a session without a slot is known to have no container: adoption is done and the runtime answers."""
        return self._state.accepting and self._state.unavailable is None

    def may_run(self, key: SessionKey) -> bool:
        """Return whether a container of the session may be running. True for every session until adoption is done."""
        return not self._state.accepting or key in self._state.slots

    def slot(self, key: SessionKey) -> Slot | None:
        """Return the session's slot, if a container of it is starting, running or stopping."""
        return self._state.slots.get(key)

    def slots(self) -> tuple[Slot, ...]:
        """Return every slot."""
        return tuple(self._state.slots.values())

    def alive(self) -> tuple[Slot, ...]:
        """Return the slots whose exit is not confirmed. A container that has exited uses nothing, even if not settled yet."""
        return self._state.alive()

    def live_sessions(self) -> tuple[Session, ...]:
        """Return the sessions with a container whose exit is not confirmed."""
        return tuple(slot.session for slot in self.alive())

    def incarnations(self) -> tuple[IncarnationRow, ...]:
        """Return every slot as a registry row, without the fingerprint, which only the runtime knows."""
        return tuple(
            IncarnationRow(
                slot.incarnation,
                slot.session.key,
                self._runtime.name,
                "",
                slot.container_id,
                slot.spawned_at,
                slot.started_at,
            )
            for slot in self._state.slots.values()
        )

    def live_incarnation(self, session: Session) -> str | None:
        """Return the incarnation whose container may be working for the session, or None."""
        slot = self._state.slots.get(session.key)
        return slot.incarnation if slot is not None else None

    def waiting(self) -> tuple[SessionKey, ...]:
        """Return the sessions that wait for a container."""
        return self._queue.keys()

    def check_for_room(self) -> None:
        """Check again whether an idle container can make room for a waiting session. Call it when a turn has finished."""
        if len(self._queue):
            self._state.changed.set()

    def close(self) -> None:
        """Stop spawning. Running containers keep running: a daemon restart kills no agent."""
        self._closed = True
        self._state.changed.set()

    def hold(self) -> None:
        """Start no container until `resume`. Requests for one wait."""
        self._held = True

    def resume(self) -> None:
        """End a hold."""
        self._held = False
        self._state.changed.set()

    def limit_with(
        self, blocked_until: Callable[[str], int | None], tell_waiting: Callable[[Session], Awaitable[None]]
    ) -> None:
        """Start nothing for an agent while `blocked_until` returns an instant for it (epoch milliseconds).

        `tell_waiting` is called for a session that waits for that.
        """
        self._state.blocked_until, self._tell_waiting = blocked_until, tell_waiting

    def drain(self, agent: str, reason: str) -> None:
        """Stop the agent's running containers, each once it has no open claim. They claim nothing more."""
        self._draining.begin_all(agent, reason)

    def look_at(self, session: Session) -> None:
        """Have the session swept soon."""
        self._schedule.now(session.key)

    async def wake(self, session: Session) -> bool:
        """Queue the session for a container. Return False if it has one or is queued, or must wait.

        It waits in quarantine, for the end of a back-off, or while its agent's budget is used up.
        """
        key = session.key
        if key in self._state.slots or session.quarantined is not None:
            return False
        if (until := self._state.blocked_until(key.agent)) is not None:
            self._schedule.at(key, until)
            if self._tell_waiting is not None:
                await self._tell_waiting(session)
            return False
        if any((one.agent, one.session) == key for one in self._state.extras.values()):
            # A container of this session that has no slot is being ended. Starting beside it would count as a failed start.
            self._schedule.at(key, self._clock.now_ms() + int(self._timings.probe_s * 1000))
            return False
        try:
            row = await self._sessions.central(lambda registry: registry.session(key))
        except ClawbusError as error:
            self._log.warning("wake_postponed", agent=key.agent, session=key.session, code=error.code, error=str(error))
            self._schedule.at(key, self._clock.now_ms() + int(self._timings.probe_s * 1000))
            return False
        if row is not None and (until := self._state.backs_off_until(row)) is not None:
            self._schedule.at(key, until)
            return False
        if key in self._state.slots or not self._queue.add(key):
            return False
        self._state.changed.set()
        return True

    async def end(self, key: SessionKey, reason: str, *, graceful: bool) -> Slot | None:
        """Stop or kill the session's container. Return once its exit has been settled; None if it has no container.

        Raise NotConfirmedError when that does not happen in time; the attempt continues in the background.
        """
        self._queue.discard(key)
        if self.slot(key) is None:
            # An unsupervised container may be running: find it, so that it can be ended as well.
            await self._reconciler.look_at(key)
        slot = self._terminator.begin_end(key, reason, graceful=graceful)
        if slot is None:
            return None
        grace = self._config.stop_grace_s if graceful else 0.0
        with anyio.move_on_after(grace + self._config.kill_confirm_s):
            await slot.done.wait()
            return slot
        if not slot.exited.is_set():
            raise NotConfirmedError(f"the exit of {key} ({slot.container_id}) is not confirmed yet.")
        what = f"the exit of {key} ({slot.container_id}) is confirmed, but its files are not settled yet"
        if slot.unsettled is None:
            raise NotConfirmedError(f"{what}.", hint="The daemon keeps trying; `clawbus logs -n 50` says what it does.")
        raise NotConfirmedError(f"{what}: {slot.unsettled}", hint=slot.unsettled.hint)

    def begin_end(self, key: SessionKey, reason: str, *, graceful: bool, incarnation: str | None = None) -> Slot | None:
        """Start to stop or kill the session's container, in the background. With `incarnation`, only if it is that one."""
        return self._terminator.begin_end(key, reason, graceful=graceful, incarnation=incarnation)

    # --- who is next

    async def _dispatch(self) -> None:
        """Run the only loop that assigns free slots. It also probes a runtime that has become unavailable."""
        while not self._closed:
            # Create the event before checking, so that a change during the check triggers another one.
            changed = self._state.changed = anyio.Event()
            try:
                if self._state.unavailable is not None or not self._state.accepting:
                    await self._probe()
                if self._state.accepting and self._state.unavailable is None:
                    await self._give_out()
            except Exception:  # noqa: BLE001 - the loop that starts every agent must survive a bug in one pass
                self._log.error("dispatch_raised", exc_info=True)
            waiting = self._state.unavailable is not None or not self._state.accepting or len(self._queue) > 0
            with anyio.move_on_after(self._timings.probe_s if waiting else 3600):
                await changed.wait()

    async def _give_out(self) -> None:
        while (
            not (self._closed or self._held)
            and self._room.is_left()
            and (key := self._queue.pop(self._room.is_left_for)) is not None
        ):
            await self._start(key)
        if self._held or not len(self._queue):
            return
        if not self._room.is_left():
            await self._room.make()
            return
        # There is room, but each waiting agent is at its own limit, so only one of its own containers can make room.
        for agent in self._queue.groups():
            await self._room.make(agent)

    async def _probe(self) -> None:
        adopted_before = self._state.accepting
        await self._adoption.adopt()
        if adopted_before and self._state.unavailable is None:
            for session in self._sessions:
                self._schedule.now(session.key)

    async def _start(self, key: SessionKey) -> None:
        if key in self._state.slots or self._state.tasks is None:
            return
        try:
            session = await self._sessions.get(key)
        except ClawbusError as error:
            self._log.warning("wake_postponed", agent=key.agent, session=key.session, error=str(error))
            return  # the sweep wakes it again
        if session.quarantined is not None or key in self._state.slots:
            return
        if self._state.blocked_until(key.agent) is not None:  # used up while it was queued
            self._schedule.now(key)
            return
        now = self._clock.now_ms()
        slot = Slot(session, new_id(now), now)
        self._state.slots[key] = slot
        self._state.begin(self._spawner.spawn, slot, name=f"spawn {key}")
