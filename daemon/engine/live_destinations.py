"""Keeps the list of destinations right in sessions whose container already runs.

Before a start the list is written with what else a runner expects (`Specs.prepare`). From then on it changes when a route or an
agent's table does: it is written again at once, so the agent's next turn knows it, and its tools know it in mid-turn. What
may be written to never depends on this: that is decided when a message is handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import anyio
import structlog

from daemon.core.destinations import NamedPlace
from daemon.core.events import ContainerAdopted, Subscriptions
from daemon.core.session_key import SessionKey
from daemon.engine.background import Background
from daemon.engine.supervisor.supervisor import Supervisor
from daemon.store.session_files import SessionFiles
from schema.errors import ClawbusError

_PATIENCE_S: Final = 2.0  # seconds that a change of routes waits for slow sessions
_RETRY_S: Final = 5.0

Written = tuple[str, tuple[NamedPlace, ...]]  # the incarnation, and the list that was written for it


class LiveDestinations:
    """Built once, called in the event loop.

    `write` writes an agent's present list, in a worker thread, and returns the places that the session lost. They are
    remembered while the container and the daemon live, so that a row of a turn that knew them is refused as revoked.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        background: Background,
        places: Callable[[str], tuple[NamedPlace, ...]],
        write: Callable[[SessionKey, SessionFiles], frozenset[tuple[str, str]]],
    ) -> None:
        self._supervisor = supervisor
        self._background = background
        self._places = places
        self._write = write
        self._written: dict[SessionKey, Written] = {}
        self._under_way: set[SessionKey] = set()
        self._log = structlog.get_logger("destinations")

    def subscribe(self, events: Subscriptions) -> None:
        """Subscribe to containers that an earlier daemon started: the routes may have changed since."""
        events.subscribe(ContainerAdopted, self._adopted)

    def _adopted(self, event: ContainerAdopted) -> None:
        self._begin([SessionKey(event.agent, event.session)])

    async def bring_up_to_date(self) -> None:
        """Have the lists written that have changed, and return when they are, or after two seconds."""
        live = {session.key for session in self._supervisor.live_sessions()}
        self._written = {key: known for key, known in self._written.items() if key in live}
        done = self._begin(key for key in live if not self._is_right(key))
        with anyio.move_on_after(_PATIENCE_S):
            for one in done:
                await one.wait()

    def _begin(self, keys: Iterable[SessionKey]) -> list[anyio.Event]:
        """Begin to write these sessions' lists. Return an event for each, which is set once its list has been written."""
        done: list[anyio.Event] = []
        for key in keys:
            event = anyio.Event()
            if key not in self._under_way:  # a write under way writes the newest list anyway
                self._under_way.add(key)
                self._background.later(partial(self._renew, key, event))
                done.append(event)
        return done

    async def _renew(self, key: SessionKey, done: anyio.Event) -> None:
        try:
            while not self._is_right(key):
                if not await self._try(key):
                    await anyio.sleep(_RETRY_S)
        finally:
            self._under_way.discard(key)
            done.set()

    def _is_right(self, key: SessionKey) -> bool:
        """Return whether the session's container has the present list. True without a container: its start writes it."""
        slot = self._supervisor.slot(key)
        if slot is None or slot.exited.is_set() or slot.session.quarantined is not None:
            return True
        return self._written.get(key) == (slot.incarnation, self._places(key.agent))

    async def _try(self, key: SessionKey) -> bool:
        slot = self._supervisor.slot(key)
        if slot is None:
            return True
        session, written = slot.session, (slot.incarnation, self._places(key.agent))
        try:
            lost = await session.call(partial(self._write, key, session.files))
        except ClawbusError as error:
            self._log.warning(
                "destinations_not_written", agent=key.agent, session=key.session, code=error.code, error=str(error)
            )
            return False
        known = self._written.get(key)
        before = (
            session.lost_places if known is not None and known[0] == slot.incarnation else frozenset[tuple[str, str]]()
        )
        session.lost_places = before | lost
        self._written[key] = written
        return True
