"""Bounds how many bytes of files a channel holds in memory for its sends: one agent's answers must not use up the daemon's memory.

A send of many megabytes takes several times that while it is encoded and on its way, and a receiver that hangs keeps it there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import anyio

from daemon.core.errors import TransientDeliveryError


class FileRoom:
    """Room for `most` bytes of files. One receiver gets at most half of it, and its sends come in the order of arrival.

    The last quarter is kept for receivers that hold nothing, so that one that hangs cannot block the others. Such a receiver
    always gets room for one send, whatever its size, while three quarters or less are in use. A send that waits longer than
    `wait_s` seconds is tried again later: it has not begun, so it is not in doubt.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        self._most = most
        self._wait_s = wait_s
        self._used: Counter[str] = Counter()
        self._turns: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._freed = anyio.Event()

    @asynccontextmanager
    async def hold(self, receiver: str, size: int) -> AsyncGenerator[None]:
        """Keep room for files of this size while the block runs. Raise TransientDeliveryError."""
        turn = self._turns.setdefault(receiver, anyio.Lock())
        with anyio.move_on_after(self._wait_s) as waiting:
            async with turn:
                while not self._fits(receiver, size):
                    await self._freed.wait()
                self._used[receiver] += size
        if waiting.cancelled_caught:
            raise TransientDeliveryError(
                f"other answers with files are on their way, {self._used.total()} bytes; this one waited for {self._wait_s:g} s.",
                retry_after_s=self._wait_s,
                paced=True,
            )
        try:
            yield
        finally:
            self._used[receiver] -= size
            if not self._used[receiver]:
                del self._used[receiver]
            self._freed.set()
            self._freed = anyio.Event()

    def _fits(self, receiver: str, size: int) -> bool:
        mine, used = self._used[receiver], self._used.total()
        if not mine:
            return used + min(size, self._most // 4) <= self._most
        return mine + size <= self._most // 2 and used + size <= self._most * 3 // 4
