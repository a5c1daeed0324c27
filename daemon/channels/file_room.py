"""Bounds how many bytes of files a channel holds in memory for its sends: one agent's answers must not use up the daemon's memory.

A send of many megabytes takes several times that while it is encoded and on its way, and a receiver that hangs keeps it there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from daemon.core.errors import TransientDeliveryError


class FileRoom:
    """Room for `most` bytes of files, given out in the order of arrival. One send alone always has room.

    A send that waits longer than `wait_s` seconds is tried again later: it has not begun, so it is not in doubt.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        self._most = most
        self._wait_s = wait_s
        self._used = 0
        self._turn = anyio.Lock()
        self._freed = anyio.Event()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncGenerator[None]:
        """Keep room for files of this size while the block runs. Raise TransientDeliveryError."""
        with anyio.move_on_after(self._wait_s) as waiting:
            async with self._turn:
                while self._used and self._used + size > self._most:
                    self._freed = anyio.Event()
                    await self._freed.wait()
                self._used += size
        if waiting.cancelled_caught:
            raise TransientDeliveryError(
                f"other answers with files are on their way, {self._used} bytes; this one waited for {self._wait_s:g} s.",
                retry_after_s=self._wait_s,
            )
        try:
            yield
        finally:
            self._used -= size
            self._freed.set()
