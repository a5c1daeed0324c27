"""When which session has something to do next: a heap of instants, and the loop that sleeps until the first.

The wall clock may jump, so the loop never trusts a sleep longer than a few seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import anyio

from daemon.core.clock import Clock
from daemon.store.registry import SessionKey

_LONGEST_SLEEP_S = 5.0


class Schedule:
    """Remembers the earliest instant per session; whoever runs it is called for each whose time has come."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, SessionKey]] = []
        self._earliest: dict[SessionKey, int] = {}
        self._changed = anyio.Event()

    def __len__(self) -> int:
        return len(self._earliest)

    def at(self, key: SessionKey, when: int) -> None:
        """Look at the session at `when` (epoch ms) or earlier. A later instant than the known one changes nothing."""
        known = self._earliest.get(key)
        if known is not None and known <= when:
            return
        self._earliest[key] = when
        heapq.heappush(self._heap, (when, key))
        if self._heap[0][0] == when:
            self._changed.set()

    def now(self, key: SessionKey) -> None:
        """Look at the session at the next opportunity."""
        self.at(key, 0)

    def pop_due(self) -> list[SessionKey]:
        """Take out every session whose time has come."""
        now = self._clock.now_ms()
        due: list[SessionKey] = []
        while self._heap and self._heap[0][0] <= now:
            when, key = heapq.heappop(self._heap)
            if self._earliest.get(key) == when:
                del self._earliest[key]
                due.append(key)
        return due

    async def run(self, on_due: Callable[[SessionKey], None]) -> None:
        """Call `on_due` for each session when its time has come, until cancelled."""
        while True:
            for key in self.pop_due():
                on_due(key)
            wait = _LONGEST_SLEEP_S
            if self._heap:
                wait = min(wait, max(0.0, (self._heap[0][0] - self._clock.now_ms()) / 1000))
            self._changed = anyio.Event()
            with anyio.move_on_after(wait):
                await self._changed.wait()
