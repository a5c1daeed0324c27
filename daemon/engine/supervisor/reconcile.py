"""While the daemon runs: compares the runtime's listing with the slots, at every event of the runtime and every few seconds.

A container may be started, made or changed by others at any time. One without a slot is ended, one beside a session's
supervised container, too; a restart policy is taken away. It never ends what a slot supervises: a supervised container that
was restarted is noticed by its own watch (`endings.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from daemon.core.errors import RuntimeUnavailableError
from daemon.engine.supervisor.adoption import Adoption
from daemon.engine.supervisor.endings import Endings
from daemon.engine.supervisor.fleet import Fleet
from daemon.runtimes.protocol import Running
from daemon.store.registry import SessionKey
from schema.errors import ClawbusError


class Reconciler:
    """One loop, and one look at a single session for whoever asks for its end."""

    def __init__(self, fleet: Fleet, endings: Endings, adoption: Adoption) -> None:
        self._fleet = fleet
        self._endings = endings
        self._adoption = adoption
        self._log = fleet.log

    async def run(self) -> None:
        """Compare until cancelled. No failure ends it."""
        timings = self._fleet.timings
        while True:
            with anyio.move_on_after(timings.reconcile_s):
                await self._event()
                await anyio.sleep(timings.settle_s)  # events come in crowds, and so do their causes
            try:
                await self.reconcile()
            except RuntimeUnavailableError as error:
                self._fleet.set_unavailable(error)
            except Exception:  # noqa: BLE001 - the next look may succeed
                self._log.error("reconcile_raised", exc_info=True)

    async def reconcile(self) -> None:
        """One comparison. Raises RuntimeUnavailableError."""
        if not self._fleet.accepting or self._fleet.unavailable is not None:
            return  # adoption does it
        listed = await self._fleet.runtime.list_running()
        for item in listed:
            if item.restarts:
                await self._fleet.runtime.forbid_restart(item.container_id)
        await self._end_unsupervised(listed)
        await self._fleet.check_images()

    async def look_at(self, key: SessionKey) -> None:
        """Adopt an unsupervised container of this session. Never raises; touches no other session."""
        if not self._fleet.accepting:
            await self._adoption.adopt()
            return
        try:
            listed = await self._fleet.runtime.list_running()
            await self._end_unsupervised([item for item in listed if (item.agent, item.session) == key])
        except RuntimeUnavailableError as error:
            self._fleet.set_unavailable(error)  # so that whoever asked does not take silence for "no container"
        except ClawbusError as error:
            self._log.warning("reconcile_failed", agent=key.agent, session=key.session, error=str(error))

    async def _end_unsupervised(self, listed: Iterable[Running]) -> None:
        suspects = [item for item in listed if not self._is_supervised(item)]
        if not suspects:
            return
        async with self._adoption.lock:
            # A listing is older than our answer to it: what ended meanwhile is not there a second time.
            still = {item.container_id for item in await self._fleet.runtime.list_running()}
            for item in suspects:
                if item.container_id in still and not self._is_supervised(item):
                    await self._adoption.adopt_stray(item)

    def _is_supervised(self, item: Running) -> bool:
        slot = self._fleet.slots.get(SessionKey(item.agent, item.session))
        if slot is None:
            return False
        return slot.container_id == item.container_id or (
            slot.container_id is None and slot.incarnation == item.incarnation
        )

    async def _event(self) -> None:
        try:
            await self._fleet.runtime.changed()
        except ClawbusError:
            await anyio.sleep_forever()
