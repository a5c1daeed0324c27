"""Publishes what agents write besides their answers, as it comes, for as long as somebody wants it.

The lines are in `out/.words` of each session. The file is polled, because its folder's kernel events would otherwise cost every
commit of every container an event more. Nothing is read while no one is watching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import anyio
import anyio.to_thread

from daemon.core.clock import Clock
from daemon.core.events import AgentWrote
from daemon.core.session_key import SessionKey
from daemon.engine.session import Session
from daemon.store.agent_words import AgentWords, NewWords
from schema.errors import StorageError
from schema.os_faults import typed_host_errors

POLL_S: Final = 0.5


class Progress:
    """Built once. `live` returns the sessions with a container, `wanted` whether somebody watches.

    A session that the last poll did not read may have old lines: its first read counts only those newer than the last poll.
    """

    def __init__(
        self,
        live: Callable[[], Iterable[Session]],
        wanted: Callable[[], bool],
        publish: Callable[[AgentWrote], None],
        clock: Clock,
        poll_s: float = POLL_S,
    ) -> None:
        self._live = live
        self._wanted = wanted
        self._publish = publish
        self._clock = clock
        self._poll_s = poll_s
        self._looked = clock.now_ms()  # the last poll, epoch milliseconds
        self._words: dict[SessionKey, NewWords] = {}

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.look()
            await anyio.sleep(self._poll_s)

    async def look(self) -> None:
        """Read once, and publish what is new."""
        now = self._clock.now_ms()
        since, self._looked = self._looked, now
        if not self._wanted():
            self._words.clear()
            return
        fresh: list[tuple[SessionKey, NewWords]] = []
        gone = set(self._words)  # these are read once more: the last lines come before the exit
        for session in self._live():
            gone.discard(session.key)
            if session.key not in self._words:
                self._words[session.key] = NewWords(session.files.folder)
                fresh.append((session.key, self._words[session.key]))
        known = [(key, words) for key, words in self._words.items() if (key, words) not in fresh]
        for key in gone:
            del self._words[key]
        try:
            with typed_host_errors("what agents write cannot be read"):
                found = await anyio.to_thread.run_sync(_read, fresh, known, since, abandon_on_cancel=True)
        except StorageError:
            return  # the next poll reads it
        for key, one in found:
            self._publish(AgentWrote(now, key.agent, key.session, one.messages, one.kind, one.text))


def _read(
    fresh: list[tuple[SessionKey, NewWords]], known: list[tuple[SessionKey, NewWords]], since: int
) -> list[tuple[SessionKey, AgentWords]]:
    """Return the new lines of all sessions."""
    first = [(key, one) for key, words in fresh for one in words.read() if one.at is not None and one.at >= since]
    return first + [(key, one) for key, words in known for one in words.read()]
