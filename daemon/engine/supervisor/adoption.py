"""Adopts the containers that already run when the daemon starts, or when an unavailable runtime answers again.

The runtime's listing says what runs; central.db only says what the daemon recorded. A restart of the daemon alone ends no
container. Adoption ends one that is not in central.db, and one whose session is quarantined or whose agent is gone from the
configuration. It also ends one whose spec is outdated, if a new one could be started.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from daemon.core.errors import RuntimeUnavailableError, UnknownAgentError
from daemon.core.events import ContainerAdopted
from daemon.core.session_key import SessionKey
from daemon.engine.supervisor.draining import Draining
from daemon.engine.supervisor.slots import Phase, Slot
from daemon.engine.supervisor.state import SupervisorState
from daemon.engine.supervisor.terminator import Terminator
from daemon.runtimes.protocol import Running
from daemon.store.incarnations import IncarnationRow
from schema.errors import ClawbusError


class Adoption:
    """Creates slots for running containers. It may run again at any time: it leaves a container with a slot alone.

    Hold `lock` while you create slots from a listing: two callers at once would both watch the same container.
    """

    def __init__(self, state: SupervisorState, terminator: Terminator) -> None:
        self._state = state
        self._log = state.log
        self._terminator = terminator
        self._draining = Draining(state, terminator)
        self.lock = anyio.Lock()

    async def adopt(self) -> bool:
        """Give every incarnation that central.db records as live a slot, and end the containers that it does not record.

        A recorded container is kept if its fingerprint is current, and otherwise ended after its turn. A recorded container
        that is gone is settled like any exit. Return False when the registry or the runtime cannot be read, or when the
        slot of a recorded incarnation's session belongs to another one. The caller then tries again.
        """
        async with self.lock:
            try:
                agreed = await self._adopt()
            except RuntimeUnavailableError as error:
                self._state.set_unavailable(error)
                return False
            except ClawbusError as error:
                # The registry failed, not the runtime. The caller tries again.
                self._state.sessions.storage.failed(error)
                self._log.warning("adoption_postponed", code=error.code, error=str(error), hint=error.hint)
                return False
        self._state.set_available()
        self._state.accepting = self._state.accepting or agreed
        return agreed

    async def _adopt(self) -> bool:
        """Do the work of `adopt`. Return whether every incarnation recorded as live now has a slot of its own."""
        await self._state.engine.check(
            await self._state.sessions.central(lambda registry: registry.live_incarnations())
        )
        listed = {item.container_id: item for item in await self._state.runtime.list_running()}
        agreed = True
        for row in await self._state.sessions.central(lambda registry: registry.live_incarnations()):
            slot = self._state.slots.get(row.key)
            if slot is not None:
                # This slot is starting, running or ending, and other code handles its container: leave it alone.
                agreed = agreed and slot.incarnation == row.id
                continue
            found = _container_of(row, listed.values())
            if found is None and row.container_id is None:
                # The previous daemon died during a spawn: find out whether the container that it asked for has started.
                found = await self._state.runtime.find_or_cancel_spawn(row.id)
            await self._adopt_recorded(row, found)
        supervised = {slot.container_id for slot in self._state.slots.values()}
        starting = {slot.incarnation for slot in self._state.slots.values() if slot.container_id is None}
        strays = [
            item for item in listed.values() if item.container_id not in supervised and item.incarnation not in starting
        ]
        # The adoptions above may have taken long. A listed container may have ended meanwhile, and its exit been settled.
        running = {item.container_id for item in await self._state.runtime.list_running()} if strays else set[str]()
        for item in strays:
            if item.container_id in running:
                await self.adopt_stray(item)
        return agreed

    async def _adopt_recorded(self, row: IncarnationRow, found: Running | None) -> None:
        session = await self._state.sessions.create(row.key)
        spawned = found.started_at if found is not None else row.created_at
        slot = Slot(session, row.id, spawned, Phase.RUNNING, found.container_id if found else row.container_id)
        slot.started_at = row.started_at if row.started_at is not None or found is None else found.started_at
        self._state.slots[row.key] = slot
        log = self._log.bind(agent=row.key.agent, session=row.key.session, incarnation=row.id)
        if found is None:
            log.warning("incarnation_gone", container=row.container_id)
            if row.container_id is None:
                slot.reason = "never_started"  # the previous daemon died first: the agent has not failed to start
        else:
            if row.container_id is None:
                self._state.begin_record_start(slot, found)
            self._state.events.publish(
                ContainerAdopted(
                    self._state.clock.now_ms(), row.key.agent, row.key.session, row.id, found.container_id,
                    row.created_at, found.started_at,
                )
            )  # fmt: skip
        self._terminator.watch(slot)
        if found is None:
            return
        if session.quarantined is not None:
            self._terminator.begin_end(row.key, "quarantine", graceful=False)
        elif not await self._is_wanted(row.key, found):
            log.warning("container_outdated", container=found.container_id)
            self._draining.begin(slot, "outdated")

    async def adopt_stray(self, found: Running) -> None:
        """End a container of ours that central.db does not record. Hold its session's slot until then, so that no other one starts.

        The caller must hold the lock.
        """
        key = SessionKey(found.agent, found.session)
        if key in self._state.slots:
            self._terminator.end_extra(found)
            return
        self._log.warning("container_stray", agent=key.agent, session=key.session, container=found.container_id)
        try:
            session = await self._state.sessions.create(key)
        except ClawbusError as error:
            # Do not raise: other sessions must be adopted, too. No slot is needed: `wake` starts nothing beside one of `extras`.
            self._log.warning("stray_session_unusable", agent=key.agent, session=key.session, error=str(error))
            self._terminator.end_extra(found)
            return
        if key in self._state.slots:  # a spawn began in the meantime
            self._terminator.end_extra(found)
            return
        slot = Slot(session, found.incarnation, found.started_at, Phase.RUNNING, found.container_id)
        self._state.slots[key] = slot
        self._terminator.watch(slot)
        self._terminator.begin_end(key, "stray", graceful=True)

    async def _is_wanted(self, key: SessionKey, found: Running) -> bool:
        """Return whether to keep a running container.

        False if its agent is no longer configured, or if its spec is known to be outdated and a new one could be started.
        """
        try:
            spec = await self._state.spec_threads.make(key, found.incarnation)
        except UnknownAgentError:
            return False
        except Exception as error:  # noqa: BLE001 - a full disk or a bug in `make` says nothing about the container
            self._log.warning("fingerprint_unknown", agent=key.agent, session=key.session, error=str(error))
            return True
        return spec.fingerprint == found.fingerprint or not await self._could_replace(key, found)

    async def _could_replace(self, key: SessionKey, found: Running) -> bool:
        """Return whether the runtime could start a container now. If not, an outdated container is better than none."""
        try:
            await self._state.runtime.check()
        except ClawbusError as error:
            why = str(error)
            self._log.warning(
                "container_outdated_kept", agent=key.agent, session=key.session, container=found.container_id, error=why
            )
            return False
        return True


def _container_of(row: IncarnationRow, listed: Iterable[Running]) -> Running | None:
    """Return the listed container of this incarnation, or None. One that somebody recreated with its labels does not count."""
    for item in listed:
        if item.incarnation == row.id and row.container_id in {None, item.container_id}:
            return item
    return None
