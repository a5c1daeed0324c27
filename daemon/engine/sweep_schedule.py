"""The next time at which each session has work: a heap of times, and the loop that sleeps until the earliest.

The wall clock may jump, so the loop never sleeps longer than a few seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import anyio

from daemon.core.clock import Clock
from daemon.core.session_key import SessionKey

_LONGEST_SLEEP_S = 5.0
_SPARE = 64  # times that do not count any more, which the heap may hold


class Schedule:
    """Stores the earliest due time of each session. `run` calls back for each session that is due."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, SessionKey]] = []
        self._earliest: dict[SessionKey, int] = {}
        self._changed = anyio.Event()

    def __len__(self) -> int:
        return len(self._earliest)

    def at(self, key: SessionKey, when: int) -> None:
        """Schedule the session for `when` (epoch milliseconds) or earlier. A later time than the known one has no effect."""
        known = self._earliest.get(key)
        if known is not None and known <= when:
            return
        self._earliest[key] = when
        heapq.heappush(self._heap, (when, key))
        if len(self._heap) > 2 * len(self._earliest) + _SPARE:
            # A session with a far time adds it anew after each nearer one.
            self._heap = [(due, one) for one, due in self._earliest.items()]
            heapq.heapify(self._heap)
        if self._heap[0][0] == when:
            self._changed.set()

    def now(self, key: SessionKey) -> None:
        """Schedule the session for as soon as possible."""
        self.at(key, 0)

    def pop_due(self) -> list[SessionKey]:
        """Remove and return every session that is due."""
        now = self._clock.now_ms()
        due: list[SessionKey] = []
        while self._heap and self._heap[0][0] <= now:
            when, key = heapq.heappop(self._heap)
            if self._earliest.get(key) == when:
                del self._earliest[key]
                due.append(key)
        return due

    async def run(self, on_due: Callable[[SessionKey], None]) -> None:
        """Call `on_due` for each session when it is due, until cancelled."""
        while True:
            for key in self.pop_due():
                on_due(key)
            wait = _LONGEST_SLEEP_S
            if self._heap:
                wait = min(wait, max(0.0, (self._heap[0][0] - self._clock.now_ms()) / 1000))
            self._changed = anyio.Event()
            with anyio.move_on_after(wait):
                await self._changed.wait()
