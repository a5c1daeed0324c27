"""Time as a parameter: the daemon reads it here and nowhere else, so that a simulation can move it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one that humans set, one that only moves forward."""

    def now_ms(self) -> int:
        """Return the wall clock in epoch milliseconds. It may jump in both directions."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back, on Linux since the machine's boot. It stands still in a sleep."""
        ...

    def slept_s(self) -> float:
        """Return for how many seconds the machine has slept since its start."""
        ...


class SystemClock:
    """The machine's own."""

    def now_ms(self) -> int:
        """Return the wall clock's time in epoch milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary start."""
        return time.monotonic()

    def slept_s(self) -> float:
        """Return for how many seconds the machine has slept since its start (clock_gettime(2), CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
