"""Limits how many of a session's requests are logged: a burst, then one per second. Pure."""

from __future__ import annotations

from typing import Final

_BURST: Final = 60.0
_PER_S: Final = 1.0


class LineBudget:
    """One session's. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._left = _BURST
        self._seen: float | None = None
        self._unlogged = 0

    def take(self, now: float) -> int | None:
        """Return how many requests were not shown before this one; None if this one may not be shown either."""
        if self._seen is not None:
            self._left = min(_BURST, self._left + (now - self._seen) * _PER_S)
        self._seen = now
        if self._left < 1:
            self._unlogged += 1
            return None
        self._left -= 1
        hidden, self._unlogged = self._unlogged, 0
        return hidden
