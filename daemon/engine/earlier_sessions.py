"""Finds the session that took an event before somebody began its conversation anew with /new.

Platforms hand an event in again when its first answer was lost, minutes later. In the new session it would be worked on twice.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

from daemon.core.clock import Clock
from daemon.core.session_key import SessionKey
from daemon.core.user_commands import generation_name
from daemon.engine.replies import is_known
from daemon.engine.sessions import Sessions
from daemon.store.conversations import Generation
from schema.errors import ClawbusError

_REPEATED_MS: Final = 86_400_000  # how long after a new beginning an event of before may come again
_GENERATIONS: Final = 3  # in how many earlier sessions it is looked for


class EarlierSessions:
    """Built once, called in the event loop. Only reads."""

    def __init__(self, sessions: Sessions, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock

    async def that_took(self, agent: str, base: str, now_in: Generation, message_id: str) -> str | None:
        """Return the name of the earlier session that has this id, as a message or as an answer; None if none has."""
        if self._clock.now_ms() - now_in.begun_at > _REPEATED_MS:
            return None
        for number in range(now_in.number - 1, max(now_in.number - 1 - _GENERATIONS, 0), -1):
            name = generation_name(base, number)
            if await self._has_taken(SessionKey(agent, name), message_id):
                return name
        return None

    async def _has_taken(self, key: SessionKey, message_id: str) -> bool:
        with suppress(ClawbusError):  # an old session that cannot be read must not keep the new one from being used
            session = await self._sessions.look_up(key)
            if session is not None and session.quarantined is None:
                return await session.call(partial(is_known, session.files, message_id))
        return False
