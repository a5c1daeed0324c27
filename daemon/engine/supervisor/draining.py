"""Replaces a container without interrupting its turn: it stops claiming, finishes its turn and is then stopped.

The turn is bounded by the usual limits (timeout, ceiling, claim-stuck); nothing here ends a turn.
"""

from __future__ import annotations

import anyio

from daemon.engine.supervisor.slots import Phase, Slot
from daemon.engine.supervisor.state import SupervisorState
from daemon.engine.supervisor.terminator import Terminator
from schema.errors import ClawbusError


class Draining:
    """Watches each container that is to be replaced until it works on nothing."""

    def __init__(self, state: SupervisorState, terminator: Terminator) -> None:
        self._state = state
        self._terminator = terminator

    def begin(self, slot: Slot, reason: str) -> None:
        """Stop the container with this reason as soon as it works on nothing, in the background."""
        self._state.begin(self._drain, slot, reason, name=f"drain {slot.session.key}")

    def begin_all(self, agent: str, reason: str) -> None:
        """Stop the agent's containers, each as soon as it works on nothing. Nothing more is claimed."""
        for slot in tuple(self._state.slots.values()):
            if slot.session.key.agent == agent and slot.phase is Phase.RUNNING and not slot.draining:
                slot.draining = True
                self.begin(slot, reason)

    async def _drain(self, slot: Slot, reason: str) -> None:
        key, told = slot.session.key, False
        log = self._state.log.bind(agent=key.agent, session=key.session, incarnation=slot.incarnation)
        while slot.phase is Phase.RUNNING and slot.session.quarantined is None:
            if await self._is_at_rest(slot):
                self._terminator.begin_end(key, reason, graceful=True, incarnation=slot.incarnation)
                return
            if not told:
                log.info("container_draining", reason=reason)
                told = True
            with anyio.move_on_after(self._state.timings.drain_s):
                await slot.exited.wait()

    async def _is_at_rest(self, slot: Slot) -> bool:
        """Return whether the container works on nothing. False when a file cannot be read now; the caller asks again."""
        try:
            return await self._state.keeper.drain(slot.session, slot.incarnation)
        except ClawbusError:
            return False
        except Exception:  # a bug in one check must not end the daemon; try again
            self._state.log.exception("drain_raised", session=slot.session.key.session)
            return False
