"""Starts one container in a slot that has been assigned, and gives the slot up when that fails.

When the runtime stops answering in between, nobody knows whether the container exists: the slot is kept until it is known.
"""

from __future__ import annotations

from functools import partial

import anyio

from daemon.core.errors import AgentFileError, ImageError, RuntimeUnavailableError, SpawnError
from daemon.core.events import ContainerSpawned
from daemon.engine.supervisor.draining import Draining
from daemon.engine.supervisor.slots import Phase, Slot
from daemon.engine.supervisor.state import SupervisorState
from daemon.engine.supervisor.terminator import Terminator
from daemon.runtimes.protocol import Running
from daemon.store.incarnations import IncarnationRow
from schema.errors import ClawbusError, FileBusyError, StorageError
from schema.os_faults import as_host_error


class Spawner:
    """Starts containers. No error of the runtime, of the files or of central.db escapes."""

    def __init__(self, state: SupervisorState, terminator: Terminator, draining: Draining) -> None:
        self._state = state
        self._terminator = terminator
        self._draining = draining

    async def spawn(self, slot: Slot) -> None:
        """Start the slot's container, or give the slot up. No error escapes."""
        key = slot.session.key
        try:
            running = await self._try_spawn(slot)
        except RuntimeUnavailableError as error:
            self._state.set_unavailable(error)
            running = await self._find_out(slot)
            if running is None:
                await self._give_up(slot, "never_started", error)
        except ClawbusError as error:
            running = None
            await self._give_up(slot, "spawn_failed", error)
        except Exception as error:  # a bug in one spawn must not end the daemon; log it and back off
            running = None
            refusal: ClawbusError | None = as_host_error(error, f"the container of {key} cannot be started")
            if refusal is None:
                self._state.log.exception("spawn_raised", agent=key.agent, session=key.session)
                refusal = SpawnError(f"{type(error).__name__}: {error}")
            await self._give_up(slot, "spawn_failed", refusal)
        if running is not None:
            await self._running(slot, running)

    async def _try_spawn(self, slot: Slot) -> Running | None:
        """Start a container, or return None and give the slot up when none is needed. Raise as `spawn` does."""
        key, now = slot.session.key, slot.spawned_at
        spec = await self._state.spec_threads.make(key, slot.incarnation)
        # A sweep that found nothing running may be recovering a journal. It holds the session's lock, so it is done when
        # this call begins, and the next sweep sees the slot.
        await slot.session.call(partial(self._state.specs.prepare, key, slot.session.files))
        if slot.session.quarantined is not None:
            await self._give_up(slot, "quarantine", None)
            return None
        row = IncarnationRow(slot.incarnation, key, self._state.runtime.name, spec.fingerprint, None, now)
        if not await self._state.sessions.central(lambda registry: registry.begin_incarnation(row)):
            # The registry has an incarnation that we do not know. List the running containers before starting another.
            self._state.log.error("incarnation_conflict", agent=key.agent, session=key.session)
            self._state.accepting = False
            await self._give_up(slot, "conflict", None)
            return None
        image = (spec.image, bool(spec.runner))
        try:
            running = await self._state.runtime.spawn(spec)
        except ImageError as error:
            self._state.image_failed(image, str(error))
            raise
        self._state.bad_images.pop(image, None)
        return running

    async def _running(self, slot: Slot, running: Running) -> None:
        key = slot.session.key
        asked_at = slot.spawned_at
        slot.container_id, slot.started_at = running.container_id, running.started_at
        slot.spawned_at = min(slot.spawned_at, running.started_at)
        if slot.phase is Phase.STARTING:
            slot.phase = Phase.RUNNING
        self._state.events.publish(
            ContainerSpawned(
                self._state.clock.now_ms(), key.agent, key.session, slot.incarnation, running.container_id,
                self._state.runtime.name, asked_at,
            )
        )  # fmt: skip
        self._terminator.watch(slot)
        self._state.begin_record_start(slot, running)
        if self._state.blocked_until(key.agent) is not None:  # used up while it started
            self._draining.begin_all(key.agent, "budget")

    async def _find_out(self, slot: Slot) -> Running | None:
        """Wait until the runtime, which became unavailable during a spawn, reports whether the container exists.

        The session keeps its slot meanwhile.
        """
        while True:
            try:
                found = await self._state.runtime.find_or_cancel_spawn(slot.incarnation)
            except RuntimeUnavailableError:
                pass
            except Exception:  # any failure means that it is still unknown
                self._state.log.exception("listing_raised")
            else:
                self._state.set_available()
                return found
            await anyio.sleep(self._state.timings.probe_s)

    async def _give_up(self, slot: Slot, reason: str, error: ClawbusError | None) -> None:
        now = self._state.clock.now_ms()
        await self._state.record(lambda registry: registry.end_incarnation(slot.incarnation, now, None, reason))
        if error is not None:
            # A `soft` error is not the session's fault: retry soon, however often it has failed.
            soft = isinstance(
                error, AgentFileError | ImageError | RuntimeUnavailableError | StorageError | FileBusyError
            )
            self._state.sessions.storage.failed(error)
            limit = self._state.timings.soft_backoff_max_s if soft else self._state.config.spawn_backoff_max_s
            await self._state.back_off(slot.session, error, limit, started=False)
        self._state.release(slot)
        self._state.schedule.now(slot.session.key)
