"""Compares the runtime's listing with the slots, at every event of the runtime and every few seconds while the daemon runs.

Others may create, start or change a container at any time. A container without a slot is ended, and so is a second one of a
session; a restart policy is removed. It never ends a container that a slot supervises: `terminator.py` notices when a
supervised container was restarted.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from daemon.core.errors import RuntimeUnavailableError
from daemon.core.session_key import SessionKey
from daemon.engine.supervisor.adoption import Adoption
from daemon.engine.supervisor.state import SupervisorState
from daemon.engine.supervisor.terminator import Terminator
from daemon.runtimes.protocol import Running
from schema.errors import ClawbusError


class Reconciler:
    """Runs the comparison in a loop, and once for a single session before its container is ended."""

    def __init__(self, state: SupervisorState, terminator: Terminator, adoption: Adoption) -> None:
        self._state = state
        self._terminator = terminator
        self._adoption = adoption
        self._log = state.log

    async def run(self) -> None:
        """Compare until cancelled. No error ends the loop."""
        timings = self._state.timings
        while True:
            with anyio.move_on_after(timings.reconcile_s):
                await self._event()
                await anyio.sleep(timings.settle_s)  # events come in bursts: wait for all of them
            try:
                await self.reconcile()
            except RuntimeUnavailableError as error:
                self._state.set_unavailable(error)
            except Exception:  # noqa: BLE001 - the next comparison may succeed
                self._log.error("reconcile_raised", exc_info=True)

    async def reconcile(self) -> None:
        """Compare once. Raise RuntimeUnavailableError."""
        if not self._state.accepting or self._state.unavailable is not None:
            return  # adoption will do it
        listed = await self._state.runtime.list_running()
        for item in listed:
            if item.restarts:
                await self._state.runtime.forbid_restart(item.container_id)
        await self._end_unsupervised(listed)
        await self._state.check_images()

    async def look_at(self, key: SessionKey) -> None:
        """Find an unsupervised container of this session, so that it can be ended. Never raises.

        Before adoption is done, this runs the adoption of all sessions; afterwards no other session is touched.
        """
        if not self._state.accepting:
            await self._adoption.adopt()
            return
        try:
            listed = await self._state.runtime.list_running()
            await self._end_unsupervised([item for item in listed if (item.agent, item.session) == key])
        except RuntimeUnavailableError as error:
            self._state.set_unavailable(error)  # so that the caller does not conclude that there is no container
        except ClawbusError as error:
            self._log.warning("reconcile_failed", agent=key.agent, session=key.session, error=str(error))

    async def _end_unsupervised(self, listed: Iterable[Running]) -> None:
        suspects = [item for item in listed if not self._is_supervised(item)]
        if not suspects:
            return
        async with self._adoption.lock:
            # The listing is older than the lock: list again, because a container may have ended since.
            still = {item.container_id for item in await self._state.runtime.list_running()}
            for item in suspects:
                if item.container_id in still and not self._is_supervised(item):
                    await self._adoption.adopt_stray(item)

    def _is_supervised(self, item: Running) -> bool:
        slot = self._state.slots.get(SessionKey(item.agent, item.session))
        if slot is None:
            return False
        return slot.container_id == item.container_id or (
            slot.container_id is None and slot.incarnation == item.incarnation
        )

    async def _event(self) -> None:
        try:
            await self._state.runtime.changed()
        except ClawbusError:
            await anyio.sleep_forever()
