"""Whether the runner has been asked to stop, and how long the current turn may still run. Knows no files and no provider."""

from __future__ import annotations

from typing import Final

import anyio
from anyio.lowlevel import checkpoint

_SIGNAL_STEPS: Final = 10


class Stopping:
    """The stop request of one runner. `grace_s`: the seconds that the current turn has from the request on."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self._requested = anyio.Event()
        self._grace_ends_at = float("inf")

    @property
    def requested(self) -> bool:
        """Whether a stop has been requested."""
        return self._requested.is_set()

    def request(self) -> None:
        """Start the grace. Calling it again has no effect."""
        if not self.requested:
            self._grace_ends_at = anyio.current_time() + self.grace_s
            self._requested.set()

    def grace_is_over(self) -> bool:
        """Return whether a stop was requested at least `grace_s` seconds ago."""
        return anyio.current_time() >= self._grace_ends_at

    async def wait_for_grace_end(self) -> None:
        """Wait for a stop request, then until its grace is over."""
        await self._requested.wait()
        await anyio.sleep_until(self._grace_ends_at)

    async def has_pending_request(self) -> bool:
        """Return whether a stop was requested, including by a signal that the event loop has not handled yet.

        A container that is stopped while it is frozen thaws with its signal pending.
        """
        for _ in range(_SIGNAL_STEPS):
            if self.requested:
                break
            await checkpoint()
        return self.requested
