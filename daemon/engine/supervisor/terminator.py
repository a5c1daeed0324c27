"""Ends containers: signal, escalate, wait for the confirmed exit, then settle it.

Nothing that follows an exit (journal recovery, resetting claims, the next spawn) happens before `runtime.wait` has returned.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.to_thread

from daemon.core.errors import NotConfirmedError, RuntimeUnavailableError, SpawnError
from daemon.core.events import ContainerExited, ExitSettled
from daemon.core.lifecycle import UNCLAIMED
from daemon.core.session_key import SessionKey
from daemon.engine.supervisor.last_words import last_words
from daemon.engine.supervisor.slots import Phase, Slot
from daemon.engine.supervisor.state import SupervisorState
from daemon.engine.troubles import END
from daemon.runtimes.protocol import Exit, Running
from daemon.runtimes.spec import STDERR_LOG
from schema.errors import ClawbusError, StorageError
from schema.layout import CANNOT_START_CODE
from schema.os_faults import typed_host_errors


class Terminator:
    """Watches every container until its exit is confirmed, and ends those that must end."""

    def __init__(self, state: SupervisorState) -> None:
        self._state = state
        self._log = state.log

    def begin_end(self, key: SessionKey, reason: str, *, graceful: bool, incarnation: str | None = None) -> Slot | None:
        """Stop (`graceful`) or kill the session's container in the background. Return its slot, or None if it has none.

        With `incarnation`, leave the container alone if it belongs to another incarnation.
        """
        slot = self._state.slots.get(key)
        if slot is None or self._state.tasks is None or incarnation not in (None, slot.incarnation):
            return slot
        if slot.phase is Phase.EXITED or (slot.phase is Phase.STOPPING and (graceful or slot.forced)):
            return slot
        slot.phase = Phase.STOPPING
        slot.reason = slot.reason or reason
        slot.forced = slot.forced or not graceful
        self._state.tasks.start_soon(self._terminate, slot, graceful, name=f"end {key}")
        return slot

    def end_extra(self, found: Running) -> None:
        """End, in the background, a second container of a session that already has one: both would write the same file."""
        if self._state.tasks is None or found.container_id in self._state.extras:
            return
        self._log.warning("container_extra", agent=found.agent, session=found.session, container=found.container_id)
        self._state.extras[found.container_id] = found
        self._state.tasks.start_soon(self._end_extra, found, name=f"end extra {found.agent}/{found.session}")

    async def _end_extra(self, found: Running) -> None:
        runtime, send = self._state.runtime, self._state.runtime.stop
        while True:
            try:
                await send(found.container_id)
                with anyio.move_on_after(self._state.config.stop_grace_s):
                    await runtime.wait(found.container_id)
                    if await self._is_removed(found.container_id):
                        break
                send = runtime.kill
                continue
            except RuntimeUnavailableError as error:
                self._state.set_unavailable(error)
            except Exception:  # noqa: BLE001 - retry until the container has ended
                self._log.error("end_extra_raised", container=found.container_id, exc_info=True)
            await anyio.sleep(self._state.timings.probe_s)
        del self._state.extras[found.container_id]
        self._state.changed.set()

    def watch(self, slot: Slot) -> None:
        """Watch the slot's container from now on, and settle its exit."""
        assert self._state.tasks is not None
        self._state.tasks.start_soon(self._watch, slot, name=f"wait {slot.session.key}")

    async def _watch(self, slot: Slot) -> None:
        exit_ = await self._final_exit(slot)
        slot.exit_code = exit_.code
        slot.exited.set()
        self._state.sessions.troubles.healed(slot.session.key, END)
        self._state.changed.set()
        await self._ended(slot, exit_)

    async def _final_exit(self, slot: Slot) -> Exit:
        """Wait for the slot's container to exit, and until it can no longer be restarted. Return its first exit.

        Another program may restart a container. Settling an exit writes to the session's files, so it must wait until the
        container is removed: the runtime then refuses either the removal or the restart.
        """
        first: Exit | None = None
        while slot.container_id is not None:
            try:
                exit_ = await self._state.runtime.wait(slot.container_id, slot.started_at)
                first = first or exit_
                if not exit_.restarted and await self._is_removed(slot.container_id):
                    return first
                await self._restarted(slot)
                continue
            except RuntimeUnavailableError as error:
                self._state.set_unavailable(error)
            except Exception:  # noqa: BLE001 - an unexpected error does not confirm the exit
                self._log.error("wait_raised", container=slot.container_id, exc_info=True)
            await anyio.sleep(self._state.timings.probe_s)
        return Exit(None)

    async def _is_removed(self, container_id: str) -> bool:
        """Remove an exited container. Return False if it runs again. Raise RuntimeUnavailableError when that is unknown.

        A container that the runtime cannot remove (a busy disk) is accepted as long as it does not run.
        """
        runtime = self._state.runtime
        try:
            await runtime.remove(container_id)
        except NotConfirmedError:
            return False
        except Exception as error:  # noqa: BLE001 - harmless: the session's next spawn removes it
            listed = await runtime.list_running()
            if any(one.container_id == container_id for one in listed):
                return False
            self._log.warning("container_not_removed", container=container_id, error=str(error))
        return True

    async def _restarted(self, slot: Slot) -> None:
        """End a container that another program restarted: nothing supervises it now. The next spawn replaces it."""
        slot.started_at = None
        slot.reason = slot.reason or "restarted"
        key = slot.session.key
        self._log.warning("container_restarted", agent=key.agent, session=key.session, incarnation=slot.incarnation,
                          container=slot.container_id)  # fmt: skip
        if slot.phase is Phase.STOPPING:
            await self._signal(slot, self._state.runtime.kill)
        else:
            self.begin_end(key, slot.reason, graceful=True, incarnation=slot.incarnation)

    async def _ended(self, slot: Slot, exit_: Exit) -> None:
        key = slot.session.key
        ended_at = self._state.clock.now_ms()  # recorded only once the exit has been settled
        reason = slot.reason or ("exited" if exit_.code == 0 else "crashed")
        by_itself = slot.reason is None
        slot.phase = Phase.EXITED
        log = self._log.bind(agent=key.agent, session=key.session, incarnation=slot.incarnation)
        self._state.events.publish(
            ContainerExited(ended_at, key.agent, key.session, slot.incarnation, reason, exit_.code, exit_.out_of_memory)
        )
        wait_s = self._state.timings.retry_s
        while True:
            try:
                claimed = await self._state.keeper.after_exit(slot.session, slot.incarnation, reason, exit_)
                break
            except ClawbusError as error:
                slot.unsettled = error
                log.warning("exit_not_settled", code=error.code, error=str(error), hint=error.hint, retry_s=wait_s)
            except Exception:  # nothing may follow before the exit is settled: retry
                log.exception("exit_raised", retry_s=wait_s)
            await anyio.sleep(wait_s)
            wait_s = min(wait_s * 2, self._state.timings.retry_max_s)
        self._state.events.publish(
            ExitSettled(self._state.clock.now_ms(), key.agent, key.session, slot.incarnation, reason)
        )
        await self._state.record(
            lambda registry: registry.end_incarnation(slot.incarnation, ended_at, exit_.code, reason)
        )
        await self._judge_start(slot, exit_, by_itself=by_itself, claimed=claimed)
        self._state.release(slot)
        self._state.schedule.now(slot.session.key)

    async def _judge_start(self, slot: Slot, exit_: Exit, *, by_itself: bool, claimed: bool) -> None:
        """Back off when a young incarnation exited by itself without claiming a message: it did not really start.

        Do the same when a young incarnation could not start the agent's program, and when one of any age was ended because it
        took no message in all its life. Another older one did start, so replace it at once.
        """
        key = slot.session.key
        cannot = exit_.code == CANNOT_START_CODE
        young = self._state.clock.now_ms() - slot.spawned_at < self._state.timings.healthy_s * 1000
        hung = slot.reason == UNCLAIMED and not claimed
        if hung or (by_itself and young and (cannot or not claimed)):
            text = f"the container exited (exit code {exit_.code}) before it claimed anything"
            if hung:
                text = "the container ran, took none of its messages, and was ended for that"
            hint = "Read the end of the container's log: `clawbus session show`."
            if cannot:
                text = f"a fresh container cannot start the agent's program (exit code {exit_.code})"
                hint += f" If it has no room for a process: raise agents.{key.agent}.pids or memory_bytes, or end other programs of this machine."
            said = await _last_words(slot)
            text += f"; its runner said: {said}" if said is not None else ""
            limit_s = self._state.config.spawn_backoff_max_s
            await self._state.back_off(slot.session, SpawnError(text, hint=hint), limit_s, started=True)
        else:
            await self._state.record(lambda registry: registry.spawn_recovered(key))

    async def _terminate(self, slot: Slot, graceful: bool) -> None:
        """Signal the container, escalate, and repeat until its exit is confirmed."""
        while slot.container_id is None and not slot.done.is_set():
            with anyio.move_on_after(0.1):  # the container is still starting, so there is nothing to signal yet
                await slot.done.wait()
        # While the runtime is unavailable no signal can be sent, but the container still gets its grace period.
        while graceful and not slot.forced and not slot.exited.is_set():
            if await self._signal(slot, self._state.runtime.stop):
                with anyio.move_on_after(self._state.config.stop_grace_s):
                    await slot.exited.wait()
                break
        slot.forced = True
        while not slot.exited.is_set() and not slot.done.is_set():
            await self._signal(slot, self._state.runtime.kill)
            with anyio.move_on_after(self._state.config.kill_confirm_s) as scope:
                await slot.exited.wait()
            if scope.cancelled_caught:
                self._tell_overdue(slot)

    def _tell_overdue(self, slot: Slot) -> None:
        """Log, and have `doctor` say, that a killed container does not end. While the runtime is away, that alone is said."""
        key = slot.session.key
        slot.overdue = True
        self._state.changed.set()
        self._log.error("exit_not_confirmed", agent=key.agent, session=key.session, container=slot.container_id)
        if self._state.unavailable is None:
            why = f" {slot.refusal}" if slot.refusal is not None else ""
            error = NotConfirmedError(f"container {slot.container_id} was killed and still runs.{why}")
            self._state.sessions.troubles.failed(key, END, error, self._state.clock.now_ms())

    async def _signal(self, slot: Slot, send: Callable[[str], Awaitable[None]]) -> bool:
        if slot.container_id is None:
            return False
        try:
            await send(slot.container_id)
        except RuntimeUnavailableError as error:
            slot.refusal = error
            self._state.set_unavailable(error)
        except Exception:  # noqa: BLE001 - the signal is sent again until the exit is confirmed
            self._log.error("signal_raised", container=slot.container_id, exc_info=True)
        else:
            slot.refusal = None
            return True
        await anyio.sleep(self._state.timings.retry_s)
        return False


async def _last_words(slot: Slot) -> str | None:
    """Return why the slot's runner says it ended, or None if it says nothing or its log cannot be read now."""
    with suppress(StorageError), typed_host_errors("a runner's log cannot be read"):
        return await anyio.to_thread.run_sync(last_words, slot.session.files.folder.logs / STDERR_LOG)
    return None
