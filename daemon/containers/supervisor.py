"""Every session's container, from wake to confirmed exit: one at a time, capped, backed off, adopted after a restart.

Nothing that an exit entails (journal recovery, reset of claims, the next spawn) happens before `runtime.wait` returned.
The runtime's listing is the truth about what runs; central.db's record says what we believe about it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup

from daemon.bus.sessions import Session, Sessions
from daemon.clock import Clock
from daemon.config import Runtime as RuntimeConfig
from daemon.containers.protocol import ContainerRuntime, Exit, Running
from daemon.containers.slots import Hooks, Phase, Slot, Timings
from daemon.containers.wake_queue import WakeQueue
from daemon.errors import (
    ImageError,
    NotConfirmedError,
    RuntimeUnavailableError,
    SpawnError,
    UnknownAgentError,
)
from daemon.store.registry import IncarnationRow, Registry, SessionKey
from schema.errors import ClawbusError
from schema.ids import new_id

T = TypeVar("T")


class Supervisor:
    """Built once, then `start(task_group)`; `wake` may be called from anywhere in the event loop.

    No failure of a runtime, a hook or central.db leaves a task of this class: one session's trouble is that session's.
    """

    def __init__(
        self,
        runtime: ContainerRuntime,
        sessions: Sessions,
        config: RuntimeConfig,
        clock: Clock,
        hooks: Hooks,
        timings: Timings | None = None,
    ) -> None:
        self._runtime = runtime
        self._sessions = sessions
        self._config = config
        self._clock = clock
        self._hooks = hooks
        self._timings = timings or Timings()
        self._slots: dict[SessionKey, Slot] = {}
        self._queue = WakeQueue()
        self._changed = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._log = structlog.get_logger("supervisor")
        self._accepting = False
        self._closed = False
        self.unavailable: tuple[int, str] | None = None  # (since epoch ms, why)
        self.image_problem: tuple[int, str] | None = None  # the same; until a spawn succeeds

    # --- what others ask

    async def start(self, tasks: TaskGroup) -> None:
        """Work in this task group from now on: adopt what runs, then spawn what is asked for."""
        self._tasks = tasks
        await self.adopt()
        tasks.start_soon(self._dispatch, name="dispatch spawns")

    @property
    def knows(self) -> bool:
        """Whether a session without a slot is known to have no container: adoption is done and the runtime answers."""
        return self._accepting and self.unavailable is None

    def slot(self, key: SessionKey) -> Slot | None:
        """The session's slot, if a container of it is starting, running or stopping."""
        return self._slots.get(key)

    def slots(self) -> tuple[Slot, ...]:
        """Every slot."""
        return tuple(self._slots.values())

    def incarnations(self) -> tuple[IncarnationRow, ...]:
        """Every slot as the registry would have it; the fingerprint stays the runtime's to tell."""
        return tuple(
            IncarnationRow(
                slot.incarnation, slot.session.key, self._runtime.name, "", slot.container_id, slot.spawned_at
            )
            for slot in self._slots.values()
        )

    def live_incarnation(self, session: Session) -> str | None:
        """The incarnation whose container may be working for the session."""
        slot = self._slots.get(session.key)
        return slot.incarnation if slot is not None else None

    def waiting(self) -> tuple[SessionKey, ...]:
        """Sessions that wait for a container."""
        return self._queue.keys()

    def look_for_room(self) -> None:
        """A container has finished something: if anybody waits, it may be idle now and can make room."""
        if len(self._queue):
            self._changed.set()

    def close(self) -> None:
        """Spawn nothing more. Running containers stay: a daemon restart kills no agent."""
        self._closed = True
        self._changed.set()

    async def wake(self, session: Session) -> bool:
        """See to it that a container runs or will. False if that must wait (back-off, quarantine) or is so already."""
        key = session.key
        if key in self._slots or session.quarantined is not None:
            return False
        try:
            row = await self._sessions.central(lambda registry: registry.session(key))
        except ClawbusError as error:
            self._log.warning("wake_postponed", agent=key.agent, session=key.session, code=error.code, error=str(error))
            self._hooks.wake_at(session, self._clock.now_ms() + int(self._timings.probe_s * 1000))
            return False
        if row is not None and row.next_spawn_at is not None and row.next_spawn_at > self._clock.now_ms():
            self._hooks.wake_at(session, row.next_spawn_at)
            return False
        if key in self._slots or not self._queue.add(key):
            return False
        self._changed.set()
        return True

    async def end(self, key: SessionKey, reason: str, *, graceful: bool) -> Slot | None:
        """Stop or kill the session's container and return after all that its exit entails. None if it has none.

        Raises NotConfirmedError when that does not happen in time; the attempt goes on all the same.
        """
        self._queue.discard(key)
        slot = self.begin_end(key, reason, graceful=graceful)
        if slot is None:
            return None
        grace = self._config.stop_grace_s if graceful else 0.0
        with anyio.move_on_after(grace + self._config.kill_confirm_s):
            await slot.done.wait()
            return slot
        what = "is confirmed, but its files are not settled yet" if slot.exited.is_set() else "is not confirmed yet"
        raise NotConfirmedError(f"the exit of {key} ({slot.container_id}) {what}.")

    def begin_end(self, key: SessionKey, reason: str, *, graceful: bool, incarnation: str | None = None) -> Slot | None:
        """Begin to stop or kill the session's container, in the background. With `incarnation`, only if it is that one."""
        slot = self._slots.get(key)
        if slot is None or self._tasks is None or incarnation not in (None, slot.incarnation):
            return slot
        if slot.phase is Phase.STOPPING and (graceful or slot.forced):
            return slot
        slot.phase = Phase.STOPPING
        slot.reason = slot.reason or reason
        slot.forced = slot.forced or not graceful
        self._tasks.start_soon(self._terminate, slot, graceful, name=f"end {key}")
        return slot

    # --- adoption

    async def adopt(self) -> bool:
        """Make our record and the runtime's listing agree. False when one of them does not answer; it is tried again.

        Containers of a live incarnation whose fingerprint is still the wanted one are kept, others end gracefully;
        incarnations whose container is gone go through the exit path.
        """
        try:
            running = {item.incarnation: item for item in await self._runtime.list_running()}
            for row in await self._sessions.central(lambda registry: registry.live_incarnations()):
                found = running.pop(row.id, None)
                if found is None and row.container_id is None:
                    # The daemon before us died in its spawn: what it had asked for must not start behind our back.
                    found = await self._runtime.find_started(row.id)
                await self._adopt_recorded(row, found)
            for stray in running.values():
                await self._adopt_stray(stray)
        except ClawbusError as error:
            self._set_unavailable(error)
            return False
        self._set_available()
        self._accepting = True
        return True

    async def _adopt_recorded(self, row: IncarnationRow, found: Running | None) -> None:
        if row.key in self._slots:
            return
        session = await self._sessions.create(row.key)
        started = found.started_at if found is not None else row.created_at
        slot = Slot(session, row.id, started, Phase.RUNNING, found.container_id if found else row.container_id)
        self._slots[row.key] = slot
        log = self._log.bind(agent=row.key.agent, session=row.key.session, incarnation=row.id)
        if found is None:
            log.warning("incarnation_gone", container=row.container_id)
        else:
            if row.container_id != found.container_id:
                self._begin_record_start(slot, found)
            log.info("container_adopted", container=found.container_id)
            self._hooks.on_started(session)
        self._start_watching(slot)
        if found is None:
            return
        if session.quarantined is not None:
            self.begin_end(row.key, "quarantine", graceful=False)
        elif not self._is_wanted(row.key, found):
            log.warning("container_outdated", container=found.container_id)
            self.begin_end(row.key, "outdated", graceful=True)

    async def _adopt_stray(self, found: Running) -> None:
        """A container of ours that nothing is recorded of: end it, and let no other one start beside it meanwhile."""
        key = SessionKey(found.agent, found.session)
        self._log.warning("container_stray", agent=key.agent, session=key.session, container=found.container_id)
        if key in self._slots:
            if self._slots[key].incarnation != found.incarnation:
                await self._runtime.stop(found.container_id)
            return
        session = await self._sessions.create(key)
        slot = Slot(session, found.incarnation, found.started_at, Phase.RUNNING, found.container_id)
        self._slots[key] = slot
        self._start_watching(slot)
        self.begin_end(key, "stray", graceful=True)

    def _is_wanted(self, key: SessionKey, found: Running) -> bool:
        """Only a spec that is known to be another one, or an agent that is gone, is a reason to end a working agent."""
        try:
            return self._hooks.make_spec(key, found.incarnation).fingerprint == found.fingerprint
        except UnknownAgentError:
            return False
        except Exception as error:  # noqa: BLE001 - a full disk or a bug in making specs says nothing about the container
            self._log.warning("fingerprint_unknown", agent=key.agent, session=key.session, error=str(error))
            return True

    # --- spawning

    async def _dispatch(self) -> None:
        """One loop gives out the room there is; it also probes a runtime that went away."""
        while not self._closed:
            # Made before the look, so that whatever happens during it is looked at next.
            changed = self._changed = anyio.Event()
            try:
                if self.unavailable is not None or not self._accepting:
                    await self._probe()
                if self._accepting and self.unavailable is None:
                    await self._give_out()
            except Exception:  # noqa: BLE001 - the loop that starts every agent must outlive a bug in one look
                self._log.error("dispatch_raised", exc_info=True)
            waiting = self.unavailable is not None or not self._accepting or len(self._queue) > 0
            with anyio.move_on_after(self._timings.probe_s if waiting else 3600):
                await changed.wait()

    async def _give_out(self) -> None:
        while not self._closed and self._has_room() and (key := self._queue.pop()) is not None:
            await self._start(key)
        if len(self._queue) and not self._has_room():
            await self._make_room()

    def _has_room(self) -> bool:
        """A container whose exit is confirmed uses nothing, even while its files wait to be settled."""
        return sum(not slot.exited.is_set() for slot in self._slots.values()) < self._config.max_containers

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
        if session.quarantined is not None or key in self._slots:
            return
        now = self._clock.now_ms()
        slot = Slot(session, new_id(now), now)
        self._slots[key] = slot
        self._tasks.start_soon(self._spawn, slot, name=f"spawn {key}")

    async def _spawn(self, slot: Slot) -> None:
        key = slot.session.key
        try:
            running = await self._try_spawn(slot)
        except RuntimeUnavailableError as error:
            self._set_unavailable(error)
            running = await self._find_out(slot)
            if running is None:
                await self._give_up(slot, "never_started", error)
        except ClawbusError as error:
            running = None
            await self._give_up(slot, "spawn_failed", error)
        except Exception as error:  # noqa: BLE001 - a bug in one spawn must not end the daemon; it is backed off and logged
            running = None
            self._log.error("spawn_raised", agent=key.agent, session=key.session, exc_info=True)
            await self._give_up(slot, "spawn_failed", SpawnError(f"{type(error).__name__}: {error}"))
        if running is not None:
            await self._running(slot, running)

    async def _try_spawn(self, slot: Slot) -> Running | None:
        """A container, or None when none is to be: then the slot has been given up. Raises what `spawn` raises."""
        key, now = slot.session.key, slot.spawned_at
        # A sweep that found nothing running may be recovering a journal. After this it is done, and the next one sees
        # the slot.
        await slot.session.call(_nothing)
        if slot.session.quarantined is not None:
            await self._give_up(slot, "quarantine", None)
            return None
        spec = self._hooks.make_spec(key, slot.incarnation)
        row = IncarnationRow(slot.incarnation, key, self._runtime.name, spec.fingerprint, None, now)
        if not await self._sessions.central(lambda registry: registry.begin_incarnation(row)):
            # An incarnation is recorded that we do not know of: look at what runs before anything else is started.
            self._log.error("incarnation_conflict", agent=key.agent, session=key.session)
            self._accepting = False
            await self._give_up(slot, "conflict", None)
            return None
        running = await self._runtime.spawn(spec)
        self.image_problem = None
        return running

    async def _running(self, slot: Slot, running: Running) -> None:
        slot.container_id, slot.spawned_at = running.container_id, min(slot.spawned_at, running.started_at)
        if slot.phase is Phase.STARTING:
            slot.phase = Phase.RUNNING
        key = slot.session.key
        self._log.info(
            "container_spawned", agent=key.agent, session=key.session, incarnation=slot.incarnation,
            container=running.container_id, runtime=self._runtime.name,
        )  # fmt: skip
        self._hooks.on_started(slot.session)
        self._start_watching(slot)
        self._begin_record_start(slot, running)

    def _begin_record_start(self, slot: Slot, running: Running) -> None:
        """In the background: a disk that is full must not keep a container from being watched."""
        assert self._tasks is not None

        def write(registry: Registry) -> None:
            registry.incarnation_started(slot.incarnation, running.container_id, running.started_at)

        self._tasks.start_soon(self._record, write, name=f"record start {slot.session.key}")

    async def _find_out(self, slot: Slot) -> Running | None:
        """The runtime went away in mid-spawn: until it says whether the container exists, the session stays taken."""
        while True:
            try:
                found = await self._runtime.find_started(slot.incarnation)
            except RuntimeUnavailableError:
                pass
            except Exception:  # noqa: BLE001 - no answer is no answer
                self._log.error("listing_raised", exc_info=True)
            else:
                self._set_available()
                return found
            await anyio.sleep(self._timings.probe_s)

    async def _give_up(self, slot: Slot, reason: str, error: ClawbusError | None) -> None:
        now = self._clock.now_ms()
        await self._record(lambda registry: registry.end_incarnation(slot.incarnation, now, None, reason))
        if error is not None:
            soft = isinstance(error, ImageError | RuntimeUnavailableError)
            limit = self._timings.soft_backoff_max_s if soft else self._config.spawn_backoff_max_s
            if isinstance(error, ImageError):
                self.image_problem = self.image_problem or (now, str(error))
            await self._back_off(slot.session, error.code, str(error), error.hint, limit)
        self._release(slot)
        self._hooks.after_exit(slot.session)

    async def _back_off(self, session: Session, code: str, text: str, hint: str, limit_s: float) -> None:
        key, now = session.key, self._clock.now_ms()
        row = await self._record(lambda registry: registry.session(key))
        failures = (row.spawn_failures if row is not None else 0) + 1
        wait_s = min(self._config.spawn_backoff_s * 2 ** min(failures - 1, 20), limit_s)
        until = now + int(wait_s * 1000)
        await self._record(lambda registry: registry.spawn_failed(key, failures, until, text))
        self._log.error("spawn_failed", agent=key.agent, session=key.session, code=code, error=text, hint=hint,
                        failures=failures, retry_s=wait_s)  # fmt: skip
        self._hooks.wake_at(session, until)

    async def _make_room(self) -> None:
        """Somebody waits and the cap is reached: stop the container that has been idle longest, if any is."""
        alive = [slot for slot in self._slots.values() if not slot.exited.is_set()]
        # One that does not end although it was killed is no reason to let everybody else wait for it.
        if any(slot.phase is Phase.STOPPING and not slot.overdue for slot in alive):
            return
        running = [slot for slot in alive if slot.phase is Phase.RUNNING]
        for slot in sorted(running, key=lambda item: item.session.last_activity):
            idle = False
            with anyio.move_on_after(self._timings.look_s):  # its files may be held; others wait for this loop
                idle = await self._hooks.is_idle(slot.session)
            if idle:
                self._log.info("container_evicted", agent=slot.session.key.agent, session=slot.session.key.session)
                self.begin_end(slot.session.key, "evicted", graceful=True, incarnation=slot.incarnation)
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
            except Exception:  # noqa: BLE001 - an answer that is none is no exit
                self._log.error("wait_raised", container=slot.container_id, exc_info=True)
            await anyio.sleep(self._timings.probe_s)
        slot.exit_code = exit_.code
        slot.exited.set()
        self._changed.set()
        await self._ended(slot, exit_)

    async def _ended(self, slot: Slot, exit_: Exit) -> None:
        key = slot.session.key
        ended_at = self._clock.now_ms()  # recorded only once all that the exit entails is done
        reason = slot.reason or ("exited" if exit_.code == 0 else "crashed")
        by_itself = slot.reason is None
        slot.phase = Phase.STOPPING
        log = self._log.bind(agent=key.agent, session=key.session, incarnation=slot.incarnation)
        log.info("container_exited", reason=reason, exit_code=exit_.code, out_of_memory=exit_.out_of_memory)
        wait_s = self._timings.retry_s
        while True:
            try:
                claimed = await self._hooks.on_exit(slot.session, slot.incarnation, reason, exit_)
                break
            except ClawbusError as error:
                log.warning("exit_not_settled", code=error.code, error=str(error), hint=error.hint, retry_s=wait_s)
            except Exception:  # not settled is not settled; nothing may follow before it is
                log.exception("exit_raised", retry_s=wait_s)
            await anyio.sleep(wait_s)
            wait_s = min(wait_s * 2, self._timings.retry_max_s)
        await self._remove(slot)
        await self._record(lambda registry: registry.end_incarnation(slot.incarnation, ended_at, exit_.code, reason))
        await self._judge_start(slot, exit_, failed=by_itself and not claimed)
        self._release(slot)
        self._hooks.after_exit(slot.session)

    async def _judge_start(self, slot: Slot, exit_: Exit, *, failed: bool) -> None:
        """An incarnation that ended by itself without touching a message did not really start: back off."""
        key = slot.session.key
        if failed and self._clock.now_ms() - slot.spawned_at < self._timings.healthy_s * 1000:
            text = f"the container ended by itself (exit code {exit_.code}) before it claimed anything"
            hint = "Read the end of its log: `clawbus session show`."
            await self._back_off(slot.session, SpawnError.code, text, hint, self._config.spawn_backoff_max_s)
        else:
            await self._record(lambda registry: registry.spawn_recovered(key))

    async def _remove(self, slot: Slot) -> None:
        if slot.container_id is None:
            return
        try:
            await self._runtime.remove(slot.container_id)
        except ClawbusError as error:
            self._log.warning("container_not_removed", container=slot.container_id, code=error.code, error=str(error))
        except Exception:  # noqa: BLE001 - litter, not a fault: the next spawn of its name clears it
            self._log.error("remove_raised", container=slot.container_id, exc_info=True)

    async def _terminate(self, slot: Slot, graceful: bool) -> None:
        """Signal, escalate, and go on until the exit is confirmed."""
        while slot.container_id is None and not slot.done.is_set():
            with anyio.move_on_after(0.1):  # still starting: there is nothing to signal yet
                await slot.done.wait()
        # While the runtime is away nothing can be sent; that is no reason to skip the grace.
        while graceful and not slot.forced and not slot.exited.is_set():
            if await self._signal(slot, self._runtime.stop):
                with anyio.move_on_after(self._config.stop_grace_s):
                    await slot.exited.wait()
                break
        slot.forced = True
        while not slot.exited.is_set() and not slot.done.is_set():
            await self._signal(slot, self._runtime.kill)
            with anyio.move_on_after(self._config.kill_confirm_s) as scope:
                await slot.exited.wait()
            if scope.cancelled_caught:
                slot.overdue = True
                self._changed.set()
                self._log.error("exit_not_confirmed", agent=slot.session.key.agent, session=slot.session.key.session,
                                container=slot.container_id)  # fmt: skip

    async def _signal(self, slot: Slot, send: Callable[[str], Awaitable[None]]) -> bool:
        if slot.container_id is None:
            return False
        try:
            await send(slot.container_id)
        except RuntimeUnavailableError as error:
            self._set_unavailable(error)
        except Exception:  # noqa: BLE001 - the signal is sent again until the exit is confirmed
            self._log.error("signal_raised", container=slot.container_id, exc_info=True)
        else:
            return True
        await anyio.sleep(self._timings.retry_s)
        return False

    async def _record(self, operation: Callable[[Registry], T]) -> T:
        """Ask central.db until it answers: a full disk must delay an exit's record, not lose it."""
        wait_s = self._timings.retry_s
        while True:
            try:
                return await self._sessions.central(operation)
            except ClawbusError as error:
                self._log.warning("registry_not_written", error=str(error), hint=error.hint, retry_s=wait_s)
            except Exception:  # noqa: BLE001 - the slot depends on this; it may not end with an error
                self._log.error("registry_raised", retry_s=wait_s, exc_info=True)
            await anyio.sleep(wait_s)
            wait_s = min(wait_s * 2, self._timings.retry_max_s)

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


def _nothing() -> None:
    """Takes its turn among the operations on a session's files."""
