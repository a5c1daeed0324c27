"""Tells since when this daemon can try what it retries, and whether the wall clock may be wrong at the moment."""

from __future__ import annotations

from typing import Final

from daemon.core.clock import Clock

_JUMP_MS: Final = 60_000  # far more than the wall clock is adjusted by in normal operation
_DOUBT_S: Final = 300.0
# A machine that was off for longer than this may have come back with another time.
_OFF_MS: Final = 24 * 3_600_000


class Awake:
    """Built at the start. Compares the wall clock with the monotonic one, and both with the time that the machine slept.

    `used_at`: when an earlier daemon changed its files last (epoch milliseconds), if that is known. Where that is long ago and
    the machine has only just booted, its clock may not be set yet: a jump that nobody saw.
    """

    def __init__(self, clock: Clock, used_at: int | None = None) -> None:
        self._clock = clock
        self._since = clock.now_ms()
        self._ahead = self._ahead_ms()
        self._slept = clock.slept_s()
        self._set_forward_at: float | None = None  # by the monotonic clock
        booted = clock.monotonic() < _DOUBT_S
        if booted and used_at is not None and self._since - used_at > _OFF_MS:
            self._set_forward_at = clock.monotonic()

    def since(self) -> int:
        """Return the instant, in epoch milliseconds: the start, the end of a sleep, or when the clock was set."""
        moved, slept = self._moved()
        if abs(moved) > _JUMP_MS:  # set back, the start would lie in the future for as long
            self._since = self._clock.now_ms()
        if abs(moved - slept) > _JUMP_MS:
            self._set_forward_at = self._clock.monotonic() if moved > slept else None
        return self._since

    def doubts(self) -> bool:
        """Return whether the wall clock was set forward a moment ago, and may be set right again.

        Until then nothing ends for good because its time is over. A machine that only slept has the right time.
        """
        self.since()
        return self._set_forward_at is not None and self._clock.monotonic() - self._set_forward_at < _DOUBT_S

    def _moved(self) -> tuple[float, float]:
        """Return by how much the wall clock left the monotonic one since the last call, and how long a sleep was. Milliseconds."""
        ahead, slept = self._ahead_ms(), self._clock.slept_s()
        moved = ahead - self._ahead, (slept - self._slept) * 1000
        self._ahead, self._slept = ahead, slept
        return moved

    def _ahead_ms(self) -> float:
        return self._clock.now_ms() - self._clock.monotonic() * 1000
