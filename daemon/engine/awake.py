"""Tells since when this daemon can try what it retries, and whether the wall clock may be wrong at the moment."""

from __future__ import annotations

from typing import Final

from daemon.core.clock import Clock

_JUMP_MS: Final = 60_000  # far more than the wall clock is adjusted by in normal operation
_DOUBT_S: Final = 300.0


class Awake:
    """Built at the start. A wall clock that leaves the monotonic one means sleep, or a clock that was set: time begins anew."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.now_ms()
        self._offset = self._behind()
        self._set_forward_at: float | None = None  # by the monotonic clock

    def since(self) -> int:
        """Return the instant, in epoch milliseconds: the start, or when the machine woke up."""
        offset = self._behind()
        if abs(offset - self._offset) > _JUMP_MS:  # set back, the start would lie in the future for as long
            self._since = self._clock.now_ms()
            self._set_forward_at = self._clock.monotonic() if offset > self._offset else None
        self._offset = offset
        return self._since

    def doubts(self) -> bool:
        """Return whether the wall clock was set forward a moment ago, and may be set right again.

        Until then nothing ends for good because its time is over. A machine that slept looks the same.
        """
        self.since()
        return self._set_forward_at is not None and self._clock.monotonic() - self._set_forward_at < _DOUBT_S

    def _behind(self) -> float:
        return self._clock.now_ms() - self._clock.monotonic() * 1000
