"""Limits the processor time of one session's polls: a share of one core, with a small credit. Pure.

A container decides what its file looks like and how often it rings, and no limit of a container bounds what the host
spends on that. What a poll of an ordinary file costs is free, and so is the work on each row that it brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SHARE: Final = 0.05  # the share of one core that a session's polls may use
BURST_S: Final = 1.0  # seconds of processor time that a session may run ahead of its share
_FREE_S: Final = 0.01
_FREE_PER_ROW_S: Final = 0.002


@dataclass(slots=True)
class PollBudget:
    """One session's budget. Times are monotonic seconds."""

    credit: float = BURST_S
    at: float | None = None

    def charge(self, now: float, cpu_s: float, rows: int) -> float:
        """Charge a poll's processor time, less an allowance for the rows that it brought. Return the charge in seconds."""
        self._refill(now)
        taken = max(0.0, cpu_s - _FREE_S - rows * _FREE_PER_ROW_S)
        self.credit -= taken
        return taken

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next poll may begin."""
        self._refill(now)
        return max(0.0, -self.credit / SHARE)

    def _refill(self, now: float) -> None:
        if self.at is not None and now > self.at:
            self.credit = min(BURST_S, self.credit + (now - self.at) * SHARE)
        self.at = now
