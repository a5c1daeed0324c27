"""Counts containers against the caps, and stops one that may go while a session waits for a container."""

from __future__ import annotations

import anyio

from daemon.engine.supervisor.slots import Phase, Slot
from daemon.engine.supervisor.state import SupervisorState
from daemon.engine.supervisor.terminator import Terminator


class Room:
    """The room that the caps leave: one for all containers, one for each agent that has its own."""

    def __init__(self, state: SupervisorState, terminator: Terminator) -> None:
        self._state = state
        self._terminator = terminator

    def is_left(self) -> bool:
        """Return whether one more container may start."""
        return len(self._state.alive()) + len(self._state.extras) < self._state.config.max_containers

    def is_left_for(self, agent: str) -> bool:
        """Return whether the agent's own limit allows one more."""
        cap = self._state.specs.max_containers(agent)
        return cap is None or sum(slot.session.key.agent == agent for slot in self._state.alive()) < cap

    async def make(self, agent: str | None = None) -> None:
        """Stop the container that has been idle longest, else one that is overdue: the cap is reached and a session waits.

        With `agent`, that agent's own cap is reached, and only its containers are considered.
        """
        alive = [slot for slot in self._state.alive() if agent in {None, slot.session.key.agent}]
        # Wait for a container that is already stopping, unless it is overdue: it may never end.
        if any(slot.phase is Phase.STOPPING and not slot.overdue for slot in alive):
            return
        running = [slot for slot in alive if slot.phase is Phase.RUNNING]
        overdue: tuple[Slot, str] | None = None
        for slot in sorted(running, key=lambda item: item.session.last_activity):
            reason: str | None = None
            # Its files may be locked, and other sessions wait for this loop.
            with anyio.move_on_after(self._state.timings.look_s):
                reason = await self._state.keeper.why_it_may_go(slot.session)
            if reason == "idle":
                self._evict(slot, "evicted")
                return
            overdue = overdue or ((slot, reason) if reason is not None else None)
        if overdue is not None:
            self._evict(*overdue)

    def _evict(self, slot: Slot, reason: str) -> None:
        key = slot.session.key
        self._state.log.info("container_evicted", agent=key.agent, session=key.session, reason=reason)
        self._terminator.begin_end(key, reason, graceful=True, incarnation=slot.incarnation)
