"""Tells since when this daemon can try what it retries: since its start, or since the machine woke up."""

from __future__ import annotations

from typing import Final

from daemon.core.clock import Clock

_JUMP_MS: Final = 60_000  # far more than the wall clock is adjusted by in normal operation


class Awake:
    """Built at the start. A wall clock that leaves the monotonic one means sleep, or a clock that was set: time begins anew."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.now_ms()
        self._offset = self._behind()

    def since(self) -> int:
        """Return the instant, in epoch milliseconds."""
        offset = self._behind()
        if abs(offset - self._offset) > _JUMP_MS:  # set back, the start would lie in the future for as long
            self._since = self._clock.now_ms()
        self._offset = offset
        return self._since

    def _behind(self) -> float:
        return self._clock.now_ms() - self._clock.monotonic() * 1000
