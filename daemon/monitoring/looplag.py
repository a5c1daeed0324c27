"""Measures how late the event loop runs its timers, which shows whether something blocks it.

It keeps the last measurements and decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from daemon.core.clock import Clock

INTERVAL_S: Final = 1.0
_REMEMBERED: Final = 30  # measurements


class LoopLag:
    """Measures in a task. Times are in seconds. `observe` is called with each measurement."""

    def __init__(self, clock: Clock, observe: Callable[[float], None], interval_s: float = INTERVAL_S) -> None:
        self._clock = clock
        self._observe = observe
        self._interval_s = interval_s
        self._due: float | None = None
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._due = self._clock.monotonic() + self._interval_s
            await anyio.sleep(self._interval_s)
            self.measure()

    def measure(self) -> None:
        """Record how late it is now."""
        lag = self.now()
        self._recent.append(lag)
        self._observe(lag)

    def now(self) -> float:
        """Return how late the next measurement is already; 0 while it is not due."""
        return 0.0 if self._due is None else max(0.0, self._clock.monotonic() - self._due)

    def worst(self) -> float:
        """Return the worst lag of the last half minute, including now."""
        return max((self.now(), *self._recent))
