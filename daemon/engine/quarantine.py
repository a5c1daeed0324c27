"""Puts a session in quarantine: at once in memory, then in central.db. Its container is killed, its messages are kept."""

from __future__ import annotations

from functools import partial

import structlog

from daemon.core.clock import Clock
from daemon.core.events import SessionQuarantined
from daemon.engine.background import Background
from daemon.engine.events import Events
from daemon.engine.session import Session
from daemon.engine.sessions import Sessions
from daemon.engine.supervisor.supervisor import Supervisor
from schema.errors import ClawbusError


class Quarantine:
    """Begins quarantines. Only an operator's release ends one."""

    def __init__(
        self, sessions: Sessions, supervisor: Supervisor, events: Events, background: Background, clock: Clock
    ) -> None:
        self._sessions = sessions
        self._supervisor = supervisor
        self._events = events
        self._background = background
        self._clock = clock
        self._log = structlog.get_logger("quarantine")

    def begin(self, session: Session, reason: str) -> None:
        """Take the session out of service at once. Record that, and end its container, in the background."""
        session.quarantined = reason
        self._background.later(partial(self._record, session, reason))

    async def _record(self, session: Session, reason: str) -> None:
        key, now = session.key, self._clock.now_ms()
        self._events.publish(SessionQuarantined(now, key.agent, key.session, reason))
        try:
            await self._sessions.central(lambda registry: registry.quarantine(key, reason, now))
        except ClawbusError as error:
            self._log.error("quarantine_not_recorded", error=str(error), hint=error.hint)
        self._supervisor.begin_end(key, "quarantine", graceful=False)
