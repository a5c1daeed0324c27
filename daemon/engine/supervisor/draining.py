"""Stops a container without interrupting its turn: the container claims nothing more, finishes its turn, and is then stopped.

Nothing here ends a turn. The usual time limits (`timeout_s`, `sweep.ceiling_s`, `sweep.claim_stuck_s`) still do.
"""

from __future__ import annotations

import anyio

from daemon.engine.supervisor.slots import Phase, Slot
from daemon.engine.supervisor.state import SupervisorState
from daemon.engine.supervisor.terminator import Terminator
from schema.errors import ClawbusError


class Draining:
    """Asks containers to claim nothing more, and stops each once it has no open claim."""

    def __init__(self, state: SupervisorState, terminator: Terminator) -> None:
        self._state = state
        self._terminator = terminator

    def begin(self, slot: Slot, reason: str) -> None:
        """Start a background task that stops the container, for this reason, once it has no open claim."""
        slot.draining = True
        self._state.begin(self._drain, slot, reason, name=f"drain {slot.session.key}")

    def begin_all(self, agent: str, reason: str) -> None:
        """Stop the agent's running containers, each once it has no open claim. Safe to repeat."""
        for slot in tuple(self._state.slots.values()):
            if slot.session.key.agent == agent and slot.phase is Phase.RUNNING and not slot.draining:
                self.begin(slot, reason)

    async def _drain(self, slot: Slot, reason: str) -> None:
        key, logged = slot.session.key, False
        log = self._state.log.bind(agent=key.agent, session=key.session, incarnation=slot.incarnation)
        while slot.phase is Phase.RUNNING and slot.session.quarantined is None:
            if await self._has_no_claim(slot):
                self._terminator.begin_end(key, reason, graceful=True, incarnation=slot.incarnation)
                return
            if not logged:
                log.info("container_draining", reason=reason)
                logged = True
            with anyio.move_on_after(self._state.timings.drain_s):
                await slot.exited.wait()

    async def _has_no_claim(self, slot: Slot) -> bool:
        """Ask the container to stop claiming. Return whether it has no open claim, or False when a file cannot be read now."""
        try:
            return await self._state.keeper.drain(slot.session, slot.incarnation)
        except ClawbusError:
            return False
        except Exception:  # a bug in one check must not end the daemon; try again
            key = slot.session.key
            self._state.log.exception("drain_raised", agent=key.agent, session=key.session)
            return False
