"""Adoption: what runs already when the daemon starts, or when a runtime that was away answers again.

The runtime's listing is the truth about what runs; central.db's record says what we believe about it. A daemon restart kills
no agent: only what is of another spec (when one of that could be started), of no known session or in quarantine is ended.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from daemon.core.errors import RuntimeUnavailableError, UnknownAgentError
from daemon.core.events import ContainerAdopted
from daemon.engine.supervisor.draining import Draining
from daemon.engine.supervisor.endings import Endings
from daemon.engine.supervisor.fleet import Fleet
from daemon.engine.supervisor.slots import Phase, Slot
from daemon.runtimes.protocol import Running
from daemon.store.registry import IncarnationRow, SessionKey
from schema.errors import ClawbusError


class Adoption:
    """Makes slots of what runs. May be done again at any time: what has a slot is left alone.

    `lock` is held while slots are made from a listing: two at once would watch one container twice.
    """

    def __init__(self, fleet: Fleet, endings: Endings) -> None:
        self._fleet = fleet
        self._log = fleet.log
        self._endings = endings
        self._draining = Draining(fleet, endings)
        self.lock = anyio.Lock()

    async def adopt(self) -> bool:
        """Make our record and the runtime's listing agree. False when one of them does not answer; it is tried again.

        Containers of a live incarnation whose fingerprint is still the wanted one are kept, others end after their turn;
        incarnations whose container is gone go through the exit path.
        """
        async with self.lock:
            try:
                agreed = await self._adopt()
            except RuntimeUnavailableError as error:
                self._fleet.set_unavailable(error)
                return False
            except ClawbusError as error:
                # The registry's trouble, not the runtime's. Nothing is adopted now; it is tried again.
                self._fleet.sessions.storage.failed(error)
                self._log.warning("adoption_postponed", code=error.code, error=str(error), hint=error.hint)
                return False
        self._fleet.set_available()
        self._fleet.accepting = self._fleet.accepting or agreed
        return agreed

    async def _adopt(self) -> bool:
        """Whether every live incarnation on record has its own slot now."""
        await self._fleet.engine.check(
            await self._fleet.sessions.central(lambda registry: registry.live_incarnations())
        )
        listed = {item.container_id: item for item in await self._fleet.runtime.list_running()}
        agreed = True
        for row in await self._fleet.sessions.central(lambda registry: registry.live_incarnations()):
            slot = self._fleet.slots.get(row.key)
            if slot is not None:
                # Starting, running or ending: whoever does that looks after its container. It is never withdrawn here.
                agreed = agreed and slot.incarnation == row.id
                continue
            found = _container_of(row, listed.values())
            if found is None and row.container_id is None:
                # The daemon before us died in its spawn: what it had asked for must not start behind our back.
                found = await self._fleet.runtime.find_started(row.id)
            await self._adopt_recorded(row, found)
        supervised = {slot.container_id for slot in self._fleet.slots.values()}
        starting = {slot.incarnation for slot in self._fleet.slots.values() if slot.container_id is None}
        for item in listed.values():
            if item.container_id not in supervised and item.incarnation not in starting:
                await self.adopt_stray(item)
        return agreed

    async def _adopt_recorded(self, row: IncarnationRow, found: Running | None) -> None:
        session = await self._fleet.sessions.create(row.key)
        spawned = found.started_at if found is not None else row.created_at
        slot = Slot(session, row.id, spawned, Phase.RUNNING, found.container_id if found else row.container_id)
        slot.started_at = row.started_at if row.started_at is not None or found is None else found.started_at
        self._fleet.slots[row.key] = slot
        log = self._log.bind(agent=row.key.agent, session=row.key.session, incarnation=row.id)
        if found is None:
            log.warning("incarnation_gone", container=row.container_id)
            if row.container_id is None:
                slot.reason = "never_started"  # the daemon before us died first: that is no failed start of the agent's
        else:
            if row.container_id is None:
                self._fleet.begin_record_start(slot, found)
            self._fleet.events.publish(
                ContainerAdopted(
                    self._fleet.clock.now_ms(), row.key.agent, row.key.session, row.id, found.container_id,
                    row.created_at, found.started_at,
                )
            )  # fmt: skip
        self._endings.watch(slot)
        if found is None:
            return
        if session.quarantined is not None:
            self._endings.begin_end(row.key, "quarantine", graceful=False)
        elif not await self._is_wanted(row.key, found):
            log.warning("container_outdated", container=found.container_id)
            self._draining.begin(slot, "outdated")

    async def adopt_stray(self, found: Running) -> None:
        """End a container of ours without a record, and let no other one start beside it until then.

        The caller holds the lock.
        """
        key = SessionKey(found.agent, found.session)
        if key in self._fleet.slots:
            self._endings.end_extra(found)
            return
        self._log.warning("container_stray", agent=key.agent, session=key.session, container=found.container_id)
        session = await self._fleet.sessions.create(key)
        if key in self._fleet.slots:  # a start began meanwhile
            self._endings.end_extra(found)
            return
        slot = Slot(session, found.incarnation, found.started_at, Phase.RUNNING, found.container_id)
        self._fleet.slots[key] = slot
        self._endings.watch(slot)
        self._endings.begin_end(key, "stray", graceful=True)

    async def _is_wanted(self, key: SessionKey, found: Running) -> bool:
        """Only a spec that is known to be another one and could be started, or an agent that is gone, ends a working agent."""
        try:
            if self._fleet.specs.make(key, found.incarnation).fingerprint == found.fingerprint:
                return True
        except UnknownAgentError:
            return False
        except Exception as error:  # noqa: BLE001 - a full disk or a bug in making specs says nothing about the container
            self._log.warning("fingerprint_unknown", agent=key.agent, session=key.session, error=str(error))
            return True
        return not await self._could_replace(key, found)

    async def _could_replace(self, key: SessionKey, found: Running) -> bool:
        """Whether the runtime would start another one now: an agent that works is better than none."""
        try:
            await self._fleet.runtime.check()
        except ClawbusError as error:
            why = str(error)
            self._log.warning(
                "container_outdated_kept", agent=key.agent, session=key.session, container=found.container_id, error=why
            )
            return False
        return True


def _container_of(row: IncarnationRow, listed: Iterable[Running]) -> Running | None:
    """Return the recorded container. One that others recreated with its labels is another one."""
    for item in listed:
        if item.incarnation == row.id and row.container_id in {None, item.container_id}:
            return item
    return None
