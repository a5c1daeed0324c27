"""Every session's container, from wake to confirmed exit: one at a time, capped, backed off, adopted after a restart.

Nothing that an exit entails (journal recovery, reset of claims, the next spawn) happens before `runtime.wait` returned.
The runtime's listing is the truth about what runs; central.db's record says what we believe about it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

import anyio
import structlog
from anyio.abc import TaskGroup

from daemon.bus.sessions import Session, Sessions
from daemon.clock import Clock
from daemon.config import Runtime as RuntimeConfig
from daemon.containers.protocol import ContainerRuntime, ContainerSpec, Exit, Running
from daemon.containers.wake_queue import WakeQueue
from daemon.errors import ImageError, NotConfirmedError, RuntimeUnavailableError
from daemon.store.registry import IncarnationRow, Registry, SessionKey
from schema.errors import ClawbusError, FileBusyError, StorageError
from schema.ids import new_id

_PROBE_S = 5.0
_IMAGE_BACKOFF_MAX_S = 30.0
_HEALTHY_MS = 60_000


class Phase(StrEnum):
    """Where a slot is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(eq=False, slots=True)
class Slot:
    """One incarnation under supervision. `exited`: its exit is confirmed; `done`: all that entails is done, too."""

    session: Session
    incarnation: str
    spawned_at: int
    phase: Phase = Phase.STARTING
    container_id: str | None = None
    reason: str | None = None
    exit_code: int | None = None
    exited: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the supervisor tells the rest of the house.

    `on_exit` does all that a confirmed exit entails and says whether the incarnation had claimed anything; it may raise
    ClawbusError and is then called again. `is_idle` looks whether a running session has nothing to do.
    """

    make_spec: Callable[[SessionKey, str], ContainerSpec]
    on_started: Callable[[Session], None]
    on_exit: Callable[[Session, str, str, Exit], Awaitable[bool]]
    after_exit: Callable[[Session], None]
    wake_at: Callable[[Session, int], None]
    is_idle: Callable[[Session], Awaitable[bool]]


class Supervisor:
    """Built once, then `start(task_group)` and `adopt()`; `wake` may be called from anywhere in the event loop."""

    def __init__(
        self, runtime: ContainerRuntime, sessions: Sessions, config: RuntimeConfig, clock: Clock, hooks: Hooks
    ) -> None:
        self._runtime = runtime
        self._sessions = sessions
        self._config = config
        self._clock = clock
        self._hooks = hooks
        self._slots: dict[SessionKey, Slot] = {}
        self._queue = WakeQueue()
        self._changed = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._log = structlog.get_logger("supervisor")
        self._accepting = False
        self._closed = False
        self.unavailable: tuple[int, str] | None = None  # (since epoch ms, why)

    # --- what others ask

    async def start(self, tasks: TaskGroup) -> None:
        """Work in this task group from now on: adopt what runs, then spawn what is asked for."""
        self._tasks = tasks
        await self.adopt()
        tasks.start_soon(self._dispatch, name="dispatch spawns")

    def slot(self, key: SessionKey) -> Slot | None:
        """The session's slot, if a container of it is starting, running or stopping."""
        return self._slots.get(key)

    def slots(self) -> tuple[Slot, ...]:
        """Every slot."""
        return tuple(self._slots.values())

    def live_incarnation(self, session: Session) -> str | None:
        """The incarnation whose container may be working for the session."""
        slot = self._slots.get(session.key)
        return slot.incarnation if slot is not None else None

    def waiting(self) -> tuple[SessionKey, ...]:
        """Sessions that wait for a container."""
        return self._queue.keys()

    def close(self) -> None:
        """Spawn nothing more. Running containers stay: a daemon restart kills no agent."""
        self._closed = True

    async def wake(self, session: Session) -> bool:
        """See to it that a container runs or will. False if that must wait (back-off, quarantine) or is so already."""
        key = session.key
        if key in self._slots or session.quarantined is not None:
            return False
        row = await self._sessions.central(lambda registry: registry.session(key))
        if row is not None and row.next_spawn_at is not None and row.next_spawn_at > self._clock.now_ms():
            self._hooks.wake_at(session, row.next_spawn_at)
            return False
        if key in self._slots or not self._queue.add(key):
            return False
        self._changed.set()
        return True

    async def end(self, key: SessionKey, reason: str, *, graceful: bool) -> Slot | None:
        """Stop or kill the session's container and return after all that its exit entails. None if it has none.

        Raises NotConfirmedError when the exit is not confirmed in time; the attempt goes on all the same.
        """
        self._queue.discard(key)
        slot = self.begin_end(key, reason, graceful=graceful)
        if slot is None:
            return None
        grace = self._config.stop_grace_s if graceful else 0.0
        with anyio.move_on_after(grace + self._config.kill_confirm_s):
            await slot.done.wait()
            return slot
        raise NotConfirmedError(f"the exit of {key} ({slot.container_id}) is not confirmed yet.")

    def begin_end(self, key: SessionKey, reason: str, *, graceful: bool) -> Slot | None:
        """Begin to stop or kill the session's container, in the background."""
        slot = self._slots.get(key)
        if slot is None or self._tasks is None:
            return slot
        if slot.phase is not Phase.STOPPING or not graceful:
            slot.phase = Phase.STOPPING
            slot.reason = slot.reason or reason
            self._tasks.start_soon(self._terminate, slot, graceful, name=f"end {key}")
        return slot

    # --- adoption

    async def adopt(self) -> bool:
        """Make our record and the runtime's listing agree. False when the runtime does not answer; it is tried again.

        Containers of a live incarnation whose fingerprint is still the wanted one are kept, others end gracefully;
        incarnations whose container is gone go through the exit path.
        """
        try:
            running = {item.incarnation: item for item in await self._runtime.list_running()}
            for row in await self._sessions.central(lambda registry: registry.live_incarnations()):
                await self._adopt_recorded(row, running.pop(row.id, None))
            for stray in running.values():
                await self._adopt_stray(stray)
        except (RuntimeUnavailableError, StorageError, FileBusyError) as error:
            self._set_unavailable(error)
            return False
        self._set_available()
        self._accepting = True
        self._changed.set()
        return True

    async def _adopt_recorded(self, row: IncarnationRow, found: Running | None) -> None:
        if row.key in self._slots:
            return
        session = await self._sessions.get(row.key)
        started = found.started_at if found is not None else row.created_at
        slot = Slot(session, row.id, started, Phase.RUNNING, found.container_id if found else row.container_id)
        self._slots[row.key] = slot
        log = self._log.bind(agent=row.key.agent, session=row.key.session, incarnation=row.id)
        if found is None:
            log.warning("incarnation_gone", container=row.container_id)
        else:
            container_id = found.container_id
            await self._record(lambda registry: registry.incarnation_started(row.id, container_id, found.started_at))
            log.info("container_adopted", container=container_id)
            self._hooks.on_started(session)
        self._start_watching(slot)
        if found is not None and not self._is_wanted(row.key, found):
            log.warning("container_outdated", container=found.container_id)
            self.begin_end(row.key, "outdated", graceful=True)

    async def _adopt_stray(self, found: Running) -> None:
        """A container of ours that nothing is recorded of: end it, and let no other one start beside it meanwhile."""
        key = SessionKey(found.agent, found.session)
        self._log.warning("container_stray", agent=key.agent, session=key.session, container=found.container_id)
        if key in self._slots:
            await self._runtime.stop(found.container_id)
            return
        session = await self._sessions.create(key)
        slot = Slot(session, found.incarnation, found.started_at, Phase.RUNNING, found.container_id)
        self._slots[key] = slot
        self._start_watching(slot)
        self.begin_end(key, "stray", graceful=True)

    def _is_wanted(self, key: SessionKey, found: Running) -> bool:
        try:
            return self._hooks.make_spec(key, found.incarnation).fingerprint == found.fingerprint
        except ClawbusError:
            return False

    # --- spawning

    async def _dispatch(self) -> None:
        """One loop gives out the room there is; it also probes a runtime that went away."""
        while not self._closed:
            if self._accepting and self.unavailable is None:
                while len(self._slots) < self._config.max_containers and (key := self._queue.pop()) is not None:
                    await self._start(key)
                if len(self._queue) and len(self._slots) >= self._config.max_containers:
                    await self._make_room()
            self._changed = anyio.Event()
            waiting = self.unavailable is not None or not self._accepting or len(self._queue) > 0
            with anyio.move_on_after(_PROBE_S if waiting else 3600):
                await self._changed.wait()
            if self.unavailable is not None or not self._accepting:
                await self._probe()

    async def _probe(self) -> None:
        if not self._accepting:
            await self.adopt()
            return
        try:
            await self._runtime.list_running()
        except RuntimeUnavailableError:
            return
        self._set_available()
        for session in self._sessions:
            self._hooks.after_exit(session)

    async def _start(self, key: SessionKey) -> None:
        if key in self._slots or self._tasks is None:
            return
        try:
            session = await self._sessions.get(key)
        except ClawbusError as error:
            self._log.warning("wake_postponed", agent=key.agent, session=key.session, error=str(error))
            return  # the sweep wakes it again
        now = self._clock.now_ms()
        slot = Slot(session, new_id(now), now)
        self._slots[key] = slot
        self._tasks.start_soon(self._spawn, slot, name=f"spawn {key}")

    async def _spawn(self, slot: Slot) -> None:
        key, now = slot.session.key, slot.spawned_at
        try:
            spec = self._hooks.make_spec(key, slot.incarnation)
            row = IncarnationRow(slot.incarnation, key, self._runtime.name, spec.fingerprint, None, now)
            if not await self._sessions.central(lambda registry: registry.begin_incarnation(row)):
                self._log.error("incarnation_conflict", agent=key.agent, session=key.session)
                await self._give_up(slot, "conflict", None)
                return
            running = await self._runtime.spawn(spec)
        except RuntimeUnavailableError as error:
            self._set_unavailable(error)
            await self._find_out(slot)
            return
        except ClawbusError as error:
            await self._give_up(slot, "spawn_failed", error)
            return
        except Exception as error:  # noqa: BLE001 - a bug in one spawn must not end the daemon; it is backed off and logged
            self._log.error("spawn_raised", agent=key.agent, session=key.session, exc_info=True)
            await self._give_up(slot, "spawn_failed", ClawbusError(f"{type(error).__name__}: {error}"))
            return
        await self._running(slot, running)

    async def _running(self, slot: Slot, running: Running) -> None:
        slot.container_id, slot.spawned_at = running.container_id, min(slot.spawned_at, running.started_at)
        if slot.phase is Phase.STARTING:
            slot.phase = Phase.RUNNING
        await self._record(
            lambda registry: registry.incarnation_started(slot.incarnation, running.container_id, running.started_at)
        )
        key = slot.session.key
        self._log.info(
            "container_spawned", agent=key.agent, session=key.session, incarnation=slot.incarnation,
            container=running.container_id, runtime=self._runtime.name,
        )  # fmt: skip
        self._hooks.on_started(slot.session)
        self._start_watching(slot)

    async def _find_out(self, slot: Slot) -> None:
        """The runtime went away in mid-spawn: until it says whether the container exists, the session stays taken."""
        while True:
            try:
                found = [item for item in await self._runtime.list_running() if item.incarnation == slot.incarnation]
                break
            except RuntimeUnavailableError:
                await anyio.sleep(_PROBE_S)
        self._set_available()
        if found:
            await self._running(slot, found[0])
        else:
            await self._give_up(slot, "never_started", None)

    async def _give_up(self, slot: Slot, reason: str, error: ClawbusError | None) -> None:
        now = self._clock.now_ms()
        await self._record(lambda registry: registry.end_incarnation(slot.incarnation, now, None, reason))
        if error is not None:
            limit = _IMAGE_BACKOFF_MAX_S if isinstance(error, ImageError) else self._config.spawn_backoff_max_s
            await self._back_off(slot.session, error.code, str(error), error.hint, limit)
        self._release(slot)
        self._hooks.after_exit(slot.session)

    async def _back_off(self, session: Session, code: str, text: str, hint: str, limit_s: float) -> None:
        key, now = session.key, self._clock.now_ms()
        row = await self._sessions.central(lambda registry: registry.session(key))
        failures = (row.spawn_failures if row is not None else 0) + 1
        wait_s = min(self._config.spawn_backoff_s * 2 ** min(failures - 1, 20), limit_s)
        until = now + int(wait_s * 1000)
        await self._record(lambda registry: registry.spawn_failed(key, failures, until, text))
        self._log.error("spawn_failed", agent=key.agent, session=key.session, code=code, error=text, hint=hint,
                        failures=failures, retry_s=wait_s)  # fmt: skip
        self._hooks.wake_at(session, until)

    async def _make_room(self) -> None:
        """Somebody waits and the cap is reached: stop the container that has been idle longest, if any is."""
        if any(slot.phase is Phase.STOPPING for slot in self._slots.values()):
            return
        running = [slot for slot in self._slots.values() if slot.phase is Phase.RUNNING]
        for slot in sorted(running, key=lambda item: item.session.last_activity):
            if await self._hooks.is_idle(slot.session):
                self._log.info("container_evicted", agent=slot.session.key.agent, session=slot.session.key.session)
                self.begin_end(slot.session.key, "evicted", graceful=True)
                return

    # --- the end

    def _start_watching(self, slot: Slot) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(self._watch, slot, name=f"wait {slot.session.key}")

    async def _watch(self, slot: Slot) -> None:
        exit_ = Exit(None)
        while slot.container_id is not None:
            try:
                exit_ = await self._runtime.wait(slot.container_id)
                break
            except RuntimeUnavailableError as error:
                self._set_unavailable(error)
                await anyio.sleep(_PROBE_S)
        slot.exit_code = exit_.code
        slot.exited.set()
        await self._ended(slot, exit_)

    async def _ended(self, slot: Slot, exit_: Exit) -> None:
        key = slot.session.key
        ended_at = self._clock.now_ms()  # recorded only once all that the exit entails is done
        reason = slot.reason or ("exited" if exit_.code == 0 else "crashed")
        slot.phase = Phase.STOPPING
        log = self._log.bind(agent=key.agent, session=key.session, incarnation=slot.incarnation)
        log.info("container_exited", reason=reason, exit_code=exit_.code, out_of_memory=exit_.out_of_memory)
        wait_s, claimed = 0.5, False
        while True:
            try:
                claimed = await self._hooks.on_exit(slot.session, slot.incarnation, reason, exit_)
                break
            except ClawbusError as error:
                log.warning("exit_not_settled", code=error.code, error=str(error), hint=error.hint, retry_s=wait_s)
            await anyio.sleep(wait_s)
            wait_s = min(wait_s * 2, 30.0)
        await self._remove(slot)
        await self._record(lambda registry: registry.end_incarnation(slot.incarnation, ended_at, exit_.code, reason))
        await self._judge_start(slot, exit_, claimed=claimed)
        self._release(slot)
        self._hooks.after_exit(slot.session)

    async def _judge_start(self, slot: Slot, exit_: Exit, *, claimed: bool) -> None:
        """An incarnation that ended by itself without touching a message did not really start: back off."""
        key = slot.session.key
        if slot.reason is None and not claimed and self._clock.now_ms() - slot.spawned_at < _HEALTHY_MS:
            text = f"the container ended by itself (exit code {exit_.code}) before it claimed anything"
            hint = "Read the end of its log: `clawbus session show`."
            await self._back_off(slot.session, "SPAWN_FAILED", text, hint, self._config.spawn_backoff_max_s)
        else:
            await self._record(lambda registry: registry.spawn_recovered(key))

    async def _remove(self, slot: Slot) -> None:
        if slot.container_id is None:
            return
        try:
            await self._runtime.remove(slot.container_id)
        except RuntimeUnavailableError as error:
            self._log.warning("container_not_removed", container=slot.container_id, error=str(error))

    async def _terminate(self, slot: Slot, graceful: bool) -> None:
        """Signal, escalate, and go on until the exit is confirmed."""
        while slot.container_id is None and not slot.done.is_set():
            with anyio.move_on_after(0.1):  # still starting: there is nothing to signal yet
                await slot.done.wait()
        if graceful and await self._signal(slot, self._runtime.stop):
            with anyio.move_on_after(self._config.stop_grace_s):
                await slot.exited.wait()
        while not slot.exited.is_set() and not slot.done.is_set():
            await self._signal(slot, self._runtime.kill)
            with anyio.move_on_after(self._config.kill_confirm_s) as scope:
                await slot.exited.wait()
            if scope.cancelled_caught:
                self._log.error("exit_not_confirmed", agent=slot.session.key.agent, session=slot.session.key.session,
                                container=slot.container_id)  # fmt: skip

    async def _signal(self, slot: Slot, send: Callable[[str], Awaitable[None]]) -> bool:
        if slot.container_id is None:
            return False
        try:
            await send(slot.container_id)
        except RuntimeUnavailableError as error:
            self._set_unavailable(error)
            await anyio.sleep(1.0)
            return False
        return True

    async def _record(self, operation: Callable[[Registry], None]) -> None:
        """Write to central.db until it is written: a full disk must delay an exit's record, not lose it."""
        wait_s = 0.5
        while True:
            try:
                return await self._sessions.central(operation)
            except (StorageError, FileBusyError) as error:
                self._log.warning("registry_not_written", error=str(error), hint=error.hint, retry_s=wait_s)
            await anyio.sleep(wait_s)
            wait_s = min(wait_s * 2, 30.0)

    def _release(self, slot: Slot) -> None:
        self._slots.pop(slot.session.key, None)
        slot.exited.set()
        slot.done.set()
        self._changed.set()

    def _set_unavailable(self, error: ClawbusError) -> None:
        if self.unavailable is None:
            self.unavailable = (self._clock.now_ms(), str(error))
            self._log.error("runtime_unavailable", runtime=self._runtime.name, error=str(error), hint=error.hint)
        self._changed.set()

    def _set_available(self) -> None:
        if self.unavailable is not None:
            self._log.info("runtime_available", runtime=self._runtime.name)
            self.unavailable = None
        self._changed.set()
